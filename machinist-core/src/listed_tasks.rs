//! Tasks that can be listed, for changes of many at once: those that wait for their time, and those that failed.
//!
//! There is no index of all tasks. A task that waits in its queue without a delay, or that runs, is in no list.

use std::collections::BTreeSet;

use crate::{
    backend::{BackendError, Index},
    client::Client,
    clock::Timestamp,
    id::{RecordId, TaskId},
    record::{Record, TaskState, fold},
};

/// Number of index entries in one page.
const PAGE_SIZE: usize = 500;

/// A list of tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TaskList {
    /// Tasks that wait for their ETA or for their next run, the earliest first.
    Scheduled,
    /// Failed tasks that are dead letters, the oldest first.
    DeadLetters,
}

/// Filter of tasks. A task matches if it fits every field that is set.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct TaskFilter {
    /// Tasks of this queue.
    pub queue: Option<String>,
    /// Tasks with this name.
    pub name: Option<String>,
    /// Tasks in this state.
    pub state: Option<TaskState>,
    /// Tasks whose error, or the error of whose last run, contains this text.
    pub error: Option<String>,
    /// Tasks that this worker ran last.
    pub worker: Option<String>,
    /// Tasks that have changed since this instant: were sent, were started, failed or ended.
    pub since: Option<Timestamp>,
    /// Tasks that have not changed since this instant: ended, failed or were sent before.
    pub until: Option<Timestamp>,
}

/// A page of a list of tasks.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TaskPage {
    /// Records of the tasks on this page.
    pub records: Vec<Record>,
    /// Cursor of the next page; `None` if this is the last.
    pub next: Option<(Timestamp, String)>,
}

impl TaskFilter {
    /// Creates a filter that every task matches.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns `true` if a task matches.
    pub fn fits(&self, record: &Record) -> bool {
        let Self { queue, name, state, error, worker, since, until } = self;
        let changed =
            [record.sent_at, record.ended_at, record.history.last().map(|attempt| attempt.ended_at)];
        let error_has = |text: &String| {
            let errors = record.error.iter().chain(record.history.last().map(|attempt| &attempt.error));
            errors.flat_map(|error| &error.chain).any(|cause| cause.contains(text.as_str()))
        };
        let newest = changed.into_iter().flatten().max();
        queue.as_ref().is_none_or(|queue| record.queue.as_ref() == Some(queue))
            && name.as_ref().is_none_or(|name| record.name.as_ref() == Some(name))
            && state.is_none_or(|state| record.state == state)
            && error.as_ref().is_none_or(error_has)
            && worker.as_ref().is_none_or(|worker| record.worker.as_ref() == Some(worker))
            && since.is_none_or(|since| newest.max(record.started_at).is_some_and(|at| at >= since))
            && until.is_none_or(|until| newest.is_some_and(|at| at <= until))
    }
}

impl Client {
    /// Returns one page of a list of tasks, from the entry after the cursor. A task that is listed and no longer belongs
    /// there is left out.
    ///
    /// # Errors
    /// [`BackendError`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn list_tasks(
        &self,
        list: TaskList,
        after: Option<(Timestamp, String)>,
    ) -> Result<TaskPage, BackendError> {
        let index = match list {
            TaskList::Scheduled => Index::Scheduled,
            TaskList::DeadLetters => Index::DeadLetters,
        };
        let page = self.app.backend().list(&index, after, PAGE_SIZE).await?;
        let ids: BTreeSet<TaskId> = page.iter().filter_map(|(_, member)| task_of(list, member)).collect();
        let ids: Vec<TaskId> = ids.into_iter().collect();
        let facts = self.app.backend().read_each(&ids.iter().map(RecordId::from).collect::<Vec<_>>()).await?;
        let mut records = Vec::new();
        for (id, facts) in ids.into_iter().zip(facts) {
            let mut facts = match facts {
                Ok(facts) => facts,
                Err(error) => {
                    tracing::warn!(%id, %error, "a listed task has no readable record");
                    continue;
                }
            };
            let locked = self.app.0.trust.decrypt_outcome(&id, &mut facts).map(|locked| locked.to_string());
            let Some(record) = fold(&id, &facts).map(|record| Record { locked, ..record }) else { continue };
            let belongs = match list {
                TaskList::Scheduled => !record.state.is_final() && record.state != TaskState::Started,
                TaskList::DeadLetters => record.state == TaskState::Failure,
            };
            if belongs {
                records.push(record);
            }
        }
        let next = if page.len() < PAGE_SIZE { None } else { page.into_iter().last() };
        Ok(TaskPage { records, next })
    }
}

/// Returns the task of an entry of an index: its id, or `QUEUE TASK!ATTEMPT`.
fn task_of(list: TaskList, member: &str) -> Option<TaskId> {
    let id = match list {
        TaskList::Scheduled => member,
        TaskList::DeadLetters => member.rsplit_once(' ')?.1.rsplit_once('!')?.0,
    };
    TaskId::parse(id).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Facts, Failure, FailureKind, failure_without_run, json, name};
    use std::time::Duration;

    const SENT: Timestamp = Timestamp::from_micros(1_000_000_000);

    fn failed() -> Record {
        let id = TaskId::parse("t-1").unwrap();
        let mut facts = Facts::new();
        for (fact, text) in [(name::TASK, "resize"), (name::QUEUE, "images")] {
            facts.put(fact, bytes::Bytes::from_static(text.as_bytes()));
        }
        facts.put(name::SENT, json(&SENT));
        let failure = Failure::new(FailureKind::Error, "disk full on host 7");
        let ended = SENT.plus(Duration::from_secs(60));
        assert!(
            failure_without_run(&id, &facts, 1, failure, ended, Duration::from_secs(60)).apply(&mut facts)
        );
        fold(&id, &facts).unwrap()
    }

    #[test]
    fn a_filter_fits_what_has_everything_that_it_names() {
        let record = failed();
        let ended = record.ended_at.unwrap();
        assert!(TaskFilter::new().fits(&record));
        let fitting = TaskFilter {
            queue: Some("images".into()),
            name: Some("resize".into()),
            state: Some(TaskState::Failure),
            error: Some("disk full".into()),
            worker: None,
            since: Some(ended),
            until: Some(ended),
        };
        assert!(fitting.fits(&record));
        for other in [
            TaskFilter { queue: Some("image".into()), ..fitting.clone() },
            TaskFilter { name: Some("resiz".into()), ..fitting.clone() },
            TaskFilter { state: Some(TaskState::Retry), ..fitting.clone() },
            TaskFilter { error: Some("network".into()), ..fitting.clone() },
            TaskFilter { worker: Some("other".into()), ..fitting.clone() },
            TaskFilter { since: Some(ended.plus(Duration::from_secs(1))), ..fitting.clone() },
            TaskFilter { until: Some(SENT), ..fitting.clone() },
        ] {
            assert!(!other.fits(&record), "{other:?}");
        }
    }

    #[test]
    fn entries_name_their_tasks() {
        let id = |list, member| task_of(list, member).map(|id| id.to_string());
        assert_eq!(id(TaskList::Scheduled, "t-1").as_deref(), Some("t-1"));
        assert_eq!(id(TaskList::DeadLetters, "images t-1!2").as_deref(), Some("t-1"));
        assert_eq!(id(TaskList::DeadLetters, "nonsense"), None);
    }
}
