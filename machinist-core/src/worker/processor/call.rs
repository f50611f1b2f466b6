//! The run: the handler under its timeouts, the outcome of its end, and the verdict.

use std::sync::{Arc, Mutex, OnceLock};

use tracing::Instrument;

use super::{ActiveDelivery, RegisteredTask, Settlement, Slot, TaskProcessor};
use crate::{
    consequence::Disposition,
    context::{HandlerCancellation, RunInfo, TaskContext},
    error::TaskError,
    log_scope,
    middleware::Next,
    record::{Claim, RunOutcome, continued_by, decide},
    retry::RetryPolicy,
    task_log::{LogRun, RunLog},
    trace::{TraceContext, trace_id_of},
    wire::{Body, Envelope},
    worker::{
        outcome::EndedRun,
        run::{Call, RunEnd, RunningCall, Timeouts},
        session::{CancelReason, RegisteredRun},
    },
};

/// Reason that a run has no outcome.
#[derive(Debug, Clone, Copy)]
enum NoOutcome {
    TakenOver,
    HandBack,
    Unstoppable,
}

impl TaskProcessor {
    /// Runs the handler and takes its outcome through decide, record and follow. `None`: another run holds the
    /// attempt now.
    pub(super) async fn run(
        &self,
        active: &mut ActiveDelivery,
        task: &RegisteredTask,
        claim: Claim,
        registered: &RegisteredRun,
        slot: Slot,
    ) -> Option<Settlement> {
        let started = tokio::time::Instant::now();
        let decoded = self.worker.app.decode(&active.envelope);
        let (policy, due) = match &decoded {
            Ok(body) => (body.retry.clone(), body.first_eta),
            Err(_) => (Some(RetryPolicy::default()), None),
        };
        let cx = self.context(&active.envelope, &claim, registered, decoded.as_ref().ok());
        let span = log_scope::within(&cx, || self.span(&active.envelope, &claim));
        if let Some(gathered) = &active.gathered {
            TraceContext::link(&span, &gathered.links);
        }
        let log = LogRun { id: active.envelope.id.clone(), attempt: claim.attempt, run: claim.start };
        let outcome = match decoded {
            Ok(mut body) => {
                if let Some(gathered) = &active.gathered {
                    body.args.extend_from_slice(&gathered.args);
                }
                active.flow = body.flow.take();
                let ended =
                    self.call(active, task, body, &cx, &log, registered).instrument(span.clone()).await;
                // Slots bound the handlers that run at once; recording an outcome needs none.
                drop(slot);
                cx.run_log().close();
                match self.outcome(ended, registered) {
                    Ok(RunOutcome::Returned(mut results)) => {
                        results.spawned = cx.take_spawned();
                        let default = self.worker.app.default_queue();
                        for spawned in &mut results.spawned {
                            spawned.step.fill_queue(default.as_str());
                        }
                        results.continued_by = continued_by(&active.envelope.id, &results.spawned);
                        within(RunOutcome::Returned(results), self.worker.app.0.max_sizes.results)
                    }
                    Ok(outcome) => outcome,
                    Err(without) => {
                        let key = active.outcome_key.clone();
                        let last_lines = async {
                            if cx.run_log().has_lines() {
                                self.worker.finish_log(&cx, &log, key.as_deref(), None).await;
                            }
                        };
                        let end = async {
                            match without {
                                NoOutcome::TakenOver => self.worker.taken_over(active),
                                NoOutcome::HandBack => {
                                    Some(self.worker.hand_back(active, registered, &claim).await)
                                }
                                NoOutcome::Unstoppable => Some(Settlement::Leave),
                            }
                        };
                        return Box::pin(async { tokio::join!(last_lines, end) }).await.1;
                    }
                }
            }
            Err(error) => RunOutcome::Failed(TaskError::malformed(error)),
        };
        let outcome = match outcome {
            RunOutcome::Failed(error) => RunOutcome::Failed(task.options.classified(error)),
            outcome => outcome,
        };
        if let RunOutcome::Failed(TaskError { disposition: Disposition::RateLimited(delay), .. }) = &outcome
            && !self.worker.limits.is_open()
        {
            Box::pin(self.worker.push_back(&active.envelope, *delay)).await;
        }
        if let RunOutcome::Failed(TaskError { elsewhere: true, .. }) = &outcome {
            self.worker.left_to_others.leave(&active.envelope.id);
        }
        if let Some(breaker) = task.options.circuit.filter(|breaker| breaker.failures > 0)
            && let Some(failed) = counts_as_failure(&outcome)
            && let Some(open) = self.worker.circuits.ended(&active.envelope.name, failed, breaker, started)
        {
            self.worker.sessions.show_open_circuits(open);
        }
        let now = self.worker.now();
        let counters = active.envelope.counters;
        let policy = policy.unwrap_or_else(|| match outcome {
            RunOutcome::Returned(_) => RetryPolicy::default(),
            _ => task.options.policy_after(counters.retries),
        });
        let policy =
            policy.aged(now.since(due.unwrap_or(active.envelope.issued).max(active.envelope.issued)));
        // A retry is due no earlier than its back-off asks for, whatever the uncertainty of this process's clock.
        let latest = self.worker.app.clock().latest();
        let verdict = decide(outcome, &policy, counters, latest, rand::random())
            .with_errors_within(self.worker.app.0.max_sizes.errors);
        let run = EndedRun { registered, cx: &cx, span: &span, took: started.elapsed(), due, ended_at: now };
        if !cx.run_log().has_lines() {
            return self.worker.record_outcome(active, run, verdict).await;
        }
        // First, so that a reader of the outcome finds the lines too.
        let ttl = self.worker.log_ttl_after(&verdict, due);
        let last_lines = self.worker.finish_log(&cx, &log, active.outcome_key.as_deref(), Some(ttl));
        let record = async { tokio::join!(last_lines, self.worker.record_outcome(active, run, verdict)) };
        Box::pin(record).await.1
    }

    /// Calls the handler.
    pub(super) async fn call(
        &self,
        active: &mut ActiveDelivery,
        task: &RegisteredTask,
        body: Body,
        cx: &TaskContext,
        log: &LogRun,
        registered: &RegisteredRun,
    ) -> RunEnd {
        let delayed = active.envelope.attempt > 1 || body.first_eta.is_some();
        let mut call = Call {
            timeouts: Timeouts {
                soft: body.soft_timeout().or(task.options.soft_timeout),
                hard: body.timeout().or(task.options.timeout),
            },
            next: Next::outermost(Arc::clone(&self.middleware), Arc::clone(&task.handler)),
            cx: cx.clone(),
            args: body.args,
            stoppable: task.handler.stops_when_dropped(),
            trace: TraceContext {
                parent: active.envelope.traceparent.clone().unwrap_or_default(),
                state: active.envelope.tracestate.clone(),
            },
            registered,
            stages: &self.worker.stages,
        }
        .begin();
        // Most handlers end at once, and do not need the guards and timers that the others do.
        if !delayed && let Some(ended) = call.at_once().await {
            return ended;
        }
        Box::pin(self.watch_over(call, active, delayed, (cx, log), registered)).await
    }

    /// Waits for the end of a call. If that takes long, a guard takes the place of the delivery meanwhile.
    async fn watch_over(
        &self,
        call: RunningCall<'_>,
        active: &mut ActiveDelivery,
        delayed: bool,
        (cx, log): (&TaskContext, &LogRun),
        registered: &RegisteredRun,
    ) -> RunEnd {
        let id = active.envelope.id.clone();
        let outcome_key = active.outcome_key.clone();
        let running = async {
            if delayed {
                tokio::join!(call.run(), self.worker.unlist_as_scheduled(id)).0
            } else {
                call.run().await
            }
        };
        let fire_when_cancelled = async {
            self.worker.stages.reached_cancel().await;
            registered.cancel().cancel();
            std::future::pending().await
        };
        let guard = async {
            self.worker.guard_when_long(active).await;
            std::future::pending().await
        };
        tokio::select! {
            // First: the end of the handler counts, even if something else happens at the same moment.
            biased;
            ended = running => ended,
            ended = fire_when_cancelled => ended,
            ended = guard => ended,
            never = self.worker.publish_progress(cx, registered, outcome_key.as_deref()) => match never {},
            never = self.worker.publish_log(cx, log, outcome_key.as_deref()) => match never {},
        }
    }

    /// Returns the outcome of a run's end, or the reason that it has none.
    fn outcome(&self, ended: RunEnd, registered: &RegisteredRun) -> Result<RunOutcome, NoOutcome> {
        let cancelled = registered.cancel().is_cancelled();
        match (ended, registered.cancel_reason()) {
            // The effect has happened: a success counts even if the run was cancelled.
            (RunEnd::Itself(outcome @ RunOutcome::Returned(_)), _) => Ok(outcome),
            (RunEnd::Unstoppable, None | Some(CancelReason::CutOff)) => Err(NoOutcome::Unstoppable),
            (RunEnd::Itself(outcome @ RunOutcome::TimedOut(_)), Some(CancelReason::CutOff)) => Ok(outcome),
            (_, Some(CancelReason::CutOff)) => Err(NoOutcome::HandBack),
            (_, Some(CancelReason::TakenOver)) => Err(NoOutcome::TakenOver),
            (_, Some(CancelReason::Revoked)) => Ok(RunOutcome::Revoked),
            // Cancelled by the shutdown, the run ended without an outcome.
            (_, None) if cancelled => Err(NoOutcome::HandBack),
            (RunEnd::Itself(outcome), None) => Ok(outcome),
            (RunEnd::CutOff, None) => Err(NoOutcome::HandBack),
        }
    }

    fn context(
        &self,
        envelope: &Envelope,
        claim: &Claim,
        registered: &RegisteredRun,
        body: Option<&Body>,
    ) -> TaskContext {
        TaskContext::new(RunInfo {
            id: envelope.id.clone(),
            name: envelope.name.clone(),
            queue: envelope.queue.clone(),
            attempt: claim.attempt,
            postponements: envelope.counters.postponements,
            token: claim.token,
            headers: body.map(|body| body.headers.clone()).unwrap_or_default(),
            pairs: envelope.pairs.clone(),
            cancel: HandlerCancellation::of_run(registered.cancel().clone()),
            state: Arc::clone(&self.state),
            log: RunLog::default(),
            spawned: Mutex::default(),
            clock: self.worker.app.clock().clone(),
            progress: OnceLock::new(),
        })
    }

    fn span(&self, envelope: &Envelope, claim: &Claim) -> tracing::Span {
        let span = tracing::info_span!(
            "task",
            worker = %self.worker.name,
            id = %envelope.id,
            // Not `name`: the log in JSON calls the span itself so.
            task = %envelope.name,
            queue = %envelope.queue,
            attempt = claim.attempt,
            trace_id = envelope.traceparent.as_deref().and_then(trace_id_of),
            otel.name = %format_args!("process {}", envelope.name),
            otel.kind = "consumer",
            messaging.system = "machinist",
            messaging.operation.name = "process",
            messaging.operation.type = "process",
            messaging.destination.name = %envelope.queue,
            messaging.message.id = %envelope.id,
        );
        if let Some(parent) = &envelope.traceparent {
            TraceContext { parent: parent.clone(), state: envelope.tracestate.clone() }.adopt(&span);
        }
        span
    }
}

/// Returns whether a run has failed or succeeded; `None` if it says nothing about this worker.
fn counts_as_failure(outcome: &RunOutcome) -> Option<bool> {
    match outcome {
        RunOutcome::Returned(_) => Some(false),
        RunOutcome::Failed(error) => match error.disposition {
            Disposition::Failed | Disposition::Permanent | Disposition::RetryAfter(_) => Some(true),
            Disposition::RetryIn(_) | Disposition::RateLimited(_) | Disposition::Malformed => None,
        },
        RunOutcome::TimedOut(_) | RunOutcome::GaveUp(..) | RunOutcome::Panicked(_) => Some(true),
        RunOutcome::Revoked => None,
    }
}

/// Replaces a result that is too large to be stored by a failure.
fn within(outcome: RunOutcome, limit: usize) -> RunOutcome {
    match outcome {
        RunOutcome::Returned(results) if results.size() > limit => {
            let error = format!(
                "it returned more than {limit} bytes: store the data elsewhere, and return its location"
            );
            RunOutcome::Failed(TaskError::permanent(error))
        }
        RunOutcome::Returned(results) if results.spawned_size() > limit => {
            let error =
                format!("it spawned tasks of more than {limit} bytes: spawn a task that sends the rest");
            RunOutcome::Failed(TaskError::permanent(error))
        }
        outcome => outcome,
    }
}
