//! One open file: the threads that work on it, and the way to ask them.

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher, Hasher},
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool, mpsc},
    thread,
    time::Duration,
};

use machinist_core::{clock::Timestamp, diagnose::Finding};
use tokio::sync::oneshot;

use crate::{
    SqliteBackend, SqliteBroker,
    clock::HostClock,
    error::{StoreError, StoreErrorKind},
    file_reader::{FileReader, Query},
    file_watcher::{FileWatcher, WatchRegistry},
    file_writer::FileWriter,
    open::{self, OpenError},
    options::{SqliteOptions, Synchronous},
    write_request::{ChangeOutcome, StoreChange, WriteRequest},
};

/// How long a caller waits for the file: longer than the writer waits for other processes.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(40);
/// Changes that one job holds at most, so that a huge batch lets others in between.
const MAX_CHANGES_PER_REQUEST: usize = 256;

/// One SQLite file as broker and result backend.
///
/// Any number of processes on one host may open the same file at once. Within a process open it once and share the
/// store: broker and backend then share their transactions, which halves the number of syncs.
///
/// The threads of the store end when it, and everything that came from it, is dropped or [closed](Self::close).
#[derive(Debug, Clone)]
pub struct SqliteStore {
    handle: Arc<StoreHandle>,
}

impl SqliteStore {
    /// Opens a file, or makes it, readable for its owner only. Its directory must exist.
    ///
    /// Beside the file lie its write-ahead log (`FILE-wal`, `FILE-shm`) and the locks of consuming processes
    /// (`FILE-owners/`). A copy made while the file is in use is not a backup; `sqlite3 FILE ".backup COPY"` makes one.
    ///
    /// # Errors
    /// [`OpenError`] says what is wrong with the file and what to do; the file is as it was before.
    ///
    /// # Cancel safety
    /// Safe: what was opened is closed again.
    pub async fn open(path: impl AsRef<Path>, options: SqliteOptions) -> Result<Self, OpenError> {
        let path = path.as_ref().to_owned();
        let (done, opened) = oneshot::channel();
        let failed = |source: std::io::Error| OpenError::Io { path: path.clone(), source: source.into() };
        let at = path.clone();
        thread::Builder::new()
            .name("machinist-sqlite-open".into())
            .spawn(move || drop(done.send(start(&at, &options))))
            .map_err(failed)?;
        let handle = match opened.await {
            Ok(opened) => opened?,
            Err(_) => return Err(failed(std::io::Error::other("the opening thread ended"))),
        };
        Ok(Self { handle: Arc::new(handle) })
    }

    /// The file as a broker. All brokers of a store are one: closing one closes all.
    pub fn broker(&self) -> SqliteBroker {
        SqliteBroker::new(self.handle.clone())
    }

    /// The file as a result backend.
    pub fn backend(&self) -> SqliteBackend {
        SqliteBackend::new(self.handle.clone())
    }

    /// The file's absolute path.
    pub fn path(&self) -> &Path {
        &self.handle.path
    }

    /// Does what was asked before, hands back what is held, and closes the file, the last of it a tenth of a second
    /// later. Broker and backend answer *unavailable* from then on. Idempotent.
    ///
    /// # Cancel safety
    /// Dropped early, the rest is done by the store's threads.
    pub async fn close(&self) {
        let (done, closed) = oneshot::channel();
        self.handle.watches.close();
        if self.handle.writer.send(WriteRequest::Close(Some(done))).is_ok() {
            // The writer's end says it, too; a disk that does not answer must not keep the caller for ever.
            let _ = self.handle.await_answer(closed).await;
        }
        // A reader that was stopped before needs no second word.
        let _ = self.handle.reader.send(Query::Stop);
    }
}

/// What broker and backend have in common. The last one to drop it ends the threads.
#[derive(Debug)]
pub(crate) struct StoreHandle {
    pub(crate) path: PathBuf,
    pub(crate) watches: Arc<WatchRegistry>,
    pub(crate) broker_closed: AtomicBool,
    clock: Arc<HostClock>,
    synchronous: Synchronous,
    writer: mpsc::Sender<WriteRequest>,
    reader: mpsc::Sender<Query>,
}

fn start(path: &Path, options: &SqliteOptions) -> Result<StoreHandle, OpenError> {
    let opened = open::open(path, options)?;
    let (path, namespace) = (opened.path, opened.namespace);
    let (clock, watches) = (Arc::new(HostClock::new()), Arc::new(WatchRegistry::default()));
    // Random, so that two stores never take each other's wake-ups for their own.
    let store_id = (RandomState::new().build_hasher().finish() >> 1).cast_signed();
    let (writer, requests) = mpsc::channel();
    let (reader, queries) = mpsc::channel();
    let watcher = FileWatcher {
        db: opened.watcher,
        path: path.clone(),
        namespace,
        store_id,
        last_wake_up: opened.last_wake_up,
        watches: watches.clone(),
        clock: clock.clone(),
        writer: writer.clone(),
    };
    let file_reader =
        FileReader { db: opened.reader, path: path.clone(), namespace, clock: clock.clone(), queries };
    let file_writer = FileWriter::new(
        (opened.writer, path.clone(), namespace),
        store_id,
        clock.clone(),
        watches.clone(),
        requests,
    );
    let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
        thread::Builder::new().name(format!("machinist-sqlite-{name}")).spawn(run).map(drop)
    };
    // Dropped early, it ends the threads that were started.
    let handle = StoreHandle {
        path,
        watches,
        broker_closed: AtomicBool::new(false),
        clock,
        synchronous: options.synchronous,
        writer,
        reader,
    };
    spawn("read", Box::new(|| file_reader.run()))
        .and_then(|()| spawn("write", Box::new(|| file_writer.run())))
        .and_then(|()| spawn("watch", Box::new(|| watcher.run())))
        .map_err(|source| OpenError::Io { path: handle.path.clone(), source: source.into() })?;
    Ok(handle)
}

impl StoreHandle {
    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Asks for changes without waiting for an answer.
    pub(crate) fn send_change(&self, change: StoreChange) -> Result<(), StoreError> {
        self.writer
            .send(WriteRequest::Changes { changes: vec![change], reply: None })
            .map_err(|_| StoreError::closed(&self.path))
    }

    /// Makes changes; one answer for each, in their order, after they are committed.
    pub(crate) async fn apply_changes(
        &self,
        changes: Vec<StoreChange>,
    ) -> Vec<Result<ChangeOutcome, StoreError>> {
        let mut waiting = Vec::with_capacity(changes.len().div_ceil(MAX_CHANGES_PER_REQUEST));
        let mut changes = changes.into_iter().peekable();
        while changes.peek().is_some() {
            let part: Vec<_> = changes.by_ref().take(MAX_CHANGES_PER_REQUEST).collect();
            let count = part.len();
            let (reply, answers) = oneshot::channel();
            // A writer that is gone drops the job and with it the reply.
            let _ = self.writer.send(WriteRequest::Changes { changes: part, reply: Some(reply) });
            waiting.push((count, answers));
        }
        let mut all = Vec::new();
        for (count, answers) in waiting {
            match self.await_answer(answers).await {
                Ok(answers) => all.extend(answers),
                Err(error) => all.extend((0..count).map(|_| Err(error.clone()))),
            }
        }
        all
    }

    /// Makes one change.
    pub(crate) async fn apply_change(&self, change: StoreChange) -> Result<ChangeOutcome, StoreError> {
        let mut answers = self.apply_changes(vec![change]).await;
        answers.pop().unwrap_or_else(|| Err(StoreError::closed(&self.path)))
    }

    /// Asks the reading thread.
    pub(crate) async fn query<T>(
        &self,
        make_query: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Query,
    ) -> Result<T, StoreError> {
        if self.watches.is_closed() {
            return Err(StoreError::closed(&self.path));
        }
        let (reply, answer) = oneshot::channel();
        self.reader.send(make_query(reply)).map_err(|_| StoreError::closed(&self.path))?;
        self.await_answer(answer).await?
    }

    async fn await_answer<T>(&self, answer: oneshot::Receiver<T>) -> Result<T, StoreError> {
        match tokio::time::timeout(ANSWER_TIMEOUT, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(StoreError::closed(&self.path)),
            Err(_) => Err(StoreError::new(
                StoreErrorKind::Other,
                &self.path,
                &format_args!("no answer from the disk within {} s", ANSWER_TIMEOUT.as_secs()),
            )),
        }
    }

    /// Ends all consumers of this store.
    pub(crate) async fn end_subscriptions(&self) {
        let (done, left) = oneshot::channel();
        if self.writer.send(WriteRequest::EndSubscriptions(done)).is_ok() {
            let _ = self.await_answer(left).await;
        }
    }

    pub(crate) async fn diagnose(&self) -> Vec<Finding> {
        let mut findings = match self.query(Query::Diagnose).await {
            Ok(findings) => findings,
            Err(error) => vec![Finding::error("file", error.to_string(), "see the text")],
        };
        findings.push(match self.synchronous {
            Synchronous::Full => Finding::good("synchronous", "FULL: answered is synced"),
            Synchronous::Normal => Finding::good(
                "synchronous",
                "NORMAL: a power cut may lose the last commits, a killed process none",
            ),
        });
        findings.push(match self.apply_change(StoreChange::Probe).await {
            Ok(_) => Finding::good("writing", "possible"),
            Err(error) => Finding::error("writing", error.to_string(), "see the text"),
        });
        findings
    }
}

impl Drop for StoreHandle {
    fn drop(&mut self) {
        self.watches.close();
        // A writer that was stopped before needs no second word.
        let _ = self.writer.send(WriteRequest::Close(None));
    }
}
