//! Counts of the dead letters that a worker has published, by reason. Operators watch these numbers, and they agree with
//! the dead letters in the broker.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use crate::event::{Event, EventKind, Observer};

/// Counts of the dead letters that a worker has published, by reason. Cheap to clone; clones share the counts.
///
/// A letter is counted once the broker has confirmed it. After a crash the same letter may be published again by
/// another worker, which counts it too.
#[derive(Debug, Clone, Default)]
pub struct DeadLetterCounts(Arc<Mutex<BTreeMap<&'static str, u64>>>);

impl DeadLetterCounts {
    /// Returns the counts so far, by the reason in the letter (`machinist-dead-reason`).
    pub fn by_reason(&self) -> BTreeMap<&'static str, u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Total number of dead letters.
    pub fn total(&self) -> u64 {
        self.by_reason().values().sum()
    }

    fn count(&self, reason: &'static str) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry(reason).or_default() += 1;
    }
}

impl Observer for DeadLetterCounts {
    fn observe(&self, event: &Event<'_>) {
        if let EventKind::DeadLettered { reason, .. } = event.kind {
            self.count(reason);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_share_the_counts() {
        let letters = DeadLetterCounts::default();
        let shown = letters.clone();
        letters.count("unsigned");
        letters.count("stale");
        letters.count("unsigned");
        assert_eq!(shown.by_reason(), BTreeMap::from([("stale", 1), ("unsigned", 2)]));
        assert_eq!(shown.total(), 3);
    }
}
