//! The rate of a limit: reservations of starts in backend time (GCRA), as changes of one record. Pure.
//!
//! The record holds one fact, the time up to which starts are reserved. A reservation moves it on and thereby gets the
//! times of its starts, which may lie in the future: a task that has to wait knows until when. The record of the task keeps its
//! start; a worker that dies with others leaves them unused.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    backend::{Commit, Expiry},
    clock::Timestamp,
    id::RecordId,
    record::{Facts, json},
};

/// Fact of the time up to which starts are reserved.
const RESERVED: &str = "at";
/// Time ahead for which starts are reserved. Tasks that would have to wait longer ask again later.
pub(crate) const HORIZON: Duration = Duration::from_secs(3600);
/// Value of the starts that one worker reserves at once without a task for each.
const BLOCK: Duration = Duration::from_millis(100);
/// Time for which a bucket is kept after its last reserved start.
const KEPT: Duration = Duration::from_secs(60);
/// Time by which a late task may come before its turn, up to the time between two starts. Those of other workers do not come
/// exactly at theirs, and one that came too soon would leave its turn unused.
const LATE_EARLY: Duration = Duration::from_millis(50);
/// Maximum time by which a bucket is pushed back.
pub(crate) const MAX_PUSH: Duration = Duration::from_secs(24 * 3600);

/// Time ahead up to which starts stay reserved when the others are forgotten: tasks wait for them in processes.
pub(crate) const SOON: Duration = Duration::from_secs(5);

/// Numbers of a rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Terms {
    /// Time between two starts of cost 1.
    pub(crate) interval: Duration,
    /// Number of starts for which one task counts.
    pub(crate) cost: u64,
    /// Number of starts that may come at once. At least the cost.
    pub(crate) burst: u64,
}

impl Terms {
    /// Time between two tasks, in nanoseconds: a microsecond is long at a high rate.
    fn step_nanos(self) -> u64 {
        nanos(self.interval).saturating_mul(self.cost).max(1)
    }

    /// Time between two tasks, in microseconds.
    pub(crate) fn step(self) -> i64 {
        micros_of(self.step_nanos(), 1)
    }

    /// Time between two tasks.
    pub(crate) fn step_time(self) -> Duration {
        Duration::from_nanos(self.step_nanos())
    }

    /// Time that a burst is worth.
    fn tolerance(self) -> i64 {
        micros_of(nanos(self.interval), self.burst)
    }

    /// Maximum number of starts that a worker reserves without tasks for them.
    pub(crate) fn block(self) -> u32 {
        u32::try_from(nanos(BLOCK) / self.step_nanos()).unwrap_or(u32::MAX).max(1)
    }
}

/// `at`: the time up to which starts are reserved, and who moved it there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Reserved {
    at: Timestamp,
    /// Random text of the reservation, by which it is recognised if its reply is lost.
    by: String,
    /// Time by which starts that were reserved earlier have been pushed back, in microseconds, since the record was made.
    #[serde(default, skip_serializing_if = "is_zero")]
    shift: i64,
    /// Time before which nothing starts, because the bucket was pushed back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pushed: Option<Timestamp>,
    /// Time before which no task starts whose reserved start has lapsed, because another one has just done so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    late: Option<Timestamp>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(number: &i64) -> bool {
    *number == 0
}

/// Starts that were reserved together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Starts {
    /// Time of the first one, perhaps in the past.
    first: i64,
    step_nanos: u64,
    taken: u32,
    left: u32,
    /// Time of the reservation: no start is earlier.
    since: i64,
    /// Time by which the bucket had been pushed back then.
    pub(crate) shift: i64,
}

impl Starts {
    /// Takes the next start. Starts whose time is over by more than `late` have lapsed.
    pub(crate) fn take(&mut self, now: Timestamp, late: Duration) -> Option<Timestamp> {
        while self.left > 0 {
            let at = self.first.saturating_add(micros_of(self.step_nanos, self.taken.into())).max(self.since);
            self.left -= 1;
            self.taken += 1;
            if at.saturating_add(micros(late)) >= now.as_micros() {
                return Some(Timestamp::from_micros(at));
            }
        }
        None
    }

    /// Returns `true` if no start is left that has not lapsed.
    pub(crate) fn are_over(&self, now: Timestamp, late: Duration) -> bool {
        self.last().is_none_or(|at| at.saturating_add(micros(late)) < now.as_micros())
    }

    /// Time of the last start that is left.
    fn last(self) -> Option<i64> {
        let number = self.taken + self.left.checked_sub(1)?;
        Some(self.first.saturating_add(micros_of(self.step_nanos, number.into())).max(self.since))
    }
}

/// Returns what is known of a bucket, without times that are over; `None` if `by` has changed it last, and only the reply was
/// lost.
fn known_before(facts: &Facts, by: &str, now: Timestamp) -> Option<Reserved> {
    let empty = || Reserved { at: now, by: String::new(), shift: 0, pushed: None, late: None };
    let known = facts.read::<Reserved>(RESERVED).unwrap_or_else(empty);
    let (pushed, late) = (known.pushed.filter(|at| *at > now), known.late.filter(|at| *at > now));
    (known.by != by).then_some(Reserved { pushed, late, ..known })
}

/// Time of the first start of a bucket whose starts are reserved up to `from`, in microseconds. It may be over.
fn first_after(from: i64, terms: Terms) -> i64 {
    from.saturating_add(terms.step()).saturating_sub(terms.tolerance())
}

/// Decision about a reservation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ReserveDecision {
    /// The reservation is made already; only the reply was lost.
    Made,
    /// Commit this: then these starts are reserved.
    Commit(Box<Commit>, Starts),
    /// Starts are reserved as far ahead as is allowed. The next is not before this time.
    Full(Timestamp),
}

/// Decides how to reserve `number` starts, given the record of the bucket. `by` is a random text for this reservation.
pub(crate) fn reserve(
    facts: &Facts,
    bucket: &RecordId,
    terms: Terms,
    number: u32,
    by: &str,
    now: Timestamp,
) -> ReserveDecision {
    let Some(known) = known_before(facts, by, now) else { return ReserveDecision::Made };
    let now_micros = now.as_micros();
    let furthest = now_micros.saturating_add(micros(HORIZON)).saturating_add(terms.tolerance());
    let reserved = known.at.as_micros();
    // Further ahead than anybody reserves: the backend's clock was set back.
    let slack = terms.step().saturating_mul(i64::from(u32::MAX)).min(micros(HORIZON));
    let slack = slack + known.pushed.map_or(0, |_| micros(MAX_PUSH));
    let reserved = if reserved > furthest.saturating_add(slack) { now_micros } else { reserved };
    let from = reserved.max(now_micros);
    let step = terms.step();
    let first = first_after(from, terms);
    if first > now_micros.saturating_add(micros(HORIZON)) {
        return ReserveDecision::Full(Timestamp::from_micros(first));
    }
    // Never further ahead than the horizon.
    let fit = (now_micros + micros(HORIZON) - first) / step + 1;
    let left = number.min(u32::try_from(fit).unwrap_or(u32::MAX)).max(1);
    let step_nanos = terms.step_nanos();
    let until = from.saturating_add(micros_of(step_nanos, left.into()));
    let starts = Starts { first, step_nanos, taken: 0, left, since: now_micros, shift: known.shift };
    let moved = Reserved { at: Timestamp::from_micros(until), by: by.to_owned(), ..known };
    ReserveDecision::Commit(Box::new(replaced(facts, bucket, &moved, now)), starts)
}

/// Decision about a task whose reserved start has lapsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LateDecision {
    /// It starts now already; only the reply was lost.
    Made,
    /// Commit this: then the task may start now. The bucket has been pushed back by so many microseconds then.
    Commit(Box<Commit>, i64),
    /// It may not start before this time.
    NotBefore(Timestamp),
}

/// Decides how a task may start now whose start was reserved for `lapsed`, a while ago; `None` if it was reserved under a
/// faster rate.
///
/// A start that nobody has reserved and that may come now is taken. Otherwise all later starts are pushed back by as much as
/// is needed to keep their distance from this one, so the rate holds for all of them together. Such starts come one by one, at the
/// rate. Nothing is reserved ahead for them: a task that is late again takes nothing from the others.
pub(crate) fn start_late(
    facts: &Facts,
    bucket: &RecordId,
    terms: Terms,
    lapsed: Option<Timestamp>,
    by: &str,
    now: Timestamp,
) -> LateDecision {
    let Some(known) = known_before(facts, by, now) else { return LateDecision::Made };
    let (step, now_micros) = (terms.step(), now.as_micros());
    let from = known.at.as_micros().max(now_micros);
    let moved = if known.pushed.is_none() && first_after(from, terms) <= now_micros {
        Reserved { at: Timestamp::from_micros(from.saturating_add(step)), by: by.to_owned(), ..known }
    } else {
        let early = LATE_EARLY.min(terms.step_time());
        if let Some(next) = known.pushed.max(known.late.filter(|late| *late > now.plus(early))) {
            return LateDecision::NotBefore(next);
        }
        // The time of its own start is free, if it is one of this rate.
        let own = lapsed.map_or(step, |lapsed| now_micros.saturating_sub(lapsed.as_micros()));
        let more = step.min(own).max(0);
        let at = known.at.as_micros().saturating_add(more).max(now_micros.saturating_add(step));
        let next =
            known.late.map_or(now_micros, |late| late.as_micros().max(now_micros)).saturating_add(step);
        Reserved {
            at: Timestamp::from_micros(at),
            by: by.to_owned(),
            shift: known.shift.saturating_add(more),
            pushed: None,
            late: Some(Timestamp::from_micros(next)),
        }
    };
    LateDecision::Commit(Box::new(replaced(facts, bucket, &moved, now)), moved.shift)
}

/// Decides how to keep a whole bucket from starts before `until`; `None` if it is kept that long already. Starts that are
/// reserved are pushed back by the same time, so that they keep their order and their distances.
pub(crate) fn push_back(
    facts: &Facts,
    bucket: &RecordId,
    terms: Terms,
    until: Timestamp,
    by: &str,
    now: Timestamp,
) -> Option<Commit> {
    let known = known_before(facts, by, now)?;
    let until = until.min(now.plus(MAX_PUSH)).as_micros();
    let now_micros = now.as_micros();
    // Several tasks are told the same at once: each pushes only by what is missing.
    let more = until - known.pushed.map_or(now_micros, Timestamp::as_micros);
    if more <= 0 {
        return None;
    }
    // The first start after it is at `until`, and no burst.
    let first = until.saturating_add(terms.tolerance()).saturating_sub(terms.step());
    let at = known.at.as_micros().max(now_micros).saturating_add(more).max(first);
    let moved = Reserved {
        at: Timestamp::from_micros(at),
        by: by.to_owned(),
        shift: known.shift.saturating_add(more),
        pushed: Some(Timestamp::from_micros(until)),
        late: known.late,
    };
    Some(replaced(facts, bucket, &moved, now))
}

/// Returns the time by which a bucket has been pushed back, in microseconds.
pub(crate) fn shift(facts: &Facts) -> i64 {
    facts.read::<Reserved>(RESERVED).map_or(0, |known| known.shift)
}

/// Creates the commit that replaces what is known of a bucket, if its record is as read.
fn replaced(facts: &Facts, bucket: &RecordId, by: &Reserved, now: Timestamp) -> Commit {
    let mut commit = Commit::new(bucket.clone());
    match facts.get(RESERVED) {
        Some(known) => {
            commit.require = vec![(RESERVED.into(), known.clone())];
            commit.drop = vec![RESERVED.into()];
        }
        None => commit.unless = vec![RESERVED.into()],
    }
    commit.facts = vec![(RESERVED.into(), json(by))];
    commit.expiry = Expiry::After(by.at.since(now) + KEPT);
    commit
}

/// Decides how to forget the starts of a bucket that are reserved further ahead than [`SOON`]; `None` if there are none. Nothing
/// starts before the time to which the bucket was pushed back.
pub(crate) fn forget_later(
    facts: &Facts,
    bucket: &RecordId,
    terms: Terms,
    by: &str,
    now: Timestamp,
) -> Option<Commit> {
    let known = facts.read::<Reserved>(RESERVED).filter(|known| known.by != by)?;
    // The first start after that time, and no burst.
    let pushed = known.pushed.filter(|pushed| *pushed > now).map_or(0, |pushed| {
        pushed.as_micros().saturating_add(terms.tolerance()).saturating_sub(terms.step())
    });
    let at = Timestamp::from_micros(pushed.max(now.plus(SOON).as_micros()));
    // A step of the rate that was before may be an hour.
    let late = known.late.map(|late| late.min(now.plus(terms.step_time())));
    (known.at > at).then(|| replaced(facts, bucket, &Reserved { at, late, by: by.to_owned(), ..known }, now))
}

/// Creates the commit that forgets the reservations of a bucket.
pub(crate) fn reset(bucket: &RecordId) -> Commit {
    let mut commit = Commit::new(bucket.clone());
    commit.drop = vec![RESERVED.into()];
    commit
}

/// Returns the time of the next free start of a bucket, for display.
pub(crate) fn next_start(facts: &Facts, terms: Terms, now: Timestamp) -> Timestamp {
    let reserved = facts.read::<Reserved>(RESERVED).map_or(0, |known| known.at.as_micros());
    let next = first_after(reserved.max(now.as_micros()), terms);
    Timestamp::from_micros(next.max(now.as_micros()))
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Returns `number` times so many nanoseconds in microseconds, rounded up.
fn micros_of(nanos: u64, number: u64) -> i64 {
    i64::try_from(nanos.saturating_mul(number).div_ceil(1000)).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{id::RecordKind, limit::Rate};

    const NOW: Timestamp = Timestamp::from_micros(1_000_000_000);

    fn bucket() -> RecordId {
        RecordId::new(RecordKind::Limit, "rate/task:t")
    }

    fn terms(per_second: u32, burst: u64, cost: u64) -> Terms {
        Terms { interval: Duration::from_secs(1) / per_second, cost, burst: burst.max(cost) }
    }

    /// Reserves starts, and returns their times in milliseconds from [`NOW`].
    fn starts(facts: &mut Facts, terms: Terms, number: u32, now: Timestamp) -> Vec<i64> {
        starts_in_micros(facts, terms, number, now).into_iter().map(|at| at / 1000).collect()
    }

    fn starts_in_micros(facts: &mut Facts, terms: Terms, number: u32, now: Timestamp) -> Vec<i64> {
        let ReserveDecision::Commit(commit, mut starts) = reserve(facts, &bucket(), terms, number, "x", now)
        else {
            panic!("the bucket is full")
        };
        assert!(commit.apply(facts));
        let mut by_another = serde_json::from_slice::<Reserved>(facts.get(RESERVED).unwrap()).unwrap();
        by_another.by = "y".into();
        facts.remove(RESERVED);
        facts.put(RESERVED, json(&by_another));
        std::iter::from_fn(|| starts.take(now, Duration::ZERO))
            .map(|at| at.as_micros() - NOW.as_micros())
            .collect()
    }

    #[test]
    fn starts_keep_their_distance() {
        let mut facts = Facts::new();
        let five = terms(5, 1, 1);
        assert_eq!(starts(&mut facts, five, 3, NOW), [0, 200, 400]);
        assert_eq!(starts(&mut facts, five, 2, NOW), [600, 800]);
        let later = NOW.plus(Duration::from_secs(9));
        assert_eq!(starts(&mut facts, five, 2, later), [9000, 9200], "what was not used is not saved");
    }

    #[test]
    fn a_burst_starts_at_once_and_fills_up_again() {
        let mut facts = Facts::new();
        let five = terms(5, 3, 1);
        assert_eq!(starts(&mut facts, five, 5, NOW), [0, 0, 0, 200, 400]);
        let later = NOW.plus(Duration::from_secs(9));
        assert_eq!(starts(&mut facts, five, 4, later), [9000, 9000, 9000, 9200]);
    }

    #[test]
    fn a_task_counts_for_its_cost() {
        let mut facts = Facts::new();
        assert_eq!(starts(&mut facts, terms(10, 4, 2), 4, NOW), [0, 0, 200, 400]);
        let mut facts = Facts::new();
        let dear = terms(10, 1, 5);
        assert_eq!(starts(&mut facts, dear, 3, NOW), [0, 500, 1000], "more than the burst");
    }

    #[test]
    fn no_window_has_more_starts_than_the_rate_and_the_burst() {
        let five = terms(5, 3, 1);
        let mut facts = Facts::new();
        let mut all = Vec::new();
        for step in 0..200 {
            let now = NOW.plus(Duration::from_millis(step * 137 % 5000));
            all.extend(starts(&mut facts, five, 1 + u32::try_from(step % 3).unwrap(), now));
        }
        all.sort_unstable();
        for window in all.windows(9) {
            assert!(window[8] - window[0] >= 1000, "nine starts in {window:?}");
        }
    }

    #[test]
    fn a_very_high_rate_is_used_and_never_exceeded() {
        for rate in [15_000, 300_000, 700_000, 1_000_000] {
            let interval = Rate::per_second(rate).interval().unwrap();
            let terms = Terms { interval, cost: 1, burst: 1 };
            let mut facts = Facts::new();
            let tenth = rate / 10;
            let mut all = Vec::new();
            for _ in 0..3 {
                all.extend(starts_in_micros(&mut facts, terms, tenth, NOW));
            }
            let one_tenth_later =
                all.windows(tenth as usize + 1).map(|window| window[tenth as usize] - window[0]);
            let (least, most) = (one_tenth_later.clone().min().unwrap(), one_tenth_later.max().unwrap());
            assert!(least >= 99_999, "{rate} and one more start in {least} µs");
            assert!(most <= 100_100, "{rate}: only {tenth} starts in {most} µs");
        }
    }

    #[test]
    fn one_of_two_reservations_at_once_is_refused_and_a_lost_reply_is_recognised() {
        let mut facts = Facts::new();
        let five = terms(5, 1, 1);
        let reserved = |facts: &Facts, by| match reserve(facts, &bucket(), five, 1, by, NOW) {
            ReserveDecision::Commit(commit, _) => commit,
            other => panic!("{other:?}"),
        };
        let (one, two) = (reserved(&facts, "one"), reserved(&facts, "two"));
        assert!(one.apply(&mut facts) && !two.apply(&mut facts) && !one.apply(&mut facts));
        assert_eq!(reserve(&facts, &bucket(), five, 1, "one", NOW), ReserveDecision::Made);
        let two = reserved(&facts, "two");
        assert!(two.apply(&mut facts));
    }

    #[test]
    fn reservations_have_a_horizon_and_a_clock_that_was_set_back_does_not_block() {
        let mut facts = Facts::new();
        let slow = Terms { interval: HORIZON, cost: 1, burst: 1 };
        assert_eq!(starts(&mut facts, slow, 5, NOW).len(), 2, "now, and in an hour");
        assert!(
            matches!(reserve(&facts, &bucket(), slow, 1, "x", NOW), ReserveDecision::Full(at) if at == NOW.plus(2 * HORIZON))
        );
        let five = terms(5, 1, 1);
        let before = Timestamp::from_micros(NOW.as_micros() - 900_000_000);
        let mut facts = Facts::new();
        let ahead =
            Reserved { at: before.plus(4 * HORIZON), by: "y".into(), shift: 0, pushed: None, late: None };
        facts.put(RESERVED, json(&ahead));
        assert!(
            matches!(reserve(&facts, &bucket(), five, 1, "x", before), ReserveDecision::Commit(_, starts) if starts.first == before.as_micros())
        );
    }

    #[test]
    fn starts_that_are_late_lapse() {
        let mut facts = Facts::new();
        let ReserveDecision::Commit(commit, mut starts) =
            reserve(&facts, &bucket(), terms(100, 1, 1), 10, "x", NOW)
        else {
            panic!("reserve")
        };
        assert!(commit.apply(&mut facts));
        let later = NOW.plus(Duration::from_millis(55));
        assert_eq!(starts.take(later, Duration::from_millis(10)), Some(NOW.plus(Duration::from_millis(50))));
        assert_eq!(starts.take(NOW.plus(Duration::from_secs(1)), Duration::from_millis(10)), None);
        assert!(starts.are_over(NOW, Duration::ZERO), "none is left");
    }

    /// Lets tasks start that come back up to 3 s after their time, and those that wait up to 1 s. Returns the starts, in
    /// milliseconds.
    fn starts_of_late_tasks(terms: Terms, number: usize) -> Vec<i64> {
        let (mut facts, mut random, mut writes) = (Facts::new(), 7_u64, 0_u64);
        let mut after = |most: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            Duration::from_millis((random >> 33) % most)
        };
        // When each one comes, and what it has reserved.
        let mut coming: Vec<(Timestamp, Option<(Timestamp, i64)>)> = vec![(NOW, None); number];
        let mut all = Vec::new();
        while let Some((place, _)) = coming.iter().enumerate().min_by_key(|(_, (at, _))| *at) {
            let (now, reserved) = coming.swap_remove(place);
            writes += 1;
            let by = writes.to_string();
            let due = reserved.map(|(at, known)| {
                let more = u64::try_from(shift(&facts) - known).unwrap();
                (at.plus(Duration::from_micros(more)), shift(&facts))
            });
            let again = match due {
                Some((at, _)) if at > now => at.plus(after(1000)),
                Some((at, _)) if at.plus(Duration::from_millis(500)) >= now => {
                    all.push((now.as_micros() - NOW.as_micros()) / 1000);
                    continue;
                }
                Some((at, _)) => match start_late(&facts, &bucket(), terms, Some(at), &by, now) {
                    LateDecision::Commit(commit, _) => {
                        assert!(commit.apply(&mut facts));
                        all.push((now.as_micros() - NOW.as_micros()) / 1000);
                        continue;
                    }
                    LateDecision::NotBefore(next) => next.plus(after(1000)),
                    LateDecision::Made => panic!("made"),
                },
                None => match reserve(&facts, &bucket(), terms, 1, &by, now) {
                    ReserveDecision::Commit(commit, mut starts) => {
                        assert!(commit.apply(&mut facts));
                        let at = starts.take(now, Duration::MAX).unwrap();
                        coming.push((at.plus(after(3000)), Some((at, starts.shift))));
                        continue;
                    }
                    other => panic!("{other:?}"),
                },
            };
            coming.push((again, due));
        }
        all
    }

    #[test]
    fn tasks_that_are_late_for_their_starts_start_one_by_one_and_never_exceed_the_rate() {
        for (per_second, burst, number) in [(2, 1, 200), (10, 3, 400), (100, 10, 1000)] {
            let all = starts_of_late_tasks(terms(per_second, burst, 1), number);
            assert_eq!(all.len(), number);
            let rate = i64::from(per_second);
            for (first, from) in all.iter().enumerate() {
                for (last, to) in all.iter().enumerate().skip(first) {
                    let most = rate * (to - from + 500) / 1000 + i64::try_from(burst).unwrap() + 2;
                    let seen = i64::try_from(last - first + 1).unwrap();
                    assert!(seen <= most, "{seen} starts at {per_second}/s in {} ms", to - from);
                }
            }
            let (whole, needed) = (all[number - 1], 1000 * i64::try_from(number).unwrap() / rate);
            assert!(whole < needed * 3 / 2 + 4000, "{whole} ms for {needed} ms at {per_second}/s");
        }
    }

    #[test]
    fn starts_that_others_have_reserved_make_room_for_a_late_one() {
        let mut facts = Facts::new();
        let five = terms(5, 1, 1);
        assert_eq!(starts(&mut facts, five, 6, NOW), [0, 200, 400, 600, 800, 1000]);
        let late = |facts: &Facts, by, millis| {
            start_late(facts, &bucket(), five, Some(NOW), by, NOW.plus(Duration::from_millis(millis)))
        };
        let LateDecision::Commit(commit, moved) = late(&facts, "a", 1000) else { panic!("not late") };
        assert!(commit.apply(&mut facts));
        assert_eq!((moved, shift(&facts)), (200_000, 200_000), "by one start, whatever it is late by");
        assert_eq!(late(&facts, "a", 1000), LateDecision::Made);
        let next = NOW.plus(Duration::from_millis(1200));
        assert_eq!(late(&facts, "b", 1100), LateDecision::NotBefore(next));
        assert!(matches!(late(&facts, "b", 1200), LateDecision::Commit(..)));
        assert_eq!(starts(&mut facts, five, 1, NOW.plus(Duration::from_millis(1100))), [1400]);
    }

    #[test]
    fn a_late_task_takes_a_start_that_is_free_and_moves_none() {
        let mut facts = Facts::new();
        let five = terms(5, 3, 1);
        assert_eq!(starts(&mut facts, five, 3, NOW), [0, 0, 0]);
        let late = |facts: &Facts, by, millis| {
            start_late(facts, &bucket(), five, Some(NOW), by, NOW.plus(Duration::from_millis(millis)))
        };
        // After 0.6 s three are free again, for late tasks as for others.
        for by in ["a", "b", "c"] {
            let LateDecision::Commit(commit, moved) = late(&facts, by, 600) else { panic!("{by}") };
            assert!(commit.apply(&mut facts));
            assert_eq!(moved, 0);
        }
        assert_eq!(next_start(&facts, five, NOW.plus(Duration::from_millis(600))).as_micros(), 1_000_800_000);
        // The next one moves the others: it is the only one until 0.8 s.
        let LateDecision::Commit(commit, moved) = late(&facts, "d", 600) else { panic!("d") };
        assert!(commit.apply(&mut facts) && moved == 200_000);
        assert!(matches!(late(&facts, "e", 600), LateDecision::NotBefore(_)));
    }

    #[test]
    fn a_late_task_that_comes_a_little_before_its_turn_has_it_and_the_turns_after_it_stay() {
        let mut facts = Facts::new();
        let five = terms(5, 1, 1);
        assert_eq!(starts(&mut facts, five, 9, NOW).len(), 9);
        let late = |facts: &Facts, by, millis| {
            start_late(facts, &bucket(), five, Some(NOW), by, NOW.plus(Duration::from_millis(millis)))
        };
        for (by, millis) in [("a", 1000), ("b", 1160), ("c", 1350)] {
            let LateDecision::Commit(commit, _) = late(&facts, by, millis) else { panic!("{by}") };
            assert!(commit.apply(&mut facts));
        }
        let next = NOW.plus(Duration::from_millis(1600));
        assert_eq!(late(&facts, "d", 1540), LateDecision::NotBefore(next));
    }

    #[test]
    fn a_bucket_is_pushed_back_as_a_whole() {
        let mut facts = Facts::new();
        let five = terms(5, 3, 1);
        let until = NOW.plus(Duration::from_secs(30));
        let pushed = push_back(&facts, &bucket(), five, until, "p", NOW).unwrap();
        assert!(pushed.apply(&mut facts));
        assert_eq!(push_back(&facts, &bucket(), five, until, "p", NOW), None);
        assert_eq!(next_start(&facts, five, NOW), until);
        assert_eq!(starts(&mut facts, five, 2, NOW), [30_000, 30_200], "and no burst then");
        assert!(reset(&bucket()).apply(&mut facts));
        assert_eq!(next_start(&facts, five, NOW), NOW);
    }

    #[test]
    fn reserved_starts_are_pushed_back_with_their_bucket_once_for_all_who_ask() {
        let mut facts = Facts::new();
        let five = terms(5, 1, 1);
        assert_eq!(starts(&mut facts, five, 3, NOW), [0, 200, 400]);
        let until = NOW.plus(Duration::from_secs(30));
        let asked = NOW.plus(Duration::from_millis(100));
        for by in ["p", "q"] {
            if let Some(commit) = push_back(&facts, &bucket(), five, until, by, asked) {
                assert!(commit.apply(&mut facts) && by == "p");
            }
        }
        assert_eq!(shift(&facts), 29_900_000);
        assert_eq!(starts(&mut facts, five, 1, NOW), [30_500], "behind those at 30.1 s and 30.3 s");
        let longer = NOW.plus(Duration::from_secs(40));
        let pushed = push_back(&facts, &bucket(), five, longer, "r", asked).unwrap();
        assert!(pushed.apply(&mut facts));
        assert_eq!(shift(&facts), 39_900_000);
    }

    #[test]
    fn starts_are_forgotten_that_no_process_waits_for() {
        let mut facts = Facts::new();
        let one = terms(1, 1, 1);
        assert_eq!(forget_later(&facts, &bucket(), one, "f", NOW), None);
        assert_eq!(starts(&mut facts, one, 5, NOW).len(), 5);
        assert_eq!(forget_later(&facts, &bucket(), one, "f", NOW), None, "they come soon");
        assert_eq!(starts(&mut facts, one, 100, NOW).len(), 100);
        assert!(forget_later(&facts, &bucket(), one, "f", NOW).unwrap().apply(&mut facts));
        assert_eq!(forget_later(&facts, &bucket(), one, "f", NOW), None);
        assert_eq!(starts(&mut facts, one, 2, NOW), [5000, 6000]);
        let until = NOW.plus(Duration::from_secs(30));
        assert!(push_back(&facts, &bucket(), one, until, "p", NOW).unwrap().apply(&mut facts));
        assert_eq!(starts(&mut facts, one, 100, NOW).len(), 100);
        assert!(forget_later(&facts, &bucket(), one, "f", NOW).unwrap().apply(&mut facts));
        assert_eq!(starts(&mut facts, one, 1, NOW), [30_000]);
        assert_eq!(shift(&facts), 30_000_000);
    }

    #[test]
    fn a_bucket_is_pushed_back_by_a_day_at_most_and_that_is_no_wrong_clock() {
        let mut facts = Facts::new();
        let five = terms(5, 1, 1);
        let pushed = push_back(&facts, &bucket(), five, NOW.plus(100 * MAX_PUSH), "p", NOW).unwrap();
        assert!(pushed.apply(&mut facts));
        assert_eq!(reserve(&facts, &bucket(), five, 1, "x", NOW), ReserveDecision::Full(NOW.plus(MAX_PUSH)));
    }
}
