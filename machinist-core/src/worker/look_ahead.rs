//! The number of deliveries that a worker holds beyond those that run.
//!
//! A worker that holds the next tasks already starts them without a round trip to the broker. Behind a slow task, however,
//! a held task waits although another worker may be idle. So the look-ahead follows what runs: it begins at none, grows
//! while runs are short, and ends as soon as a delivery has waited too long for a slot. Then the worker takes no more
//! deliveries, hands back those that wait, and takes from then on only what it has slots for.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

/// Wait for a slot after which a delivery goes back, so that another worker can take it.
pub(super) const MAX_SLOT_WAIT: Duration = Duration::from_secs(2);
/// Expected wait for a slot of the last delivery that is held.
const EXPECTED_SLOT_WAIT: Duration = Duration::from_millis(500);
/// Number of runs after which their mean time is believed.
const MIN_RUNS: u32 = 4;
/// Weight of the newest run in the mean time is one in this number.
const MEAN_OF: i64 = 8;
/// Maximum number of deliveries that wait for runs elsewhere and are replaced by others.
const MAX_ASIDE: usize = 16;
/// Time for which changes are gathered.
const GATHER: Duration = Duration::from_millis(50);

/// Change to the credit of a worker's consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CreditChange {
    /// Add this much.
    Add(u16),
    /// Take all of it away.
    Pause,
}

/// Look-ahead of a worker.
#[derive(Debug)]
pub(super) struct LookAhead {
    state: Mutex<LookAheadState>,
    changed: Notify,
    /// Number of pauses so far.
    pauses: watch::Sender<u64>,
}

/// The numbers from which the credit follows.
#[derive(Debug, Clone, PartialEq, Eq)]
struct LookAheadState {
    concurrency: usize,
    /// Maximum look-ahead.
    max: usize,
    /// Look-ahead since the last pause. It only grows.
    target: usize,
    /// Credit that the consumer has.
    given: usize,
    /// Number of pauses so far. A delivery from before the last pause uses no credit.
    pauses: u64,
    /// Number of slots that deliveries since the last pause hold.
    running: usize,
    /// Number of slots that deliveries from before the last pause hold.
    running_since_earlier: usize,
    /// Number of deliveries since the last pause that wait for a run elsewhere, not for a slot.
    aside: usize,
    runs: u32,
    mean_run: Duration,
    must_pause: bool,
}

impl LookAheadState {
    fn new(concurrency: usize, max: usize) -> Self {
        Self {
            concurrency,
            max,
            target: 0,
            given: concurrency,
            pauses: 0,
            running: 0,
            running_since_earlier: 0,
            aside: 0,
            runs: 0,
            mean_run: Duration::ZERO,
            must_pause: false,
        }
    }

    /// Returns what has to change.
    fn change(&self) -> Option<CreditChange> {
        if self.must_pause {
            return Some(CreditChange::Pause);
        }
        let slots = self.concurrency.saturating_sub(self.running_since_earlier);
        let more = (slots + self.target + self.aside.min(MAX_ASIDE)).saturating_sub(self.given);
        (more > 0).then(|| CreditChange::Add(u16::try_from(more).unwrap_or(u16::MAX)))
    }

    fn changed(&mut self, change: CreditChange) {
        match change {
            CreditChange::Add(more) => self.given += usize::from(more),
            CreditChange::Pause => {
                *self = Self {
                    pauses: self.pauses + 1,
                    running_since_earlier: self.running_since_earlier + self.running,
                    runs: MIN_RUNS,
                    mean_run: self.mean_run.max(MAX_SLOT_WAIT),
                    given: 0,
                    ..Self::new(self.concurrency, self.max)
                };
            }
        }
    }

    /// Notes the time of a run. The look-ahead grows if the runs have become so short that the last delivery of a larger
    /// one would not wait for long.
    fn ran(&mut self, time: Duration) {
        let micros = |time: Duration| i64::try_from(time.as_micros()).unwrap_or(i64::MAX);
        self.mean_run = if self.runs == 0 {
            time
        } else {
            let mean = micros(self.mean_run);
            let moved = mean + (micros(time).saturating_sub(mean)) / MEAN_OF;
            Duration::from_micros(u64::try_from(moved).unwrap_or(0))
        };
        self.runs = self.runs.saturating_add(1);
        if self.runs < MIN_RUNS || self.target >= self.max {
            return;
        }
        let mean = self.mean_run.max(Duration::from_micros(1));
        let fits =
            (EXPECTED_SLOT_WAIT.as_micros() / mean.as_micros()).saturating_mul(self.concurrency as u128);
        let fits = usize::try_from(fits).unwrap_or(usize::MAX).min(self.max);
        // In large steps: each costs a subscription on some brokers.
        if fits == self.max || fits > self.target * 2 {
            self.target = fits;
        }
    }
}

impl LookAhead {
    /// Creates the look-ahead of a worker that holds `max` deliveries at most beyond those that run.
    pub(super) fn new(concurrency: usize, max: usize) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(LookAheadState::new(concurrency, max)),
            changed: Notify::new(),
            pauses: watch::Sender::new(0),
        })
    }

    fn state(&self) -> MutexGuard<'_, LookAheadState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Number of pauses so far. Read when a delivery arrives.
    pub(super) fn pauses(&self) -> u64 {
        self.state().pauses
    }

    /// Starts again with a new consumer, whose credit is the concurrency.
    pub(super) fn resubscribed(&self) {
        let mut state = self.state();
        state.changed(CreditChange::Pause);
        state.given = state.concurrency;
        self.pauses.send_replace(state.pauses);
    }

    /// Changes the number of handlers that run at once. With fewer, deliveries that wait for a slot go back.
    pub(super) fn set_concurrency(&self, concurrency: usize) {
        let mut state = self.state();
        state.must_pause |= concurrency < state.concurrency;
        state.concurrency = concurrency;
        drop(state);
        self.changed.notify_one();
    }

    /// Waits for a change to the credit. The caller makes it, and then calls [`made`](Self::made).
    ///
    /// # Cancel safety
    /// Safe: the change is returned again.
    pub(super) async fn next_change(&self) -> CreditChange {
        loop {
            if self.state().change().is_some() {
                tokio::time::sleep(GATHER).await;
                if let Some(change) = self.state().change() {
                    return change;
                }
            }
            self.changed.notified().await;
        }
    }

    /// Notes that the consumer's credit has changed. After a pause, deliveries that wait for a slot go back.
    pub(super) fn made(&self, change: CreditChange) {
        let mut state = self.state();
        state.changed(change);
        self.pauses.send_replace(state.pauses);
    }

    /// Completes when the worker was paused since there were `pauses`.
    pub(super) async fn paused_after(&self, pauses: u64) {
        // It cannot be closed: the sender is ours.
        let _ = self.pauses.subscribe().wait_for(|now| *now > pauses).await;
    }

    /// Asks for a pause, because a delivery has waited for [`MAX_SLOT_WAIT`].
    pub(super) fn waited_too_long(&self, pauses: u64) {
        let mut state = self.state();
        state.must_pause |= state.pauses == pauses;
        drop(state);
        self.changed.notify_one();
    }

    /// Counts a slot as held by a delivery, until the returned value is dropped.
    pub(super) fn running(self: &Arc<Self>, pauses: u64) -> RunningSlot {
        let mut state = self.state();
        if state.pauses == pauses {
            state.running += 1;
        } else {
            state.running_since_earlier += 1;
        }
        drop(state);
        RunningSlot { look_ahead: Arc::clone(self), pauses, since: Instant::now() }
    }

    /// Counts a delivery as one that waits for a run elsewhere, until the returned value is dropped.
    pub(super) fn aside(self: &Arc<Self>, pauses: u64) -> Aside {
        let mut state = self.state();
        state.aside += usize::from(state.pauses == pauses);
        drop(state);
        self.changed.notify_one();
        Aside { look_ahead: Arc::clone(self), pauses }
    }
}

/// A slot that a delivery holds.
#[derive(Debug)]
pub(super) struct RunningSlot {
    look_ahead: Arc<LookAhead>,
    pauses: u64,
    since: Instant,
}

impl Drop for RunningSlot {
    fn drop(&mut self) {
        let mut state = self.look_ahead.state();
        if state.pauses == self.pauses {
            state.running -= 1;
        } else {
            state.running_since_earlier -= 1;
        }
        state.ran(self.since.elapsed());
        let changes = state.change().is_some();
        drop(state);
        if changes {
            self.look_ahead.changed.notify_one();
        }
    }
}

/// A delivery that waits for a run elsewhere.
#[derive(Debug)]
pub(super) struct Aside {
    look_ahead: Arc<LookAhead>,
    pauses: u64,
}

impl Drop for Aside {
    fn drop(&mut self) {
        let mut state = self.look_ahead.state();
        if state.pauses == self.pauses {
            state.aside -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ran(state: &mut LookAheadState, runs: usize, time: Duration) {
        (0..runs).for_each(|_| state.ran(time));
    }

    #[test]
    fn it_grows_with_short_runs_and_not_with_long_ones() {
        let mut state = LookAheadState::new(2, 16);
        ran(&mut state, 3, Duration::from_millis(1));
        assert_eq!(state.change(), None, "too few runs");
        ran(&mut state, 1, Duration::from_millis(1));
        assert_eq!(state.change(), Some(CreditChange::Add(16)));
        let mut state = LookAheadState::new(2, 16);
        ran(&mut state, 100, Duration::from_secs(2));
        assert_eq!(state.change(), None);
        let mut state = LookAheadState::new(2, 16);
        ran(&mut state, 100, Duration::from_millis(250));
        assert_eq!(state.change(), Some(CreditChange::Add(4)), "the last one waits for two runs");
    }

    #[test]
    fn after_a_pause_it_takes_what_it_has_slots_for() {
        let mut state = LookAheadState::new(4, 16);
        ran(&mut state, 10, Duration::from_millis(1));
        state.changed(CreditChange::Add(16));
        state.running = 4;
        state.must_pause = true;
        assert_eq!(state.change(), Some(CreditChange::Pause));
        state.changed(CreditChange::Pause);
        assert_eq!((state.change(), state.given, state.running_since_earlier), (None, 0, 4));
        state.running_since_earlier = 1;
        assert_eq!(state.change(), Some(CreditChange::Add(3)));
        state.changed(CreditChange::Add(3));
        assert_eq!(state.change(), None);
        state.running_since_earlier = 0;
        assert_eq!(state.change(), Some(CreditChange::Add(1)));
        state.changed(CreditChange::Add(1));
        ran(&mut state, 50, Duration::from_millis(1));
        assert_eq!(state.change(), Some(CreditChange::Add(16)), "the tasks are short again");
    }

    #[test]
    fn deliveries_that_wait_for_runs_elsewhere_are_replaced_up_to_a_bound() {
        let mut state = LookAheadState::new(1, 0);
        state.aside = 1;
        assert_eq!(state.change(), Some(CreditChange::Add(1)));
        state.aside = 1000;
        assert_eq!(state.change(), Some(CreditChange::Add(16)));
    }

    #[tokio::test(start_paused = true)]
    async fn slots_are_counted_before_and_after_a_pause() {
        let look_ahead = LookAhead::new(2, 16);
        let pauses = look_ahead.pauses();
        let [first, second] = [look_ahead.running(pauses), look_ahead.running(pauses)];
        look_ahead.waited_too_long(pauses);
        assert_eq!(look_ahead.next_change().await, CreditChange::Pause);
        look_ahead.made(CreditChange::Pause);
        look_ahead.paused_after(pauses).await;
        // A request from before the pause asks for nothing more.
        look_ahead.waited_too_long(pauses);
        assert_eq!(look_ahead.state().change(), None);
        drop(first);
        assert_eq!(look_ahead.next_change().await, CreditChange::Add(1));
        look_ahead.made(CreditChange::Add(1));
        drop(second);
        assert_eq!(look_ahead.next_change().await, CreditChange::Add(1));
    }
}
