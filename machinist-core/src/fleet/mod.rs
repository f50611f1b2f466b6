//! The client's side of the fleet: who works, and orders to those who do.
//!
//! The registry is the sessions of the workers: a worker whose session is gone is not listed.

mod order;
mod role;
mod switch;

pub use order::{OrderError, OrderReport, OrderResult};
pub use role::{FleetRoles, LeaderInfo, ShardInfo};

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{
    affinity::takes,
    args::{ArgInfo, TaskShape},
    backend::{BackendError, Index},
    client::Client,
    clock::Timestamp,
    id::{QueueName, RecordId, SessionId, TaskName},
    limit::Limit,
    record::{Facts, MAX_DESCRIBED_TASKS, PresenceState, WorkCounts, WorkerHealth, is_alive, name},
    rfc3339,
};

/// Number of sessions that are read at once.
const PAGE_SIZE: usize = 200;

/// A live worker, as its session describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct WorkerInfo {
    /// Name, unique among live workers.
    pub name: String,
    /// Id of the session: it tells processes of one name apart.
    pub incarnation: String,
    /// State.
    pub state: PresenceState,
    /// Reason that it is asleep.
    pub asleep: Option<String>,
    /// `true` if it is asleep and wakes up without people.
    #[serde(skip)]
    pub wakes: bool,
    /// Health.
    pub health: WorkerHealth,
    /// Reason that the health is not green.
    pub health_reason: Option<String>,
    /// Host name.
    pub host: Option<String>,
    /// Process id.
    pub pid: u32,
    /// Version of machinist.
    pub version: Option<String>,
    /// Time at which the worker was built.
    #[serde(serialize_with = "rfc3339::instant")]
    pub started_at: Timestamp,
    /// Queues from which it takes tasks.
    pub queues: Vec<String>,
    /// Patterns of the queues that it follows as they appear.
    pub patterns: Vec<String>,
    /// Names of the tasks that it runs, at most 500.
    pub tasks: Vec<String>,
    /// Tags.
    pub tags: Vec<String>,
    /// Limits of its code and its configuration, by their targets.
    pub limits: BTreeMap<String, Limit>,
    /// Maximum number of handlers that run at once.
    pub concurrency: u32,
    /// Number of handlers that run, as of the last renewal.
    pub running: u32,
    /// Tasks that it does not take for a while, because it failed them again and again.
    pub open_circuits: Vec<String>,
    /// Number of tasks that have ended there since the worker has started, as of the last renewal.
    pub processed: u64,
    /// Number of those that have ended in FAILURE.
    pub failed: u64,
    /// Number of attempts that have ended in RETRY there.
    pub retried: u64,
    /// Resident memory of the process in bytes, where its system tells it, to about an eighth.
    pub memory: Option<u64>,
    /// Arguments and results of its tasks, as far as they are known.
    #[serde(skip)]
    pub(crate) shapes: BTreeMap<String, TaskShape>,
    /// Ids of at most 20 running tasks, as of the last renewal.
    #[serde(skip)]
    pub runs: Vec<String>,
    /// Roles in which it takes part: `leader/NAME` and `shards/SET`.
    #[serde(skip)]
    pub roles: Vec<String>,
}

/// A task name that live workers know, or that is disabled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RegisteredName {
    /// Task name.
    pub name: String,
    /// Arguments, as far as the first of the workers knows them; `None` for any.
    pub args: Option<Vec<ArgInfo>>,
    /// Names of the types of its results, if they are known.
    pub results: Option<Vec<String>>,
    /// Queues of the workers that know it.
    pub queues: BTreeSet<String>,
    /// Names of the workers that know it.
    pub workers: BTreeSet<String>,
    /// `false` if the name is disabled for all workers: its tasks wait.
    pub enabled: bool,
}

/// Selection of workers: those that match all criteria.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct WorkerFilter {
    /// Only those that take tasks from this queue.
    pub queue: Option<QueueName>,
    /// Only those that run this task, or may run it: they have more tasks than their sessions show.
    pub task: Option<TaskName>,
    /// Only those with this tag.
    pub tag: Option<String>,
    /// Only those in this state.
    pub state: Option<PresenceState>,
}

/// Description of a worker, in the record of its session.
#[derive(Deserialize)]
struct About {
    worker: String,
    host: Option<String>,
    pid: u32,
    version: Option<String>,
    since: Timestamp,
    #[serde(default)]
    queues: Vec<String>,
    #[serde(default)]
    patterns: Vec<String>,
    #[serde(default)]
    tasks: Vec<String>,
    #[serde(default)]
    shapes: BTreeMap<String, TaskShape>,
    #[serde(default)]
    tags: Vec<String>,
    #[serde(default)]
    limits: BTreeMap<String, serde_json::Value>,
    #[serde(default)]
    concurrency: u32,
    #[serde(default)]
    open_circuits: Vec<String>,
    #[serde(default)]
    roles: Vec<String>,
}

/// Work of a worker, in the record of its session.
#[derive(Deserialize, Default)]
struct Runs {
    #[serde(default)]
    count: u32,
    #[serde(default)]
    state: PresenceState,
    #[serde(default)]
    counts: WorkCounts,
    memory: Option<u64>,
    /// Reason of the sleep, and `true` if the worker wakes up by itself.
    asleep: Option<(String, bool)>,
    health: Option<WorkerHealth>,
    reason: Option<String>,
}

/// Reads the description of a worker. `None` if the session is gone or describes nothing.
fn worker_info(session: &str, facts: &Facts) -> Option<WorkerInfo> {
    let about: About = serde_json::from_slice(facts.get(name::ABOUT).filter(|_| is_alive(facts))?).ok()?;
    let runs: Runs =
        facts.get(name::RUNS).and_then(|runs| serde_json::from_slice(runs).ok()).unwrap_or_default();
    let ids = facts.get(name::RUN_IDS).and_then(|ids| serde_json::from_slice(ids).ok());
    Some(WorkerInfo {
        name: about.worker,
        incarnation: session.to_owned(),
        state: runs.state,
        wakes: runs.asleep.as_ref().is_some_and(|(_, wakes)| *wakes),
        asleep: runs.asleep.map(|(reason, _)| reason),
        health: runs.health.unwrap_or(WorkerHealth::Green),
        health_reason: runs.reason,
        host: about.host,
        pid: about.pid,
        version: about.version,
        started_at: about.since,
        queues: about.queues,
        patterns: about.patterns,
        tasks: about.tasks,
        tags: about.tags,
        shapes: about.shapes,
        limits: about.limits.into_iter().filter_map(known_limit).collect(),
        concurrency: about.concurrency,
        open_circuits: about.open_circuits,
        running: runs.count,
        processed: runs.counts.processed,
        failed: runs.counts.failed,
        retried: runs.counts.retried,
        memory: runs.memory,
        runs: ids.unwrap_or_default(),
        roles: about.roles,
    })
}

/// Reads a limit of a worker. One that this version does not know is left out.
fn known_limit((target, limit): (String, serde_json::Value)) -> Option<(String, Limit)> {
    Some((target, serde_json::from_value(limit).ok()?))
}

impl WorkerInfo {
    /// Returns `true` if it takes tasks from this queue, or will do so when the queue is listed, because its patterns and
    /// tags fit.
    pub fn takes_from(&self, queue: &QueueName) -> bool {
        let patterns = self.queues.iter().chain(&self.patterns).map(String::as_str);
        takes(patterns, |tag| self.tags.iter().any(|own| own == tag), queue.as_str())
    }

    /// Returns `true` if it knows this task, as far as its description tells: one that describes as many tasks as it can may
    /// know others.
    pub(crate) fn may_know(&self, task: &str) -> bool {
        self.tasks.len() >= MAX_DESCRIBED_TASKS || self.tasks.iter().any(|name| name == task)
    }
}

impl WorkerFilter {
    /// Creates a filter that every worker matches.
    pub fn new() -> Self {
        Self::default()
    }

    fn fits(&self, worker: &WorkerInfo) -> bool {
        let Self { queue, task, tag, state } = self;
        queue.as_ref().is_none_or(|queue| worker.takes_from(queue))
            && task.as_ref().is_none_or(|task| worker.may_know(task.as_str()))
            && tag.as_ref().is_none_or(|tag| worker.tags.contains(tag))
            && state.is_none_or(|state| worker.state == state)
    }
}

impl Client {
    /// Lists the live workers that match, by name. A worker that was killed is listed until its session has expired.
    ///
    /// # Errors
    /// [`BackendError`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn workers(&self, filter: &WorkerFilter) -> Result<Vec<WorkerInfo>, BackendError> {
        let backend = self.app.backend();
        let mut workers = Vec::new();
        let mut after = None;
        loop {
            let page = backend.list(&Index::Sessions, after, PAGE_SIZE).await?;
            let ids: Vec<_> =
                page.iter().map(|(_, session)| RecordId::from(&SessionId::from(&**session))).collect();
            for (id, facts) in ids.iter().zip(backend.read_each(&ids).await?) {
                match facts {
                    Ok(facts) => workers.extend(worker_info(id.id(), &facts)),
                    Err(error) => tracing::warn!(%id, %error, "a worker is left out"),
                }
            }
            if page.len() < PAGE_SIZE {
                break;
            }
            after = page.into_iter().last();
        }
        workers.retain(|worker| filter.fits(worker));
        workers.sort_by(|a, b| (&a.name, &a.incarnation).cmp(&(&b.name, &b.incarnation)));
        Ok(workers)
    }

    /// Returns `true` if a live worker that does not drain takes tasks from this queue and knows this task, or may know it.
    pub(crate) async fn has_worker(&self, queue: &QueueName, task: &TaskName) -> Result<bool, BackendError> {
        let filter =
            WorkerFilter { queue: Some(queue.clone()), task: Some(task.clone()), ..WorkerFilter::new() };
        let workers = self.workers(&filter).await?;
        Ok(workers.iter().any(|worker| worker.state != PresenceState::Draining))
    }

    /// Lists the task names that live workers know, and those that are disabled, by name.
    ///
    /// # Errors
    /// [`BackendError`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn registered_tasks(&self) -> Result<Vec<RegisteredName>, BackendError> {
        let everyone = WorkerFilter::new();
        let (workers, disabled) = tokio::try_join!(self.workers(&everyone), self.disabled_tasks())?;
        let disabled: BTreeSet<String> = disabled.iter().map(ToString::to_string).collect();
        let mut names: BTreeMap<&str, RegisteredName> = BTreeMap::new();
        let known = |name: &str| RegisteredName {
            name: name.to_owned(),
            args: None,
            results: None,
            queues: BTreeSet::new(),
            workers: BTreeSet::new(),
            enabled: !disabled.contains(name),
        };
        for name in &disabled {
            names.insert(name, known(name));
        }
        for worker in &workers {
            for name in &worker.tasks {
                let entry = names.entry(name).or_insert_with(|| known(name));
                entry.queues.extend(worker.queues.iter().cloned());
                entry.workers.insert(worker.name.clone());
                if let Some(shape) = worker.shapes.get(name) {
                    entry.args = entry.args.take().or_else(|| shape.args.clone());
                    entry.results = entry.results.take().or_else(|| shape.results.clone());
                }
            }
        }
        Ok(names.into_values().collect())
    }
}
