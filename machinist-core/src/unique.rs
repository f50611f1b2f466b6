//! Unique tasks: one task for each key, until it starts, until it ends, or for a period. The pure part.
//!
//! A claim names the task that has the key, in a separate record. It is valid while that task is: nothing has to remove
//! it. A claim without the mark that its task was sent, some time after it was made, is that of a sender that died.

use std::{fmt, time::Duration};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    backend::{Commit, Expiry},
    clock::Timestamp,
    id::{RecordId, TaskId},
    limit::LimitKey,
    record::{Facts, NextAttempt, UNFINISHED_TTL, json, name, next_attempt},
};

/// Fact of the claim.
pub(crate) const CLAIM: &str = "claim";
/// Fact which says that the task of the claim was sent.
const SENT: &str = "sent";
/// Time after which a task that has a claim and was not sent will not be sent any more.
const SENT_WITHIN: Duration = Duration::from_secs(30);

/// Key of a task that is sent, and its rule.
#[derive(Debug, Clone)]
pub(crate) struct UniqueClaim {
    pub(crate) record: RecordId,
    pub(crate) rule: Unique,
    /// Time for which the task waits before it may start.
    pub(crate) waits: Duration,
}

/// End of the time for which a key allows one task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UniqueUntil {
    /// Until the task starts for the first time.
    Start,
    /// Until the task ends.
    End,
    /// For this long after the task was sent, also after its end.
    For(Duration),
}

/// Consequence of a key that another task has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnConflict {
    /// The other task is returned, and nothing is sent.
    Existing,
    /// Sending fails with [`SendError::Duplicate`](crate::SendError::Duplicate).
    Refuse,
    /// The other task ends in FAILURE/replaced, and this one is sent. If the other one has started and still has the key,
    /// sending fails as with `Refuse`.
    Replace,
    /// Nothing is sent: a throttle.
    Drop,
}

/// Rule that allows one task for each key.
///
/// # Examples
/// ```
/// use machinist_core::{Signature, Unique};
/// use std::time::Duration;
///
/// // One report for each customer at a time.
/// let report = Signature::new("report").arg("customer-7").unique(Unique::new().key("customer-7"));
/// // The last change counts: an index is built 5 s after it, and at most a minute after the first one.
/// let index = Signature::new("index").arg("page-1")
///     .unique(Unique::debounce(Duration::from_secs(5), Duration::from_secs(60)).key("page-1"));
/// // At most one reminder in an hour.
/// let reminder = Signature::new("remind").arg("anna").unique(Unique::throttle(Duration::from_secs(3600)));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unique {
    pub(crate) key: Option<String>,
    pub(crate) template: Option<LimitKey>,
    pub(crate) until: UniqueUntil,
    pub(crate) on_conflict: OnConflict,
    pub(crate) debounce: Option<Debounce>,
}

/// Times of a debounce.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Debounce {
    /// Time from the last task of a key to its start.
    pub(crate) wait: Duration,
    /// Maximum time from the first one that it replaces to its start.
    pub(crate) longest: Duration,
}

impl Default for Unique {
    fn default() -> Self {
        Self::new()
    }
}

impl Unique {
    /// Creates the rule that there is one unfinished task of this name with these arguments, and that sending another
    /// returns it.
    pub const fn new() -> Self {
        Self::with(UniqueUntil::End, OnConflict::Existing, None)
    }

    /// Creates the rule of a debounce: each task replaces the one before that has not started, with its arguments, and starts
    /// `wait` after it was sent. A series of tasks ends `longest` after its first one: the task that waits then starts, and the
    /// next one begins another series.
    ///
    /// The task itself has no countdown and no ETA.
    pub const fn debounce(wait: Duration, longest: Duration) -> Self {
        Self::with(UniqueUntil::Start, OnConflict::Replace, Some(Debounce { wait, longest }))
    }

    /// Creates the rule of a throttle: for `period` after a task was sent, others with its key are not sent.
    pub const fn throttle(period: Duration) -> Self {
        Self::with(UniqueUntil::For(period), OnConflict::Drop, None)
    }

    /// Creates a rule whose key is all arguments.
    pub(crate) const fn with(
        until: UniqueUntil,
        on_conflict: OnConflict,
        debounce: Option<Debounce>,
    ) -> Self {
        Self { key: None, template: None, until, on_conflict, debounce }
    }

    /// Sets the key, in place of the arguments. Keys belong to a task name.
    #[must_use]
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Takes over the key of another rule.
    #[must_use]
    pub fn keyed_as(mut self, other: Self) -> Self {
        (self.key, self.template) = (other.key, other.template);
        self
    }

    /// Makes the key of arguments and headers, such as `{0}`, in place of all arguments.
    #[must_use]
    pub fn by(mut self, template: LimitKey) -> Self {
        self.template = Some(template);
        self
    }

    /// Sets the time for which the key allows one task.
    #[must_use]
    pub const fn until(mut self, until: UniqueUntil) -> Self {
        self.until = until;
        self
    }

    /// Sets the consequence of a key that another task has.
    #[must_use]
    pub const fn on_conflict(mut self, consequence: OnConflict) -> Self {
        self.on_conflict = consequence;
        self
    }
}

impl fmt::Display for Unique {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.key, &self.template) {
            (Some(key), _) => f.write_str(key)?,
            (None, Some(template)) => template.fmt(f)?,
            (None, None) => f.write_str("all arguments")?,
        }
        if let Some(Debounce { wait, longest }) = self.debounce {
            return write!(f, ", debounced by {wait:?}, at most {longest:?}");
        }
        match self.until {
            UniqueUntil::Start => f.write_str(" until its start")?,
            UniqueUntil::End => f.write_str(" until its end")?,
            UniqueUntil::For(period) => write!(f, " for {period:?}")?,
        }
        let consequence = match self.on_conflict {
            OnConflict::Existing => "existing",
            OnConflict::Refuse => "refuse",
            OnConflict::Replace => "replace",
            OnConflict::Drop => "drop",
        };
        write!(f, ", on conflict {consequence}")
    }
}

/// `claim`: the task that has the key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Claimed {
    task: TaskId,
    at: Timestamp,
    until: UniqueUntil,
    /// End of a series of tasks that replace each other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    latest: Option<Timestamp>,
}

/// A task that asks for a key.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Claimant<'a> {
    pub(crate) task: &'a TaskId,
    pub(crate) until: UniqueUntil,
    /// Maximum time from the first task of a series to the start of its last one.
    pub(crate) longest: Option<Duration>,
    /// Time for which the record of a task is kept after its end.
    pub(crate) kept: Duration,
}

/// Decision about a key.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ClaimDecision {
    /// The task has the key already: only the reply was lost, or it is sent again.
    Ours,
    /// Nobody has the key: commit this.
    Claim(Commit),
    /// Another task has the key.
    Held(TaskId),
    /// The sender of another task has died before it sent it, as far as anybody can tell: end that task, if it has not
    /// started, and decide again.
    End(TaskId),
}

/// Decides about a key, given its record and the record of the task that has it.
pub(crate) fn decide_claim(
    facts: &Facts,
    holder: &Facts,
    record: &RecordId,
    claimant: Claimant<'_>,
    now: Timestamp,
) -> ClaimDecision {
    let known = facts.read::<Claimed>(CLAIM);
    let Some(known) = known else { return ClaimDecision::Claim(claim(facts, record, claimant, now)) };
    if known.task == *claimant.task {
        return ClaimDecision::Ours;
    }
    // After the end of its series the task that waits starts, and is not replaced any more.
    let over = known.latest.is_some_and(|latest| latest <= now)
        || match known.until {
            UniqueUntil::For(period) => known.at.plus(period) <= now,
            UniqueUntil::Start => holder.has(name::END) || has_started(holder),
            UniqueUntil::End => holder.has(name::END),
        };
    if over {
        return ClaimDecision::Claim(claim(facts, record, claimant, now));
    }
    let is_new = known.at.plus(SENT_WITHIN) > now;
    // A period may be longer than the record of its task is kept.
    let is_sent = facts.has(SENT) && (!holder.is_empty() || matches!(known.until, UniqueUntil::For(_)));
    if is_new || is_sent || has_started(holder) {
        return ClaimDecision::Held(known.task);
    }
    // To end a task whose record has expired would say that it has failed.
    if holder.has(name::END) || has_expired(facts, holder, claimant.kept, now) {
        return ClaimDecision::Claim(claim(facts, record, claimant, now));
    }
    ClaimDecision::End(known.task)
}

/// Returns `true` if the task that has a key has ended so long ago that its record is not kept any more. `kept` is the time
/// for which the record of a task is kept after its end: one that is absent before has been lost, and its task may wait.
pub(crate) fn has_expired(facts: &Facts, holder: &Facts, kept: Duration, now: Timestamp) -> bool {
    let is_old = |claimed: Claimed| claimed.at.plus(kept) <= now;
    holder.is_empty() && facts.has(SENT) && facts.read::<Claimed>(CLAIM).is_some_and(is_old)
}

/// Returns the task that has a key, if any has.
pub(crate) fn claimed_by(facts: &Facts) -> Option<TaskId> {
    facts.read::<Claimed>(CLAIM).map(|claimed| claimed.task)
}

/// Creates the commit by which a task takes the key of one that it has replaced. The series of a debounce goes on.
pub(crate) fn replace(facts: &Facts, record: &RecordId, claimant: Claimant<'_>, now: Timestamp) -> Commit {
    let latest = series_end(facts, now);
    let longest = latest.map_or(claimant.longest, |latest| Some(latest.since(now)));
    claim(facts, record, Claimant { longest, ..claimant }, now)
}

/// Returns the time at which the series ends whose last task has a key, if it has not ended.
pub(crate) fn series_end(facts: &Facts, now: Timestamp) -> Option<Timestamp> {
    facts.read::<Claimed>(CLAIM)?.latest.filter(|latest| *latest > now)
}

/// Returns `true` if a run of a task has started.
fn has_started(facts: &Facts) -> bool {
    !matches!(next_attempt(facts), Ok(NextAttempt { attempt: 1, .. })) || facts.has(&name::start(1, 1))
}

/// Creates the commit that claims a key.
pub(crate) fn claim(facts: &Facts, record: &RecordId, claimant: Claimant<'_>, now: Timestamp) -> Commit {
    let Claimant { task, until, longest, .. } = claimant;
    let mut commit = Commit::new(record.clone());
    match facts.get(CLAIM) {
        Some(value) => {
            commit.require = vec![(CLAIM.into(), value.clone())];
            commit.drop = vec![CLAIM.into(), SENT.into()];
        }
        None => commit.unless = vec![CLAIM.into()],
    }
    commit.facts = vec![(
        CLAIM.into(),
        json(&Claimed {
            task: task.clone(),
            at: now,
            until,
            latest: longest.map(|longest| now.plus(longest)),
        }),
    )];
    commit.expiry = Expiry::After(match until {
        UniqueUntil::For(period) => period,
        UniqueUntil::Start | UniqueUntil::End => UNFINISHED_TTL,
    });
    commit
}

/// Creates the commit which says that the task of a claim was sent; `kept` is the time for which it waits.
pub(crate) fn mark_sent(record: &RecordId, claim: &Bytes, kept: Option<Duration>) -> Commit {
    let mut commit = Commit::new(record.clone());
    commit.require = vec![(CLAIM.into(), claim.clone())];
    commit.facts = vec![(SENT.into(), "1".into())];
    commit.expiry = kept.map_or(Expiry::Keep, |kept| Expiry::After(kept + UNFINISHED_TTL));
    commit
}

/// Creates the commit that gives a key back, because its task was certainly not sent.
pub(crate) fn give_back(record: &RecordId, claim: &Bytes) -> Commit {
    let mut commit = Commit::new(record.clone());
    commit.require = vec![(CLAIM.into(), claim.clone())];
    commit.drop = vec![CLAIM.into(), SENT.into()];
    commit
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::RecordKind;

    const NOW: Timestamp = Timestamp::from_micros(1_000_000_000);
    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn record() -> RecordId {
        RecordId::new(RecordKind::Unique, "t:k")
    }

    fn id(text: &str) -> TaskId {
        text.try_into().unwrap()
    }

    fn of(task: &TaskId, until: UniqueUntil) -> Claimant<'_> {
        Claimant { task, until, longest: None, kept: DAY }
    }

    fn later(secs: u64) -> Timestamp {
        NOW.plus(Duration::from_secs(secs))
    }

    fn claimed(until: UniqueUntil, sent: bool) -> Facts {
        let mut facts = Facts::new();
        let decision = decide_claim(&facts, &Facts::new(), &record(), of(&id("a"), until), NOW);
        let ClaimDecision::Claim(commit) = decision else { panic!("{decision:?}") };
        assert!(commit.apply(&mut facts) && !commit.apply(&mut facts));
        if sent {
            let value = facts.get(CLAIM).unwrap().clone();
            assert!(mark_sent(&record(), &value, None).apply(&mut facts));
        }
        facts
    }

    fn decide(facts: &Facts, holder: &Facts, now: Timestamp) -> ClaimDecision {
        decide_claim(facts, holder, &record(), of(&id("b"), UniqueUntil::End), now)
    }

    fn pending() -> Facts {
        let mut facts = Facts::new();
        facts.put(name::SENT, json(&NOW));
        facts
    }

    fn is_free(decision: &ClaimDecision) -> bool {
        matches!(decision, ClaimDecision::Claim(_))
    }

    #[test]
    fn a_key_is_held_until_its_task_starts_or_ends_or_its_time_is_over() {
        let held = ClaimDecision::Held(id("a"));
        let (mut started, mut ended) = (pending(), pending());
        started.put(
            name::start(1, 1),
            r#"{"run":"r","session":"s","worker":"w","token":1,"received_at":1,"started_at":1}"#,
        );
        ended.put(name::END, "{}");
        let end = claimed(UniqueUntil::End, true);
        assert_eq!(decide(&end, &pending(), later(1000)), held);
        assert_eq!(decide(&end, &started, later(1000)), held);
        assert!(is_free(&decide(&end, &ended, later(1))));
        let start = claimed(UniqueUntil::Start, true);
        assert_eq!(decide(&start, &pending(), later(1000)), held);
        assert!(is_free(&decide(&start, &started, later(1))));
        let minute = claimed(UniqueUntil::For(Duration::from_secs(60)), true);
        assert_eq!(decide(&minute, &ended, later(59)), held);
        assert!(is_free(&decide(&minute, &pending(), later(60))));
    }

    #[test]
    fn the_claim_of_a_sender_that_died_is_taken_over_after_its_task_was_ended() {
        let facts = claimed(UniqueUntil::End, false);
        assert_eq!(decide(&facts, &Facts::new(), later(29)), ClaimDecision::Held(id("a")));
        assert_eq!(decide(&facts, &Facts::new(), later(30)), ClaimDecision::End(id("a")));
        assert_eq!(decide(&facts, &pending(), later(30)), ClaimDecision::End(id("a")));
        let mut started = pending();
        started.put(
            name::start(1, 1),
            r#"{"run":"r","session":"s","worker":"w","token":1,"received_at":1,"started_at":1}"#,
        );
        assert_eq!(
            decide(&facts, &started, later(30)),
            ClaimDecision::Held(id("a")),
            "it was sent after all"
        );
        let sent = claimed(UniqueUntil::End, true);
        assert_eq!(
            decide(&sent, &Facts::new(), later(30)),
            ClaimDecision::End(id("a")),
            "its record was lost"
        );
    }

    #[test]
    fn a_task_whose_record_has_expired_is_not_ended_again_and_keeps_its_key_for_its_period() {
        let (none, day, week) = (Facts::new(), DAY.as_secs(), 7 * DAY);
        let sent = claimed(UniqueUntil::End, true);
        assert_eq!(decide(&sent, &none, later(day - 1)), ClaimDecision::End(id("a")), "its record was lost");
        assert!(is_free(&decide(&sent, &none, later(day))));
        let unsent = claimed(UniqueUntil::End, false);
        assert_eq!(decide(&unsent, &none, later(day)), ClaimDecision::End(id("a")), "it may come yet");
        let period = claimed(UniqueUntil::For(week), true);
        for at in [30, day, 7 * day - 1] {
            assert_eq!(decide(&period, &none, later(at)), ClaimDecision::Held(id("a")));
        }
        assert!(is_free(&decide(&period, &none, later(7 * day))));
        let expired = |at| has_expired(&period, &none, DAY, later(at));
        assert!(!expired(day - 1) && expired(day) && !has_expired(&period, &pending(), DAY, later(day)));
    }

    #[test]
    fn a_series_of_tasks_that_replace_each_other_ends() {
        let until = UniqueUntil::Start;
        let longest = Some(Duration::from_secs(60));
        let mut facts = Facts::new();
        let tasks = [id("a"), id("b"), id("c")];
        let by = |task| Claimant { task, until, longest, kept: DAY };
        let first = decide_claim(&facts, &Facts::new(), &record(), by(&tasks[0]), NOW);
        let ClaimDecision::Claim(commit) = first else { panic!("{first:?}") };
        assert!(commit.apply(&mut facts));
        let second = decide_claim(&facts, &pending(), &record(), by(&tasks[1]), later(20));
        assert_eq!(second, ClaimDecision::Held(id("a")));
        assert!(replace(&facts, &record(), by(&tasks[1]), later(20)).apply(&mut facts));
        let value = facts.get(CLAIM).unwrap().clone();
        assert!(mark_sent(&record(), &value, None).apply(&mut facts));
        assert_eq!(series_end(&facts, later(20)), Some(later(60)), "it began with the first one");
        let third = |at| decide_claim(&facts, &pending(), &record(), by(&tasks[2]), later(at));
        assert_eq!(third(59), ClaimDecision::Held(id("b")));
        let ClaimDecision::Claim(commit) = third(60) else { panic!("the second one starts") };
        let mut next = facts.clone();
        assert!(commit.apply(&mut next));
        assert_eq!((series_end(&next, later(60)), claimed_by(&next)), (Some(later(120)), Some(id("c"))));
    }

    #[test]
    fn one_of_two_takes_a_key_over_and_a_lost_reply_is_recognised() {
        let mut facts = claimed(UniqueUntil::End, true);
        let mut ended = pending();
        ended.put(name::END, "{}");
        let [b, c] = ["b", "c"].map(|task| {
            let decision = decide_claim(&facts, &ended, &record(), of(&id(task), UniqueUntil::End), later(1));
            let ClaimDecision::Claim(commit) = decision else { panic!("{decision:?}") };
            commit
        });
        assert!(b.apply(&mut facts) && !c.apply(&mut facts) && !b.apply(&mut facts));
        assert!(!facts.has(SENT), "the mark belongs to the claim before");
        assert_eq!(decide(&facts, &Facts::new(), later(2)), ClaimDecision::Ours);
        let value = facts.get(CLAIM).unwrap().clone();
        assert!(give_back(&record(), &value).apply(&mut facts) && facts.is_empty());
    }
}
