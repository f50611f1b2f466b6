//! Wake-ups from other processes.
//!
//! One thread waits for a ring (see [`wake_up`](crate::wake_up)), and looks at the file every now and then in case one was
//! lost. It asks SQLite whether anybody has committed (`PRAGMA data_version`, a small read of shared memory), and only
//! then looks closer: is a subscribed queue ready, which watched records changed, when does the next delayed message
//! come due. While nobody in this process waits for anything, the thread sleeps.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::Sender,
    },
    thread::Thread,
    time::{Duration, Instant},
};

use machinist_core::{clock::Timestamp, id::TaskId};
use rusqlite::{Connection, params};
use tokio::sync::watch;

use crate::{
    clock::HostClock,
    messages,
    wake_up::WakeListener,
    write_request::{ReadyQueues, WriteRequest},
};

/// How often the file is looked at without a ring.
const TICK: Duration = Duration::from_millis(50);
/// The same where no ring can be heard: a wake-up costs 30 µs, so this is half a percent of a core.
const DEAF_TICK: Duration = Duration::from_millis(6);
/// Rings that come faster than this share a look.
const PAUSE: Duration = Duration::from_millis(1);

/// What this process waits for.
#[derive(Debug, Default)]
pub(crate) struct WatchRegistry {
    watches: Mutex<HashMap<TaskId, WatchedRecord>>,
    /// Subscribed queues, and how often.
    queues: Mutex<BTreeMap<i64, usize>>,
    /// Somebody waits for something new, which may have been there before the last look.
    fresh: AtomicBool,
    closed: AtomicBool,
    /// How often this process was taken for dead, and what it held was handed to others.
    losses: AtomicU64,
    thread: OnceLock<Thread>,
}

#[derive(Debug)]
struct WatchedRecord {
    signal: watch::Sender<u64>,
    watchers: usize,
}

/// One watcher of a record; dropping it forgets it.
#[derive(Debug)]
pub(crate) struct RecordWatcher {
    hub: Arc<WatchRegistry>,
    id: TaskId,
}

impl WatchRegistry {
    pub(crate) fn count_loss(&self) {
        self.losses.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn losses(&self) -> u64 {
        self.losses.load(Ordering::Relaxed)
    }

    pub(crate) fn watch(self: &Arc<Self>, id: &TaskId) -> (watch::Receiver<u64>, RecordWatcher) {
        let mut watches = lock(&self.watches);
        let slot = watches
            .entry(id.clone())
            .or_insert_with(|| WatchedRecord { signal: watch::Sender::new(0), watchers: 0 });
        slot.watchers += 1;
        let signal = slot.signal.subscribe();
        drop(watches);
        self.look_anew();
        (signal, RecordWatcher { hub: self.clone(), id: id.clone() })
    }

    pub(crate) fn wake(&self, id: &TaskId) {
        if let Some(slot) = lock(&self.watches).get(id) {
            slot.signal.send_modify(|count| *count += 1);
        }
    }

    fn wake_all(&self) {
        for slot in lock(&self.watches).values() {
            slot.signal.send_modify(|count| *count += 1);
        }
    }

    pub(crate) fn subscribe(&self, queues: &[i64]) {
        let mut subscribed = lock(&self.queues);
        for &queue in queues {
            *subscribed.entry(queue).or_default() += 1;
        }
        drop(subscribed);
        self.look_anew();
    }

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

    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.unpark();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    fn nobody_waits(&self) -> bool {
        lock(&self.watches).is_empty() && lock(&self.queues).is_empty()
    }

    fn look_anew(&self) {
        self.fresh.store(true, Ordering::Release);
        self.unpark();
    }

    fn unpark(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }
}

impl Drop for RecordWatcher {
    fn drop(&mut self) {
        let mut watches = lock(&self.hub.watches);
        if let Some(slot) = watches.get_mut(&self.id) {
            slot.watchers -= 1;
            if slot.watchers == 0 {
                watches.remove(&self.id);
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The thread that watches the file.
#[derive(Debug)]
pub(crate) struct FileWatcher {
    pub(crate) db: Connection,
    pub(crate) path: PathBuf,
    pub(crate) namespace: i64,
    /// The store's own mark in `wakes`: its watchers were woken at the commit.
    pub(crate) source: i64,
    /// The newest wake-up when the store was opened: later ones may be for a watcher that came before this thread.
    pub(crate) woken: i64,
    pub(crate) hub: Arc<WatchRegistry>,
    pub(crate) clock: Arc<HostClock>,
    pub(crate) writer: Sender<WriteRequest>,
}

/// What the thread knows between two looks.
#[derive(Debug, Default)]
struct CheckState {
    version: Option<i64>,
    woken: i64,
    next_due: Option<Timestamp>,
}

impl FileWatcher {
    pub(crate) fn run(self) {
        let _ = self.hub.thread.set(std::thread::current());
        let mut seen = CheckState { woken: self.woken, ..CheckState::default() };
        let mut ear = None;
        while !self.hub.is_closed() {
            if self.hub.nobody_waits() {
                std::thread::park();
                continue;
            }
            // Bound before the first look: what is committed after that look rings.
            let ear = ear.get_or_insert_with(|| self.bind());
            let looked = Instant::now();
            if let Err(error) = self.look(&mut seen) {
                // The writer meets the same trouble and tells the callers; this thread only must not spin.
                tracing::warn!(file = %self.path.display(), %error, "cannot watch the file");
                std::thread::sleep(Duration::from_secs(1));
            }
            let tick = if ear.is_some() { TICK } else { DEAF_TICK };
            let due = seen.next_due.map_or(tick, |due| due.since(self.clock.now()));
            let bound = tick.min(due).max(Duration::from_micros(500));
            match ear {
                Some(ear) => ear.wait(bound),
                None => std::thread::park_timeout(bound),
            }
            std::thread::sleep(PAUSE.saturating_sub(looked.elapsed()));
        }
    }

    fn bind(&self) -> Option<WakeListener> {
        WakeListener::bind(&self.path, self.source)
            .inspect_err(
                |error| tracing::debug!(file = %self.path.display(), %error, "looks instead of listening"),
            )
            .ok()
    }

    /// Looks once.
    fn look(&self, seen: &mut CheckState) -> rusqlite::Result<()> {
        let version = self.db.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))?;
        let fresh = self.hub.fresh.swap(false, Ordering::AcqRel);
        let changed = seen.version.replace(version) != Some(version) || fresh;
        let mut nudge = ReadyQueues::default();
        if changed {
            self.wake_watchers(seen)?;
            let subscribed = self.subscribed();
            seen.next_due = if subscribed.is_empty() { None } else { messages::next_due(&self.db)? };
            for queue in subscribed {
                if messages::any_ready(&self.db, queue)? {
                    nudge.ready.push(queue);
                }
            }
        }
        nudge.due = seen.next_due.is_some_and(|due| due <= self.clock.now());
        if nudge != ReadyQueues::default() {
            // A writer that is gone needs no nudge.
            let _ = self.writer.send(WriteRequest::ReadyQueues(nudge));
        }
        Ok(())
    }

    fn subscribed(&self) -> Vec<i64> {
        lock(&self.hub.queues).keys().copied().collect()
    }

    fn wake_watchers(&self, seen: &mut CheckState) -> rusqlite::Result<()> {
        let after = seen.woken;
        let oldest: Option<i64> =
            self.db.prepare_cached("SELECT min(seq) FROM wakes")?.query_row([], |row| row.get(0))?;
        if oldest.is_some_and(|oldest| oldest > after + 1) {
            // The tail was cut before we read it.
            self.hub.wake_all();
        }
        let mut statement = self
            .db
            .prepare_cached("SELECT seq, namespace, source, task FROM wakes WHERE seq > ?1 ORDER BY seq")?;
        let mut rows = statement.query(params![after])?;
        while let Some(row) = rows.next()? {
            seen.woken = row.get(0)?;
            let (namespace, source): (i64, i64) = (row.get(1)?, row.get(2)?);
            if namespace == self.namespace
                && source != self.source
                && let Ok(id) = TaskId::parse(row.get_ref(3)?.as_str()?)
            {
                self.hub.wake(&id);
            }
        }
        Ok(())
    }
}
