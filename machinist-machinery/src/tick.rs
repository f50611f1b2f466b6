//! The lock by which a program of Go takes a tick of a periodic task: once in a fleet, for the time until the next tick.
//!
//! Go writes the end of that time into the lock, in nanoseconds, and never releases it. Ours ends a few microseconds
//! earlier, by a number that Go never writes: so a worker of machinist that died between the lock and the message is
//! followed by one that knows the tick to be ours.

use std::time::Duration;

use machinist_core::MirroredTick;

/// Beginning of the name of each lock.
const PREFIX: &str = "machinery_lock_";
/// Time between the end of a lock of ours and the next tick, in nanoseconds.
const OUR_END: i128 = 7_351;

/// The lock of a tick.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TickLock {
    pub(crate) key: String,
    /// Value with which a worker of machinist holds it.
    pub(crate) value: String,
}

/// Decision about a tick.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TickDecision {
    /// The lock is free: write it, with this expiry.
    Take { expiry: Duration },
    /// A worker of machinist has it.
    Ours,
    /// Somebody else has it, or the time of the tick is over.
    Theirs,
}

impl TickLock {
    pub(crate) fn new(program: &str, tick: &MirroredTick<'_>) -> Self {
        let end = i128::from(tick.next.as_micros()) * 1000 - OUR_END;
        Self { key: format!("{PREFIX}{program}{}{}", tick.name, tick.cron), value: end.to_string() }
    }

    /// Decides from the value that was found.
    pub(crate) fn decide(&self, found: Option<&[u8]>, tick: &MirroredTick<'_>) -> TickDecision {
        if found == Some(self.value.as_bytes()) {
            return TickDecision::Ours;
        }
        // Later, Go may have taken the tick, and its lock is gone.
        if tick.now >= tick.next {
            return TickDecision::Theirs;
        }
        let held = found.and_then(|found| std::str::from_utf8(found).ok()?.parse::<i128>().ok());
        let now = i128::from(tick.now.as_micros()) * 1000;
        match (found, held) {
            (Some(_), None) => TickDecision::Theirs,
            (_, Some(end)) if end >= now => TickDecision::Theirs,
            _ => TickDecision::Take { expiry: tick.next.since(tick.now).max(Duration::from_millis(1)) },
        }
    }
}

#[cfg(test)]
mod tests {
    use machinist_core::clock::Timestamp;

    use super::*;

    #[test]
    fn a_tick_has_one_holder() {
        let second = |n: i64| Timestamp::from_micros(n * 1_000_000);
        let mut tick = MirroredTick::new("report", "*/1 * * * *", second(60), second(120));
        let lock = TickLock::new("shop", &tick);
        assert_eq!(lock.key, "machinery_lock_shopreport*/1 * * * *");
        assert_eq!(lock.value, "119999992649");
        let minute = TickDecision::Take { expiry: Duration::from_secs(60) };
        assert_eq!(lock.decide(None, &tick), minute);
        assert_eq!(lock.decide(Some(b"119999992649"), &tick), TickDecision::Ours);
        assert_eq!(lock.decide(Some(b"119999999999"), &tick), TickDecision::Theirs, "Go has it");
        assert_eq!(lock.decide(Some(b"59999999999"), &tick), minute, "the lock of the tick before");
        assert_eq!(lock.decide(Some(b"what?"), &tick), TickDecision::Theirs);
        tick.now = second(120);
        assert_eq!(lock.decide(None, &tick), TickDecision::Theirs, "too late to know");
        assert_eq!(lock.decide(Some(b"119999992649"), &tick), TickDecision::Ours, "but it is owed");
    }
}
