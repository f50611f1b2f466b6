//! Wake-ups that this process sends to the others.
//!
//! The server makes every commit with a notification wait for the others of the whole server. So nothing that matters is
//! committed with one: what has happened is collected, and told in a separate transaction that needs no disk. A wake-up
//! that is lost delays a task until its consumer looks by itself.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use machinist_adapter::id::RecordId;
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};

use crate::{
    claim_request::ClaimRequest,
    link::Link,
    wake_up::{StoreWakeUp, channel},
    watches::{self, Watches},
};

/// Minimum time between two notifications of one process.
pub const NOTIFY_INTERVAL: Duration = Duration::from_millis(25);
/// Collects what has happened, wakes those of this process at once, and the others soon.
#[derive(Clone)]
pub(crate) struct Notifier(Arc<NotifierState>);

struct NotifierState {
    collected: Mutex<StoreWakeUp>,
    work: Notify,
    watches: Arc<Watches>,
    claims: mpsc::UnboundedSender<ClaimRequest>,
}

impl Notifier {
    pub(crate) fn new(watches: Arc<Watches>, claims: mpsc::UnboundedSender<ClaimRequest>) -> Self {
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
        let own = StoreWakeUp { queues: queues.clone(), delays, ..StoreWakeUp::default() };
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

    fn collect(&self, add: impl FnOnce(&mut StoreWakeUp)) {
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
