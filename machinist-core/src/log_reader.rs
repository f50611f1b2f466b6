//! The reader's side of the logs of tasks.

use std::time::Duration;

use tokio::time::Instant;

use crate::{
    client::Client,
    error::ResultError,
    id::{RecordId, TaskId},
    result::AsyncResult,
    task_log::{TaskLog, log_record, read_log},
};

/// Interval at which a reader looks without a wake-up.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

impl Client {
    /// Reads the log of a task, also while it runs: the lines that its runs left by [`TaskContext::log`](crate::TaskContext::log),
    /// on standard error and, with a [`TaskLogLayer`](crate::TaskLogLayer), by `tracing`. Lines come within a second or two.
    ///
    /// The log is best effort: the last lines may be missing, and nothing signs it. At most 64 KiB of a task are kept, for as
    /// long as its result.
    ///
    /// # Errors
    /// [`ResultError::Unknown`] where there is neither a log nor a record, [`ResultError::Backend`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn log(&self, id: &TaskId) -> Result<TaskLog, ResultError> {
        let records = [log_record(id), RecordId::from(id)];
        let mut facts = self.app.backend().read(&records).await?.into_iter();
        let mut log = facts.next().unwrap_or_default();
        if log.is_empty() && facts.next().is_none_or(|task| task.is_empty()) {
            return Err(ResultError::Unknown { id: id.clone() });
        }
        let locked = self.app.0.trust.decrypt_outcome(id, &mut log).map(|locked| locked.to_string());
        Ok(read_log(id, &log, locked))
    }
}

impl<R> AsyncResult<R> {
    /// Reads the log of the task: see [`Client::log`].
    ///
    /// # Errors
    /// As [`Client::log`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn log(&self) -> Result<TaskLog, ResultError> {
        self.app().client().log(self.id()).await
    }

    /// Waits until the log differs from `seen`, at most `limit`, and reads it: for those who follow it.
    ///
    /// # Errors
    /// As [`Client::log`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn log_changed(&self, seen: &TaskLog, limit: Duration) -> Result<TaskLog, ResultError> {
        let deadline = Instant::now() + limit;
        let mut watch = self.app().backend().watch(&log_record(self.id())).await?;
        loop {
            let log = self.log().await?;
            if log != *seen || Instant::now() >= deadline {
                return Ok(log);
            }
            let look = deadline.min(Instant::now() + LOOK_INTERVAL);
            let _woken_or_looking = tokio::time::timeout_at(look, watch.changed()).await;
        }
    }
}
