//! Information for a handler about its run.
//!
//! A [`TaskContext`] is an extractor: a handler that wants it takes it as a parameter. It is the same for the
//! typed handlers, for command tasks and for middleware.

use std::{
    any::{Any, TypeId},
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    clock::Clock,
    continue_with::Continue,
    error::SendError,
    flow::Spawned,
    id::{QueueName, TaskId, TaskName},
    record::Progress,
    task_log::{LogLevel, RunLog},
    trace::TraceContext,
    wire::Pairs,
    workflow::{Sendable, spawned_of},
};

/// Maximum number of tasks and workflows that one run spawns.
const MAX_SPAWNED: usize = 1000;
/// Maximum size of a progress note, in bytes. The rest is cut off.
const NOTE_LIMIT: usize = 1024;

/// One run of a task, as its handler sees it. Cheap to clone.
///
/// # Examples
/// ```
/// use machinist_core::{TaskContext, TaskDef, TaskError};
///
/// const IMPORT: TaskDef<Vec<String>, u64> = TaskDef::new("import");
///
/// async fn import(rows: Vec<String>, cx: TaskContext) -> Result<u64, TaskError> {
///     let total = rows.len() as u64;
///     for (done, row) in (1..=total).zip(&rows) {
///         // The id is the same in every attempt: the key of a table of what is done.
///         println!("task {}, attempt {}: {row}", cx.task_id(), cx.attempt());
///         cx.progress(done, total, row);
///     }
///     Ok(total)
/// }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), TaskError> {
/// # let cx = TaskContext::builder().build();
/// # assert_eq!(machinist_test::run_one(IMPORT, import, vec!["Ada".to_owned()], cx).await?, 1);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct TaskContext(Arc<RunInfo>);

/// The parts of a context.
pub(crate) struct RunInfo {
    pub(crate) id: TaskId,
    pub(crate) name: TaskName,
    pub(crate) queue: QueueName,
    pub(crate) attempt: u32,
    pub(crate) postponements: u32,
    pub(crate) token: u64,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) pairs: Pairs,
    pub(crate) cancel: HandlerCancellation,
    pub(crate) state: Arc<StateMap>,
    pub(crate) log: RunLog,
    /// Tasks and workflows to be sent if the run succeeds.
    pub(crate) spawned: Mutex<Vec<Spawned>>,
    pub(crate) clock: Clock,
    /// Progress that the handler reported last. Most handlers report none.
    pub(crate) progress: OnceLock<watch::Sender<Option<Progress>>>,
}

/// Cancellation of a handler. Its token is made when somebody asks for it: most handlers end before that.
#[derive(Debug)]
pub(crate) struct HandlerCancellation {
    run: CancellationToken,
    handler: OnceLock<CancellationToken>,
}

impl HandlerCancellation {
    /// Creates the cancellation of a handler that ends with this run.
    pub(crate) fn of_run(run: CancellationToken) -> Self {
        Self { run, handler: OnceLock::new() }
    }

    /// Returns the token of the handler. A child of the run's: a soft timeout cancels the handler only.
    fn token(&self) -> &CancellationToken {
        self.handler.get_or_init(|| self.run.child_token())
    }
}

impl TaskContext {
    pub(crate) fn new(run: RunInfo) -> Self {
        Self(Arc::new(run))
    }

    /// The task's id: the same for every attempt and every redelivery. The key for a table of what was done.
    pub fn task_id(&self) -> &TaskId {
        &self.0.id
    }

    /// The task's name.
    pub fn task_name(&self) -> &TaskName {
        &self.0.name
    }

    /// The queue it came from.
    pub fn queue(&self) -> &QueueName {
        &self.0.queue
    }

    /// Returns the attempt: the number of this counted run, from 1.
    pub fn attempt(&self) -> u32 {
        self.0.attempt
    }

    /// Returns how often the task has been postponed ([`TaskError::retry_in`](crate::TaskError::retry_in)) so far.
    pub fn postponements(&self) -> u32 {
        self.0.postponements
    }

    /// A number that grows with every start of this task. A store that remembers the greatest token it has seen
    /// and refuses smaller ones cannot be written by a run that was cut off and is not aware of it.
    pub fn fencing_token(&self) -> u64 {
        self.0.token
    }

    /// The sender's headers: text by name, carried along unchanged.
    pub fn headers(&self) -> &BTreeMap<String, String> {
        &self.0.headers
    }

    /// Returns the sender's labels by key, sorted.
    pub fn labels(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.pairs.labels()
    }

    /// Returns the value of one label.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels().find_map(|(name, value)| (name == key).then_some(value))
    }

    /// Returns the W3C trace context for what this run starts, as `traceparent` and, if there is one, `tracestate`. Call
    /// it within the handler.
    pub fn trace_context(&self) -> (String, Option<String>) {
        let TraceContext { parent, state } = TraceContext::current();
        (parent, state)
    }

    /// Fires when this run should end: somebody revoked the task, its soft timeout is reached, the worker shuts down,
    /// or somebody else has taken the task over.
    ///
    /// A handler that ends with an error after that is run again where the worker shut down or its retry policy
    /// says so. One that does not end is cut off: some seconds later, after a soft timeout at the hard one.
    ///
    /// # Examples
    /// ```
    /// use machinist_core::{TaskContext, TaskDef, TaskError};
    ///
    /// const POLL: TaskDef<String, ()> = TaskDef::new("poll");
    /// # async fn answer(_: &str) -> Result<(), TaskError> { std::future::pending().await }
    ///
    /// async fn poll(url: String, cx: TaskContext) -> Result<(), TaskError> {
    ///     tokio::select! {
    ///         answer = answer(&url) => answer,
    ///         () = cx.cancellation().cancelled() => Err("the run has to end".into()),
    ///     }
    /// }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// # let token = tokio_util::sync::CancellationToken::new();
    /// # token.cancel();
    /// # let cx = TaskContext::builder().cancellation(token).build();
    /// # assert!(machinist_test::run_one(POLL, poll, "http://example.org", cx).await.is_err());
    /// # }
    /// ```
    pub fn cancellation(&self) -> &CancellationToken {
        self.0.cancel.token()
    }

    /// Leaves a line in the task's log, or the lines of a text: for `machinist log` while the task runs, and for
    /// `machinist status` after the run, which shows the last 16 KiB. Never waits.
    ///
    /// The log of a task has at most 64 KiB, of which the oldest lines are cut, and a line at most 4 KiB.
    pub fn log(&self, line: impl AsRef<str>) {
        self.0.log.add(self.0.clock.now(), LogLevel::Info, line.as_ref(), true);
    }

    /// Leaves what was logged elsewhere during this run in the task's log.
    #[cfg(feature = "task-log")]
    pub(crate) fn log_event(&self, level: LogLevel, text: &str) {
        self.0.log.add(self.0.clock.now(), level, text, false);
    }

    /// Reports progress: `done` out of `total`, 0 if the total is unknown, and a note (the
    /// first kilobyte of it). `machinist status` shows it. It is written at most twice a second; the last report always is.
    pub fn progress(&self, done: u64, total: u64, note: impl Into<String>) {
        let mut note = note.into();
        if note.len() > NOTE_LIMIT {
            note.truncate((0..=NOTE_LIMIT).rev().find(|at| note.is_char_boundary(*at)).unwrap_or(0));
        }
        let said = Progress { attempt: self.0.attempt, done, total, note, at: self.0.clock.now() };
        self.progress_sender().send_replace(Some(said));
    }

    /// Sends a task or a workflow if and when the success of this task is recorded: never without it, and never twice, even
    /// if the handler runs several times. Its id is this task's id, `+` and a number, in the order of the calls.
    ///
    /// At most 1000 in one run, and 1 MiB together. A start or an expiry is counted from the end of this task.
    ///
    /// # Errors
    /// [`SendError::Invalid`] if it cannot be sent: what is wrong with it, or the limit.
    ///
    /// # Examples
    /// ```
    /// use machinist_core::{TaskContext, TaskDef, TaskError};
    ///
    /// const PAGE: TaskDef<String, ()> = TaskDef::new("page");
    ///
    /// async fn crawl(links: Vec<String>, cx: TaskContext) -> Result<(), TaskError> {
    ///     for link in links {
    ///         cx.spawn(PAGE.call(link))?;
    ///     }
    ///     Ok(())
    /// }
    /// ```
    pub fn spawn<S: Sendable>(&self, what: S) -> Result<(), SendError> {
        self.add_spawned(spawned_of(what.into_parts()).map_err(SendError::Invalid)?)
    }

    /// Replaces the task by another task or a workflow, if and when the success of this task is recorded: what follows this
    /// task follows the end of that workflow, with its results, and so does what waits for this task's result. The handler
    /// returns the value that it gets from here.
    ///
    /// The place of the task in a workflow passes on: its successors, its error callbacks, its place in a group.
    ///
    /// # Errors
    /// [`SendError::Invalid`] if it cannot be sent: what is wrong with it, the limit of [`spawn`](Self::spawn), or that the
    /// handler has already named what replaces it.
    ///
    /// # Examples
    /// ```
    /// use machinist_core::{Continue, TaskContext, TaskDef, TaskError, workflow::chord};
    ///
    /// const COUNT: TaskDef<String, i64> = TaskDef::new("count");
    /// const COUNT_PAGE: TaskDef<String, i64> = TaskDef::new("count_page");
    /// const SUM: TaskDef<Vec<i64>, i64> = TaskDef::new("sum");
    ///
    /// async fn count(book: String, cx: TaskContext) -> Result<Continue<i64>, TaskError> {
    ///     let pages: Vec<&str> = book.split('\x0c').collect();
    ///     match pages.as_slice() {
    ///         [page] => Ok(Continue::value(page.len() as i64)),
    ///         pages => {
    ///             let counts: Vec<_> = pages.iter().map(|page| COUNT_PAGE.call(*page)).collect();
    ///             Ok(cx.continue_with(chord(counts, SUM.with(())))?)
    ///         }
    ///     }
    /// }
    /// ```
    pub fn continue_with<S: Sendable>(&self, what: S) -> Result<Continue<S::ResultType>, SendError> {
        let spawned = spawned_of(what.into_parts()).map_err(SendError::Invalid)?;
        self.add_spawned(Spawned { replaces: true, ..spawned })?;
        Ok(Continue::replaced())
    }

    fn add_spawned(&self, spawned: Spawned) -> Result<(), SendError> {
        let mut all = self.0.spawned.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MAX_SPAWNED {
            return Err(SendError::Invalid(format!(
                "a run spawns at most {MAX_SPAWNED} tasks: spawn a group"
            )));
        }
        if spawned.replaces && all.iter().any(|other| other.replaces) {
            return Err(SendError::Invalid(
                "a task is replaced once: make one workflow of what is to follow".to_owned(),
            ));
        }
        all.push(spawned);
        Ok(())
    }

    /// Takes what the handler has spawned.
    pub(crate) fn take_spawned(&self) -> Vec<Spawned> {
        std::mem::take(&mut *self.0.spawned.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn progress_sender(&self) -> &watch::Sender<Option<Progress>> {
        self.0.progress.get_or_init(|| watch::Sender::new(None))
    }

    /// Returns the last reported progress, and every later one.
    pub(crate) fn watch_progress(&self) -> watch::Receiver<Option<Progress>> {
        self.progress_sender().subscribe()
    }

    /// Returns the last reported progress.
    pub(crate) fn last_progress(&self) -> Option<Progress> {
        self.0.progress.get().and_then(|progress| progress.borrow().clone())
    }

    /// Returns what this run has logged: for tests of handlers.
    pub fn logged(&self) -> String {
        self.0.log.text()
    }

    /// The lines of this run.
    pub(crate) fn run_log(&self) -> &RunLog {
        &self.0.log
    }

    /// A shared value that was registered on the worker builder.
    pub fn state<T: Clone + Send + Sync + 'static>(&self) -> Option<T> {
        self.0.state.get::<T>()
    }
}

impl fmt::Debug for TaskContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskContext")
            .field("id", &self.0.id)
            .field("name", &self.0.name)
            .field("attempt", &self.0.attempt)
            .finish_non_exhaustive()
    }
}

/// The shared values of a worker, one of each type.
#[derive(Default)]
pub(crate) struct StateMap(HashMap<TypeId, Box<dyn Any + Send + Sync>>);

impl StateMap {
    pub(crate) fn insert<T: Clone + Send + Sync + 'static>(&mut self, value: T) {
        self.0.insert(TypeId::of::<T>(), Box::new(value));
    }

    pub(crate) fn get<T: Clone + 'static>(&self) -> Option<T> {
        self.0.get(&TypeId::of::<T>())?.downcast_ref::<T>().cloned()
    }

    /// Returns these values, with those of `base` for the types that are missing.
    pub(crate) fn over(mut self, base: Self) -> Self {
        for (id, value) in base.0 {
            self.0.entry(id).or_insert(value);
        }
        self
    }

    pub(crate) fn has(&self, id: TypeId) -> bool {
        self.0.contains_key(&id)
    }
}

#[cfg(test)]
impl TaskContext {
    /// A context for tests of handlers.
    pub(crate) fn test(state: StateMap) -> Self {
        Self::new(RunInfo {
            id: TaskId::fresh(),
            name: "test".try_into().unwrap(),
            queue: "default".try_into().unwrap(),
            attempt: 1,
            postponements: 0,
            token: 1,
            headers: BTreeMap::new(),
            pairs: Pairs::default(),
            cancel: HandlerCancellation::of_run(CancellationToken::new()),
            state: Arc::new(state),
            log: RunLog::default(),
            spawned: Mutex::default(),
            clock: Clock::starting_at(crate::clock::Timestamp::from_micros(0)),
            progress: OnceLock::new(),
        })
    }
}
