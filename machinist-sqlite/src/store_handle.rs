//! The handle that broker and backend share. It starts the threads of an open file and sends requests to them.

use std::{
    collections::hash_map::RandomState,
    convert::Infallible,
    hash::{BuildHasher, Hasher},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use machinist_adapter::diagnose::Finding;
use tokio::sync::oneshot;

use crate::{
    error::{StoreError, StoreErrorKind},
    file_reader::{FileReader, Query},
    file_watcher::FileWatcher,
    file_writer::FileWriter,
    open::{self, OpenError},
    options::{SqliteOptions, Synchronous},
    watch_registry::WatchRegistry,
    write_context::WriteContext,
    write_request::{ChangeOutcome, ChangeRequest, StoreChange, WriteRequest},
};

/// Maximum time that a caller waits for the file. It is longer than the writer waits for other processes.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(40);
/// Maximum time for which the last user of a store blocks at its drop, until the file is closed.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum number of changes in one request. Requests of other callers can be served between the parts of a large
/// batch.
const MAX_CHANGES_PER_REQUEST: usize = 256;

/// Handle to the threads of an open file. They end when it is dropped.
#[derive(Debug)]
pub(crate) struct StoreHandle {
    pub(crate) path: PathBuf,
    pub(crate) watches: Arc<WatchRegistry>,
    broker_closed: AtomicBool,
    synchronous: Synchronous,
    writer: mpsc::Sender<WriteRequest>,
    reader: mpsc::Sender<Query>,
    /// Disconnected when the writer has closed the file. Nothing is ever sent on it.
    closed: Mutex<mpsc::Receiver<Infallible>>,
}

impl StoreHandle {
    /// Opens or creates a file and starts its threads. Blocks.
    pub(crate) fn open(path: &Path, options: &SqliteOptions) -> Result<Self, OpenError> {
        let opened = open::open(path, options)?;
        let path = opened.path;
        let namespace = opened.namespace;
        // Random, so that no store mistakes the wake-ups of another store for its own.
        let store_id = (RandomState::new().build_hasher().finish() >> 1).cast_signed();
        let clock = Arc::new(opened.clock);
        let watches = Arc::new(WatchRegistry::default());
        let (writer, requests) = mpsc::channel();
        let (reader, queries) = mpsc::channel();
        let (open, other_connections) = mpsc::channel();
        let (closing, closed) = mpsc::channel();
        let file_watcher = FileWatcher {
            db: opened.watcher,
            path: path.clone(),
            namespace,
            store_id,
            last_wake_up: opened.last_wake_up,
            watches: watches.clone(),
            clock: clock.clone(),
            writer: writer.clone(),
            _open: open.clone(),
        };
        let file_reader = FileReader {
            db: opened.reader,
            path: path.clone(),
            namespace,
            clock: clock.clone(),
            queries,
            _open: open,
        };
        let context = WriteContext::new(opened.writer, path.clone(), namespace, store_id, clock);
        let file_writer = FileWriter::new(context, watches.clone(), requests, other_connections);
        // If a thread cannot be started, dropping the handle ends those that were.
        let handle = Self {
            path,
            watches,
            broker_closed: AtomicBool::new(false),
            synchronous: options.synchronous,
            writer,
            reader,
            closed: Mutex::new(closed),
        };
        start_thread("read", || file_reader.run())
            .and_then(|()| {
                start_thread("write", move || {
                    file_writer.run();
                    drop::<mpsc::Sender<Infallible>>(closing);
                })
            })
            .and_then(|()| start_thread("watch", || file_watcher.run()))
            .map_err(|source| OpenError::Io { path: handle.path.clone(), source: source.into() })?;
        Ok(handle)
    }

    /// Requests a change without waiting for its outcome.
    pub(crate) fn send_change(&self, change: StoreChange) -> Result<(), StoreError> {
        let request = ChangeRequest { changes: vec![change], reply: None };
        self.writer.send(WriteRequest::Changes(request)).map_err(|_| StoreError::closed(&self.path))
    }

    /// Applies changes. Returns one outcome for each, in their order, after they are committed.
    pub(crate) async fn apply_changes(
        &self,
        changes: Vec<StoreChange>,
    ) -> Vec<Result<ChangeOutcome, StoreError>> {
        let mut waiting = Vec::with_capacity(changes.len().div_ceil(MAX_CHANGES_PER_REQUEST));
        let mut changes = changes.into_iter().peekable();
        while changes.peek().is_some() {
            let part: Vec<_> = changes.by_ref().take(MAX_CHANGES_PER_REQUEST).collect();
            let count = part.len();
            let (reply, outcomes) = oneshot::channel();
            // If the writer has ended, the request is dropped and its reply with it.
            let _ =
                self.writer.send(WriteRequest::Changes(ChangeRequest { changes: part, reply: Some(reply) }));
            waiting.push((count, outcomes));
        }
        let mut all = Vec::new();
        for (count, outcomes) in waiting {
            match self.await_answer(outcomes).await {
                Ok(outcomes) => all.extend(outcomes),
                Err(error) => all.extend((0..count).map(|_| Err(error.clone()))),
            }
        }
        all
    }

    /// Applies one change.
    pub(crate) async fn apply_change(&self, change: StoreChange) -> Result<ChangeOutcome, StoreError> {
        let mut outcomes = self.apply_changes(vec![change]).await;
        outcomes.pop().unwrap_or_else(|| Err(StoreError::closed(&self.path)))
    }

    /// Sends a query to the reading thread and returns its answer.
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

    pub(crate) fn is_broker_closed(&self) -> bool {
        self.broker_closed.load(Ordering::Acquire)
    }

    /// Closes the broker and ends all consumers of this store.
    pub(crate) async fn close_broker(&self) {
        self.broker_closed.store(true, Ordering::Release);
        let (done, ended) = oneshot::channel();
        if self.writer.send(WriteRequest::EndSubscriptions(done)).is_ok() {
            let _ = self.await_answer(ended).await;
        }
    }

    /// Closes the file after the changes that were requested before.
    pub(crate) async fn close(&self) {
        let (done, closed) = oneshot::channel();
        self.watches.close();
        // Fails only if the reader has ended.
        let _ = self.reader.send(Query::Stop);
        if self.writer.send(WriteRequest::Close(Some(done))).is_ok() {
            // The end of the writer completes this as well. A disk that does not answer must not block the caller
            // forever.
            let _ = self.await_answer(closed).await;
        }
    }

    pub(crate) async fn diagnose(&self) -> Vec<Finding> {
        let mut findings = match self.query(Query::Diagnose).await {
            Ok(findings) => findings,
            Err(error) => vec![Finding::error("file", error.to_string(), "see the message")],
        };
        findings.push(match self.synchronous {
            Synchronous::Full => {
                Finding::good("synchronous", "FULL: commits are synced before they are answered")
            }
            Synchronous::Normal => Finding::good(
                "synchronous",
                "NORMAL: a power cut may lose the last commits, a killed process loses none",
            ),
        });
        findings.push(match self.apply_change(StoreChange::Probe).await {
            Ok(_) => Finding::good("writing", "possible"),
            Err(error) => Finding::error("writing", error.to_string(), "see the message"),
        });
        findings
    }
}

impl Drop for StoreHandle {
    fn drop(&mut self) {
        self.watches.close();
        // Both fail only if the thread has ended.
        let _ = self.reader.send(Query::Stop);
        let _ = self.writer.send(WriteRequest::Close(None));
        // A process that ends right after this would leave a part of its data in the write-ahead log.
        let closed = self.closed.get_mut().unwrap_or_else(PoisonError::into_inner);
        let _ = closed.recv_timeout(CLOSE_TIMEOUT);
    }
}

fn start_thread(name: &str, run: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    thread::Builder::new().name(format!("machinist-sqlite-{name}")).spawn(run).map(drop)
}
