//! Wake-ups from other processes.
//!
//! One thread waits for a ring (see [`wake_up`](crate::wake_up)), and looks at the file every now and then in case one was
//! lost. It asks SQLite whether anybody has committed (`PRAGMA data_version`, a small read of shared memory), and only
//! then looks closer: is a subscribed queue ready, which watched records changed, when does the next delayed message
//! come due. While nobody in this process waits for anything, the thread sleeps.

use std::{
    path::PathBuf,
    sync::{Arc, mpsc::Sender},
    time::{Duration, Instant},
};

use machinist_core::{clock::Timestamp, id::TaskId};
use rusqlite::{Connection, params};

use crate::{
    clock::HostClock,
    messages,
    wake_up::WakeListener,
    watch_registry::WatchRegistry,
    write_request::{ReadyQueues, WriteRequest},
};

/// How often the file is looked at without a ring.
const CHECK_INTERVAL: Duration = Duration::from_millis(50);
/// The same where no ring can be heard: a wake-up costs 30 µs, so this is half a percent of a core.
const CHECK_INTERVAL_WITHOUT_WAKE_UPS: Duration = Duration::from_millis(6);
/// Rings that come faster than this share a look.
const MIN_CHECK_INTERVAL: Duration = Duration::from_millis(1);

/// The thread that watches the file.
#[derive(Debug)]
pub(crate) struct FileWatcher {
    pub(crate) db: Connection,
    pub(crate) path: PathBuf,
    pub(crate) namespace: i64,
    /// The store's own mark in `wakes`: its watchers were woken at the commit.
    pub(crate) store_id: i64,
    /// The newest wake-up when the store was opened: later ones may be for a watcher that came before this thread.
    pub(crate) last_wake_up: i64,
    pub(crate) watches: Arc<WatchRegistry>,
    pub(crate) clock: Arc<HostClock>,
    pub(crate) writer: Sender<WriteRequest>,
}

/// What the thread knows between two looks.
#[derive(Debug, Default)]
struct CheckState {
    data_version: Option<i64>,
    last_wake_up: i64,
    next_due: Option<Timestamp>,
}

impl FileWatcher {
    pub(crate) fn run(self) {
        self.watches.set_watching_thread();
        let mut state = CheckState { last_wake_up: self.last_wake_up, ..CheckState::default() };
        let mut listener = None;
        while !self.watches.is_closed() {
            if self.watches.is_empty() {
                std::thread::park();
                continue;
            }
            // Bound before the first look: what is committed after that look rings.
            let listener = listener.get_or_insert_with(|| self.bind_listener());
            let checked_at = Instant::now();
            if let Err(error) = self.check(&mut state) {
                // The writer meets the same trouble and tells the callers; this thread only must not spin.
                tracing::warn!(file = %self.path.display(), %error, "cannot watch the file");
                std::thread::sleep(Duration::from_secs(1));
            }
            let interval = if listener.is_some() { CHECK_INTERVAL } else { CHECK_INTERVAL_WITHOUT_WAKE_UPS };
            let due = state.next_due.map_or(interval, |due| due.since(self.clock.now()));
            let timeout = interval.min(due).max(Duration::from_micros(500));
            match listener {
                Some(listener) => listener.wait(timeout),
                None => std::thread::park_timeout(timeout),
            }
            std::thread::sleep(MIN_CHECK_INTERVAL.saturating_sub(checked_at.elapsed()));
        }
    }

    fn bind_listener(&self) -> Option<WakeListener> {
        WakeListener::bind(&self.path, self.store_id)
            .inspect_err(
                |error| tracing::debug!(file = %self.path.display(), %error, "looks instead of listening"),
            )
            .ok()
    }

    /// Looks once.
    fn check(&self, state: &mut CheckState) -> rusqlite::Result<()> {
        let data_version = self.db.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))?;
        let check_requested = self.watches.take_check_request();
        let changed = state.data_version.replace(data_version) != Some(data_version) || check_requested;
        let mut ready_queues = ReadyQueues::default();
        if changed {
            self.notify_watchers(state)?;
            let subscribed = self.watches.subscribed_queues();
            state.next_due = if subscribed.is_empty() { None } else { messages::next_due(&self.db)? };
            for queue in subscribed {
                if messages::any_ready(&self.db, queue)? {
                    ready_queues.queues.push(queue);
                }
            }
        }
        ready_queues.delayed_due = state.next_due.is_some_and(|due| due <= self.clock.now());
        if ready_queues != ReadyQueues::default() {
            // A writer that is gone needs no nudge.
            let _ = self.writer.send(WriteRequest::Ready(ready_queues));
        }
        Ok(())
    }

    fn notify_watchers(&self, state: &mut CheckState) -> rusqlite::Result<()> {
        let after = state.last_wake_up;
        let oldest: Option<i64> =
            self.db.prepare_cached("SELECT min(seq) FROM wakes")?.query_row([], |row| row.get(0))?;
        if oldest.is_some_and(|oldest| oldest > after + 1) {
            // The tail was cut before we read it.
            self.watches.notify_all();
        }
        let mut statement = self
            .db
            .prepare_cached("SELECT seq, namespace, source, task FROM wakes WHERE seq > ?1 ORDER BY seq")?;
        let mut rows = statement.query(params![after])?;
        while let Some(row) = rows.next()? {
            state.last_wake_up = row.get(0)?;
            let (namespace, store_id): (i64, i64) = (row.get(1)?, row.get(2)?);
            if namespace == self.namespace
                && store_id != self.store_id
                && let Ok(id) = TaskId::parse(row.get_ref(3)?.as_str()?)
            {
                self.watches.notify(&id);
            }
        }
        Ok(())
    }
}
