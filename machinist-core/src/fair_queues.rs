//! Fairness between the keys of a queue, such as tenants: the backlog of one delays the few tasks of others only a little.
//!
//! `mail+fair:share` holds the tasks of queue `mail` whose key has sent no more than its share lately. What a key sends beyond
//! that goes to `mail` itself. While tasks of both wait, the first queue gets nine of ten slots. A key with a backlog waits
//! behind it, and a key that sends little waits only behind the shares of the others.
//!
//! Each sending process counts in memory. No server is asked, nothing is contended, and nothing is wrong after a crash: a
//! process that has started again gives out full shares.
//!
//! The name is that of a queue of tasks that [require tags](crate::affinity), as those of
//! [priorities](crate::priority_queues) are, and every worker of an application with such queues has the tag.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    sync::{Mutex, PoisonError},
};

use tokio::time::Instant;

use crate::{
    affinity::{TagQueue, requiring, with_base},
    id::{InvalidName, QueueName},
    limit::{LimitKey, Rate},
    tag::Tag,
};

/// Tag of the tasks within their share.
const SHARE: &str = "fair:share";
/// Weight of their queue for each weight of the queue of the others.
const WEIGHT: u32 = 9;
/// Maximum number of keys that are counted for a queue. All others share one count.
const MAX_KEYS: usize = 10_000;

/// The share of each key of a queue: what goes before the excess of others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FairShare {
    /// Key of a task, unless its sender has [chosen it](crate::Signature::fair_key).
    pub key: LimitKey,
    /// Rate at which each process sends tasks of a key within its share. Default: 5 a second.
    pub rate: Rate,
    /// Number of tasks of a key that each process sends within its share at once. Default: 50.
    pub burst: u32,
}

impl FairShare {
    /// Creates shares by this key.
    pub fn by(key: LimitKey) -> Self {
        Self { key, rate: Rate::per_second(5), burst: 50 }
    }
}

/// Queues whose tasks have shares.
#[derive(Debug, Default)]
pub(crate) struct FairQueues(HashMap<QueueName, FairQueue>);

/// A queue, and what its keys have used of their shares.
#[derive(Debug)]
struct FairQueue {
    share: FairShare,
    used: Mutex<UsedShares>,
}

/// Used shares of keys: for each key the time at which its share is whole again.
#[derive(Debug, Default)]
struct UsedShares {
    /// By the hash of the key: a key may be long, and two keys of 2⁶⁴ that share a count harm nobody.
    whole_at: HashMap<u64, Instant>,
    hasher: RandomState,
    /// The time of all keys that are too many.
    others: Option<Instant>,
}

impl FairQueues {
    pub(crate) fn new(shares: HashMap<QueueName, FairShare>) -> Self {
        let queue = |share| FairQueue { share, used: Mutex::default() };
        Self(shares.into_iter().map(|(name, share)| (name, queue(share))).collect())
    }

    /// Returns `true` if no queue has shares: the usual case, which costs no more than this.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the queue for a task of this queue: that of the shares if its key has some left, which it uses then. `key`
    /// returns the key of the task.
    ///
    /// # Errors
    /// The name would be too long for a queue.
    pub(crate) fn queue_of(
        &self,
        queue: QueueName,
        key: impl FnOnce(&LimitKey) -> String,
    ) -> Result<QueueName, InvalidName> {
        if self.is_empty() || is_of_shares(&queue) {
            return Ok(queue);
        }
        let fair = with_base(&queue).find_map(|queue| self.0.get(&*queue));
        let Some(FairQueue { share, used }) = fair else { return Ok(queue) };
        let key = key(&share.key);
        if used.lock().unwrap_or_else(PoisonError::into_inner).take(&key, share, Instant::now()) {
            return QueueName::parse(&requiring(queue.as_str(), std::iter::once(SHARE)));
        }
        Ok(queue)
    }

    /// Returns the tag of a worker that takes the tasks within their shares.
    pub(crate) fn tag(&self) -> Option<Tag> {
        if self.is_empty() { None } else { Tag::parse(SHARE).ok() }
    }
}

impl UsedShares {
    /// Uses the share of a key for one task. Returns `false` if nothing of it is left.
    fn take(&mut self, key: &str, share: &FairShare, now: Instant) -> bool {
        let Some(interval) = share.rate.interval() else { return false };
        let key = self.hasher.hash_one(key);
        if self.whole_at.len() >= MAX_KEYS && !self.whole_at.contains_key(&key) {
            // A share that is whole again is like one that was never used.
            self.whole_at.retain(|_, at| *at > now);
        }
        let has_room = self.whole_at.len() < MAX_KEYS || self.whole_at.contains_key(&key);
        let whole_at =
            if has_room { self.whole_at.entry(key).or_insert(now) } else { self.others.get_or_insert(now) };
        let next = (*whole_at).max(now) + interval;
        let fits = next - now <= interval.saturating_mul(share.burst);
        if fits {
            *whole_at = next;
        }
        fits
    }
}

/// Returns `true` if a queue holds tasks within their shares.
fn is_of_shares(queue: &QueueName) -> bool {
    TagQueue::of(queue.as_str()).is_some_and(|of| of.tags.contains(&SHARE))
}

/// Returns the factor by which the weight of a queue with these tags is larger than that of its base, because its tasks are
/// within their shares.
pub(crate) fn weight_of_share(tags: &[&str]) -> u32 {
    if tags.contains(&SHARE) { WEIGHT } else { 1 }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn queue(name: &str) -> QueueName {
        QueueName::parse(name).unwrap()
    }

    fn share(per_second: u32, burst: u32) -> FairShare {
        let by = FairShare::by(LimitKey::template("{0}").unwrap());
        FairShare { rate: Rate::per_second(per_second), burst, ..by }
    }

    fn fair() -> FairQueues {
        FairQueues::new(HashMap::from([(queue("mail"), share(1, 3))]))
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_that_sends_more_than_its_share_fills_the_queue_of_all() {
        let queues = fair();
        let of =
            |name: &str, key: &str| queues.queue_of(queue(name), |_| key.to_owned()).unwrap().to_string();
        let sent: Vec<_> = (0..5).map(|_| of("mail", "a")).collect();
        assert_eq!(sent, ["mail+fair:share", "mail+fair:share", "mail+fair:share", "mail", "mail"]);
        assert_eq!(of("mail", "b"), "mail+fair:share");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!((of("mail", "a"), of("mail", "a")), ("mail+fair:share".to_owned(), "mail".to_owned()));
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(
            (0..5).filter(|_| of("mail", "a") != "mail").count(),
            3,
            "no more than the burst is saved"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn tags_stay_and_other_queues_have_no_shares() {
        let queues = fair();
        let of = |name: &str| queues.queue_of(queue(name), |_| "a".to_owned()).unwrap().to_string();
        assert_eq!(of("mail+gpu"), "mail+fair:share+gpu");
        assert_eq!(of("mail+fair:share"), "mail+fair:share", "it was decided before");
        assert_eq!(of("other"), "other");
        assert!(FairQueues::default().tag().is_none() && queues.tag().is_some());
        let tags: [&[&str]; 4] = [&[], &["gpu"], &["fair:share"], &["fair:share", "gpu"]];
        assert_eq!(tags.map(weight_of_share), [1, 1, 9, 9]);
    }

    #[tokio::test(start_paused = true)]
    async fn keys_beyond_the_maximum_share_one_count_until_others_are_whole() {
        let (mut used, share) = (UsedShares::default(), share(1, 1));
        let mut take = |key: usize, now| used.take(&key.to_string(), &share, now);
        let now = Instant::now();
        assert!((0..MAX_KEYS).all(|key| take(key, now)));
        assert!(take(MAX_KEYS, now) && !take(MAX_KEYS + 1, now));
        assert!(!take(0, now), "a known key has its own count");
        let later = now + Duration::from_secs(2);
        assert!(take(MAX_KEYS, later) && take(MAX_KEYS + 1, later));
        assert_eq!(used.whole_at.len(), 2, "what is whole again is forgotten");
    }

    #[test]
    fn a_rate_of_zero_gives_nobody_a_share() {
        assert!(!UsedShares::default().take("a", &share(0, 10), Instant::now()));
    }
}
