//! Description that a worker gives of itself: its state, its health, and its answers to orders.

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;

/// Maximum number of task names that the description of a worker holds.
pub(crate) const MAX_DESCRIBED_TASKS: usize = 500;

/// State of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum PresenceState {
    /// It has a session and is about to subscribe.
    #[default]
    Starting,
    /// It takes tasks.
    Awake,
    /// It has unsubscribed and starts nothing, because people want that, or because the backend was away for long.
    Asleep,
    /// It takes no more tasks, and stops when its runs have ended.
    Draining,
    /// It has ended.
    Offline,
}

impl PresenceState {
    /// Returns the state as a word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Awake => "awake",
            Self::Asleep => "asleep",
            Self::Draining => "draining",
            Self::Offline => "offline",
        }
    }
}

/// Health of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum WorkerHealth {
    /// Nothing is wrong.
    Green,
    /// It lives, but something that it needs is away, or a handler does not end.
    Yellow,
    /// It cannot work.
    Red,
}

impl WorkerHealth {
    /// Returns the health as a word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Green => "green",
            Self::Yellow => "yellow",
            Self::Red => "red",
        }
    }

    /// Judges a worker, and says why if it is not green.
    pub(crate) fn judge(broker_away: bool, can_sign: bool, stuck: usize) -> (Self, Option<String>) {
        if !can_sign {
            return (Self::Red, Some("no key signs, so it takes no tasks".to_owned()));
        }
        if broker_away {
            return (Self::Yellow, Some("the broker is away".to_owned()));
        }
        match stuck {
            0 => (Self::Green, None),
            stuck => (Self::Yellow, Some(format!("cancelled handlers that have not ended: {stuck}"))),
        }
    }
}

/// Counts of the work of a worker since it has started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct WorkCounts {
    /// Number of tasks that have ended here.
    pub(crate) processed: u64,
    /// Number of those that have ended in FAILURE.
    pub(crate) failed: u64,
    /// Number of attempts that have ended in RETRY here.
    pub(crate) retried: u64,
}

/// Returns the memory that a session shows, after it has shown this much. Small changes are not shown: an idle worker would
/// write its session again and again.
pub(crate) fn memory_to_show(shown: Option<u64>, used: Option<u64>) -> Option<u64> {
    match (shown, used) {
        (Some(shown), Some(used)) if used.abs_diff(shown) <= shown / 8 => Some(shown),
        (_, used) => used,
    }
}

/// Answer of a worker to an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OrderAnswer {
    pub(crate) done: bool,
    pub(crate) reason: Option<String>,
    pub(crate) at: Timestamp,
    /// Session that answers.
    pub(crate) session: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_changes_of_the_memory_are_not_shown() {
        assert_eq!(memory_to_show(None, Some(80)), Some(80));
        assert_eq!(memory_to_show(Some(80), Some(90)), Some(80));
        assert_eq!(memory_to_show(Some(80), Some(70)), Some(80));
        assert_eq!(memory_to_show(Some(80), Some(91)), Some(91));
        assert_eq!(memory_to_show(Some(80), None), None);
    }

    #[test]
    fn the_gravest_trouble_decides() {
        assert_eq!(WorkerHealth::judge(false, true, 0), (WorkerHealth::Green, None));
        assert_eq!(WorkerHealth::judge(true, false, 1).0, WorkerHealth::Red);
        assert_eq!(WorkerHealth::judge(true, true, 0).0, WorkerHealth::Yellow);
        assert!(WorkerHealth::judge(false, true, 2).1.unwrap().contains('2'));
    }
}
