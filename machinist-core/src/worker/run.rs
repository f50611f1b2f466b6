//! One call of a handler: middleware, timeouts, panic, cancellation.
//!
//! Everything that a handler does becomes an outcome; nothing that it does is an error of the worker.

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
    log_scope,
    middleware::Next,
    panics::PanicText,
    record::{EncodedResults, RunOutcome},
    trace::TraceContext,
};

/// Time that a cancelled handler has to end, before it is cut off or listed as stuck.
const CANCEL_GRACE: Duration = Duration::from_secs(5);

/// Time limits of a run.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Timeouts {
    /// Time after which the run is cancelled.
    pub(super) soft: Option<Duration>,
    /// Time after which the run is ended.
    pub(super) hard: Option<Duration>,
}

/// End of a call.
#[derive(Debug)]
pub(super) enum RunEnd {
    /// The handler has ended, or its time limit is over.
    Itself(RunOutcome),
    /// The handler was cut off and no longer runs.
    CutOff,
    /// The handler does not react and cannot be stopped: it continues without the worker.
    Unstoppable,
}

/// A call that has not been made yet.
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

/// A call in progress.
pub(super) struct RunningCall<'a> {
    running: RunningHandler,
    cx: TaskContext,
    timeouts: Timeouts,
    stoppable: bool,
    registered: &'a RegisteredRun,
    stages: &'a Stages,
}

type RunningHandler =
    Pin<Box<dyn Future<Output = Result<Result<Results, TaskError>, Box<dyn Any + Send>>> + Send>>;

impl<'a> Call<'a> {
    /// Prepares the call. The handler starts when the returned call is first awaited.
    pub(super) fn begin(self) -> RunningCall<'a> {
        let Self { next, cx, args, timeouts, stoppable, trace, registered, stages } = self;
        let (context, logged) = (cx.clone(), cx.clone());
        // The call itself is inside the future: a handler may panic before it returns its own.
        let running = AssertUnwindSafe(async move { next.run(context, args).await }).catch_unwind();
        let running = log_scope::scope(logged, running);
        RunningCall { running: Box::pin(trace.scope(running)), cx, timeouts, stoppable, registered, stages }
    }
}

impl RunningCall<'_> {
    /// Calls the handler. Returns its end if it does not have to wait for anything.
    pub(super) async fn at_once(&mut self) -> Option<RunEnd> {
        match poll_fn(|cx| Poll::Ready(self.running.as_mut().poll(cx))).await {
            Poll::Ready(ended) => Some(RunEnd::Itself(outcome(ended, false, self.timeouts))),
            Poll::Pending => None,
        }
    }

    /// Waits for the end of the handler, of any kind.
    pub(super) async fn run(self) -> RunEnd {
        let Self { mut running, cx, timeouts, stoppable, registered, stages } = self;
        let token = cx.cancellation();
        let soft_limit_reached = AtomicBool::new(false);
        let timed_out_hard = tokio::select! {
            biased;
            ended = &mut running => {
                return RunEnd::Itself(outcome(ended, soft_limit_reached.load(Ordering::Relaxed), timeouts));
            }
            () = cancel_at_soft_limit(timeouts.soft, token, &soft_limit_reached) => return RunEnd::CutOff,
            () = list_if_stuck(token, registered) => return RunEnd::CutOff,
            () = limit(timeouts.hard) => true,
            () = must_end(registered, stages, stoppable) => false,
            () = registered.cut_off().cancelled(), if stoppable => false,
        };
        if stoppable {
            return if timed_out_hard { RunEnd::Itself(timed_out(timeouts)) } else { RunEnd::CutOff };
        }
        if timed_out_hard {
            // A handler that cannot be stopped may still listen. An error now only means that it did.
            token.cancel();
            match after_cancellation(&mut running, stages).await {
                Some(Ok(Ok(results))) => {
                    return RunEnd::Itself(RunOutcome::Returned(EncodedResults::of(&results)));
                }
                Some(_) => return RunEnd::Itself(timed_out(timeouts)),
                None => {}
            }
        }
        run_on(running, registered.stuck());
        if timed_out_hard && !registered.cancel().is_cancelled() {
            RunEnd::Itself(timed_out(timeouts))
        } else {
            RunEnd::Unstoppable
        }
    }
}

/// Lists a run that cannot be stopped as stuck until it has ended by itself. Nothing waits for such a run.
fn run_on(running: RunningHandler, stuck: Stuck) {
    tokio::spawn(async move {
        drop(running.await);
        drop(stuck);
    });
}

/// Returns the outcome of a handler that has ended.
fn outcome(
    ended: Result<Result<Results, TaskError>, Box<dyn Any + Send>>,
    soft_limit_reached: bool,
    timeouts: Timeouts,
) -> RunOutcome {
    match (ended, timeouts.soft) {
        (Ok(Ok(results)), _) => RunOutcome::Returned(EncodedResults::of(&results)),
        (Ok(Err(error)), Some(soft)) if soft_limit_reached => RunOutcome::GaveUp(soft, error),
        (Ok(Err(error)), _) => RunOutcome::Failed(error),
        (Err(panic), _) => RunOutcome::Panicked(PanicText::of(panic.as_ref())),
    }
}

fn timed_out(timeouts: Timeouts) -> RunOutcome {
    RunOutcome::TimedOut(timeouts.hard.unwrap_or_default())
}

async fn limit(limit: Option<Duration>) {
    match limit {
        Some(limit) => tokio::time::sleep(limit).await,
        None => std::future::pending().await,
    }
}

/// Fires the token when the soft timeout is reached. Never completes.
async fn cancel_at_soft_limit(soft: Option<Duration>, token: &CancellationToken, reached: &AtomicBool) {
    limit(soft).await;
    if !token.is_cancelled() {
        reached.store(true, Ordering::Relaxed);
        token.cancel();
    }
    std::future::pending::<()>().await;
}

/// Lists a run that continues after its cancellation as stuck, for as long as it continues. Never completes.
async fn list_if_stuck(token: &CancellationToken, registered: &RegisteredRun) {
    token.cancelled().await;
    tokio::time::sleep(CANCEL_GRACE).await;
    let _listed = registered.stuck();
    std::future::pending::<()>().await;
}

/// Completes when the time that a handler has to end is over: [`CANCEL_GRACE`] after its cancellation, or when the worker
/// leaves.
///
/// A cut-off handler that cannot be stopped, and whose task no other worker has taken, is waited for. Handed back, its
/// task would run twice at the same time.
async fn must_end(registered: &RegisteredRun, stages: &Stages, stoppable: bool) {
    let grace_over = async {
        registered.cancel().cancelled().await;
        tokio::time::sleep(CANCEL_GRACE).await;
        if !stoppable && registered.cancel_reason() == Some(CancelReason::CutOff) {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = grace_over => {}
        () = stages.reached_leave() => {}
    }
}

async fn after_cancellation(
    running: &mut RunningHandler,
    stages: &Stages,
) -> Option<Result<Result<Results, TaskError>, Box<dyn Any + Send>>> {
    tokio::select! {
        ended = running => Some(ended),
        () = tokio::time::sleep(CANCEL_GRACE) => None,
        () = stages.reached_leave() => None,
    }
}
