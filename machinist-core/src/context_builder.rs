//! Contexts for tests that call a handler without a worker.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, OnceLock},
};

use tokio_util::sync::CancellationToken;

use crate::{
    clock::{self, Clock},
    context::{HandlerCancellation, RunInfo, StateMap, TaskContext},
    id::{QueueName, TaskId, TaskName},
    task_log::RunLog,
    wire::Pairs,
};

/// Makes a [`TaskContext`] without a worker, for tests of handlers and middleware.
///
/// # Examples
/// ```
/// use machinist_core::TaskContext;
///
/// let cx = TaskContext::builder().attempt(3).header("tenant", "acme").state("a shared value").build();
/// assert_eq!((cx.attempt(), cx.headers()["tenant"].as_str()), (3, "acme"));
/// assert_eq!(cx.state::<&str>(), Some("a shared value"));
/// ```
#[must_use]
pub struct TaskContextBuilder {
    id: TaskId,
    name: TaskName,
    queue: QueueName,
    attempt: u32,
    postponements: u32,
    token: u64,
    headers: BTreeMap<String, String>,
    labels: BTreeMap<String, String>,
    cancel: CancellationToken,
    state: StateMap,
}

impl fmt::Debug for TaskContextBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskContextBuilder").field("id", &self.id).finish_non_exhaustive()
    }
}

impl TaskContext {
    /// Starts a context for a test that calls a handler without a worker: the first attempt of the task `test` from the
    /// queue `default`, with a new id.
    pub fn builder() -> TaskContextBuilder {
        TaskContextBuilder {
            id: TaskId::fresh(),
            // INVARIANT: the names are allowed.
            name: TaskName::parse("test").expect("a plain word"),
            queue: QueueName::parse("default").expect("a plain word"),
            attempt: 1,
            postponements: 0,
            token: 1,
            headers: BTreeMap::new(),
            labels: BTreeMap::new(),
            cancel: CancellationToken::new(),
            state: StateMap::default(),
        }
    }
}

impl TaskContextBuilder {
    /// Sets the id of the task.
    pub fn id(mut self, id: TaskId) -> Self {
        self.id = id;
        self
    }

    /// Sets the name of the task.
    pub fn name(mut self, name: TaskName) -> Self {
        self.name = name;
        self
    }

    /// Sets the queue of the task.
    pub fn queue(mut self, queue: QueueName) -> Self {
        self.queue = queue;
        self
    }

    /// Sets the number of the attempt, from 1.
    pub fn attempt(mut self, attempt: u32) -> Self {
        self.attempt = attempt;
        self
    }

    /// Sets how often the task has been postponed.
    pub fn postponements(mut self, postponements: u32) -> Self {
        self.postponements = postponements;
        self
    }

    /// Sets the fencing token.
    pub fn fencing_token(mut self, token: u64) -> Self {
        self.token = token;
        self
    }

    /// Adds a header.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.insert(name.into(), value.into());
        self
    }

    /// Adds a label.
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }

    /// Sets the token that cancels the run.
    pub fn cancellation(mut self, token: CancellationToken) -> Self {
        self.cancel = token;
        self
    }

    /// Adds a value that the handler can take as `State<T>`.
    pub fn state<T: Clone + Send + Sync + 'static>(mut self, value: T) -> Self {
        self.state.insert(value);
        self
    }

    /// Makes the context.
    ///
    /// # Panics
    /// If a label is not allowed, or there are too many.
    pub fn build(self) -> TaskContext {
        let pairs = match Pairs::of_labels(self.labels) {
            Ok(pairs) => pairs,
            Err(why) => panic!("{why}"),
        };
        TaskContext::new(RunInfo {
            id: self.id,
            name: self.name,
            queue: self.queue,
            attempt: self.attempt,
            postponements: self.postponements,
            token: self.token,
            headers: self.headers,
            pairs,
            cancel: HandlerCancellation::of_run(self.cancel),
            state: Arc::new(self.state),
            log: RunLog::default(),
            spawned: Mutex::default(),
            clock: Clock::starting_at(clock::wall()),
            progress: OnceLock::new(),
        })
    }
}
