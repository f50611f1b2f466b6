//! Queues as one worker measures them for all: the last measurement, for as long as it holds.
//!
//! The right to measure moves between workers. A measurement is shown for a shorter time than that right lasts, so two
//! processes never show the same queue at once.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Time for which a measurement is shown. A worker measures every 10 s and loses the right to it after 25 s.
const SHOWN_FOR: Duration = Duration::from_secs(20);
/// Number of queues that are shown.
const MAX_QUEUES: usize = crate::series::MAX_SERIES / 4;

/// Measurement of one queue.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MeasuredQueue {
    pub(crate) ready: u64,
    pub(crate) dead: u64,
    pub(crate) consumers: u64,
    pub(crate) oldest_age: Duration,
    /// `None` if the broker does not tell it.
    pub(crate) delayed: Option<u64>,
    /// `None` if the broker does not tell it.
    pub(crate) unacked: Option<u64>,
}

/// Last measurements of this process.
#[derive(Debug, Default)]
pub(crate) struct MeasuredQueues(Mutex<HashMap<String, (Instant, MeasuredQueue)>>);

impl MeasuredQueues {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, (Instant, MeasuredQueue)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a measurement.
    pub(crate) fn put(&self, queue: &str, measured: MeasuredQueue) {
        let mut all = self.lock();
        if all.len() >= MAX_QUEUES && !all.contains_key(queue) {
            return;
        }
        match all.get_mut(queue) {
            Some(known) => *known = (Instant::now(), measured),
            None => drop(all.insert(queue.to_owned(), (Instant::now(), measured))),
        }
    }

    /// Calls `show` for each queue whose measurement still holds, and forgets the others.
    pub(crate) fn each(&self, mut show: impl FnMut(&str, &MeasuredQueue)) {
        let mut all = self.lock();
        all.retain(|_, (at, _)| at.elapsed() < SHOWN_FOR);
        for (queue, (_, measured)) in all.iter() {
            show(queue, measured);
        }
    }

    /// Returns the time since the oldest measurement that still holds.
    pub(crate) fn age(&self) -> Option<Duration> {
        let all = self.lock();
        all.values().map(|(at, _)| at.elapsed()).filter(|age| *age < SHOWN_FOR).max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured() -> MeasuredQueue {
        let oldest_age = Duration::ZERO;
        MeasuredQueue { ready: 1, dead: 0, consumers: 0, oldest_age, delayed: None, unacked: None }
    }

    #[tokio::test(start_paused = true)]
    async fn a_measurement_is_shown_for_a_while_and_then_gone() {
        let queues = MeasuredQueues::default();
        let measured = measured();
        let shown = || {
            let mut names = Vec::new();
            queues.each(|queue, _| names.push(queue.to_owned()));
            names
        };
        queues.put("a", measured);
        tokio::time::advance(Duration::from_secs(12)).await;
        queues.put("b", measured);
        assert_eq!(shown().len(), 2);
        assert_eq!(queues.age(), Some(Duration::from_secs(12)));
        tokio::time::advance(Duration::from_secs(12)).await;
        assert_eq!(shown(), ["b"]);
        tokio::time::advance(Duration::from_secs(12)).await;
        assert!(shown().is_empty() && queues.age().is_none() && queues.lock().is_empty());
    }

    #[test]
    fn the_number_of_queues_is_bounded() {
        let queues = MeasuredQueues::default();
        let measured = measured();
        for number in 0..3 * MAX_QUEUES {
            queues.put(&number.to_string(), measured);
        }
        assert_eq!(queues.lock().len(), MAX_QUEUES);
    }
}
