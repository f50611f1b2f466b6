//! The end of a run, with its outcome recorded or handed back without one, and the end of a task that is not run.
//!
//! An outcome counts from its commit on.

use std::{sync::Arc, time::Duration};

use super::{ActiveDelivery, Settlement, WorkerContext};
use crate::{
    backend::{Commit, Committed, Expiry},
    broker::{Publish, Target},
    clock::Timestamp,
    context::TaskContext,
    event::{EventKind, EventTask},
    flow::Flow,
    mirror::PassingState,
    record::{
        Claim, CommitRefusal, ErrorText, Facts, Failure, FailureKind, KEPT_FROM, TaskState, UNFINISHED_TTL,
        Verdict, add_progress, add_trace, explain_refusal, failure_without_run, follow_up_of, name,
        outcome_commit, recorded_follow_up, retention,
    },
    security::encrypt_outcome,
    trace::TraceContext,
    wire::Envelope,
    worker::{SETTLE_TIMEOUT, session::RegisteredRun},
};

/// A run whose handler has ended.
#[derive(Clone, Copy)]
pub(super) struct EndedRun<'a> {
    pub(super) registered: &'a RegisteredRun,
    pub(super) cx: &'a TaskContext,
    pub(super) span: &'a tracing::Span,
    pub(super) took: Duration,
    /// Time that the sender of the task asked for.
    pub(super) due: Option<Timestamp>,
    pub(super) ended_at: Timestamp,
}

impl WorkerContext {
    /// Commits the verdict, and publishes its follow-up. Returns `None` if another run holds the attempt now.
    pub(super) async fn record_outcome(
        &self,
        active: &ActiveDelivery,
        run: EndedRun<'_>,
        mut verdict: Verdict,
    ) -> Option<Settlement> {
        let EndedRun { registered, cx, due, ended_at: now, .. } = run;
        let mut stopwatch = self.events.stopwatch();
        let mut claim = registered.claim()?;
        let log = cx.logged();
        if let Err(leaving) = self.calls.can_sign().await {
            return Some(leaving.into());
        }
        // Needed to let a workflow go on, and to show the outcome to another program.
        let is_mirrored = self.app.0.rules.mirror(&active.envelope.queue).is_some();
        let of_workflow = active.envelope.pairs.are_of_workflow();
        let is_read = is_mirrored || of_workflow;
        let leads_on =
            of_workflow || matches!(&verdict, Verdict::Success(results) if !results.spawned.is_empty());
        let trace = leads_on.then(|| TraceContext::of(run.span)).flatten();
        let mut end = None;
        loop {
            let mut commit = outcome_commit(&claim, &verdict, log.clone(), now, self.retention(due, now));
            self.add_progress_and_message(&mut commit, &verdict, &active.envelope, cx, due);
            if let Some(trace) = &trace {
                add_trace(&mut commit, &trace.parent);
            }
            // Encrypted first: the signature covers what is stored.
            let commit =
                if let Some(key) = &active.outcome_key { encrypt_outcome(commit, key) } else { commit };
            let commit = self.app.0.trust.sign_end(commit);
            if is_read {
                end = commit.facts.iter().find(|(fact, _)| fact == name::END).map(|(_, end)| end.clone());
            }
            let facts = match self.calls.commit_outcome(commit).await {
                Ok(Committed::Done { .. }) => break,
                Ok(Committed::Refused(facts)) => facts,
                Err(unanswered) => return Some(unanswered.into()),
            };
            end = None;
            match explain_refusal(&facts, &claim, &verdict) {
                CommitRefusal::Recorded => break,
                CommitRefusal::Over(follow_up) => {
                    registered.release();
                    self.emit(EventKind::Superseded { task: EventTask::of(&active.envelope) });
                    return Some(self.follow(&active.envelope, &follow_up).await);
                }
                CommitRefusal::Revoked => {
                    let error = ErrorText::from("revoked");
                    verdict = Verdict::Failure { kind: FailureKind::Revoked, error };
                }
                CommitRefusal::Adopted(adopted) => claim = adopted,
                CommitRefusal::TakenOver => return self.taken_over(active),
            }
        }
        registered.release();
        self.emit_outcome(active, &run, &verdict, stopwatch.lap());
        if let (Some(flow), Some(end)) = (only_joined(active, &verdict), &end)
            && !is_mirrored
        {
            return Some(Box::pin(self.join_after_success(&active.envelope, flow, end.clone())).await);
        }
        Some(self.follow_end(&active.envelope, &follow_up_of(&verdict, &claim), end).await)
    }

    /// Emits the recorded outcome of a run, within the span of the run.
    fn emit_outcome(
        &self,
        active: &ActiveDelivery,
        run: &EndedRun<'_>,
        verdict: &Verdict,
        record_wait: Duration,
    ) {
        let (task, encrypted) = (EventTask::of(&active.envelope), active.outcome_key.is_some());
        let run_time = run.took;
        let ended = |state, failure| EventKind::Ended {
            task,
            state,
            failure,
            encrypted,
            run_time: Some(run_time),
            record_wait,
        };
        let event = match verdict {
            Verdict::Success(_) => ended(TaskState::Success, None),
            Verdict::Failure { kind, error } => ended(TaskState::Failure, Some((*kind, error))),
            Verdict::Retry { due, kind, error, .. } => {
                let (due, kind) = (*due, *kind);
                EventKind::Retried { task, due, kind, error, encrypted, run_time, record_wait }
            }
        };
        run.span.in_scope(|| self.emit(event));
    }

    /// Adds to the commit of a verdict the last progress report, and the message of a task that failed or waits long for
    /// its next run, so that it can be sent again.
    fn add_progress_and_message(
        &self,
        commit: &mut Commit,
        verdict: &Verdict,
        envelope: &Envelope,
        cx: &TaskContext,
        due: Option<Timestamp>,
    ) {
        if let Some(progress) = cx.last_progress() {
            add_progress(commit, &progress);
        }
        match verdict {
            Verdict::Failure { .. } => commit.facts.extend(self.app.message_fact(envelope)),
            Verdict::Success(_) if due.is_some() || envelope.attempt > 1 => {
                commit.drop.push(name::MESSAGE.into());
            }
            // Kept since it was sent, if its sender asked for a time.
            Verdict::Retry { due: next, .. } if due.is_none() && next.since(self.now()) >= KEPT_FROM => {
                commit.facts.extend(self.app.message_fact(envelope));
            }
            Verdict::Success(_) | Verdict::Retry { .. } => {}
        }
    }

    /// Discards the outcome of a run whose attempt another run holds. Returns `None` if this worker still has the
    /// delivery: then the start is requested again. Otherwise a guard has replaced the delivery, and nothing is left to
    /// do.
    pub(super) fn taken_over(&self, active: &ActiveDelivery) -> Option<Settlement> {
        self.emit(EventKind::Superseded { task: EventTask::of(&active.envelope) });
        if active.receipt.is_some() { None } else { Some(Settlement::Ack) }
    }

    /// Records that this start ended without an outcome, so that no other worker waits for this worker's session.
    pub(super) async fn hand_back(
        &self,
        active: &mut ActiveDelivery,
        registered: &RegisteredRun,
        claim: &Claim,
    ) -> Settlement {
        active.cut_off = true;
        let claim = registered.claim().unwrap_or_else(|| claim.clone());
        let draining = self.stages.is_draining();
        if !self.commit_once(claim.hand_back()).await {
            if draining {
                return Settlement::Leave;
            }
            self.sessions.defer_hand_back(claim);
            // A delivery that became a guard comes back by itself.
            return Settlement::HandBack;
        }
        if active.receipt.is_none() {
            // The delivery became a guard: its next generation goes straight to the queue.
            let guard = active.envelope.next_guard(self.now());
            let target = Target::Queue(self.app.0.rules.queue_of(&guard));
            // Without a key it would be refused: the expiry of the session frees the task.
            let Some(message) = self.app.message(&guard).ok().filter(|_| self.app.0.trust.can_sign()) else {
                return Settlement::Leave;
            };
            let publish = Publish { target, message, delay: Duration::ZERO };
            if self.app.broker().publish(vec![publish]).await.iter().any(Result::is_err) {
                return Settlement::Leave;
            }
        }
        Settlement::HandBack
    }

    /// Records that a start which was granted does not run, and frees what the run has taken. The delivery stays here.
    pub(super) async fn give_up_start(&self, registered: &RegisteredRun, claim: &Claim) {
        let claim = registered.claim().unwrap_or_else(|| claim.clone());
        if !self.commit_once(claim.hand_back()).await {
            self.sessions.defer_hand_back(claim);
        }
        self.free_places(&registered.run).await;
    }

    /// Tries to commit once. Returns `false` on failure: then the session's expiry ends the start, or it is handed back
    /// when the backend answers again.
    async fn commit_once(&self, commit: Commit) -> bool {
        let answer = self.app.backend().commit(vec![commit.into()]);
        let answers = tokio::time::timeout(SETTLE_TIMEOUT, answer).await;
        answers.is_ok_and(|answers| answers.iter().all(Result::is_ok))
    }

    /// Ends a task that is not run, if its record is still as read. If the record has changed meanwhile, the new record
    /// decides. Returns `None` if the task was started according to it.
    pub(super) async fn end_as_read(
        &self,
        envelope: &Envelope,
        facts: Facts,
        failure: Failure,
    ) -> Option<Settlement> {
        if let Err(leaving) = self.calls.can_sign().await {
            return Some(leaving.into());
        }
        let due = self.first_eta(envelope, &facts);
        let now = self.now();
        let ttl = self.retention(due, now);
        let mut stopwatch = self.events.stopwatch();
        let Failure { kind, error, .. } = failure.clone();
        let mut commit = failure_without_run(&envelope.id, &facts, envelope.attempt, failure, now, ttl);
        commit.facts.extend(self.app.message_fact(envelope));
        let commit = self.app.0.trust.sign_end(commit);
        if due.is_some() || envelope.attempt > 1 {
            self.unlist_as_scheduled(envelope.id.clone()).await;
        }
        let commit = Arc::new(commit);
        let facts = match self.calls.commit(Arc::clone(&commit)).await {
            Ok(Committed::Done { .. }) => {
                let task = EventTask::of(envelope);
                self.emit(EventKind::ended_without_run(task, kind, &error, stopwatch.lap()));
                commit.facts.iter().cloned().collect()
            }
            Ok(Committed::Refused(facts)) => facts,
            Err(leaving) => return Some(leaving.into()),
        };
        let follow_up = recorded_follow_up(&facts, envelope.attempt)?;
        Some(self.follow(envelope, &follow_up).await)
    }

    /// Returns the time that the sender of a task asked for. The body states it, but to read the body it is decoded, and
    /// perhaps decrypted: the first message and the record say it too.
    fn first_eta(&self, envelope: &Envelope, facts: &Facts) -> Option<Timestamp> {
        if envelope.attempt == 1 && envelope.eta.is_some() {
            return envelope.eta;
        }
        if facts.has(name::SENT) {
            return facts.read(name::ETA);
        }
        self.app.decode(envelope).ok().and_then(|body| body.first_eta)
    }

    /// Records that a delivery waits for a slot (state RECEIVED).
    pub(super) async fn record_received(
        &self,
        envelope: &Envelope,
        received_at: Timestamp,
    ) -> Result<(), Settlement> {
        let mut commit = Commit::new(envelope.id.clone());
        commit.unless = vec![name::END.into()];
        commit.facts = vec![(name::received(envelope.attempt), crate::record::json(&received_at))];
        commit.expiry = Expiry::AfterUnlessSet(UNFINISHED_TTL);
        commit.wake = true;
        self.show(envelope, PassingState::Received);
        self.calls.commit(commit).await?;
        Ok(())
    }

    /// Returns the time for which the record of a task is kept after its end. The record of a delayed task that ended
    /// before it was due, because it was sent for an immediate run, is kept until its delayed message has arrived.
    fn retention(&self, due: Option<Timestamp>, now: Timestamp) -> Duration {
        retention(self.app.0.results_ttl, due, now)
    }
}

/// Returns what follows a task of a workflow that has succeeded, if nothing but its joins does.
fn only_joined<'a>(active: &'a ActiveDelivery, verdict: &Verdict) -> Option<&'a Flow> {
    let Verdict::Success(results) = verdict else { return None };
    let spawns = !results.spawned.is_empty() || results.continued_by.is_some();
    active.flow.as_deref().filter(|flow| !spawns && flow.then.is_empty() && flow.replaces.is_none())
}
