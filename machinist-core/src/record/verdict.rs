//! Verdict on an outcome: the decision, its commit, and its follow-up.
//!
//! The verdict is decided once and recorded. The recorded fact determines everything that follows, so any worker does
//! the same, however often it does it.

use std::time::Duration;

use bytes::Bytes;

use super::{
    FailureKind,
    claim::Claim,
    facts::{
        Counters, EncodedResults, End, EndVerdict, ErrorText, Facts, Failure, Retried, RunOrigin, json, name,
        success,
    },
    fold::Attempts,
    follow_up::{FollowUp, is_dead_lettered, recorded_follow_up},
    retention::{MAX_DELAY, MIN_RESULTS_TTL, UNFINISHED_TTL},
};
use crate::{
    backend::{Commit, Expiry},
    clock::Timestamp,
    consequence::Disposition,
    id::TaskId,
    panics::PanicText,
    retry::RetryPolicy,
    task_error::TaskError,
};

/// Number of attempts that keep their contents in a record.
const DETAILED_ATTEMPTS: u32 = 20;

/// RunOutcome of a run.
#[derive(Debug)]
pub(crate) enum RunOutcome {
    Returned(EncodedResults),
    Failed(TaskError),
    TimedOut(Duration),
    /// Its soft timeout told it to end, and it ended with an error.
    GaveUp(Duration, TaskError),
    Panicked(PanicText),
    Revoked,
}

/// Consequence of an outcome.
#[derive(Debug, PartialEq)]
pub(crate) enum Verdict {
    Success(EncodedResults),
    Retry { due: Timestamp, counters: Counters, kind: FailureKind, error: ErrorText },
    Failure { kind: FailureKind, error: ErrorText },
}

impl Verdict {
    /// Returns the same verdict with its error cut off at a maximum size in bytes.
    pub(crate) fn with_errors_within(mut self, bytes: usize) -> Self {
        if let Self::Retry { error, .. } | Self::Failure { error, .. } = &mut self {
            error.shorten(bytes);
        }
        self
    }
}

/// Decides what follows from an outcome. `chance` in 0 ≤ chance < 1 adds jitter to the delay of the next run.
pub(crate) fn decide(
    outcome: RunOutcome,
    policy: &RetryPolicy,
    spent: Counters,
    now: Timestamp,
    chance: f64,
) -> Verdict {
    let (kind, error, disposition) = match outcome {
        RunOutcome::Returned(results) => return Verdict::Success(results),
        RunOutcome::Failed(error) => {
            let kind = match error.disposition {
                Disposition::Malformed => FailureKind::Malformed,
                _ => FailureKind::Error,
            };
            (kind, ErrorText::new(error.chain()), error.disposition)
        }
        RunOutcome::TimedOut(timeout) => {
            let error = ErrorText::from(&*format!("ran longer than its timeout of {timeout:?}"));
            (FailureKind::Timeout, error, timeout_disposition(policy))
        }
        RunOutcome::GaveUp(timeout, error) => {
            let disposition = match error.disposition {
                Disposition::Failed => timeout_disposition(policy),
                requested => requested,
            };
            let message = format!("told to end after its soft timeout of {timeout:?}");
            let error = ErrorText::new([message].into_iter().chain(error.chain()));
            (FailureKind::Timeout, error, disposition)
        }
        RunOutcome::Panicked(PanicText { message, details }) => {
            let message = format!("the handler panicked: {message}");
            (FailureKind::Panic, ErrorText::new([message].into_iter().chain(details)), Disposition::Failed)
        }
        RunOutcome::Revoked => (FailureKind::Revoked, ErrorText::from("revoked"), Disposition::Permanent),
    };
    let next = match disposition {
        Disposition::Permanent | Disposition::Malformed => None,
        Disposition::Failed => policy
            .next_delay(spent.retries, chance)
            .map(|delay| (delay, Counters { retries: spent.retries + 1, ..spent })),
        Disposition::RetryAfter(delay) => policy
            .grants(spent.retries, delay)
            .then(|| (delay, Counters { retries: spent.retries + 1, ..spent })),
        Disposition::RetryIn(delay) | Disposition::RateLimited(delay) => (spent.postponements
            < policy.max_postponements)
            .then(|| (delay, Counters { postponements: spent.postponements + 1, ..spent })),
    };
    match next {
        Some((delay, counters)) => {
            Verdict::Retry { due: now.plus(delay.min(MAX_DELAY)), counters, kind, error }
        }
        None => Verdict::Failure { kind, error },
    }
}

/// Disposition of a run that took too long. It is tried again only if the policy says so, because it will probably take
/// too long again.
const fn timeout_disposition(policy: &RetryPolicy) -> Disposition {
    if policy.retry_timeouts { Disposition::Failed } else { Disposition::Permanent }
}

/// Creates the commit that makes a verdict final: the point of no return of a run.
///
/// The first SUCCESS wins from any run, because its effect did happen, even over a recorded RETRY. A FAILURE or RETRY
/// counts only from the newest start.
pub(crate) fn outcome_commit(
    claim: &Claim,
    verdict: &Verdict,
    log: String,
    now: Timestamp,
    ttl: Duration,
) -> Commit {
    let origin = RunOrigin {
        attempt: claim.attempt,
        start: claim.start,
        run: claim.run.clone(),
        token: claim.token,
        worker: claim.worker.clone(),
    };
    let mut commit = Commit::new(claim.id.clone());
    commit.unless.push(name::END.into());
    commit.wake = true;
    if !matches!(verdict, Verdict::Success(_)) {
        commit.unless.push(name::retried(claim.attempt));
        commit.unless.push(name::start_after(claim.attempt, claim.start));
        commit.equal_or_absent = claim.starts.to_vec();
    }
    if matches!(verdict, Verdict::Retry { .. }) {
        // A revoked task has no further run: this run is then told to end as revoked.
        commit.unless.push(name::REVOKED.into());
    }
    let (fact, value) = match verdict {
        Verdict::Retry { due, counters, kind, error } => {
            commit.expiry = Expiry::After(due.since(now) + UNFINISHED_TTL);
            trim_old_attempt(&mut commit, claim.attempt);
            let retried = Retried {
                origin,
                at: now,
                due: *due,
                counters: *counters,
                kind: *kind,
                error: error.clone(),
                log,
            };
            (name::retried(claim.attempt), json(&retried))
        }
        Verdict::Success(results) => {
            commit.expiry = Expiry::After(ttl.max(MIN_RESULTS_TTL));
            (name::END.into(), success(&origin, now, results, &log))
        }
        Verdict::Failure { kind, error } => {
            let verdict = EndVerdict::Failure(Failure::new(*kind, error.clone()));
            commit.expiry = Expiry::After(ttl.max(MIN_RESULTS_TTL));
            (
                name::END.into(),
                json(&End {
                    origin: Some(origin),
                    at: now,
                    verdict,
                    log,
                    spawns: 0,
                    spawned: Vec::new(),
                    continued_by: None,
                    trace: None,
                }),
            )
        }
    };
    commit.facts.push((fact, value));
    commit
}

/// Adds the trace context of the run to the end in a commit, if the commit ends the task: what follows it in a workflow
/// continues the trace there.
pub(crate) fn add_trace(commit: &mut Commit, trace: &str) {
    let end = commit.facts.iter_mut().find(|(fact, _)| fact == name::END);
    if let Some((_, end)) = end
        && let Some(object) = end.strip_suffix(b"}")
    {
        *end = [object, b",\"trace\":", &json(trace), b"}"].concat().into();
    }
}

/// Drops the contents of old attempts, so that a task that is postponed a thousand times stays small. The names of
/// their outcomes stay: an attempt that was retried must never start again.
fn trim_old_attempt(commit: &mut Commit, attempt: u32) {
    let Some(old) = attempt.checked_sub(DETAILED_ATTEMPTS).filter(|old| *old > 0) else { return };
    commit.drop = vec![name::received(old), name::start(old, 1), name::retried(old), name::followed(old)];
    commit.facts.push((name::retried(old), Bytes::from_static(b"{}")));
}

/// Creates the commit that ends a task without a run: expired, revoked or unregistered. It succeeds only while the
/// record is as it was read; if it is refused, read the record again.
pub(crate) fn failure_without_run(
    id: &TaskId,
    facts: &Facts,
    attempt: u32,
    failure: Failure,
    now: Timestamp,
    ttl: Duration,
) -> Commit {
    let newest = Attempts::of(facts).newest_start(attempt).unwrap_or(0);
    let mut commit = Commit::new(id.clone());
    commit.unless = vec![name::END.into(), name::retried(attempt)];
    // Nothing can follow the largest number.
    commit.unless.extend(newest.checked_add(1).map(|next| name::start(attempt, next)));
    let verdict = EndVerdict::Failure(failure);
    commit.facts = vec![(name::END.into(), json(&End::without_run(now, verdict)))];
    commit.expiry = Expiry::After(ttl.max(MIN_RESULTS_TTL));
    commit.wake = true;
    commit
}

/// Reason that the commit of a verdict was refused.
#[derive(Debug)]
pub(crate) enum CommitRefusal {
    /// The verdict is recorded: only the reply was lost.
    Recorded,
    /// Another outcome came first: do its follow-up.
    Over(FollowUp),
    /// The task was revoked, so there is no further run: end it.
    Revoked,
    /// An adoption came in between: commit the verdict with this newer claim.
    Adopted(Claim),
    /// Another run holds the attempt: this one does not count.
    TakenOver,
}

/// Explains why the commit of a verdict was refused.
pub(crate) fn explain_refusal(facts: &Facts, claim: &Claim, verdict: &Verdict) -> CommitRefusal {
    if is_own_outcome(facts, claim, verdict) {
        return CommitRefusal::Recorded;
    }
    if let Some(follow_up) = recorded_follow_up(facts, claim.attempt) {
        return CommitRefusal::Over(follow_up);
    }
    if matches!(verdict, Verdict::Retry { .. }) && facts.has(name::REVOKED) {
        return CommitRefusal::Revoked;
    }
    claim.newer_claim(facts).map_or(CommitRefusal::TakenOver, CommitRefusal::Adopted)
}

/// Returns `true` if this commit's own fact is in the record: a caller needs this after a lost reply.
fn is_own_outcome(facts: &Facts, claim: &Claim, verdict: &Verdict) -> bool {
    let origin = match verdict {
        Verdict::Retry { .. } => {
            facts.read::<Retried>(&name::retried(claim.attempt)).map(|retried| retried.origin)
        }
        _ => facts.read::<End>(name::END).and_then(|end| end.origin),
    };
    origin.is_some_and(|origin| origin.run == claim.run)
}

/// Returns the follow-up of a verdict once it is recorded.
pub(crate) fn follow_up_of(verdict: &Verdict, claim: &Claim) -> FollowUp {
    match verdict {
        Verdict::Success(results) => FollowUp::Ended { spawns: !results.spawned.is_empty() },
        Verdict::Retry { due, counters, .. } => {
            FollowUp::NextRun { due: *due, counters: *counters, token: claim.token }
        }
        Verdict::Failure { kind, error } if is_dead_lettered(*kind) => {
            FollowUp::DeadLetter { attempt: claim.attempt, failure: Failure::new(*kind, error.clone()) }
        }
        Verdict::Failure { .. } => FollowUp::Ended { spawns: false },
    }
}
