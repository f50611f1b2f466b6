//! Log lines about single messages, of which anybody can cause any number: one line for each reason and name in a minute.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Minimum time between two lines about the same reason and name.
const LINE_INTERVAL: Duration = Duration::from_secs(60);
/// Maximum number of names. All others share one line for each reason.
const MAX_NAMES: usize = 100;

/// Last lines of a process, by reason and name.
#[derive(Debug, Default)]
pub(crate) struct LogLines(Mutex<HashMap<(&'static str, String), LastLine>>);

#[derive(Debug)]
struct LastLine {
    at: Instant,
    /// Number of messages since the line.
    suppressed: u64,
}

impl LogLines {
    /// Returns the number of messages without a line since the last one about this reason and name, if another is due.
    pub(crate) fn due(&self, reason: &'static str, name: &str) -> Option<u64> {
        let now = Instant::now();
        let is_over = |line: &LastLine| now.saturating_duration_since(line.at) >= LINE_INTERVAL;
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut key = (reason, name.to_owned());
        if !lines.contains_key(&key) && lines.len() >= MAX_NAMES {
            lines.retain(|_, line| !is_over(line));
            if lines.len() >= MAX_NAMES {
                key.1.clear();
            }
        }
        match lines.get_mut(&key) {
            Some(line) if !is_over(line) => {
                line.suppressed = line.suppressed.saturating_add(1);
                None
            }
            Some(line) => {
                line.at = now;
                Some(std::mem::take(&mut line.suppressed))
            }
            None => {
                lines.insert(key, LastLine { at: now, suppressed: 0 });
                Some(0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_one_line_for_each_reason_and_name() {
        let lines = LogLines::default();
        assert_eq!(lines.due("unsigned", "a"), Some(0));
        assert_eq!(lines.due("unsigned", "b"), Some(0));
        assert_eq!(lines.due("stale", "a"), Some(0));
        for _ in 0..1000 {
            assert_eq!(lines.due("unsigned", "a"), None);
        }
        tokio::time::advance(LINE_INTERVAL).await;
        assert_eq!(lines.due("unsigned", "a"), Some(1000));
        assert_eq!(lines.due("unsigned", "a"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn names_that_a_stranger_makes_up_are_bounded() {
        let lines = LogLines::default();
        let flood = |names: std::ops::Range<usize>| {
            names.filter(|name| lines.due("unregistered", &name.to_string()).is_some()).count()
        };
        assert_eq!(flood(0..5000), MAX_NAMES + 1);
        assert!(lines.0.lock().expect("a lock").len() <= MAX_NAMES + 1);
        tokio::time::advance(LINE_INTERVAL).await;
        // Names that are over make room.
        assert_eq!(lines.due("unregistered", "new"), Some(0));
    }
}
