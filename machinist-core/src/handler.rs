//! Handlers without their types: what the worker keeps and calls.
//!
//! A typed `async fn` ends here; from here on the worker has no type parameter.

use std::{fmt, future::Future, pin::Pin, sync::Arc};

use crate::{
    args::{Arg, Results},
    context::TaskContext,
    error::TaskError,
};

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

/// A shared handler.
pub(crate) type SharedHandler = Arc<dyn DynHandler>;
