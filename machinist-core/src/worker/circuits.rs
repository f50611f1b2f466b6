//! Circuit breakers: a worker that fails a task again and again leaves it to others for a while.
//!
//! The decision is this worker's alone, from its own runs, and costs no round trip. Tasks that it refuses are parked, so that
//! other workers take them, or this one when its pause is over.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::id::TaskName;

/// Number of pauses that the longest pause is worth.
const LONGEST_PAUSES: u32 = 16;

/// Rule by which a worker stops taking a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CircuitBreaker {
    /// Number of runs in a row that have failed.
    pub(super) failures: u32,
    /// Time for which the task is not taken. It doubles while the task goes on to fail, up to 16 times its length.
    pub(super) pause: Duration,
}

/// State of one task.
#[derive(Debug, Default)]
struct Circuit {
    /// Number of runs that have failed in a row.
    failed: u32,
    /// The last pause, unless the circuit is closed.
    pause: Option<CircuitPause>,
}

#[derive(Debug, Clone, Copy)]
struct CircuitPause {
    since: Instant,
    length: Duration,
    /// Time at which the next run is let through.
    until: Instant,
}

/// Change of a circuit by the end of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CircuitChange {
    Opened(Duration),
    Closed,
}

impl Circuit {
    /// Returns the time for which the task is not taken.
    fn paused_for(&self, now: Instant) -> Option<Duration> {
        let until = self.pause?.until;
        (until > now).then(|| until - now)
    }

    /// Returns the time for which the task is not taken. After a pause one run is let through. The others wait for as long
    /// again, or until that run succeeds.
    fn refused_for(&mut self, now: Instant) -> Option<Duration> {
        let refused = self.paused_for(now);
        if let Some(pause) = self.pause.as_mut().filter(|_| refused.is_none()) {
            pause.until = now + pause.length;
        }
        refused
    }

    /// Notes the end of a run that began at `began`.
    fn ended(
        &mut self,
        failed: bool,
        breaker: CircuitBreaker,
        began: Instant,
        now: Instant,
    ) -> Option<CircuitChange> {
        if !failed {
            let was_open = self.pause.is_some();
            *self = Self::default();
            return was_open.then_some(CircuitChange::Closed);
        }
        self.failed = self.failed.saturating_add(1);
        let length = match self.pause {
            // It says nothing new.
            Some(pause) if began < pause.since => return None,
            Some(pause) => (pause.length * 2).min(breaker.pause * LONGEST_PAUSES),
            None if self.failed < breaker.failures => return None,
            None => breaker.pause,
        };
        self.pause = Some(CircuitPause { since: now, length, until: now + length });
        Some(CircuitChange::Opened(length))
    }
}

/// Circuits of a worker.
#[derive(Debug, Default)]
pub(super) struct Circuits(Mutex<HashMap<TaskName, Circuit>>);

impl Circuits {
    fn all(&self) -> MutexGuard<'_, HashMap<TaskName, Circuit>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the time for which a task is not taken; `None` if it is, or if one run of it will be let through.
    pub(super) fn paused_for(&self, task: &TaskName) -> Option<Duration> {
        self.all().get(task)?.paused_for(Instant::now())
    }

    /// Lets a run through that nothing else refuses. Returns `false` if the task is not taken.
    pub(super) fn lets_through(&self, task: &TaskName) -> bool {
        let mut all = self.all();
        all.get_mut(task).is_none_or(|circuit| circuit.refused_for(Instant::now()).is_none())
    }

    /// Notes the end of a run, and returns the tasks that are not taken now if that has changed.
    pub(super) fn ended(
        &self,
        task: &TaskName,
        failed: bool,
        breaker: CircuitBreaker,
        began: Instant,
    ) -> Option<Vec<String>> {
        let mut all = self.all();
        match all.entry(task.clone()).or_default().ended(failed, breaker, began, Instant::now())? {
            CircuitChange::Opened(pause) => {
                tracing::warn!(%task, ?pause, failures = breaker.failures, "this worker fails the task again and again and leaves it to others for a while");
            }
            CircuitChange::Closed => {
                tracing::info!(%task, "a run has succeeded: this worker takes the task again")
            }
        }
        let mut open: Vec<_> = all
            .iter()
            .filter(|(_, circuit)| circuit.pause.is_some())
            .map(|(task, _)| task.to_string())
            .collect();
        open.sort_unstable();
        Some(open)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const BREAKER: CircuitBreaker = CircuitBreaker { failures: 3, pause: SECOND };

    #[test]
    fn failures_in_a_row_open_a_circuit_and_a_success_closes_it() {
        let mut circuit = Circuit::default();
        let now = Instant::now();
        let mut end = |failed| circuit.ended(failed, BREAKER, now, now);
        assert_eq!([end(true), end(true), end(false)], [None; 3]);
        assert_eq!([end(true), end(true), end(true)], [None, None, Some(CircuitChange::Opened(SECOND))]);
        assert_eq!(circuit.refused_for(now), Some(SECOND));
        let later = now + SECOND;
        assert_eq!([circuit.paused_for(now), circuit.paused_for(later)], [Some(SECOND), None]);
        assert_eq!((circuit.refused_for(later), circuit.refused_for(later)), (None, Some(SECOND)), "one run");
        assert_eq!(circuit.ended(false, BREAKER, later, later), Some(CircuitChange::Closed));
        assert_eq!(circuit.refused_for(later), None);
    }

    #[test]
    fn a_pause_grows_with_each_run_that_was_let_through_and_has_failed() {
        let mut circuit = Circuit::default();
        let mut now = Instant::now();
        for _ in 0..3 {
            circuit.ended(true, BREAKER, now, now);
        }
        let earlier = now;
        for pause in [2, 4, 8, 16, 16] {
            now += Duration::from_secs(20);
            assert_eq!(circuit.ended(true, BREAKER, earlier - SECOND, now), None, "it had begun before");
            assert_eq!(circuit.refused_for(now), None);
            let opened = circuit.ended(true, BREAKER, now, now);
            assert_eq!(opened, Some(CircuitChange::Opened(pause * SECOND)));
        }
    }

    #[test]
    fn a_run_that_was_let_through_and_never_ended_does_not_close_the_task_for_all_time() {
        let mut circuit = Circuit::default();
        let now = Instant::now();
        for _ in 0..3 {
            circuit.ended(true, BREAKER, now, now);
        }
        assert_eq!(circuit.refused_for(now + SECOND), None);
        assert!(circuit.refused_for(now + SECOND).is_some());
        assert_eq!(circuit.refused_for(now + 2 * SECOND), None);
    }
}
