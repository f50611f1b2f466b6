//! Wake-ups that this process sends to the others.
//!
//! The server makes every commit with a notification wait for the others of the whole server. So nothing that matters is
//! committed with one: what has happened is collected, and told in a transaction of its own, which needs no disk. A wake-up
//! that is lost delays a task until its consumer looks by itself.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use machinist_adapter::{broker::Target, id::RecordId};
use tokio::{sync::Notify, time::Instant};

use crate::{
    claims::ClaimRequest,
    link::Link,
    text::hash,
    watches::{self, Watches},
};

/// Minimum time between two notifications of one process.
pub const NOTIFY_INTERVAL: Duration = Duration::from_millis(25);
/// Maximum size of a notification, in bytes. PostgreSQL accepts up to 7999.
const MAX_PAYLOAD: usize = 7_800;
/// Payload that says that anything may have happened.
const EVERYTHING: &str = "*";

/// What has happened, or may have.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct WakeUp {
    /// Numbers of queues in which messages may be ready.
    pub(crate) queues: BTreeSet<u64>,
    /// Numbers of records that may have changed.
    pub(crate) records: BTreeSet<u64>,
    /// A delayed message was published, which may be due before all that were known.
    pub(crate) delays: bool,
    /// Anything may have happened.
    pub(crate) everything: bool,
}

impl WakeUp {
    pub(crate) fn everything() -> Self {
        Self { everything: true, ..Self::default() }
    }

    fn is_empty(&self) -> bool {
        self == &Self::default()
    }

    /// Returns the payload that [`parse`](Self::parse) reads.
    fn payload(&self) -> String {
        let mut text = String::new();
        // Writing to a text does not fail.
        if self.delays {
            text.push_str("d ");
        }
        for queue in &self.queues {
            let _ = write!(text, "q{queue:x} ");
        }
        for record in &self.records {
            let _ = write!(text, "r{record:x} ");
        }
        if self.everything || text.len() > MAX_PAYLOAD { EVERYTHING.to_owned() } else { text }
    }

    /// Reads a payload. What machinist does not write means nothing: anybody may notify.
    pub(crate) fn parse(payload: &str) -> Self {
        let mut wake_up = Self::default();
        let number = |word: &str| u64::from_str_radix(word, 16).ok();
        for word in payload.split_ascii_whitespace() {
            match (word, word.get(..1), word.get(1..)) {
                (EVERYTHING, ..) => wake_up.everything = true,
                ("d", ..) => wake_up.delays = true,
                (_, Some("q"), Some(rest)) => wake_up.queues.extend(number(rest)),
                (_, Some("r"), Some(rest)) => wake_up.records.extend(number(rest)),
                _ => {}
            }
        }
        wake_up
    }
}

/// Returns the number by which notifications name a queue.
pub(crate) fn queue_number(target: &Target) -> u64 {
    match target {
        Target::Queue(queue) => hash(&["queue", queue.as_str()]),
        Target::DeadLetters(queue) => hash(&["dead", queue.as_str()]),
    }
}

/// Name of the channel of a schema.
pub(crate) fn channel(schema: &str) -> String {
    format!("machinist:{schema}")
}

/// Collects what has happened, wakes those of this process at once, and the others soon.
#[derive(Clone)]
pub(crate) struct Notifier(Arc<NotifierState>);

struct NotifierState {
    collected: Mutex<WakeUp>,
    work: Notify,
    watches: Arc<Watches>,
    claims: tokio::sync::mpsc::UnboundedSender<ClaimRequest>,
}

impl Notifier {
    pub(crate) fn new(
        watches: Arc<Watches>,
        claims: tokio::sync::mpsc::UnboundedSender<ClaimRequest>,
    ) -> Self {
        Self(Arc::new(NotifierState { collected: Mutex::default(), work: Notify::new(), watches, claims }))
    }

    /// Tells that records were changed whose watchers wait.
    pub(crate) fn records_changed<'a>(&self, ids: impl Iterator<Item = &'a RecordId>) {
        let numbers: Vec<u64> = ids.map(watches::number).collect();
        numbers.iter().for_each(|number| self.0.watches.wake(*number));
        self.collect(|wake_up| wake_up.records.extend(numbers));
    }

    /// Tells that messages may be ready in these queues, and whether delayed ones were published.
    pub(crate) fn queues_changed(&self, queues: BTreeSet<u64>, delays: bool) {
        if queues.is_empty() && !delays {
            return;
        }
        let own = WakeUp { queues: queues.clone(), delays, ..WakeUp::default() };
        // Fails only if the store is closed, and nobody consumes.
        let _ = self.0.claims.send(ClaimRequest::WakeUp(own));
        self.others_queues_changed(queues, delays);
    }

    /// The same, for the other processes alone.
    pub(crate) fn others_queues_changed(&self, queues: BTreeSet<u64>, delays: bool) {
        self.collect(|wake_up| {
            wake_up.queues.extend(queues);
            wake_up.delays |= delays;
        });
    }

    fn collect(&self, add: impl FnOnce(&mut WakeUp)) {
        let mut collected = self.0.collected.lock().unwrap_or_else(PoisonError::into_inner);
        add(&mut collected);
        if !collected.is_empty() {
            self.0.work.notify_one();
        }
    }

    /// Tells the others what is collected, for as long as the store exists.
    pub(crate) async fn work(self, link: Arc<Link>, schema: String) {
        let channel = channel(&schema);
        loop {
            self.0.work.notified().await;
            let wake_up =
                std::mem::take(&mut *self.0.collected.lock().unwrap_or_else(PoisonError::into_inner));
            if wake_up.is_empty() {
                continue;
            }
            let began = Instant::now();
            // A lost wake-up is made up for by the poll: no reason to wait for the disk.
            let sql = "SELECT set_config('synchronous_commit', 'off', true), pg_notify($1, $2)";
            if let Err(error) = link.query(sql, &[&channel, &wake_up.payload()]).await {
                tracing::debug!(%error, "a wake-up was not sent; consumers look by themselves");
            }
            tokio::time::sleep_until(began + NOTIFY_INTERVAL).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_says_what_has_happened() {
        let wake_up =
            WakeUp { queues: [1, u64::MAX].into(), records: [2].into(), delays: true, everything: false };
        assert_eq!(WakeUp::parse(&wake_up.payload()), wake_up);
        let many = WakeUp { records: (0..1_000).map(|n| u64::MAX - n).collect(), ..WakeUp::default() };
        assert_eq!(WakeUp::parse(&many.payload()), WakeUp::everything());
    }

    #[test]
    fn strangers_are_not_understood() {
        for payload in ["", "hello", "qxyz r", "\u{fc}q1", "q1ffffffffffffffffffff"] {
            assert!(WakeUp::parse(payload).is_empty(), "{payload}");
        }
    }
}
