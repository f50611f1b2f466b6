//! Handlers: what a task does, from the typed `async fn` to what the worker keeps and calls.
//!
//! A handler is an `async fn`, or a closure that returns a future; a function that blocks its thread will do too,
//! registered as such. [`Binding`] binds one to a [`TaskDef`]; [`WorkerBuilder::task`](crate::WorkerBuilder::task) and
//! [`task_blocking`](crate::WorkerBuilder::task_blocking) do it for you.
//!
//! ```
//! use machinist_core::{State, TaskContext, TaskDef, TaskError, handler::Binding};
//!
//! #[derive(Clone)]
//! struct Rates(f64);
//!
//! const CONVERT: TaskDef<(i64, String), f64> = TaskDef::new("convert");
//!
//! async fn convert(State(rates): State<Rates>, cents: i64, cx: TaskContext, to: String) -> Result<f64, TaskError> {
//!     cx.log(format!("attempt {} to {to}", cx.attempt()));
//!     Ok(cents as f64 * rates.0)
//! }
//!
//! Binding::new(CONVERT, convert);
//! ```
//!
//! # Parameters
//!
//! Up to ten, in any order. Those that travel are the task's arguments, in their order; the others come from the
//! worker and are not counted among them:
//!
//! | parameter | what it gets |
//! |---|---|
//! | `bool`, integers, floats, `String`, `Vec` and `Option` of these, `serde_json::Value` | the next argument |
//! | [`Json<T>`](crate::Json) | the next argument, as any serde type |
//! | [`Rest<T>`](crate::Rest) | all arguments that are left |
//! | [`TaskContext`] | the run: id, attempt, fencing token, cancellation, log |
//! | [`State<T>`](crate::State) | a shared value of the worker |
//! | your own type | by [`FromContext`](crate::extract::FromContext) or [`WireArg`](crate::args::WireArg) |
//!
//! Values are moved in, not copied. References cannot be parameters, because the run outlives the delivery's
//! buffer: take `String` instead of `&str`, `Vec<T>` instead of `&[T]`. The future must be `Send`, because it may
//! go on on another thread: no `Rc`, no lock guard of `std` across an `.await`. The compiler says so at the place
//! where the handler is bound.
//!
//! Arguments are read liberally: 3 for a float, 3.0 for an integer, `null` for an empty list, nothing at all for an
//! `Option` at the end. What does not fit ends the task in FAILURE/malformed, with a sentence that names the
//! argument; so do missing arguments and those that no parameter takes.
//!
//! # Results and errors
//!
//! A handler returns `Result<R, E>`. `R` is what the task definition declares: `()`, one value, or a tuple, each
//! element of which is one result. `E` is [`TaskError`] or any error that turns into one: all that implement
//! `std::error::Error + Send + Sync`, `anyhow::Error`, a `String`.
//!
//! | the handler says | what follows |
//! |---|---|
//! | `Ok(value)` | SUCCESS |
//! | any error, by `?`; [`TaskError::new`] | a failed attempt: again as the retry policy says, else FAILURE/error |
//! | [`TaskError::retry_in`] | again after that while; spends no retry, but a postponement |
//! | [`TaskError::permanent`] | FAILURE/error, now |
//! | [`TaskError::malformed`] | FAILURE/malformed, now |
//! | it panics | a failed attempt: again as the retry policy says, else FAILURE/panic |
//!
//! # Functions that block
//!
//! ```
//! use machinist_core::{TaskDef, handler::Binding};
//!
//! const COUNT_LINES: TaskDef<String, u64> = TaskDef::new("count_lines");
//!
//! fn count_lines(path: String) -> std::io::Result<u64> {
//!     Ok(std::fs::read_to_string(path)?.lines().count() as u64)
//! }
//!
//! Binding::blocking(COUNT_LINES, count_lines);
//! ```

mod function;

use std::{fmt, future::Future, pin::Pin, sync::Arc};

use crate::{
    args::{Arg, IntoResults, Results},
    context::TaskContext,
    error::TaskError,
    extract::{Incoming, Requirement},
    task::TaskDef,
};

pub use function::{Flatten, Function, HandlerCall, HandlerResult, Parameters, Returns, Takes};

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
    F::Output: HandlerCall + Send + 'static,
    <F::Output as HandlerCall>::HandlerResult: HandlerResult,
    <<F::Output as HandlerCall>::HandlerResult as HandlerResult>::Value: Returns<R>,
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
    F::Output: HandlerResult,
    <F::Output as HandlerResult>::Value: Returns<R>,
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
    O: HandlerResult,
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

#[cfg(test)]
mod tests;
