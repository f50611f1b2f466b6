//! Handlers: what a task does, from the typed `async fn` to what the worker keeps and calls.
//!
//! GUIDE

mod function;

use std::{fmt, future::Future, pin::Pin, sync::Arc};

use crate::{
    args::{Arg, IntoResults, Results},
    context::TaskContext,
    error::TaskError,
    extract::{Incoming, Requirement},
    task::TaskDef,
};

pub use function::{Flatten, Function, Outcome, Parameters, Returns, Takes};

/// What a handler returns when it is called: a future of its outcome.
pub type HandlerFuture = Pin<Box<dyn Future<Output = Result<Results, TaskError>> + Send + 'static>>;

/// A handler whose arguments are not known to the compiler: command tasks, bridges to other languages.
///
/// Implemented for every function of a context and arguments; typed handlers are turned into it when they are
/// registered.
pub trait DynHandler: Send + Sync + 'static {
    /// Runs the task once.
    fn call(&self, cx: TaskContext, args: Vec<Arg>) -> HandlerFuture;

    /// Whether dropping the future ends the run. Not so for a function on the blocking pool: it runs on, and
    /// its task must not be handed to anybody else meanwhile.
    fn stops_when_dropped(&self) -> bool {
        true
    }
}

impl<F, Fut> DynHandler for F
where
    F: Fn(TaskContext, Vec<Arg>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Results, TaskError>> + Send + 'static,
{
    fn call(&self, cx: TaskContext, args: Vec<Arg>) -> HandlerFuture {
        Box::pin(self(cx, args))
    }
}

impl fmt::Debug for dyn DynHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("handler")
    }
}

/// A handler that runs on when its future is dropped.
struct Unstoppable<F>(F);

impl<F: DynHandler> DynHandler for Unstoppable<F> {
    fn call(&self, cx: TaskContext, args: Vec<Arg>) -> HandlerFuture {
        self.0.call(cx, args)
    }

    fn stops_when_dropped(&self) -> bool {
        false
    }
}

/// An `async fn` that fits the task definition `TaskDef<A, R>`. Never implemented by hand; `Via` is found by the
/// compiler.
pub trait Handler<Via, A, R>: Sized {
    /// The handler without its types.
    fn erase(self) -> Arc<dyn DynHandler>;

    /// The shared values without which it cannot run.
    fn requires() -> Vec<Requirement>;
}

impl<F, P, Via, A, R> Handler<(P, Via), A, R> for F
where
    F: Function<P>,
    P: Parameters<Via>,
    P::Args: Takes<A>,
    F::Output: Future + Send + 'static,
    <F::Output as Future>::Output: Outcome,
    <<F::Output as Future>::Output as Outcome>::Value: Returns<R>,
    R: IntoResults,
{
    fn erase(self) -> Arc<dyn DynHandler> {
        let function = Arc::new(self);
        Arc::new(move |cx: TaskContext, args: Vec<Arg>| {
            let function = Arc::clone(&function);
            async move {
                let parameters = P::take(&cx, Incoming::new(args))?;
                drop(cx);
                let outcome = function.call(parameters).await;
                written(outcome)
            }
        })
    }

    fn requires() -> Vec<Requirement> {
        P::requires()
    }
}

/// A function that blocks its thread and fits the task definition `TaskDef<A, R>`. Never implemented by hand; `Via`
/// is found by the compiler.
pub trait BlockingHandler<Via, A, R>: Sized {
    /// The handler without its types; it runs on tokio's pool of blocking threads.
    fn erase_blocking(self) -> Arc<dyn DynHandler>;

    /// The shared values without which it cannot run.
    fn requires() -> Vec<Requirement>;
}

impl<F, P, Via, A, R> BlockingHandler<(P, Via), A, R> for F
where
    F: Function<P>,
    P: Parameters<Via>,
    P::Args: Takes<A>,
    F::Output: Outcome,
    <F::Output as Outcome>::Value: Returns<R>,
    R: IntoResults,
{
    fn erase_blocking(self) -> Arc<dyn DynHandler> {
        let function = Arc::new(self);
        Arc::new(Unstoppable(move |cx: TaskContext, args: Vec<Arg>| {
            let function = Arc::clone(&function);
            async move {
                let parameters = P::take(&cx, Incoming::new(args))?;
                drop(cx);
                let span = tracing::Span::current();
                let run = move || span.in_scope(|| written(function.call(parameters)));
                match tokio::task::spawn_blocking(run).await {
                    Ok(outcome) => outcome,
                    // A panic of the handler goes on here, so that the worker meets it as with any other handler.
                    Err(error) => match error.try_into_panic() {
                        Ok(panic) => std::panic::resume_unwind(panic),
                        Err(error) => Err(TaskError::new(error)),
                    },
                }
            }
        }))
    }

    fn requires() -> Vec<Requirement> {
        P::requires()
    }
}

/// What the handler came to, in the form in which it is recorded. A value that cannot be written is no reason to
/// run the task again: it would come to the same, and what it did has been done.
fn written<O, R>(outcome: O) -> Result<Results, TaskError>
where
    O: Outcome,
    O::Value: Returns<R>,
    R: IntoResults,
{
    outcome.outcome()?.returned().into_results().map_err(TaskError::permanent)
}

/// A task and the handler that runs it here, without their types.
#[derive(Debug, Clone)]
pub struct Binding {
    /// The task's name, as its definition says it.
    pub name: &'static str,
    /// What runs it.
    pub handler: Arc<dyn DynHandler>,
    /// The shared values without which it cannot run.
    pub requires: Vec<Requirement>,
}

impl Binding {
    /// Binds an `async fn` to a task definition.
    pub fn new<A, R, Via, H>(def: TaskDef<A, R>, handler: H) -> Self
    where
        H: Handler<Via, A, R>,
    {
        Self { name: def.name(), handler: handler.erase(), requires: H::requires() }
    }

    /// Binds a function that blocks its thread to a task definition.
    ///
    /// It runs on tokio's pool of blocking threads. A blocking thread cannot be stopped: when the run is cancelled
    /// or out of time the worker no longer waits for it, and it goes on until it returns. A long one should look at
    /// [`TaskContext::cancellation`] now and then.
    pub fn blocking<A, R, Via, H>(def: TaskDef<A, R>, handler: H) -> Self
    where
        H: BlockingHandler<Via, A, R>,
    {
        Self { name: def.name(), handler: handler.erase_blocking(), requires: H::requires() }
    }
}
