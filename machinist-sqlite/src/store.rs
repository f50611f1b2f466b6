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
const PATIENCE: Duration = Duration::from_secs(40);
/// Changes that one job holds at most, so that a huge batch lets others in between.
const JOB: usize = 256;

/// One SQLite file as broker and result backend.
///
/// Any number of processes on one host may open the same file at once. Within a process open it once and share the
/// store: broker and backend then share their transactions, which halves the number of syncs.
///
/// The threads of the store end when it, and everything that came from it, is dropped or [closed](Self::close).
#[derive(Debug, Clone)]
pub struct SqliteStore {
    shared: Arc<StoreHandle>,
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
        let shared = match opened.await {
            Ok(opened) => opened?,
            Err(_) => return Err(failed(std::io::Error::other("the opening thread ended"))),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The file as a broker. All brokers of a store are one: closing one closes all.
    pub fn broker(&self) -> SqliteBroker {
        SqliteBroker::new(self.shared.clone())
    }

    /// The file as a result backend.
    pub fn backend(&self) -> SqliteBackend {
        SqliteBackend::new(self.shared.clone())
    }

    /// The file's absolute path.
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// Does what was asked before, hands back what is held, and closes the file, the last of it a tenth of a second
    /// later. Broker and backend answer *unavailable* from then on. Idempotent.
    ///
    /// # Cancel safety
    /// Dropped early, the rest is done by the store's threads.
    pub async fn close(&self) {
        let (done, closed) = oneshot::channel();
        self.shared.hub.close();
        if self.shared.writer.send(WriteRequest::Stop(Some(done))).is_ok() {
            // The writer's end says it, too; a disk that does not answer must not keep the caller for ever.
            let _ = self.shared.patiently(closed).await;
        }
        // A reader that was stopped before needs no second word.
        let _ = self.shared.reader.send(Query::Stop);
    }
}

/// What broker and backend have in common. The last one to drop it ends the threads.
#[derive(Debug)]
pub(crate) struct StoreHandle {
    pub(crate) path: PathBuf,
    pub(crate) hub: Arc<WatchRegistry>,
    pub(crate) broker_closed: AtomicBool,
    clock: Arc<HostClock>,
    synchronous: Synchronous,
    writer: mpsc::Sender<WriteRequest>,
    reader: mpsc::Sender<Query>,
}

fn start(path: &Path, options: &SqliteOptions) -> Result<StoreHandle, OpenError> {
    let opened = open::open(path, options)?;
    let (path, namespace) = (opened.path, opened.namespace);
    let (clock, hub) = (Arc::new(HostClock::new()), Arc::new(WatchRegistry::default()));
    // Random, so that two stores never take each other's wake-ups for their own.
    let source = (RandomState::new().build_hasher().finish() >> 1).cast_signed();
    let (writer, jobs) = mpsc::channel();
    let (reader, queries) = mpsc::channel();
    let pulse = FileWatcher {
        db: opened.pulse,
        path: path.clone(),
        namespace,
        source,
        woken: opened.woken,
        hub: hub.clone(),
        clock: clock.clone(),
        writer: writer.clone(),
    };
    let reading =
        FileReader { db: opened.reader, path: path.clone(), namespace, clock: clock.clone(), queries };
    let writing =
        FileWriter::new((opened.writer, path.clone(), namespace), source, clock.clone(), hub.clone(), jobs);
    let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
        thread::Builder::new().name(format!("machinist-sqlite-{name}")).spawn(run).map(drop)
    };
    // Dropped early, it ends the threads that were started.
    let shared = StoreHandle {
        path,
        hub,
        broker_closed: AtomicBool::new(false),
        clock,
        synchronous: options.synchronous,
        writer,
        reader,
    };
    spawn("read", Box::new(|| reading.run()))
        .and_then(|()| spawn("write", Box::new(|| writing.run())))
        .and_then(|()| spawn("watch", Box::new(|| pulse.run())))
        .map_err(|source| OpenError::Io { path: shared.path.clone(), source: source.into() })?;
    Ok(shared)
}

impl StoreHandle {
    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Asks for changes without waiting for an answer.
    pub(crate) fn tell(&self, op: StoreChange) -> Result<(), StoreError> {
        self.writer
            .send(WriteRequest::Ops { ops: vec![op], reply: None })
            .map_err(|_| StoreError::closed(&self.path))
    }

    /// Makes changes; one answer for each, in their order, after they are committed.
    pub(crate) async fn change(&self, ops: Vec<StoreChange>) -> Vec<Result<ChangeOutcome, StoreError>> {
        let mut waiting = Vec::with_capacity(ops.len().div_ceil(JOB));
        let mut ops = ops.into_iter().peekable();
        while ops.peek().is_some() {
            let part: Vec<_> = ops.by_ref().take(JOB).collect();
            let count = part.len();
            let (reply, answers) = oneshot::channel();
            // A writer that is gone drops the job and with it the reply.
            let _ = self.writer.send(WriteRequest::Ops { ops: part, reply: Some(reply) });
            waiting.push((count, answers));
        }
        let mut all = Vec::new();
        for (count, answers) in waiting {
            match self.patiently(answers).await {
                Ok(answers) => all.extend(answers),
                Err(fault) => all.extend((0..count).map(|_| Err(fault.clone()))),
            }
        }
        all
    }

    /// Makes one change.
    pub(crate) async fn change_one(&self, op: StoreChange) -> Result<ChangeOutcome, StoreError> {
        let mut answers = self.change(vec![op]).await;
        answers.pop().unwrap_or_else(|| Err(StoreError::closed(&self.path)))
    }

    /// Asks the reading thread.
    pub(crate) async fn ask<T>(
        &self,
        query: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Query,
    ) -> Result<T, StoreError> {
        if self.hub.is_closed() {
            return Err(StoreError::closed(&self.path));
        }
        let (reply, answer) = oneshot::channel();
        self.reader.send(query(reply)).map_err(|_| StoreError::closed(&self.path))?;
        self.patiently(answer).await?
    }

    async fn patiently<T>(&self, answer: oneshot::Receiver<T>) -> Result<T, StoreError> {
        match tokio::time::timeout(PATIENCE, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(StoreError::closed(&self.path)),
            Err(_) => Err(StoreError::new(
                StoreErrorKind::Other,
                &self.path,
                &format_args!("no answer from the disk within {} s", PATIENCE.as_secs()),
            )),
        }
    }

    /// Ends all consumers of this store.
    pub(crate) async fn leave(&self) {
        let (done, left) = oneshot::channel();
        if self.writer.send(WriteRequest::Leave(done)).is_ok() {
            let _ = self.patiently(left).await;
        }
    }

    pub(crate) async fn diagnose(&self) -> Vec<Finding> {
        let mut findings = match self.ask(Query::Diagnose).await {
            Ok(findings) => findings,
            Err(fault) => vec![Finding::error("file", fault.to_string(), "see the text")],
        };
        findings.push(match self.synchronous {
            Synchronous::Full => Finding::good("synchronous", "FULL: answered is synced"),
            Synchronous::Normal => Finding::good(
                "synchronous",
                "NORMAL: a power cut may lose the last commits, a killed process none",
            ),
        });
        findings.push(match self.change_one(StoreChange::Probe).await {
            Ok(_) => Finding::good("writing", "possible"),
            Err(fault) => Finding::error("writing", fault.to_string(), "see the text"),
        });
        findings
    }
}

impl Drop for StoreHandle {
    fn drop(&mut self) {
        self.hub.close();
        // A writer that was stopped before needs no second word.
        let _ = self.writer.send(WriteRequest::Stop(None));
    }
}
