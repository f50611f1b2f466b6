//! The records and queues that this process watches, shared by the callers, the writing thread and the watching
//! thread.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::Thread,
};

use machinist_adapter::id::RecordId;
use tokio::sync::watch;

/// Registry of the watched records and subscribed queues of one store.
#[derive(Debug, Default)]
pub(crate) struct WatchRegistry {
    records: Mutex<HashMap<RecordId, WatchedRecord>>,
    /// Subscribed queues, each with its number of subscriptions.
    queues: Mutex<BTreeMap<i64, usize>>,
    /// `true` if a watch or a subscription was added. Its event may have happened before the last check of the file.
    check_requested: AtomicBool,
    closed: AtomicBool,
    /// Number of times that this process was declared dead and its messages were handed to others.
    ownership_losses: AtomicU64,
    watching_thread: OnceLock<Thread>,
}

#[derive(Debug)]
struct WatchedRecord {
    signal: watch::Sender<u64>,
    watchers: usize,
}

/// One watcher of a record. Dropping it ends the watch.
#[derive(Debug)]
pub(crate) struct RecordWatcher {
    registry: Arc<WatchRegistry>,
    id: RecordId,
}

impl WatchRegistry {
    /// Counts one loss of the ownership of messages.
    pub(crate) fn count_ownership_loss(&self) {
        self.ownership_losses.fetch_add(1, Ordering::Relaxed);
    }

    /// Number of times that this process lost the ownership of its messages.
    pub(crate) fn ownership_losses(&self) -> u64 {
        self.ownership_losses.load(Ordering::Relaxed)
    }

    /// Watches a record. The receiver changes at every change of the record.
    pub(crate) fn watch(self: &Arc<Self>, id: &RecordId) -> (watch::Receiver<u64>, RecordWatcher) {
        let mut records = lock(&self.records);
        let record = records
            .entry(id.clone())
            .or_insert_with(|| WatchedRecord { signal: watch::Sender::new(0), watchers: 0 });
        record.watchers += 1;
        let signal = record.signal.subscribe();
        drop(records);
        self.request_check();
        (signal, RecordWatcher { registry: self.clone(), id: id.clone() })
    }

    /// Notifies the watchers of one record.
    pub(crate) fn notify(&self, id: &RecordId) {
        if let Some(record) = lock(&self.records).get(id) {
            record.signal.send_modify(|count| *count += 1);
        }
    }

    /// Notifies the watchers of every record.
    pub(crate) fn notify_all(&self) {
        for record in lock(&self.records).values() {
            record.signal.send_modify(|count| *count += 1);
        }
    }

    /// Adds a subscription to each of these queues.
    pub(crate) fn subscribe(&self, queues: &[i64]) {
        let mut subscribed = lock(&self.queues);
        for &queue in queues {
            *subscribed.entry(queue).or_default() += 1;
        }
        drop(subscribed);
        self.request_check();
    }

    /// Removes a subscription from each of these queues.
    pub(crate) fn unsubscribe(&self, queues: &[i64]) {
        let mut subscribed = lock(&self.queues);
        for queue in queues {
            if let Some(count) = subscribed.get_mut(queue) {
                *count -= 1;
                if *count == 0 {
                    subscribed.remove(queue);
                }
            }
        }
    }

    /// Ids of the subscribed queues.
    pub(crate) fn subscribed_queues(&self) -> Vec<i64> {
        lock(&self.queues).keys().copied().collect()
    }

    /// Ends the watching thread.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.unpark();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Returns `true` if no record is watched and no queue is subscribed.
    pub(crate) fn is_empty(&self) -> bool {
        lock(&self.records).is_empty() && lock(&self.queues).is_empty()
    }

    /// Registers the current thread as the one that watches the file.
    pub(crate) fn set_watching_thread(&self) {
        let _ = self.watching_thread.set(std::thread::current());
    }

    /// Returns `true` once after each request to check the file.
    pub(crate) fn take_check_request(&self) -> bool {
        self.check_requested.swap(false, Ordering::AcqRel)
    }

    fn request_check(&self) {
        self.check_requested.store(true, Ordering::Release);
        self.unpark();
    }

    fn unpark(&self) {
        if let Some(thread) = self.watching_thread.get() {
            thread.unpark();
        }
    }
}

impl Drop for RecordWatcher {
    fn drop(&mut self) {
        let mut records = lock(&self.registry.records);
        if let Some(record) = records.get_mut(&self.id) {
            record.watchers -= 1;
            if record.watchers == 0 {
                records.remove(&self.id);
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
