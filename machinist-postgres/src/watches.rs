//! The records that this process watches, by the numbers that notifications name.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use machinist_adapter::id::RecordId;
use tokio::sync::watch;

use crate::text::hash;

/// Registry of the watched records of one store.
#[derive(Debug, Default)]
pub(crate) struct Watches(Mutex<HashMap<u64, WatchedNumber>>);

#[derive(Debug)]
struct WatchedNumber {
    signal: watch::Sender<u64>,
    watchers: usize,
}

/// One watcher of a record. Dropping it ends the watch.
#[derive(Debug)]
pub(crate) struct NumberWatcher {
    watches: Arc<Watches>,
    number: u64,
}

/// Returns the number by which notifications name a record. Two records may share one: then a waiter reads in vain.
pub(crate) fn number(id: &RecordId) -> u64 {
    hash(&[id.kind().as_str(), id.id()])
}

impl Watches {
    /// Watches a record. The receiver changes at every change of the record.
    pub(crate) fn watch(self: &Arc<Self>, id: &RecordId) -> (watch::Receiver<u64>, NumberWatcher) {
        let number = number(id);
        let mut records = self.lock();
        let record = records
            .entry(number)
            .or_insert_with(|| WatchedNumber { signal: watch::Sender::new(0), watchers: 0 });
        record.watchers += 1;
        let signal = record.signal.subscribe();
        (signal, NumberWatcher { watches: Arc::clone(self), number })
    }

    /// Wakes the watchers of one record.
    pub(crate) fn wake(&self, number: u64) {
        if let Some(record) = self.lock().get(&number) {
            record.signal.send_modify(|count| *count = count.wrapping_add(1));
        }
    }

    /// Wakes all watchers, because wake-ups may have been missed.
    pub(crate) fn wake_all(&self) {
        for record in self.lock().values() {
            record.signal.send_modify(|count| *count = count.wrapping_add(1));
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, WatchedNumber>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for NumberWatcher {
    fn drop(&mut self) {
        let mut records = self.watches.lock();
        if let Some(record) = records.get_mut(&self.number) {
            record.watchers -= 1;
            if record.watchers == 0 {
                records.remove(&self.number);
            }
        }
    }
}
