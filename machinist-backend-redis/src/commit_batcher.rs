//! Commits of many tasks in few round trips.
//!
//! redis-rs writes a command at once, and a system call for each command costs both sides more than the
//! command itself. So commits that arrive while others are in flight wait for those and then go together; one that
//! arrives alone goes at once. In a cluster nothing is batched: a node that does not answer would hold up the rest.

use std::{
    mem,
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use machinist_adapter::backend::{BackendError, Commit, Committed};
use tokio::{
    runtime::{Handle, Id},
    sync::{mpsc, oneshot},
};

use crate::{
    additions::Additions,
    batch,
    commit::KeyedCommit,
    error::{backend_error, no_answer},
    link::{MAX_COMMANDS_PER_BATCH, RedisLinks},
};

/// Maximum number of batches in flight. With one, a distant server would be idle most of the time; with
/// many, batches would stay small.
const MAX_BATCHES_IN_FLIGHT: usize = 2;

/// Approximate maximum size of a batch, in bytes, so that a few large commits cannot make every caller time out.
const MAX_BATCH_BYTES: usize = 1024 * 1024;

/// Batches commits: one queue for each runtime, as for connections.
pub(crate) struct CommitBatcher {
    links: Arc<RedisLinks>,
    queues: Mutex<Vec<(Id, mpsc::UnboundedSender<QueuedCommit>)>>,
}

struct QueuedCommit {
    keyed: KeyedCommit,
    caller: oneshot::Sender<Result<Committed, BackendError>>,
}

impl CommitBatcher {
    pub(crate) fn new(links: Arc<RedisLinks>) -> Self {
        Self { links, queues: Mutex::default() }
    }

    /// Makes one commit of the record under `key`, perhaps together with others.
    pub(crate) async fn commit(&self, key: String, commit: Arc<Commit>) -> Result<Committed, BackendError> {
        let (caller, told) = oneshot::channel();
        let gone = || no_answer("the task that writes records is gone");
        self.queue().send(QueuedCommit { keyed: KeyedCommit { key, commit }, caller }).map_err(|_| gone())?;
        told.await.map_err(|_| gone())?
    }

    /// The way to this runtime's task, which ends with the last of these.
    fn queue(&self) -> mpsc::UnboundedSender<QueuedCommit> {
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

async fn work(links: Arc<RedisLinks>, mut jobs: mpsc::UnboundedReceiver<QueuedCommit>) {
    let mut under_way = FuturesUnordered::new();
    let mut group = Vec::with_capacity(MAX_COMMANDS_PER_BATCH);
    loop {
        tokio::select! {
            count = jobs.recv_many(&mut group, MAX_COMMANDS_PER_BATCH), if under_way.len() < MAX_BATCHES_IN_FLIGHT => match count {
                0 => break,
                _ => under_way.push(make(&links, mem::replace(&mut group, Vec::with_capacity(MAX_COMMANDS_PER_BATCH)))),
            },
            Some(()) = under_way.next() => {}
        }
    }
    // Nobody can ask any more, and some still wait.
    while under_way.next().await.is_some() {}
}

/// Makes the commits of a group and tells each caller.
async fn make(links: &RedisLinks, mut jobs: Vec<QueuedCommit>) {
    // The caller was cancelled, so either outcome is acceptable.
    jobs.retain(|job| !job.caller.is_closed());
    while !jobs.is_empty() {
        let later = jobs.split_off(together(&jobs));
        let now = mem::replace(&mut jobs, later).into_iter().map(|job| (job.keyed, job.caller));
        let (commits, callers): (Vec<_>, Vec<_>) = now.unzip();
        let united = Additions::unite(commits);
        let made = match batch::make(links, &united.commits).await {
            Ok(made) => made,
            Err(error) => united.commits.iter().map(|_| Err(backend_error(&error))).collect(),
        };
        let outcomes = united.outcomes(&made);
        for (caller, outcome) in callers.into_iter().zip(outcomes) {
            if let Err(Err(error)) = caller.send(outcome) {
                tracing::debug!(%error, "a commit was not made, and who asked for it has stopped waiting");
            }
        }
    }
}

/// Returns the number of commits, from the first, that fit into one batch; at least one.
fn together(jobs: &[QueuedCommit]) -> usize {
    let mut bytes = 0;
    let fits = jobs.iter().take_while(|job| {
        bytes += size(&job.keyed.commit);
        bytes <= MAX_BATCH_BYTES
    });
    fits.count().max(1)
}

fn size(commit: &Commit) -> usize {
    commit.facts.iter().chain(&commit.equal_or_absent).map(|(name, value)| name.len() + value.len()).sum()
}

#[cfg(test)]
mod tests {
    use machinist_adapter::id::TaskId;

    use super::*;

    #[test]
    fn large_commits_travel_apart() {
        let job = |bytes: usize| {
            let mut commit = Commit::new(TaskId::fresh());
            commit.facts = vec![("end".into(), vec![b'x'; bytes].into())];
            QueuedCommit {
                keyed: KeyedCommit { key: "k".to_owned(), commit: commit.into() },
                caller: oneshot::channel().0,
            }
        };
        assert_eq!(together(&[job(10), job(10)]), 2);
        assert_eq!(together(&[job(10), job(MAX_BATCH_BYTES), job(10)]), 1);
        assert_eq!(together(&[job(2 * MAX_BATCH_BYTES), job(10)]), 1, "one that is larger goes alone");
    }
}
