//! The thread that watches the file for the commits of other processes.
//!
//! It waits for wake-ups (see [`wake_up`](crate::wake_up)) and also checks the file at an interval in case one was
//! lost. A check asks SQLite if another process has committed (`PRAGMA data_version`, a small read of shared memory).
//! Only then does it read which subscribed queues are ready, which watched records changed, and when the next delayed
//! message becomes due. While this process has no subscription and watches no record, the thread sleeps.

use std::{
    convert::Infallible,
    path::PathBuf,
    sync::{Arc, mpsc::Sender},
    time::{Duration, Instant},
};

use machinist_adapter::{
    clock::Timestamp,
    id::{RecordId, RecordKind},
};
use rusqlite::{Connection, params};

use crate::{
    clock::HostClock,
    messages,
    wake_up::WakeListener,
    watch_registry::WatchRegistry,
    write_request::{ReadyQueues, WriteRequest},
};

/// Maximum time between two checks of the file if wake-ups are received. So long a lost one delays a task, and these checks are
/// most of what an idle worker costs.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);
/// The same if no listener could be bound. A check costs 30 µs, so this uses half a percent of a core.
const CHECK_INTERVAL_WITHOUT_WAKE_UPS: Duration = Duration::from_millis(6);
/// Minimum time between two checks. Wake-ups that arrive within it share one check.
const MIN_CHECK_INTERVAL: Duration = Duration::from_millis(1);
/// Minimum time to wait for a wake-up, even if a delayed message is due.
const MIN_WAIT: Duration = Duration::from_micros(500);
/// Delay after a check that failed.
const FAILED_CHECK_DELAY: Duration = Duration::from_secs(1);

/// State of the thread that watches the file.
#[derive(Debug)]
pub(crate) struct FileWatcher {
    pub(crate) db: Connection,
    pub(crate) path: PathBuf,
    pub(crate) namespace: i64,
    /// Random id of the store, which marks its rows in `wakes`. Its own watchers were notified at the commit.
    pub(crate) store_id: i64,
    /// Number of the newest wake-up when the store was opened. Later ones may be for a watcher that was added before
    /// this thread started.
    pub(crate) last_wake_up: i64,
    pub(crate) watches: Arc<WatchRegistry>,
    pub(crate) clock: Arc<HostClock>,
    pub(crate) writer: Sender<WriteRequest>,
    /// Dropped after the connection, which tells the writer that this is closed.
    pub(crate) _open: Sender<Infallible>,
}

/// State kept between two checks.
#[derive(Debug, Default)]
struct CheckState {
    data_version: Option<i64>,
    last_wake_up: i64,
    next_due: Option<Timestamp>,
}

impl FileWatcher {
    /// Checks the file until the store is closed.
    pub(crate) fn run(self) {
        self.watches.set_watching_thread();
        let mut state = CheckState { last_wake_up: self.last_wake_up, ..CheckState::default() };
        let mut listener = None;
        while !self.watches.is_closed() {
            if self.watches.is_empty() {
                std::thread::park();
                continue;
            }
            // Bound before the first check, so that every commit after that check sends a wake-up.
            let listener = listener.get_or_insert_with(|| self.bind_listener());
            let checked_at = Instant::now();
            if let Err(error) = self.check(&mut state) {
                // The writer gets the same error and reports it to the callers. This thread only must not spin.
                tracing::warn!(file = %self.path.display(), %error, "cannot watch the file");
                std::thread::sleep(FAILED_CHECK_DELAY);
            }
            let interval = if listener.is_some() { CHECK_INTERVAL } else { CHECK_INTERVAL_WITHOUT_WAKE_UPS };
            let due = state.next_due.map_or(interval, |due| due.since(self.clock.now()));
            let timeout = interval.min(due).max(MIN_WAIT);
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
                |error| tracing::debug!(file = %self.path.display(), %error, "cannot listen for wake-ups; polling"),
            )
            .ok()
    }

    /// Checks the file once.
    fn check(&self, state: &mut CheckState) -> rusqlite::Result<()> {
        let data_version = self.db.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))?;
        let check_requested = self.watches.take_check_request();
        let changed = state.data_version.replace(data_version) != Some(data_version) || check_requested;
        let mut ready_queues = ReadyQueues::default();
        if changed {
            self.clock.read(&self.db)?;
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
            // Fails only if the writer has ended.
            let _ = self.writer.send(WriteRequest::Ready(ready_queues));
        }
        Ok(())
    }

    /// Notifies the watchers of the records that other stores changed.
    fn notify_watchers(&self, state: &mut CheckState) -> rusqlite::Result<()> {
        let after = state.last_wake_up;
        let oldest: Option<i64> =
            self.db.prepare_cached("SELECT min(seq) FROM wakes")?.query_row([], |row| row.get(0))?;
        if oldest.is_some_and(|oldest| oldest > after + 1) {
            // Rows were deleted before this thread read them.
            self.watches.notify_all();
        }
        let mut statement = self.db.prepare_cached(
            "SELECT seq, namespace, source, kind, name FROM wakes WHERE seq > ?1 ORDER BY seq",
        )?;
        let mut rows = statement.query(params![after])?;
        while let Some(row) = rows.next()? {
            state.last_wake_up = row.get(0)?;
            // A row that another program wrote must not keep the rest from being read.
            if let (Ok(namespace), Ok(store_id), Ok(kind), Ok(name)) = (
                row.get_ref(1)?.as_i64(),
                row.get_ref(2)?.as_i64(),
                row.get_ref(3)?.as_str(),
                row.get_ref(4)?.as_str(),
            ) && namespace == self.namespace
                && store_id != self.store_id
                && let Some(kind) = RecordKind::parse(kind)
            {
                self.watches.notify(&RecordId::new(kind, name));
            }
        }
        Ok(())
    }
}
