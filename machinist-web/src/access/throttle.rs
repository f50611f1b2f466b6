//! The bound on wrong passwords: after some within a minute, a name or an address waits.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Number of wrong passwords for one name that are free.
pub(super) const TRIES_OF_NAME: u32 = 5;
/// Number of wrong passwords from one address that are free. Behind a proxy, all people have one address.
pub(super) const TRIES_OF_ADDRESS: u32 = 50;
/// Time after which the count of an address or a name begins again.
const WINDOW: Duration = Duration::from_secs(60);
/// Interval at which counts that are over are removed. Not at each wrong password: there may be thousands.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// Maximum number of addresses and names that are remembered. Above it all others share one count.
const MAX_REMEMBERED: usize = 10_000;

/// Name or address, and its number of free tries.
pub(super) type TryKey = (String, u32);

/// Wrong passwords of the last minute, by name and by address.
#[derive(Debug, Default)]
pub(super) struct Throttle(Mutex<Tries>);

#[derive(Debug, Default)]
struct Tries {
    /// Time of the first wrong password of the window, and number of those since then.
    counts: HashMap<String, (Instant, u32)>,
    /// Time at which counts that are over were last removed.
    swept_at: Option<Instant>,
}

impl Tries {
    fn sweep(&mut self) {
        let is_due = self.swept_at.is_none_or(|at| at.elapsed() >= SWEEP_INTERVAL);
        if is_due {
            self.counts.retain(|_, (since, _)| since.elapsed() < WINDOW);
            self.swept_at = Some(Instant::now());
        }
    }

    fn count(&mut self, key: &str) {
        let is_full = self.counts.len() >= MAX_REMEMBERED && !self.counts.contains_key(key);
        let key = if is_full { "" } else { key };
        let now = Instant::now();
        let (since, count) = self.counts.entry(key.to_owned()).or_insert((now, 0));
        if since.elapsed() >= WINDOW {
            (*since, *count) = (now, 0);
        }
        *count += 1;
    }
}

impl Throttle {
    /// Returns the time to wait, if one of these has had too many wrong passwords.
    pub(super) fn wait(&self, keys: &[TryKey]) -> Option<Duration> {
        let tries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = |(key, free): &TryKey| {
            let (since, count) = tries.counts.get(key).or_else(|| tries.counts.get(""))?;
            (*count >= *free).then(|| WINDOW.saturating_sub(since.elapsed())).filter(|wait| !wait.is_zero())
        };
        keys.iter().filter_map(wait).max()
    }

    /// Counts a wrong password.
    pub(super) fn count(&self, keys: &[TryKey]) {
        let mut tries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tries.sweep();
        keys.iter().for_each(|(key, _)| tries.count(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn after_five_wrong_passwords_the_next_ones_wait() {
        let throttle = Throttle::default();
        let (ada, bob) = ([("user ada".to_owned(), TRIES_OF_NAME)], [("user bob".to_owned(), TRIES_OF_NAME)]);
        for _ in 0..5 {
            assert_eq!(throttle.wait(&ada), None);
            throttle.count(&ada);
        }
        assert_eq!(throttle.wait(&ada), Some(WINDOW));
        assert_eq!(throttle.wait(&bob), None);
        tokio::time::advance(WINDOW).await;
        assert_eq!(throttle.wait(&ada), None);
    }

    #[tokio::test(start_paused = true)]
    async fn names_that_a_stranger_makes_up_are_bounded() {
        let throttle = Throttle::default();
        for number in 0..2 * MAX_REMEMBERED {
            throttle.count(&[(format!("user {number}"), TRIES_OF_NAME)]);
        }
        assert!(throttle.0.lock().unwrap().counts.len() <= MAX_REMEMBERED + 1);
        assert!(
            throttle.wait(&[("user new".to_owned(), TRIES_OF_NAME)]).is_some(),
            "those that find no room share one count"
        );
    }
}
