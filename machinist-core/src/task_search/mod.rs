//! Search for tasks: those that have ended or run, the newest first, and those that are known to wait.
//!
//! There is no index of all tasks. Processes list the tasks that end in them
//! ([`AppBuilder::events`](crate::AppBuilder::events) decides which), workers name what they run, and the schedule and the
//! parked tasks are lists too. A search says how far it has looked, and what is only counted.

mod waiting;

use std::{collections::BTreeMap, time::Duration};

use crate::{
    backend::BackendError,
    client::Client,
    clock::Timestamp,
    ended::EndedScan,
    error::ResultError,
    fleet::{OrderError, WorkerFilter, WorkerInfo},
    id::{RecordId, SessionId, TaskId},
    listed_tasks::TaskFilter,
    record::{Record, TaskState, listed_runs_record, name},
    security::WorkerAction,
};

/// Number of records of runs that are read at once.
const RUNS_PAGE_SIZE: usize = 200;

/// Number of listed tasks after which a search that has not found enough ends.
const MAX_ROWS: u64 = 10_000;

/// Selection of tasks, and the page of the answer.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TaskSearch {
    /// Criteria, all of which hold. Without a state: tasks that have ended or run.
    pub filter: TaskFilter,
    /// Labels that the task has. Only tasks that have ended are searched by labels.
    pub labels: BTreeMap<String, String>,
    /// Cursor of the page before.
    pub after: Option<(Timestamp, String)>,
    /// Maximum number of tasks.
    pub limit: usize,
}

impl TaskSearch {
    /// Creates a search for tasks that match a filter: the first page, of 100 tasks.
    pub fn new(filter: TaskFilter) -> Self {
        Self { filter, labels: BTreeMap::new(), after: None, limit: 100 }
    }

    fn fits(&self, record: &Record, labels: &BTreeMap<String, String>) -> bool {
        self.filter.fits(record) && self.labels.iter().all(|(key, value)| labels.get(key) == Some(value))
    }

    /// Returns `true` if a task belongs to this page or a later one.
    fn is_ahead(&self, at: Timestamp, id: &str) -> bool {
        self.after.as_ref().is_none_or(|(after, last)| (at, id) < (*after, last.as_str()))
    }
}

/// Page of tasks that a search has found.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct FoundTasks {
    /// Tasks. Of a task whose record has expired, what was listed at its end.
    pub records: Vec<Record>,
    /// Cursor of the next page; `None` if this is the last.
    pub next: Option<(Timestamp, String)>,
    /// Number of listed tasks that were looked at.
    pub looked_at: u64,
    /// Number of listed tasks that there are from the begin of the search on, as far as it was counted.
    pub listed: u64,
    /// Number of ended tasks that are no longer listed, because their process had listed too many.
    pub cut: u64,
    /// Number of tasks that run and are not named by their workers.
    pub unnamed: u64,
    /// Number of tasks that wait in queues and are in no list; `None` if the broker does not tell, or the search is not for
    /// waiting tasks.
    pub queued: Option<u64>,
}

impl Client {
    /// Searches for tasks. Those that have ended or run come the newest first, by the time of their end or start; those that
    /// wait (`PENDING`, `RETRY`) in the order of their times.
    ///
    /// A task is found after some seconds, if the process in which it ended lists it
    /// ([`AppBuilder::events`](crate::AppBuilder::events)), for seven days at most.
    ///
    /// # Errors
    /// [`ResultError::Backend`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn search_tasks(&self, search: &TaskSearch) -> Result<FoundTasks, ResultError> {
        match search.filter.state {
            Some(TaskState::Pending | TaskState::Received | TaskState::Retry) => {
                self.search_waiting(search).await
            }
            state => self.search_newest(search, state).await,
        }
    }

    /// Searches tasks that have ended or run.
    async fn search_newest(
        &self,
        search: &TaskSearch,
        state: Option<TaskState>,
    ) -> Result<FoundTasks, ResultError> {
        let mut found = FoundTasks::default();
        let mut tasks: BTreeMap<(Timestamp, String), Record> = BTreeMap::new();
        let is_running = state.is_none_or(|state| state == TaskState::Started);
        if is_running && search.labels.is_empty() {
            for (key, record) in self.running_tasks(search, &mut found).await? {
                tasks.insert(key, record);
            }
        }
        let mut complete_from = None;
        if state != Some(TaskState::Started) {
            let (backend, now) = (self.app.backend().as_ref(), self.app.clock().now());
            let has_failed = state.map(|state| state == TaskState::Failure);
            let until = search.after.as_ref().map(|(at, _)| *at);
            let mut scan = EndedScan::begin(backend, has_failed, search.filter.since, until, now).await?;
            while let Some(part) = scan.next(backend).await? {
                for row in part.rows {
                    let record = row.record();
                    if search.is_ahead(row.at, row.id.as_str()) && search.fits(&record, &row.labels) {
                        tasks.insert((row.at, row.id.to_string()), record);
                    }
                }
                let complete = tasks.keys().rev().take_while(|(at, _)| *at > part.complete_from).count();
                if complete > search.limit || scan.looked_at >= MAX_ROWS {
                    complete_from = Some(part.complete_from);
                    scan.count_rest(backend).await?;
                    break;
                }
            }
            (found.looked_at, found.listed, found.cut) = (scan.looked_at, scan.listed, scan.cut());
        }
        // What is older than the last batch that was read comes with the next page.
        if let Some(begin) = complete_from {
            tasks.retain(|(at, _), _| *at > begin);
            found.next = Some((begin.plus(Duration::from_micros(1)), String::new()));
        }
        if tasks.len() > search.limit {
            found.next = tasks.keys().nth_back(search.limit.saturating_sub(1)).cloned();
        }
        let page: Vec<Record> = tasks.into_values().rev().take(search.limit).collect();
        found.records = self.with_records(page).await?;
        Ok(found)
    }

    /// Returns the tasks that workers name as running.
    async fn running_tasks(
        &self,
        search: &TaskSearch,
        found: &mut FoundTasks,
    ) -> Result<Vec<((Timestamp, String), Record)>, ResultError> {
        let mut ids = Vec::new();
        for worker in self.workers(&WorkerFilter::new()).await? {
            found.unnamed += u64::from(worker.running).saturating_sub(worker.runs.len() as u64);
            ids.extend(worker.runs.iter().filter_map(|id| TaskId::parse(id).ok()));
        }
        let named = ids.into_iter().map(|id| Record::of(id, TaskState::Pending)).collect();
        let records = self.with_records(named).await?;
        let running = records.into_iter().filter_map(|record| {
            let at = record.started_at.filter(|_| record.state == TaskState::Started)?;
            let ahead = search.is_ahead(at, record.id.as_str());
            let fits = ahead && search.fits(&record, &BTreeMap::new());
            fits.then(|| ((at, record.id.to_string()), record))
        });
        Ok(running.collect())
    }

    /// Reads the records of the tasks that a worker names as running. A task without a record is PENDING. Those that have ended
    /// since the worker has named them are left out.
    ///
    /// # Errors
    /// [`ResultError::Backend`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn worker_runs(&self, worker: &WorkerInfo) -> Result<Vec<Record>, ResultError> {
        Ok(self.records_of_runs(&worker.runs).await?)
    }

    /// Asks a worker for everything that it runs, and reads the records of these tasks: at most 10,000, the oldest first. The
    /// worker is given an order, so this needs a key that may command it, and takes at most 20 s.
    ///
    /// # Errors
    /// [`OrderError`]; [`OrderError::NotTold`] if the worker has refused or gives no answer.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn all_worker_runs(&self, worker: &WorkerInfo) -> Result<Vec<Record>, OrderError> {
        let not_told =
            |reason: &str| OrderError::NotTold { worker: worker.name.clone(), reason: reason.to_owned() };
        let asked = self.order_workers(std::slice::from_ref(worker), WorkerAction::ListRuns, false).await?;
        let (order, results) = asked;
        if let Some(refused) = results.iter().find(|result| !result.done) {
            return Err(not_told(refused.reason.as_deref().unwrap_or("it gives no reason")));
        }
        let list = listed_runs_record(&order, &SessionId::from(worker.incarnation.as_str()));
        let facts = self.read(list).await?;
        let ids = facts.get(name::RUN_IDS).and_then(|ids| serde_json::from_slice::<Vec<String>>(ids).ok());
        let ids = ids.ok_or_else(|| not_told("its answer cannot be read"))?;
        let mut records = Vec::with_capacity(ids.len());
        for page in ids.chunks(RUNS_PAGE_SIZE) {
            records.extend(self.records_of_runs(page).await?);
        }
        Ok(records)
    }

    /// Reads the records of tasks that a worker has named as running, and leaves out those that do not run any more.
    async fn records_of_runs(&self, ids: &[String]) -> Result<Vec<Record>, BackendError> {
        let ids = ids.iter().filter_map(|id| TaskId::parse(id).ok());
        let mut records =
            self.with_records(ids.map(|id| Record::of(id, TaskState::Pending)).collect()).await?;
        records.retain(|record| !record.state.is_final() && record.state != TaskState::Retry);
        Ok(records)
    }

    /// Returns these tasks with what their records say; a task without a record stays as it is.
    pub(crate) async fn with_records(&self, tasks: Vec<Record>) -> Result<Vec<Record>, BackendError> {
        let ids: Vec<RecordId> = tasks.iter().map(|task| RecordId::from(&task.id)).collect();
        let facts = if ids.is_empty() { Vec::new() } else { self.app.backend().read_each(&ids).await? };
        let mut records = Vec::with_capacity(tasks.len());
        for (task, facts) in tasks.into_iter().zip(facts) {
            let read = match facts {
                Ok(facts) => self.app.record_of(&task.id, facts),
                Err(error) => Err(error.into()),
            };
            records.push(match read {
                Ok(Some(record)) => record,
                Ok(None) => task,
                // Another program wrote there: what was listed is shown, and why there is no more.
                Err(error) => Record { locked: Some(error.to_string()), ..task },
            });
        }
        Ok(records)
    }
}
