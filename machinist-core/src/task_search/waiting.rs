//! Tasks that are known to wait: parked ones, the next ticks of periodic tasks, and the schedule. The rest is a number.

use std::collections::BTreeMap;

use super::{FoundTasks, TaskSearch};
use crate::{
    admission::WaitReason,
    backend::{BackendError, Index},
    client::Client,
    error::ResultError,
    id::QueueName,
    periodic::tick_id,
    record::{Record, TaskState},
};

/// Number of entries of the schedule after which a search that has not found enough ends.
const MAX_ENTRIES: u64 = 10_000;
/// Number of entries of the schedule that are read at once.
const PAGE_SIZE: usize = 500;
/// Maximum number of queues that are asked for what waits.
const MAX_QUEUES: usize = 1000;

impl Client {
    /// Searches tasks that wait.
    pub(super) async fn search_waiting(&self, search: &TaskSearch) -> Result<FoundTasks, ResultError> {
        let mut found = FoundTasks::default();
        let wanted = |record: &Record| search.fits(record, &BTreeMap::new());
        if search.after.is_none() && search.filter.state == Some(TaskState::Pending) {
            let known = self.parked_tasks(search.limit).await?.into_iter().chain(self.next_ticks().await?);
            let known: Vec<Record> = known.collect();
            found.looked_at = known.len() as u64;
            found.records.extend(known.into_iter().filter(wanted).take(search.limit));
        }
        let mut after = search.after.clone();
        'pages: loop {
            let page = self.app.backend().list(&Index::Scheduled, after.clone(), PAGE_SIZE).await?;
            let mut records: BTreeMap<String, Record> = BTreeMap::new();
            for (id, facts) in self.listed(&page).await? {
                if let Ok(Some(record)) = self.app.record_of(&id, facts) {
                    records.insert(id.to_string(), record);
                }
            }
            let is_last = page.len() < PAGE_SIZE;
            for entry in page {
                if found.records.len() >= search.limit {
                    found.next = after;
                    break 'pages;
                }
                found.looked_at += 1;
                found.records.extend(records.remove(&entry.1).filter(wanted));
                after = Some(entry);
            }
            if is_last {
                break;
            }
            if found.looked_at >= MAX_ENTRIES {
                found.next = after;
                break;
            }
        }
        found.listed = found.looked_at;
        found.queued = self.queued_tasks(search.filter.queue.as_deref()).await?;
        Ok(found)
    }

    /// Returns tasks that are parked because of a disabled name or a limit.
    async fn parked_tasks(&self, limit: usize) -> Result<Vec<Record>, ResultError> {
        let mut reasons: Vec<WaitReason> =
            self.disabled_tasks().await?.iter().map(WaitReason::disabled).collect();
        reasons.extend(self.limit_reasons().await?);
        let mut ids = Vec::new();
        for reason in reasons {
            ids.extend(self.parked(&reason, limit).await?.into_iter().map(|task| task.id));
        }
        let named = ids.into_iter().map(|id| Record::of(id, TaskState::Pending)).collect();
        Ok(self.with_records(named).await?)
    }

    /// Returns the next tick of each periodic task. It is not sent yet.
    async fn next_ticks(&self) -> Result<Vec<Record>, BackendError> {
        let tick = |task: crate::periodic::PeriodicTask| {
            let next = task.next?;
            Some(Record {
                name: Some(task.task.to_string()),
                queue: Some(task.queue.to_string()),
                eta: Some(next),
                ..Record::of(tick_id(&task.name, next), TaskState::Pending)
            })
        };
        Ok(self.periodic_tasks().await?.into_iter().filter_map(tick).collect())
    }

    /// Returns the number of tasks that wait in a queue, or in all listed ones; `None` if the broker does not tell.
    async fn queued_tasks(&self, queue: Option<&str>) -> Result<Option<u64>, BackendError> {
        let queues: Vec<QueueName> = match queue {
            Some(queue) => QueueName::parse(queue).into_iter().collect(),
            None => {
                let listed = self.app.backend().list(&Index::Queues, None, MAX_QUEUES).await?;
                listed.iter().filter_map(|(_, name)| QueueName::parse(name).ok()).collect()
            }
        };
        let depths = self.app.broker().depth(&queues).await;
        Ok(depths.ok().map(|depths| depths.iter().filter_map(|depth| depth.ready).sum()))
    }
}
