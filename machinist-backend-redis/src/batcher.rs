//! Many requests in few round trips.
//!
//! redis-rs writes a command at once, and a system call for each command costs both sides more than the
//! command itself. So requests that arrive while others are in flight wait for those and then go together; one that
//! arrives alone goes at once. In a cluster nothing is batched: a node that does not answer would hold up the rest.

use std::{
    mem,
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use machinist_adapter::backend::BackendError;
use tokio::{
    runtime::{Handle, Id},
    sync::{mpsc, oneshot},
};

use crate::{
    error::no_answer,
    link::{MAX_COMMANDS_PER_BATCH, RedisLinks},
};

/// Maximum number of batches in flight. With one, a distant server would be idle most of the time; with
/// many, batches would stay small.
const MAX_BATCHES_IN_FLIGHT: usize = 2;

/// Approximate maximum size of a batch, in bytes, so that a few large requests cannot make every caller time out.
const MAX_BATCH_BYTES: usize = 1024 * 1024;

/// A request that can travel with others of its kind.
pub(crate) trait BatchRequest: Send + 'static {
    type Answer: Send + 'static;

    /// Returns the approximate number of bytes that it takes.
    fn size(&self) -> usize;

    /// Makes these requests. Returns an answer for each, in their order.
    fn make(
        links: &RedisLinks,
        requests: Vec<Self>,
    ) -> impl Future<Output = Vec<Result<Self::Answer, BackendError>>> + Send
    where
        Self: Sized;
}

/// Batches requests: one queue for each runtime, as for connections.
pub(crate) struct Batcher<R: BatchRequest> {
    links: Arc<RedisLinks>,
    queues: Mutex<Vec<(Id, mpsc::UnboundedSender<Queued<R>>)>>,
}

struct Queued<R: BatchRequest> {
    request: R,
    caller: oneshot::Sender<Result<R::Answer, BackendError>>,
}

impl<R: BatchRequest> Batcher<R> {
    pub(crate) fn new(links: Arc<RedisLinks>) -> Self {
        Self { links, queues: Mutex::default() }
    }

    /// Makes one request, perhaps together with others.
    pub(crate) async fn make(&self, request: R) -> Result<R::Answer, BackendError> {
        let (caller, told) = oneshot::channel();
        let gone = || no_answer("the task that sends batches is gone");
        self.queue().send(Queued { request, caller }).map_err(|_| gone())?;
        told.await.map_err(|_| gone())?
    }

    /// The way to this runtime's task, which ends with the last of these.
    fn queue(&self) -> mpsc::UnboundedSender<Queued<R>> {
        let runtime = Handle::current().id();
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, queue)) = queues.iter().find(|(id, queue)| *id == runtime && !queue.is_closed()) {
            return queue.clone();
        }
        // Those of runtimes that are gone.
        queues.retain(|(_, queue)| !queue.is_closed());
        let (queue, jobs) = mpsc::unbounded_channel();
        tokio::spawn(work(Arc::clone(&self.links), jobs));
        queues.push((runtime, queue.clone()));
        queue
    }
}

async fn work<R: BatchRequest>(links: Arc<RedisLinks>, mut jobs: mpsc::UnboundedReceiver<Queued<R>>) {
    let mut under_way = FuturesUnordered::new();
    let mut group = Vec::new();
    loop {
        tokio::select! {
            count = jobs.recv_many(&mut group, MAX_COMMANDS_PER_BATCH), if under_way.len() < MAX_BATCHES_IN_FLIGHT => match count {
                0 => break,
                _ => under_way.push(make(&links, mem::take(&mut group))),
            },
            Some(()) = under_way.next() => {}
        }
    }
    // Nobody can ask any more, and some still wait.
    while under_way.next().await.is_some() {}
}

/// Makes the requests of a group and tells each caller.
async fn make<R: BatchRequest>(links: &RedisLinks, mut jobs: Vec<Queued<R>>) {
    // The caller was cancelled, so either outcome is acceptable.
    jobs.retain(|job| !job.caller.is_closed());
    while !jobs.is_empty() {
        let later = jobs.split_off(together(&jobs));
        let now = mem::replace(&mut jobs, later).into_iter().map(|job| (job.request, job.caller));
        let (requests, callers): (Vec<_>, Vec<_>) = now.unzip();
        for (caller, answer) in callers.into_iter().zip(R::make(links, requests).await) {
            if let Err(Err(error)) = caller.send(answer) {
                tracing::debug!(%error, "a request was not made, and who asked for it has stopped waiting");
            }
        }
    }
}

/// Returns the number of requests, from the first, that fit into one batch; at least one.
fn together<R: BatchRequest>(jobs: &[Queued<R>]) -> usize {
    let mut bytes = 0;
    let fits = jobs.iter().take_while(|job| {
        bytes += job.request.size();
        bytes <= MAX_BATCH_BYTES
    });
    fits.count().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bytes(usize);

    impl BatchRequest for Bytes {
        type Answer = ();

        fn size(&self) -> usize {
            self.0
        }

        async fn make(_: &RedisLinks, requests: Vec<Self>) -> Vec<Result<(), BackendError>> {
            requests.iter().map(|_| Ok(())).collect()
        }
    }

    #[test]
    fn large_requests_travel_apart() {
        let job = |bytes: usize| Queued { request: Bytes(bytes), caller: oneshot::channel().0 };
        assert_eq!(together(&[job(10), job(10)]), 2);
        assert_eq!(together(&[job(10), job(MAX_BATCH_BYTES), job(10)]), 1);
        assert_eq!(together(&[job(2 * MAX_BATCH_BYTES), job(10)]), 1, "one that is larger goes alone");
    }
}
