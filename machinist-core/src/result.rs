//! Asking for the outcome of a task, and waiting for it.
//!
//! Waiting is a push: the backend wakes the watchers of a record. A wake-up may be missed, so a waiter also reads the
//! record from time to time; that is the safety net.

use std::{fmt, marker::PhantomData, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use serde::{Serialize, Serializer};
use tokio::time::Instant;

use crate::{
    app::App,
    args::{FromResults, Results},
    error::ResultError,
    id::{QueueName, RecordId, TaskId},
    record::{Facts, Record, TaskState, fold},
    send_buffer::ConfirmedSend,
};

/// Interval at which a waiter reads the record without a wake-up.
const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// First and longest interval of that kind where another program may write the state.
const MIRROR_POLL_INTERVALS: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));
/// Time for which a record that was there must be gone before a waiter is told: a worker that runs the task writes a lost
/// start back within its lease.
const VANISHED_AFTER: Duration = Duration::from_secs(15);
/// Maximum number of results that are awaited at the same time.
const MAX_CONCURRENT_WAITS: usize = 512;

/// The result of a task, now or later; `R` is what it is read as.
///
/// It can be stored: it serializes as the task's id, and [`Client::result`](crate::Client::result) opens it
/// again, in any process.
///
/// # Examples
/// ```
/// # use machinist_core::{TaskDef, TaskError};
/// # const ADD: TaskDef<(i64, i64), i64> = TaskDef::new("add");
/// # async fn add(a: i64, b: i64) -> Result<i64, TaskError> { Ok(a + b) }
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let app = machinist_test::TestApp::new(|worker| worker.task(ADD, add)).await;
/// # let client = app.client();
/// use machinist_core::record::TaskState;
/// use std::time::Duration;
///
/// let sum = client.send(ADD.call((2, 3))).await?;
/// assert_eq!(sum.state().await?, TaskState::Pending);
/// # app.drain().await;
/// assert_eq!(sum.wait(Duration::from_secs(30)).await?, 5);
/// assert_eq!(sum.state().await?, TaskState::Success);
/// # Ok(())
/// # }
/// ```
pub struct AsyncResult<R = Results> {
    app: App,
    id: TaskId,
    /// Root of the workflow whose last task it is.
    root: Option<TaskId>,
    /// This process has the broker's word that the task was sent, so a missing record means *pending*.
    sent: bool,
    /// Another task has the unique key of the one that was to be sent.
    duplicate: bool,
    /// Queue of the task, if this process has sent it.
    queue: Option<QueueName>,
    result: PhantomData<fn() -> R>,
}

impl App {
    /// Returns what facts say about a task, verified and decrypted.
    pub(crate) fn record_of(&self, id: &TaskId, mut facts: Facts) -> Result<Option<Record>, ResultError> {
        let trust = &self.0.trust;
        trust.check_end(id, &facts).map_err(|reason| ResultError::Forged { id: id.clone(), reason })?;
        let locked = trust.decrypt_outcome(id, &mut facts);
        let mut record = fold(id, &facts);
        if let (Some(record), Some(locked)) = (&mut record, locked) {
            record.results = None;
            record.locked = Some(locked.to_string());
        }
        Ok(record)
    }

    /// Returns the record of the task that counts in the place of this one: it is STARTED until that has ended.
    pub(crate) async fn counting_record(&self, mut record: Record) -> Result<Record, ResultError> {
        while let Some(next) = record.continued_by.clone() {
            match self.result(next).known_record().await? {
                Some(next) if next.state.is_final() => record = next,
                _ => {
                    (record.state, record.ended_at, record.results) = (TaskState::Started, None, None);
                    return Ok(record);
                }
            }
        }
        Ok(record)
    }

    /// Returns the result of a task that was sent earlier, perhaps by another process.
    pub fn result(&self, id: TaskId) -> AsyncResult {
        AsyncResult {
            app: self.clone(),
            id,
            root: None,
            sent: false,
            duplicate: false,
            queue: None,
            result: PhantomData,
        }
    }
}

impl AsyncResult {
    /// The result of a task that the buffer of the application has sent.
    pub(crate) fn confirmed(app: App, confirmed: ConfirmedSend) -> Self {
        let ConfirmedSend { result, root, is_duplicate, queue } = confirmed;
        Self { root, duplicate: is_duplicate, queue, ..Self::sent(app, result) }
    }
}

impl<R> AsyncResult<R> {
    pub(crate) fn sent(app: App, id: TaskId) -> Self {
        Self { app, id, root: None, sent: true, duplicate: false, queue: None, result: PhantomData }
    }

    /// The result of a task that has the unique key of another, which was not sent.
    pub(crate) fn existing(app: App, id: TaskId) -> Self {
        Self { duplicate: true, ..Self::sent(app, id) }
    }

    /// Returns `true` if nothing was sent, because this task has the unique key of the signature.
    pub fn is_duplicate(&self) -> bool {
        self.duplicate
    }

    /// Returns the queue to which the task was sent: with the tags that the task requires, and that of its priority where a
    /// queue has one for each. `None` if this process has not sent it.
    pub fn queue(&self) -> Option<&QueueName> {
        self.queue.as_ref()
    }

    /// Takes what is known of the task that was sent, without the application.
    pub(crate) fn into_confirmed(self) -> ConfirmedSend {
        let Self { id, root, duplicate, queue, .. } = self;
        ConfirmedSend { result: id, root, is_duplicate: duplicate, queue }
    }

    /// Names the queue of the task.
    pub(crate) fn of_queue(self, queue: QueueName) -> Self {
        Self { queue: Some(queue), ..self }
    }

    /// Names the workflow that the task ends.
    pub(crate) fn of_workflow(self, root: TaskId) -> Self {
        Self { root: Some(root), ..self }
    }

    /// Returns the root's id of the workflow that was sent; `None` if it was a single task, or if the result was opened by
    /// its id. [`Client::workflow`](crate::Client::workflow) shows the whole.
    pub fn workflow_id(&self) -> Option<&TaskId> {
        self.root.as_ref()
    }

    /// The task's id.
    pub fn id(&self) -> &TaskId {
        &self.id
    }

    /// The application that it is read by.
    pub(crate) fn app(&self) -> &App {
        &self.app
    }

    /// Reads the result as something else.
    pub fn typed<T>(self) -> AsyncResult<T> {
        AsyncResult {
            app: self.app,
            id: self.id,
            root: self.root,
            sent: self.sent,
            duplicate: self.duplicate,
            queue: self.queue,
            result: PhantomData,
        }
    }

    /// Reads the state of the task.
    ///
    /// # Errors
    /// [`ResultError::Unknown`], [`ResultError::Forged`], [`ResultError::Backend`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn state(&self) -> Result<TaskState, ResultError> {
        match self.record().await {
            Ok(record) => Ok(record.state),
            Err(ResultError::Unknown { .. }) if self.sent => Ok(TaskState::Pending),
            Err(error) => Err(error),
        }
    }

    /// Everything that is known about the task.
    ///
    /// # Errors
    /// [`ResultError::Unknown`] where there is no record, [`ResultError::Forged`], [`ResultError::Backend`].
    ///
    /// # Cancel safety
    /// Safe.
    ///
    /// # Examples
    /// ```
    /// # use machinist_core::{TaskDef, TaskError};
    /// # const ADD: TaskDef<(i64, i64), i64> = TaskDef::new("add");
    /// # async fn add(a: i64, b: i64) -> Result<i64, TaskError> { Ok(a + b) }
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let app = machinist_test::TestApp::new(|worker| worker.task(ADD, add)).await;
    /// # let client = app.client();
    /// # let sum = client.send(ADD.call((2, 3))).await?;
    /// # app.drain().await;
    /// let record = sum.record().await?;
    /// assert!(record.state.is_final());
    /// println!("attempt {} by {:?}, ended at {:?}", record.attempt, record.worker, record.ended_at);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn record(&self) -> Result<Record, ResultError> {
        self.read().await?.ok_or_else(|| ResultError::Unknown { id: self.id.clone() })
    }

    /// Waits until the record may have changed from `seen`, at most `limit`, and reads it: for those who show
    /// a task's progress. Returns at once if it differs from `seen` already.
    ///
    /// # Errors
    /// As [`record`](Self::record).
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn changed(&self, seen: Option<&Record>, limit: Duration) -> Result<Record, ResultError> {
        let mut watch = self.app.backend().watch(&RecordId::from(&self.id)).await?;
        let deadline = Instant::now() + limit;
        loop {
            let record = self.read().await?;
            if record.as_ref() != seen || Instant::now() >= deadline {
                return record.ok_or_else(|| ResultError::Unknown { id: self.id.clone() });
            }
            let look = deadline.min(Instant::now() + self.longest_poll());
            let _woken_or_looking = tokio::time::timeout_at(look, watch.changed()).await;
        }
    }

    /// The record in its final state. Of a task that a workflow has replaced, that of the workflow's last task.
    ///
    /// # Errors
    /// [`ResultError::Timeout`], [`ResultError::Unknown`], [`ResultError::Forged`], [`ResultError::Backend`] if the backend cannot be
    /// asked at the end of the time (it may come back before).
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn wait_record(&self, limit: Duration) -> Result<Record, ResultError> {
        self.wait_until(Instant::now() + limit, limit).await
    }

    /// Waits for the end of the task, and of the tasks that continue it.
    async fn wait_until(&self, deadline: Instant, limit: Duration) -> Result<Record, ResultError> {
        let mut record = self.wait_for_end(deadline, limit).await?;
        while let Some(next) = record.continued_by.take() {
            record = Self::sent(self.app.clone(), next).wait_for_end(deadline, limit).await?;
        }
        Ok(record)
    }

    async fn wait_for_end(&self, deadline: Instant, limit: Duration) -> Result<Record, ResultError> {
        let mut watch = None;
        // Time at which a record that was there was first found gone.
        let mut gone_since = None;
        let mut seen = false;
        let mut poll = self.first_poll();
        loop {
            let asked = self.look(&mut watch, deadline).await;
            if let Ok(record) = &asked {
                seen |= record.is_some();
                gone_since =
                    if record.is_none() && seen { gone_since.or_else(|| Some(Instant::now())) } else { None };
            }
            match asked {
                Ok(Some(record)) if record.state.is_final() => return Ok(record),
                Ok(None) if !self.sent => return Err(ResultError::Unknown { id: self.id.clone() }),
                Ok(None) if gone_since.is_some_and(|since| since.elapsed() >= VANISHED_AFTER) => {
                    return Err(ResultError::Unknown { id: self.id.clone() });
                }
                Ok(_) if Instant::now() >= deadline => {
                    return Err(ResultError::Timeout { id: self.id.clone(), waited: limit });
                }
                // Facts are never overwritten, so waiting would change nothing.
                Err(error @ ResultError::Forged { .. }) => return Err(error),
                Err(ResultError::Backend(error)) if error.is_of_one_record() => return Err(error.into()),
                Err(error) if Instant::now() >= deadline => return Err(error),
                Ok(_) | Err(_) => {}
            }
            let next = deadline.min(Instant::now() + poll);
            poll = (poll * 2).min(self.longest_poll());
            match &mut watch {
                Some(watch) => drop(tokio::time::timeout_at(next, watch.changed()).await),
                None => tokio::time::sleep_until(next.min(Instant::now() + POLL_INTERVAL / 4)).await,
            }
        }
    }

    /// Returns the interval after which a waiter reads for the second time. Other programs wake nobody.
    fn first_poll(&self) -> Duration {
        if self.app.0.rules.has_mirrors() { MIRROR_POLL_INTERVALS.0 } else { POLL_INTERVAL }
    }

    fn longest_poll(&self) -> Duration {
        if self.app.0.rules.has_mirrors() { MIRROR_POLL_INTERVALS.1 } else { POLL_INTERVAL }
    }

    /// Reads once; begins to watch before, so that nothing that comes after is missed.
    async fn look(
        &self,
        watch: &mut Option<crate::backend::Watch>,
        deadline: Instant,
    ) -> Result<Option<Record>, ResultError> {
        let all = async {
            if watch.is_none() {
                *watch = Some(self.app.backend().watch(&RecordId::from(&self.id)).await?);
            }
            self.read().await
        };
        // A little longer than the deadline: the last look should have a chance to answer.
        let limit = deadline + Duration::from_millis(500);
        match tokio::time::timeout_at(limit, all).await {
            Ok(answer) => answer,
            Err(_) => Err(ResultError::Backend(crate::backend::BackendError::Unavailable(
                "it did not answer in time".into(),
            ))),
        }
    }

    /// Everything that is known about the task, or about the task that counts in its place; `None` where there is no record.
    pub(crate) async fn counting_record(&self) -> Result<Option<Record>, ResultError> {
        match self.read().await? {
            Some(record) => Ok(Some(self.app.counting_record(record).await?)),
            None => Ok(None),
        }
    }

    /// Everything that is known about the task; `None` where there is no record.
    pub(crate) async fn known_record(&self) -> Result<Option<Record>, ResultError> {
        self.read().await
    }

    async fn read(&self) -> Result<Option<Record>, ResultError> {
        let facts = self.app.backend().read(&[RecordId::from(&self.id)]).await?;
        let Some(facts) = facts.into_iter().next() else { return Ok(None) };
        self.app.full_record(&self.id, facts, self.queue.as_ref()).await
    }
}

impl<R: FromResults> AsyncResult<R> {
    /// Waits for the end of the task and returns what it returned.
    ///
    /// # Errors
    /// [`ResultError`]: not ended in time, failed, unknown, undecodable and an unreachable backend are told
    /// apart. After [`ResultError::Timeout`] the task goes on, and waiting again is fine.
    ///
    /// # Cancel safety
    /// Safe: a dropped future leaves the task as it is.
    ///
    /// # Examples
    /// ```
    /// # use machinist_core::{TaskDef, TaskError};
    /// # const ADD: TaskDef<(i64, i64), i64> = TaskDef::new("add");
    /// # async fn add(a: i64, b: i64) -> Result<i64, TaskError> { Ok(a + b) }
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let app = machinist_test::TestApp::new(|worker| worker.task(ADD, add)).await;
    /// # let client = app.client();
    /// use machinist_core::ResultError;
    /// use std::time::Duration;
    ///
    /// # let sum = client.send(ADD.call((2, 3))).await?;
    /// # app.drain().await;
    /// match sum.wait(Duration::from_secs(30)).await {
    ///     Ok(sum) => println!("the sum is {sum}"),
    ///     Err(ResultError::Timeout { id, .. }) => println!("task {id} goes on"),
    ///     Err(ResultError::Failed { kind, message, .. }) => println!("failed ({kind}): {message}"),
    ///     Err(error) => return Err(error.into()),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn wait(&self, limit: Duration) -> Result<R, ResultError> {
        self.wait_until(Instant::now() + limit, limit).await.and_then(|record| self.returned(record))
    }

    fn returned(&self, record: Record) -> Result<R, ResultError> {
        if let Some(why) = record.locked {
            return Err(ResultError::Undecryptable { id: self.id.clone(), why });
        }
        let error = record.error.unwrap_or_default();
        match record.results {
            Some(results) => R::from_results(results).map_err(|reason| ResultError::Undecodable {
                id: self.id.clone(),
                reason: reason.to_string(),
            }),
            None => Err(ResultError::Failed {
                id: self.id.clone(),
                kind: record.kind.unwrap_or(crate::record::FailureKind::Error),
                message: error.message().to_owned(),
                chain: error.chain,
            }),
        }
    }
}

/// Waits for many tasks, all of them until the same deadline: one answer for each, in their order.
///
/// # Errors
/// As [`AsyncResult::wait`], for each of them.
///
/// # Cancel safety
/// Safe: a dropped future leaves the tasks as they are.
///
/// # Examples
/// ```
/// # use machinist_core::{TaskDef, TaskError};
/// # const ADD: TaskDef<(i64, i64), i64> = TaskDef::new("add");
/// # async fn add(a: i64, b: i64) -> Result<i64, TaskError> { Ok(a + b) }
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let app = machinist_test::TestApp::new(|worker| worker.task(ADD, add)).await;
/// # let client = app.client();
/// use machinist_core::wait_all;
/// use std::time::Duration;
///
/// let sent = client.send_all(vec![ADD.call((1, 1)), ADD.call((2, 2))]).await;
/// let sent = sent.into_iter().collect::<Result<Vec<_>, _>>()?;
/// # app.drain().await;
/// let sums: Result<Vec<i64>, _> = wait_all(&sent, Duration::from_secs(30)).await.into_iter().collect();
/// assert_eq!(sums?, [2, 4]);
/// # Ok(())
/// # }
/// ```
pub async fn wait_all<R: FromResults>(
    results: &[AsyncResult<R>],
    limit: Duration,
) -> Vec<Result<R, ResultError>> {
    let deadline = Instant::now() + limit;
    let wait = async |result: &AsyncResult<R>| {
        result.wait_until(deadline, limit).await.and_then(|record| result.returned(record))
    };
    // Those that come later in the list have often ended when it is their turn, and cost one look.
    let mut answers = Vec::with_capacity(results.len());
    for chunk in results.chunks(MAX_CONCURRENT_WAITS) {
        answers.extend(futures_util::future::join_all(chunk.iter().map(wait)).await);
    }
    answers
}

/// Waits for the first of many tasks that ends, however it ends: its place in the list, and its answer. `None` if none
/// ended in time, or the list is empty.
///
/// # Cancel safety
/// Safe: a dropped future leaves the tasks as they are.
///
/// # Examples
/// ```
/// # use machinist_core::{TaskDef, TaskError};
/// # const ADD: TaskDef<(i64, i64), i64> = TaskDef::new("add");
/// # async fn add(a: i64, b: i64) -> Result<i64, TaskError> { Ok(a + b) }
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let app = machinist_test::TestApp::new(|worker| worker.task(ADD, add)).await;
/// # let client = app.client();
/// use machinist_core::wait_any;
/// use std::time::Duration;
///
/// let sent = vec![client.send(ADD.call((1, 1))).await?, client.send(ADD.call((2, 2))).await?];
/// # app.drain().await;
/// if let Some((place, sum)) = wait_any(&sent, Duration::from_secs(30)).await {
///     println!("number {place} has ended with {}", sum?);
/// }
/// # Ok(())
/// # }
/// ```
pub async fn wait_any<R: FromResults>(
    results: &[AsyncResult<R>],
    limit: Duration,
) -> Option<(usize, Result<R, ResultError>)> {
    let deadline = Instant::now() + limit;
    let wait = async |(at, result): (usize, &AsyncResult<R>)| {
        let ended = result.wait_until(deadline, limit).await;
        (at, ended.and_then(|record| result.returned(record)))
    };
    let mut waiting: FuturesUnordered<_> = results.iter().enumerate().map(wait).collect();
    while let Some((at, answer)) = waiting.next().await {
        if !matches!(answer, Err(ResultError::Timeout { .. })) {
            return Some((at, answer));
        }
    }
    None
}

impl<R> Clone for AsyncResult<R> {
    fn clone(&self) -> Self {
        Self {
            app: self.app.clone(),
            id: self.id.clone(),
            root: self.root.clone(),
            sent: self.sent,
            duplicate: self.duplicate,
            queue: self.queue.clone(),
            result: PhantomData,
        }
    }
}

impl<R> fmt::Debug for AsyncResult<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AsyncResult").field(&self.id).finish()
    }
}

/// Serializes the task's id.
impl<R> Serialize for AsyncResult<R> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.id.serialize(to)
    }
}
