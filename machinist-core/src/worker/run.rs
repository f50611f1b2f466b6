//! One call of a handler: middleware, time limit, panic, cancellation.
//!
//! Whatever a handler does becomes an outcome; nothing it does is an error of the worker.

use std::{any::Any, panic::AssertUnwindSafe, time::Duration};

use futures_util::FutureExt;
use tokio_util::sync::CancellationToken;

use super::Stages;
use crate::{args::Arg, context::TaskContext, middleware::Next, record::Outcome};

/// How long a handler that was told to end may take, before it is cut off.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// How a call ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// The handler has ended.
    Itself(Outcome),
    /// It was cut off and does not run any more.
    CutOff,
    /// It does not react and cannot be stopped: it runs on without us.
    Unstoppable,
}

/// Calls a handler and waits for its end, however it ends.
pub(super) async fn call(
    next: Next,
    cx: TaskContext,
    args: Vec<Arg>,
    limit: Option<Duration>,
    stoppable: bool,
    stages: &Stages,
) -> Ended {
    let cancel = cx.cancellation().clone();
    // The call itself is inside: a handler may panic before it returns its future.
    let running = AssertUnwindSafe(async move { next.run(cx, args).await }).catch_unwind();
    let limited = async {
        match limit {
            Some(limit) => tokio::time::timeout(limit, running).await.map_err(|_| limit),
            None => Ok(running.await),
        }
    };
    tokio::select! {
        ended = limited => Ended::Itself(match ended {
            Ok(Ok(Ok(results))) => Outcome::Returned(results),
            Ok(Ok(Err(error))) => Outcome::Failed(error),
            Ok(Err(panic)) => Outcome::Panicked(panic_text(panic.as_ref())),
            Err(limit) => Outcome::TimedOut(limit),
        }),
        () = must_end(&cancel, stages) => if stoppable { Ended::CutOff } else { Ended::Unstoppable },
    }
}

/// Completes when a handler has had its time to end: some seconds after it was told to, or when all leave.
async fn must_end(cancel: &CancellationToken, stages: &Stages) {
    let told = async {
        cancel.cancelled().await;
        tokio::time::sleep(LAST_WORDS).await;
    };
    tokio::select! {
        () = told => {}
        () = stages.reached_leave() => {}
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without a message".to_owned())
}
