//! The sender's side of unique tasks: claims, conflicts, and what follows the confirm.
//!
//! The order is: claim the key, write the record, publish, mark the claim as sent. A sender that dies after the claim leaves
//! a key that the next sender takes over after 30 s: it first ends the task of that claim, so that a message that exists
//! after all does not run.

use std::time::Duration;

use bytes::Bytes;

use super::Client;
use crate::{
    backend::{BackendError, Committed},
    clock::Timestamp,
    error::SendError,
    id::{RecordId, RecordKind, TaskId},
    limit::{before_key, hidden_key, stored_key},
    prepared_signature::PreparedSignature,
    record::{Facts, Failure, FailureKind, failure_without_run, name, next_attempt, retention},
    signature::{SignatureParts, When},
    unique::{
        CLAIM, ClaimDecision, Claimant, Debounce, OnConflict, UniqueClaim, UniqueUntil, claimed_by,
        decide_claim, give_back, has_expired, mark_sent, replace, series_end,
    },
};

/// Number of tries to take a key that changes meanwhile.
const TRIES: usize = 16;

/// Answer to a claim.
pub(crate) enum ClaimAnswer {
    /// The task has the key: send it. The value of the claim.
    Send(Bytes),
    /// Another task has the key, and nothing is sent.
    Existing(TaskId),
}

/// Returns the answer to a task whose key another one has; `None` if it takes the key from that one.
fn answer_of_holder(unique: &UniqueClaim, id: &TaskId, of: &TaskId) -> Option<Result<TaskId, SendError>> {
    match unique.rule.on_conflict {
        OnConflict::Existing | OnConflict::Drop => Some(Ok(of.clone())),
        OnConflict::Refuse => Some(Err(SendError::Duplicate { id: id.clone(), of: of.clone() })),
        OnConflict::Replace => None,
    }
}

impl Client {
    /// Returns the key of a unique signature.
    pub(crate) fn unique_claim(&self, parts: &SignatureParts, waits: Duration) -> Option<UniqueClaim> {
        let rule = parts.unique.clone()?;
        let key = match (&rule.key, &rule.template) {
            (Some(key), _) => key.clone(),
            (None, Some(template)) => template.of(&parts.args, &parts.headers),
            // INVARIANT: arguments are JSON values.
            (None, None) => serde_json::to_string(&parts.args).expect("arguments are JSON"),
        };
        let trust = &self.app.0.trust;
        let stored =
            if trust.encrypts() { hidden_key(trust, "machinist.unique", &key) } else { stored_key(&key) };
        let record = RecordId::new(RecordKind::Unique, &format!("{}:{stored}", before_key(&parts.name)));
        Some(UniqueClaim { record, rule, waits })
    }

    /// Sets the times at which debounced signatures start: after their wait, and no later than the series ends in which they
    /// replace others. A series that ends or begins at this moment makes a task start a little earlier, and loses nothing.
    pub(super) async fn debounce(&self, parts: &mut SignatureParts) -> Result<(), SendError> {
        let Some(Debounce { wait, longest }) = parts.unique.as_ref().and_then(|unique| unique.debounce)
        else {
            return Ok(());
        };
        let invalid = |why: &str| Err(SendError::Invalid(format!("task {}: {why}", parts.id)));
        if parts.when != When::In(Duration::ZERO) {
            return invalid(
                "it is debounced, which decides when it starts: leave the countdown or the ETA out",
            );
        }
        if longest < wait {
            return invalid(&format!(
                "the longest wait of its debounce, {longest:?}, is below its wait, {wait:?}"
            ));
        }
        let Some(unique) = self.unique_claim(parts, Duration::ZERO) else { return Ok(()) };
        let failed = |source: BackendError| SendError::Unique { id: parts.id.clone(), source };
        let facts = self.read(unique.record).await.map_err(failed)?;
        let now = self.app.clock().now();
        let due = now.plus(wait);
        parts.when = When::At(series_end(&facts, now).map_or(due, |end| due.min(end)));
        Ok(())
    }

    /// Claims the key of a task, and writes the record of the task. Only then may it be sent.
    pub(crate) async fn claim(
        &self,
        task: &PreparedSignature,
        unique: &UniqueClaim,
    ) -> Result<ClaimAnswer, SendError> {
        let id = &task.sending.id;
        let failed = |source: BackendError| SendError::Unique { id: id.clone(), source };
        let mut facts = Facts::new();
        for _ in 0..TRIES {
            let holder = match claimed_by(&facts).filter(|holder| holder != id) {
                Some(holder) => self.read(holder).await.map_err(failed)?,
                None => Facts::new(),
            };
            let now = self.app.clock().now();
            let claimant = self.claimant(id, unique, now);
            let commit = match decide_claim(&facts, &holder, &unique.record, claimant, now) {
                ClaimDecision::Ours => {
                    self.commit(task.facts.clone()).await.map_err(failed)?;
                    return Ok(ClaimAnswer::Send(facts.get(CLAIM).cloned().unwrap_or_default()));
                }
                ClaimDecision::Claim(commit) => commit,
                ClaimDecision::End(other) => {
                    self.end_claimed(&other, holder, FailureKind::Duplicate, id).await?;
                    facts = self.read(unique.record.clone()).await.map_err(failed)?;
                    continue;
                }
                ClaimDecision::Held(other) => {
                    if let Some(answer) = answer_of_holder(unique, id, &other) {
                        return answer.map(ClaimAnswer::Existing);
                    }
                    let has_expired = has_expired(&facts, &holder, claimant.kept, now);
                    if !has_expired && !self.end_claimed(&other, holder, FailureKind::Replaced, id).await? {
                        let holder = self.read(&other).await.map_err(failed)?;
                        if matches!(
                            decide_claim(&facts, &holder, &unique.record, claimant, now),
                            ClaimDecision::Held(_)
                        ) {
                            return Err(SendError::Duplicate { id: id.clone(), of: other });
                        }
                    }
                    let known = facts.clone();
                    facts = self.read(unique.record.clone()).await.map_err(failed)?;
                    if facts.get(CLAIM) != known.get(CLAIM) {
                        continue;
                    }
                    // Its task has ended, but a claim for a period outlives that.
                    replace(&facts, &unique.record, claimant, now)
                }
            };
            let value = commit.facts.iter().find(|(fact, _)| fact == CLAIM).map(|(_, value)| value.clone());
            match self.commit(commit).await.map_err(failed)? {
                Committed::Refused(newer) => facts = newer,
                Committed::Done { .. } => {
                    self.commit(task.facts.clone()).await.map_err(failed)?;
                    return Ok(ClaimAnswer::Send(value.unwrap_or_default()));
                }
            }
        }
        Err(failed(BackendError::Unavailable("other senders take the key again and again".into())))
    }

    /// Returns the answer to a unique task that would not be sent in any case, because another one has its key. Claims and
    /// ends nothing. A key that cannot be read gives no answer.
    pub(super) async fn answer_unsent(&self, task: &PreparedSignature) -> Option<Result<TaskId, SendError>> {
        let unique = task.unique.as_ref()?;
        let id = &task.sending.id;
        let facts = self.read(unique.record.clone()).await.ok()?;
        let holder = self.read(claimed_by(&facts)?).await.ok()?;
        let now = self.app.clock().now();
        let claimant = self.claimant(id, unique, now);
        let ClaimDecision::Held(of) = decide_claim(&facts, &holder, &unique.record, claimant, now) else {
            return None;
        };
        answer_of_holder(unique, id, &of)
    }

    /// Returns the request of a task for its key.
    fn claimant<'a>(&self, task: &'a TaskId, unique: &UniqueClaim, now: Timestamp) -> Claimant<'a> {
        let longest = unique.rule.debounce.map(|debounce| debounce.longest);
        let kept = retention(self.app.0.results_ttl, None, now);
        Claimant { task, until: unique.rule.until, longest, kept }
    }

    /// Ends a task that has the key of the task `sender_of`, if it has not started. Returns `false` if it has.
    async fn end_claimed(
        &self,
        id: &TaskId,
        mut facts: Facts,
        kind: FailureKind,
        sender_of: &TaskId,
    ) -> Result<bool, SendError> {
        loop {
            if facts.has(name::END) {
                return Ok(true);
            }
            let Ok(next) = next_attempt(&facts) else { return Ok(false) };
            if next.attempt > 1 {
                return Ok(false);
            }
            let now = self.app.clock().now();
            let error = match kind {
                FailureKind::Replaced => "a later task with the same unique key replaced it",
                _ => "another task has its unique key",
            };
            let kept = retention(self.app.0.results_ttl, next.due, now);
            let commit = failure_without_run(id, &facts, 1, Failure::new(kind, error), now, kept);
            let signed = self.signed_end(id, commit).map_err(|error| {
                SendError::Invalid(format!(
                    "task {sender_of}: the task that has its key cannot be ended: {error}"
                ))
            })?;
            let failed = |source| SendError::Unique { id: sender_of.clone(), source };
            match self.commit(signed).await.map_err(failed)? {
                Committed::Done { .. } => {
                    if next.due.is_some()
                        && let Err(error) = self.unlist(&crate::backend::Index::Scheduled, id).await
                    {
                        tracing::debug!(%error, "a task that was replaced is still listed as scheduled");
                    }
                    return Ok(true);
                }
                Committed::Refused(newer) => facts = newer,
            }
        }
    }

    /// Notes on a claim what became of its task. What fails is only said: an unmarked claim is taken over after a while.
    pub(crate) async fn note_sent(&self, unique: &UniqueClaim, claim: &Bytes, sent: Result<(), &SendError>) {
        let commit = match sent {
            Ok(()) => {
                let for_a_period = matches!(unique.rule.until, UniqueUntil::For(_));
                let kept = (!for_a_period).then_some(unique.waits);
                mark_sent(&unique.record, claim, kept)
            }
            // It may be in its queue.
            Err(error) if error.is_unknown() => return,
            Err(_) => give_back(&unique.record, claim),
        };
        if let Err(error) = self.commit(commit).await {
            tracing::warn!(%error, key = %unique.record, "the claim of a unique task was not marked");
        }
    }
}
