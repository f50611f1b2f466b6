//! One call of a handler: middleware, timeouts, panic, cancellation.
//!
//! Whatever a handler does becomes an outcome; nothing it does is an error of the worker.

use std::{
    any::Any,
    future::poll_fn,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::atomic::{AtomicBool, Ordering},
    task::Poll,
    time::Duration,
};

use futures_util::FutureExt;
use tokio_util::sync::CancellationToken;

use super::{
    Stages,
    session::{CancelReason, RegisteredRun, Stuck},
};
use crate::{
    args::{Arg, Results},
    context::TaskContext,
    error::TaskError,
    middleware::Next,
    record::Outcome,
    trace::TraceContext,
};

/// Time for a cancelled handler to end, before it is cut off or listed as stuck.
const CANCEL_GRACE: Duration = Duration::from_secs(5);

/// Timeouts of a run.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Timeouts {
    /// Time after which the handler is told to end.
    pub(super) soft: Option<Duration>,
    /// Time after which the run is ended.
    pub(super) hard: Option<Duration>,
}

/// End of a call.
#[derive(Debug)]
pub(super) enum RunEnd {
    /// The handler has ended, or its time is over.
    Itself(Outcome),
    /// It was cut off and does not run any more.
    CutOff,
    /// It does not react and cannot be stopped: it runs on without us.
    Unstoppable,
}

/// A call before it begins.
pub(super) struct Call<'a> {
    pub(super) next: Next,
    pub(super) cx: TaskContext,
    pub(super) args: Vec<Arg>,
    pub(super) timeouts: Timeouts,
    /// `true` if dropping the future ends the run.
    pub(super) stoppable: bool,
    pub(super) trace: TraceContext,
    pub(super) registered: &'a RegisteredRun,
    pub(super) stages: &'a Stages,
}

/// A call that was made.
pub(super) struct StartedCall<'a> {
    running: HandlerFuture,
    /// Tells the handler to end.
    token: CancellationToken,
    timeouts: Timeouts,
    stoppable: bool,
    registered: &'a RegisteredRun,
    stages: &'a Stages,
}

type HandlerFuture =
    Pin<Box<dyn Future<Output = Result<Result<Results, TaskError>, Box<dyn Any + Send>>> + Send>>;

impl<'a> Call<'a> {
    /// Prepares the call; the handler begins when its end is asked for.
    pub(super) fn begin(self) -> StartedCall<'a> {
        let Self { next, cx, args, timeouts, stoppable, trace, registered, stages } = self;
        let token = cx.cancellation().clone();
        // The call itself is inside: a handler may panic before it returns its future.
        let running = AssertUnwindSafe(async move { next.run(cx, args).await }).catch_unwind();
        StartedCall {
            running: Box::pin(trace.scope(running)),
            token,
            timeouts,
            stoppable,
            registered,
            stages,
        }
    }
}

impl StartedCall<'_> {
    /// Calls the handler: its end, if it has nothing to wait for.
    pub(super) async fn at_once(&mut self) -> Option<RunEnd> {
        match poll_fn(|cx| Poll::Ready(self.running.as_mut().poll(cx))).await {
            Poll::Ready(ended) => Some(RunEnd::Itself(outcome(ended, false, self.timeouts))),
            Poll::Pending => None,
        }
    }

    /// UnrecordedOutcome for the handler's end, however it ends.
    pub(super) async fn run(self) -> RunEnd {
        let Self { mut running, token, timeouts, stoppable, registered, stages } = self;
        let told = registered.cancel.clone();
        let noticed = AtomicBool::new(false);
        let over = tokio::select! {
            biased;
            ended = &mut running => return RunEnd::Itself(outcome(ended, noticed.load(Ordering::Relaxed), timeouts)),
            () = told_at_soft_limit(timeouts.soft, &token, &noticed) => return RunEnd::CutOff,
            () = list_if_stuck(&token, registered) => return RunEnd::CutOff,
            () = limit(timeouts.hard) => true,
            () = must_end(registered, stages, stoppable) => false,
            () = registered.cut_off.cancelled(), if stoppable => false,
        };
        if stoppable {
            return if over { RunEnd::Itself(timed_out(timeouts)) } else { RunEnd::CutOff };
        }
        if over {
            // What cannot be stopped may still listen. An error now says only that it did.
            token.cancel();
            match after_cancellation(&mut running, stages).await {
                Some(Ok(Ok(results))) => return RunEnd::Itself(Outcome::Returned(results)),
                Some(_) => return RunEnd::Itself(timed_out(timeouts)),
                None => {}
            }
        }
        run_on(running, registered.stuck());
        if over && !told.is_cancelled() { RunEnd::Itself(timed_out(timeouts)) } else { RunEnd::Unstoppable }
    }
}

/// Lists a run that cannot be stopped until it has ended by itself. Nobody waits for it: that is what it means.
fn run_on(running: HandlerFuture, stuck: Stuck) {
    tokio::spawn(async move {
        drop(running.await);
        drop(stuck);
    });
}

/// Returns the outcome of a handler that has ended.
fn outcome(
    ended: Result<Result<Results, TaskError>, Box<dyn Any + Send>>,
    noticed: bool,
    timeouts: Timeouts,
) -> Outcome {
    match (ended, timeouts.soft) {
        (Ok(Ok(results)), _) => Outcome::Returned(results),
        (Ok(Err(error)), Some(soft)) if noticed => Outcome::GaveUp(soft, error),
        (Ok(Err(error)), _) => Outcome::Failed(error),
        (Err(panic), _) => Outcome::Panicked(panic_text(panic.as_ref())),
    }
}

fn timed_out(timeouts: Timeouts) -> Outcome {
    Outcome::TimedOut(timeouts.hard.unwrap_or_default())
}

async fn limit(limit: Option<Duration>) {
    match limit {
        Some(limit) => tokio::time::sleep(limit).await,
        None => std::future::pending().await,
    }
}

/// Fires the token when the soft limit is reached. Never completes.
async fn told_at_soft_limit(soft: Option<Duration>, token: &CancellationToken, noticed: &AtomicBool) {
    limit(soft).await;
    if !token.is_cancelled() {
        noticed.store(true, Ordering::Relaxed);
        token.cancel();
    }
    std::future::pending::<()>().await;
}

/// Lists a run that goes on after it was told to end, for as long as it does. Never completes.
async fn list_if_stuck(token: &CancellationToken, registered: &RegisteredRun) {
    token.cancelled().await;
    tokio::time::sleep(CANCEL_GRACE).await;
    let _listed = registered.stuck();
    std::future::pending::<()>().await;
}

/// Completes when a handler has had its time to end: some seconds after it was told to, or when all leave.
///
/// A run that cannot be stopped and whose task no other worker has taken is waited for. Handed back, it would run twice at once.
async fn must_end(registered: &RegisteredRun, stages: &Stages, stoppable: bool) {
    let told = async {
        registered.cancel.cancelled().await;
        tokio::time::sleep(CANCEL_GRACE).await;
        if !stoppable && registered.why() == Some(CancelReason::CutOff) {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = told => {}
        () = stages.reached_leave() => {}
    }
}

async fn after_cancellation(
    running: &mut HandlerFuture,
    stages: &Stages,
) -> Option<Result<Result<Results, TaskError>, Box<dyn Any + Send>>> {
    tokio::select! {
        ended = running => Some(ended),
        () = tokio::time::sleep(CANCEL_GRACE) => None,
        () = stages.reached_leave() => None,
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without a message".to_owned())
}
