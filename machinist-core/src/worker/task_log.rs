//! Storage of the lines that runs leave in the logs of their tasks.
//!
//! Nothing depends on it. While a run lasts, its lines are stored now and then; the rest is stored beside its outcome, which
//! waits for them for two seconds at most. Lines that cannot be stored are missing, and their numbers tell it. Observers of the
//! application are told of each line when it is about to be stored.

use std::{convert::Infallible, sync::Arc, time::Duration};

use super::WorkerContext;
use crate::{
    backend::{BackendError, Commit, Committed},
    clock::Timestamp,
    context::TaskContext,
    event::{EventKind, EventTask},
    record::{Verdict, retention},
    security::encrypt_outcome,
    sign::Key,
    task_log::{LogRun, LogWriter, StoredLine, TakenLines, log_record},
};

/// Time for which lines are gathered before they are stored, unless they are many.
const GATHER_TIME: Duration = Duration::from_secs(1);
/// Minimum time between two writes of a run.
const WRITE_PAUSE: Duration = Duration::from_millis(250);
/// Maximum time for which an outcome waits for the last lines of its run.
const FINISH_TIMEOUT: Duration = Duration::from_secs(2);

impl WorkerContext {
    /// Stores the lines of a run for as long as it lasts. Never completes.
    pub(super) async fn publish_log(
        &self,
        cx: &TaskContext,
        run: &LogRun,
        outcome_key: Option<&Key>,
    ) -> Infallible {
        let (log, ttl) = (cx.run_log(), self.log_ttl());
        // What a run has left stays while it lasts, however long that is.
        let expires = async |stored: bool| match stored {
            true => tokio::time::sleep(ttl / 2).await,
            false => std::future::pending().await,
        };
        let mut stored = false;
        loop {
            tokio::select! {
                () = log.waits() => {
                    tokio::time::sleep(WRITE_PAUSE).await;
                    tokio::select! {
                        () = tokio::time::sleep(GATHER_TIME - WRITE_PAUSE) => {}
                        () = log.is_large() => {}
                    }
                }
                () = expires(stored) => {}
            }
            match self.store_log(cx, run, outcome_key, ttl).await {
                Ok(()) => stored = true,
                Err(error) => tracing::debug!(%error, "lines of the log of a task were not stored"),
            }
        }
    }

    /// Stores the last lines of a run, and keeps the log for as long as that of a run that lasts, or for `ttl`. Gives up after
    /// two seconds.
    pub(super) async fn finish_log(
        &self,
        cx: &TaskContext,
        run: &LogRun,
        outcome_key: Option<&Key>,
        ttl: Option<Duration>,
    ) {
        let ttl = ttl.unwrap_or_else(|| self.log_ttl());
        let stored = tokio::time::timeout(FINISH_TIMEOUT, self.store_log(cx, run, outcome_key, ttl)).await;
        let problem = match stored {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the backend did not answer in time".to_owned(),
        };
        let limited = &self.app.0.log_lines;
        if let Some(suppressed) = limited.due("task log", self.name.given()) {
            tracing::warn!(problem, suppressed, "the last lines of the log of a task were not stored");
        }
    }

    /// Returns the time for which the log of a run is kept that goes on.
    fn log_ttl(&self) -> Duration {
        retention(self.app.0.results_ttl, None, self.now())
    }

    /// Returns the time for which the log of a run with this verdict is kept: as long as the record of its task.
    pub(super) fn log_ttl_after(&self, verdict: &Verdict, due: Option<Timestamp>) -> Duration {
        let now = self.now();
        match verdict {
            Verdict::Retry { due: next, .. } => next.since(now) + self.log_ttl(),
            Verdict::Success(_) | Verdict::Failure { .. } => retention(self.app.0.results_ttl, due, now),
        }
    }

    async fn store_log(
        &self,
        cx: &TaskContext,
        run: &LogRun,
        outcome_key: Option<&Key>,
        ttl: Duration,
    ) -> Result<(), BackendError> {
        let log = cx.run_log();
        let mut writer = log.writer.lock().await;
        if writer.must_read(run) {
            let facts = self.app.backend().read(&[log_record(&run.id)]).await?;
            writer.learn(&facts.into_iter().next().unwrap_or_default());
        }
        if let Some(commit) = writer.unanswered() {
            self.commit_log(&mut writer, commit).await?;
        }
        let seal = |commit: Commit| match outcome_key {
            Some(key) => encrypt_outcome(commit, key),
            None => commit,
        };
        let taken = log.take();
        if let Some(taken) = &taken {
            self.tell_of_lines(cx, taken, outcome_key.is_some());
        }
        let commit = writer.store(run, taken, ttl, seal);
        self.commit_log(&mut writer, commit).await
    }

    /// Tells the observers of the application of lines, each once.
    fn tell_of_lines(&self, cx: &TaskContext, taken: &TakenLines, encrypted: bool) {
        if self.app.0.observers.is_empty() {
            return;
        }
        let task = EventTask::new(cx.task_id(), cx.task_name(), cx.queue(), cx.attempt());
        for (at, level, text) in taken.lines.iter().map(StoredLine::parts) {
            self.emit(EventKind::Logged { task, at, level, text, encrypted });
        }
    }

    async fn commit_log(&self, writer: &mut LogWriter, commit: Arc<Commit>) -> Result<(), BackendError> {
        for answer in self.app.backend().commit(vec![commit]).await {
            // Nothing is required of the record, so nothing is refused.
            let (Committed::Done { .. } | Committed::Refused(_)) = answer?;
        }
        writer.answered();
        Ok(())
    }
}
