//! Handlers: from the typed `async fn` of a task to the untyped function that the worker keeps and calls.
//!
//! A handler is an `async fn`, or a closure that returns a future. A function that blocks its thread can also be a
//! handler, if it is registered as such. [`Binding`] binds a handler to a [`TaskDef`];
//! [`WorkerBuilder::task`](crate::WorkerBuilder::task) and [`task_blocking`](crate::WorkerBuilder::task_blocking)
//! create the binding for you.
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
//! A handler has up to ten parameters, in any order. Those of [`WireArg`](crate::args::WireArg) types are the task's
//! arguments, in their order; the others come from the worker and are not counted as arguments:
//!
//! | parameter | value |
//! |---|---|
//! | `bool`, integers, floats, `String`, `Vec` and `Option` of these, `serde_json::Value` | the next argument |
//! | [`Json<T>`](crate::Json) | the next argument, as any serde type |
//! | [`Rest<T>`](crate::Rest) | all remaining arguments |
//! | [`TaskContext`] | the run: id, attempt, fencing token, cancellation, log |
//! | [`State<T>`](crate::State) | a shared value of the worker |
//! | your own type with `#[derive(machinist::WireArg)]` | the next argument, as serde writes it |
//! | your own type | from [`FromContext`](crate::extract::FromContext) or [`WireArg`](crate::args::WireArg) |
//!
//! Values are moved in, not copied. References cannot be parameters, because the run outlives the delivery's buffer:
//! take `String` instead of `&str`, `Vec<T>` instead of `&[T]`. The future must be `Send`, because it may continue on
//! another thread: no `Rc`, no lock guard of `std` across an `.await`. The compiler reports this where the handler is
//! bound.
//!
//! Arguments are read liberally: 3 for a float, 3.0 for an integer, `null` for an empty list, nothing at all for an
//! `Option` at the end. An argument that does not fit ends the task in FAILURE/malformed, with a message that names the
//! argument. Missing arguments and arguments without a parameter do the same.
//!
//! # Results and errors
//!
//! A handler returns `Result<R, E>`. `R` is declared by the task definition: `()`, one value, or a tuple, each element
//! of which is one result. A handler that returns [`Continue<R>`](crate::Continue) returns the value, or is replaced by a
//! workflow. `E` is [`TaskError`] or any error that converts into it: every `std::error::Error + Send +
//! Sync`, `anyhow::Error`, a `String`.
//!
//! | outcome of the handler | consequence |
//! |---|---|
//! | `Ok(value)` | SUCCESS |
//! | any error, by `?`; [`TaskError::new`] | a failed attempt: retried as the retry policy says, otherwise
//! FAILURE/error |
//! | [`TaskError::retry_in`] | run again after the given time; spends no retry, but a postponement |
//! | [`TaskError::permanent`] | FAILURE/error, now |
//! | [`TaskError::malformed`] | FAILURE/malformed, now |
//! | it panics | a failed attempt: retried as the retry policy says, otherwise FAILURE/panic |
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

mod batch;
mod function;

use std::{fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

use crate::{
    args::{Arg, ArgInfo, IntoResults, LastArg, Results, TaskShape},
    context::TaskContext,
    definition::DefinedOptions,
    error::TaskError,
    extract::{Incoming, Requirement},
    log_scope,
    panics::located,
    task::TaskDef,
};

pub use batch::BatchHandler;

// Plumbing of the bounds of [`Handler`]: the compiler names it, users do not.
#[doc(hidden)]
pub use function::{Flatten, Function, HandlerCall, HandlerResult, Parameters, Returns, Takes};

/// Refuses a parameter of a function with `#[task]` that is neither an argument nor an extractor.
#[doc(hidden)]
pub const fn argument_of_task<T: ArgumentOfTask>() {}

/// A parameter that `#[task]` takes for an argument. Never implemented by hand.
#[doc(hidden)]
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no argument of a task: derive `WireArg` for it, wrap it in `Json<{Self}>`, or mark the \
               parameter with `#[extract]` if the worker fills it",
    label = "neither an argument nor marked with `#[extract]`"
)]
pub trait ArgumentOfTask {}

#[diagnostic::do_not_recommend]
impl<T: LastArg> ArgumentOfTask for T {}

/// Future of a handler's outcome.
pub type HandlerFuture = Pin<Box<dyn Future<Output = Result<Results, TaskError>> + Send + 'static>>;

/// A handler whose argument types the compiler does not know: command tasks, bridges to other languages.
///
/// Implemented for every function of a context and arguments; typed handlers are converted to it when they are
/// registered.
pub trait DynHandler: Send + Sync + 'static {
    /// Runs the task once.
    fn call(&self, cx: TaskContext, args: Vec<Arg>) -> HandlerFuture;

    /// Returns `true` if dropping the future ends the run. That is not so for a function on the blocking pool: it
    /// continues, and its task must not be handed to another worker meanwhile.
    fn stops_when_dropped(&self) -> bool {
        true
    }

    /// Returns the arguments that it takes, for people; `None` if it takes any.
    fn arguments(&self) -> Option<Vec<ArgInfo>> {
        None
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

/// A handler that continues to run when its future is dropped.
struct Unstoppable<F>(F);

impl<F: DynHandler> DynHandler for Unstoppable<F> {
    fn call(&self, cx: TaskContext, args: Vec<Arg>) -> HandlerFuture {
        self.0.call(cx, args)
    }

    fn stops_when_dropped(&self) -> bool {
        false
    }
}

/// An `async fn` that fits the task definition `TaskDef<A, R>`. Never implemented by hand; the compiler infers `Via`.
pub trait Handler<Via, A, R>: Sized {
    /// Returns the handler without its types.
    fn erase(self) -> Arc<dyn DynHandler>;

    /// Returns the shared values that it requires.
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
                recorded(outcome)
            }
        })
    }

    fn requires() -> Vec<Requirement> {
        P::requires()
    }
}

/// A function that blocks its thread and fits the task definition `TaskDef<A, R>`. Never implemented by hand; the
/// compiler infers `Via`.
pub trait BlockingHandler<Via, A, R>: Sized {
    /// Returns the handler without its types; it runs on tokio's pool of blocking threads.
    fn erase_blocking(self) -> Arc<dyn DynHandler>;

    /// Returns the shared values that it requires.
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
                let span = tracing::Span::current();
                let run = move || {
                    log_scope::within(&cx, || {
                        span.in_scope(|| located(|| recorded(function.call(parameters))))
                    })
                };
                match tokio::task::spawn_blocking(run).await {
                    Ok(outcome) => outcome,
                    // The handler's panic resumes here, so that the worker sees it as it does for any other handler.
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

/// Converts a handler's outcome to its recorded form. A value that cannot be written is not a reason to run the task
/// again: the result would be the same, and the work has been done.
fn recorded<O, R>(outcome: O) -> Result<Results, TaskError>
where
    O: HandlerResult,
    O::Value: Returns<R>,
    R: IntoResults,
{
    outcome.outcome()?.recorded().map_err(TaskError::permanent)
}

/// A task and its local handler, without their types.
#[derive(Debug, Clone)]
pub struct Binding {
    /// Name of the task, from its definition.
    pub name: &'static str,
    /// Handler of the task.
    pub handler: Arc<dyn DynHandler>,
    /// Shared values that the handler requires.
    pub requires: Vec<Requirement>,
    /// Options of the definition.
    pub(crate) options: DefinedOptions,
    /// Types of the definition.
    pub(crate) shape: TaskShape,
    /// Maximum number of tasks in a call, if the handler takes many at once.
    pub(crate) batch: Option<usize>,
}

impl Binding {
    /// Binds an `async fn` to a task definition.
    pub fn new<A, R, Via, H>(def: TaskDef<A, R>, handler: H) -> Self
    where
        H: Handler<Via, A, R>,
    {
        Self {
            name: def.name(),
            handler: handler.erase(),
            requires: H::requires(),
            options: *def.options(),
            shape: def.shape(),
            batch: None,
        }
    }

    /// Binds an `async fn` that takes many tasks at once to a task definition: see
    /// [`WorkerBuilder::task_batch`](crate::WorkerBuilder::task_batch).
    pub fn batch<A, R, Via, H>(def: TaskDef<A, R>, max: usize, within: Duration, handler: H) -> Self
    where
        H: BatchHandler<Via, A, R>,
    {
        Self {
            name: def.name(),
            handler: handler.erase_batch(max, within),
            requires: H::requires(),
            options: *def.options(),
            shape: def.shape(),
            batch: Some(max),
        }
    }

    /// Binds a function that blocks its thread to a task definition.
    ///
    /// It runs on tokio's pool of blocking threads. A blocking thread cannot be stopped: when the run is cancelled or
    /// reaches its timeout, the worker no longer waits for it, but the function continues until it returns. A long
    /// function should check [`TaskContext::cancellation`] regularly.
    pub fn blocking<A, R, Via, H>(def: TaskDef<A, R>, handler: H) -> Self
    where
        H: BlockingHandler<Via, A, R>,
    {
        Self {
            name: def.name(),
            handler: handler.erase_blocking(),
            requires: H::requires(),
            options: *def.options(),
            shape: def.shape(),
            batch: None,
        }
    }
}

#[cfg(test)]
mod tests;
