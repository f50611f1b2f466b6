//! Code around every task: logging, metrics, rate limits, authorisation.
//!
//! A middleware sees the context and the arguments on the way in and the outcome on the way out, and decides
//! whether to call what is inside it. The order is the order of registration; the first is outermost.

use std::{collections::BTreeMap, fmt, sync::Arc};

use async_trait::async_trait;

use crate::{
    args::{Arg, Results},
    context::TaskContext,
    error::TaskError,
    handler::{DynHandler, HandlerFuture},
    id::TaskId,
};

/// Something around the handlers of a worker.
///
/// # Examples
/// ```
/// use machinist_core::{Arg, Middleware, Next, Results, TaskContext, TaskError};
///
/// /// Leaves a line in the record of every task that took an odd attempt.
/// struct Odd;
///
/// #[async_trait::async_trait]
/// impl Middleware for Odd {
///     async fn call(&self, cx: TaskContext, args: Vec<Arg>, next: Next) -> Result<Results, TaskError> {
///         let odd = cx.attempt() % 2 == 1;
///         let outcome = next.run(cx.clone(), args).await;
///         if odd {
///             cx.log("an odd attempt");
///         }
///         outcome
///     }
/// }
/// ```
#[async_trait]
pub trait Middleware: Send + Sync + 'static {
    /// Runs around one run of a task. What it returns is the outcome.
    ///
    /// # Errors
    /// Whatever the run should fail of.
    ///
    /// # Cancel safety
    /// Dropped in the middle when the run is cut off.
    async fn call(&self, cx: TaskContext, args: Vec<Arg>, next: Next) -> Result<Results, TaskError>;
}

/// The rest of a call: the next middleware, or the handler.
#[derive(Clone)]
pub struct Next {
    rest: Arc<[Arc<dyn Middleware>]>,
    at: usize,
    handler: Arc<dyn DynHandler>,
}

impl Next {
    pub(crate) fn outermost(rest: Arc<[Arc<dyn Middleware>]>, handler: Arc<dyn DynHandler>) -> Self {
        Self { rest, at: 0, handler }
    }

    /// Runs what is inside.
    ///
    /// # Cancel safety
    /// Dropped in the middle, the run ends there.
    pub fn run(mut self, cx: TaskContext, args: Vec<Arg>) -> HandlerFuture {
        match self.rest.get(self.at).cloned() {
            Some(middleware) => {
                self.at += 1;
                Box::pin(async move { middleware.call(cx, args, self).await })
            }
            None => self.handler.call(cx, args),
        }
    }
}

impl fmt::Debug for Next {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Next").field("inside", &(self.rest.len() - self.at)).finish_non_exhaustive()
    }
}

/// Hook that is called with every signature before it is sent, for example to add a tenant to its headers.
///
/// Hooks run in the order in which [`AppBuilder::on_publish`](crate::AppBuilder::on_publish) added them. A handler reads
/// the headers with [`TaskContext::headers`]. A panic is logged and counted: the signature is sent all the same, with the
/// headers as the hook has left them.
///
/// # Examples
/// ```
/// use machinist_core::{PublishHook, TaskId};
/// use std::collections::BTreeMap;
///
/// struct Tenant(String);
///
/// impl PublishHook for Tenant {
///     fn before_publish(&self, _: &TaskId, _: &str, headers: &mut BTreeMap<String, String>) {
///         headers.entry("tenant".to_owned()).or_insert_with(|| self.0.clone());
///     }
/// }
/// ```
pub trait PublishHook: Send + Sync + 'static {
    /// Reads the id and name of a signature, and may change its headers.
    fn before_publish(&self, id: &TaskId, name: &str, headers: &mut BTreeMap<String, String>);
}
