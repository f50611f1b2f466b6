//! Handlers that take many tasks of one name in one call: bulk inserts, one request for a hundred items.
//!
//! Each task of a batch is a run like any other, with its own record, retries, limits and acknowledgement. Only the call of
//! the handler is shared: the runs wait for each other in their slots, for a short time.

use std::{
    future::Future,
    marker::PhantomData,
    mem,
    panic::{AssertUnwindSafe, resume_unwind},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::FutureExt as _;
use tokio::sync::{Notify, oneshot};
use tokio_util::task::AbortOnDropHandle;

use super::{DynHandler, HandlerFuture, HandlerResult, Parameters, Returns, Takes, recorded};
use crate::{
    args::{Arg, IntoResults, Results},
    context::TaskContext,
    extract::{Incoming, Requirement},
    panics::PanicText,
    task_error::TaskError,
};

/// An `async fn` of a list of tasks that fits the task definition `TaskDef<A, R>`. Never implemented by hand; the compiler
/// infers `Via`.
///
/// Each element of the list is a tuple of the parameters that a handler of one task would have: the arguments, and
/// extractors such as [`TaskContext`]. The function returns one result for each element, in their order.
pub trait BatchHandler<Via, A, R>: Sized {
    /// Returns the handler without its types. A batch begins when it has `max` tasks, or `within` after its first one.
    fn erase_batch(self, max: usize, within: Duration) -> Arc<dyn DynHandler>;

    /// Returns the shared values that it requires.
    fn requires() -> Vec<Requirement>;
}

impl<F, P, Via, Fut, O, A, R> BatchHandler<(P, Via, Fut, O), A, R> for F
where
    F: Fn(Vec<P>) -> Fut + Send + Sync + 'static,
    P: Parameters<Via>,
    P::Args: Takes<A>,
    Via: 'static,
    Fut: Future<Output = Vec<O>> + Send + 'static,
    O: HandlerResult,
    O::Value: Returns<R>,
    R: IntoResults,
{
    fn erase_batch(self, max: usize, within: Duration) -> Arc<dyn DynHandler> {
        let function = Arc::new(self);
        let call: BatchCall<P> = Box::new(move |tasks| {
            let function = Arc::clone(&function);
            Box::pin(async move { function(tasks).await.into_iter().map(recorded).collect() })
        });
        let batches = Arc::new(Batches { max, within, call, open: Mutex::new(None) });
        Arc::new(BatchedTask { batches, via: PhantomData::<fn() -> Via> })
    }

    fn requires() -> Vec<Requirement> {
        P::requires()
    }
}

/// The function of a batch.
type BatchCall<P> = Box<
    dyn Fn(Vec<P>) -> Pin<Box<dyn Future<Output = Vec<Result<Results, TaskError>>> + Send>> + Send + Sync,
>;

/// End of the call for one of its tasks.
type BatchAnswer = Result<Result<Results, TaskError>, PanicText>;

/// Handler of one task that waits for others.
struct BatchedTask<P, Via> {
    batches: Arc<Batches<P>>,
    via: PhantomData<fn() -> Via>,
}

impl<P: Parameters<Via>, Via: 'static> DynHandler for BatchedTask<P, Via> {
    fn call(&self, cx: TaskContext, args: Vec<Arg>) -> HandlerFuture {
        let batches = Arc::clone(&self.batches);
        Box::pin(async move {
            let parameters = P::take(&cx, Incoming::new(args))?;
            drop(cx);
            let (answered, _running) = batches.join(parameters);
            match answered.await {
                Ok(Ok(outcome)) => outcome,
                // The panic of the batch resumes here, so that the worker sees it for each task.
                Ok(Err(panic)) => resume_unwind(Box::new(panic)),
                Err(_ended) => Err(TaskError::new("the runtime ended during the batch of the task")),
            }
        })
    }

    /// The call of a batch goes on for the others when the run of one task is dropped.
    fn stops_when_dropped(&self) -> bool {
        false
    }
}

/// Batches of one handler.
struct Batches<P> {
    max: usize,
    within: Duration,
    call: BatchCall<P>,
    /// The batch that takes tasks now.
    open: Mutex<Option<OpenBatch<P>>>,
}

/// A batch that takes tasks.
struct OpenBatch<P> {
    batch: Arc<Batch<P>>,
    /// Ends the batch when nobody waits for it any more.
    running: Arc<AbortOnDropHandle<()>>,
}

/// Tasks that are called together.
struct Batch<P> {
    tasks: Mutex<Vec<(P, oneshot::Sender<BatchAnswer>)>>,
    full: Notify,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<P: Send + 'static> Batches<P> {
    /// Adds a task to the batch that takes tasks now.
    fn join(self: &Arc<Self>, parameters: P) -> (oneshot::Receiver<BatchAnswer>, Arc<AbortOnDropHandle<()>>) {
        let (answer, answered) = oneshot::channel();
        let mut open = lock(&self.open);
        let OpenBatch { batch, running } = open.get_or_insert_with(|| self.begin());
        let mut tasks = lock(&batch.tasks);
        tasks.push((parameters, answer));
        let is_full = tasks.len() >= self.max;
        drop(tasks);
        let running = Arc::clone(running);
        if is_full {
            batch.full.notify_one();
            *open = None;
        }
        (answered, running)
    }

    fn begin(self: &Arc<Self>) -> OpenBatch<P> {
        let batch = Arc::new(Batch { tasks: Mutex::new(Vec::new()), full: Notify::new() });
        let (batches, own) = (Arc::clone(self), Arc::clone(&batch));
        let running = tokio::spawn(async move { batches.run(&own).await });
        OpenBatch { batch, running: Arc::new(AbortOnDropHandle::new(running)) }
    }

    /// Waits for the tasks of a batch, and calls the handler.
    async fn run(&self, batch: &Arc<Batch<P>>) {
        tokio::select! {
            () = tokio::time::sleep(self.within) => {}
            () = batch.full.notified() => {}
        }
        // The handle in it would end this very task: others hold it too, until they have their answers.
        let closed = lock(&self.open).take_if(|open| Arc::ptr_eq(&open.batch, batch));
        drop(closed);
        let tasks = mem::take(&mut *lock(&batch.tasks));
        // A run that was cut off meanwhile is not done for it.
        let (tasks, answers): (Vec<_>, Vec<_>) =
            tasks.into_iter().filter(|(_, answer)| !answer.is_closed()).unzip();
        if tasks.is_empty() {
            return;
        }
        let number = tasks.len();
        // The call itself is inside the future: a handler may panic before it returns its own.
        let called = AssertUnwindSafe(async { (self.call)(tasks).await }).catch_unwind().await;
        let outcomes: Vec<BatchAnswer> = match called {
            Ok(outcomes) if outcomes.len() == number => outcomes.into_iter().map(Ok).collect(),
            Ok(outcomes) => {
                let wrong = format!(
                    "the handler of the batch returned {} results for {number} tasks; it must return one for each",
                    outcomes.len()
                );
                (0..number).map(|_| Ok(Err(TaskError::new(wrong.clone())))).collect()
            }
            Err(panic) => {
                let text = PanicText::of(panic.as_ref());
                (0..number).map(|_| Err(text.clone())).collect()
            }
        };
        for (answer, outcome) in answers.into_iter().zip(outcomes) {
            // Its run may be over: it was revoked, or taken over.
            drop(answer.send(outcome));
        }
    }
}
