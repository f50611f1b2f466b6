//! Views of periodic tasks for people: the owner, the next tick, the outcomes of the last ticks.

use super::{
    Cursor, Own, PeriodicError,
    due::Plan,
    fact, name,
    order::{PeriodicOutline, periodic_record},
    policy::{Policies, Source},
    schedule::Schedule,
    sealing::{read_order, trusted_order},
    tick::{check_name, tick_id},
};
use crate::{
    backend::{Backend, BackendError, Index},
    client::Client,
    clock::Timestamp,
    id::{QueueName, RecordId, TaskId, TaskName},
    record::{Facts, TaskState},
};

/// Number of index entries that are read at once.
const PAGE_SIZE: usize = 500;
/// Maximum number of instants that are listed ahead.
const MAX_UPCOMING: usize = 1000;

/// Tick that was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeriodicTick {
    /// Instant of the schedule, or of an extra tick.
    pub tick: Timestamp,
    /// Id of its task, or of its workflow's root.
    pub id: TaskId,
    /// State of its task or of its whole workflow; `None` if its record has expired.
    pub state: Option<TaskState>,
}

/// Extra tick that was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Triggered {
    /// Id of its task.
    pub id: TaskId,
    /// Its instant.
    pub tick: Timestamp,
}

/// A periodic task, as the backend knows it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct PeriodicTask {
    /// Name.
    pub name: String,
    /// Task that is sent.
    pub task: TaskName,
    /// Queue to which it is sent.
    pub queue: QueueName,
    /// Schedule; `None` if this program cannot follow it, which `problem` explains.
    pub schedule: Option<Schedule>,
    /// Policies.
    pub policies: Policies,
    /// Owner of the definition.
    pub source: Source,
    /// Worker that has the definition, if it is in a file or in code.
    pub worker: Option<String>,
    /// Generation of the last order about it; 0 if there was none.
    pub generation: u64,
    /// Time since when it is paused.
    pub paused: Option<Timestamp>,
    /// Next tick; `None` if it is paused or has ended.
    pub next: Option<Timestamp>,
    /// Newest ticks, the newest first.
    pub ticks: Vec<PeriodicTick>,
    /// Time at which a worker wrote the definition back, after the backend had lost it.
    pub restored: Option<Timestamp>,
    /// Reason that it does not tick, other than a pause.
    pub problem: Option<String>,
}

impl PeriodicTask {
    /// Returns the next ticks after an instant, at most 1000. A pause does not matter.
    pub fn upcoming(&self, after: Timestamp, count: usize) -> Vec<Timestamp> {
        let Some(plan) = self.plan() else { return Vec::new() };
        let next = |last: &Timestamp| plan.tick_after(*last);
        std::iter::successors(plan.tick_after(after), next).take(count.min(MAX_UPCOMING)).collect()
    }

    /// Returns the names of the periodic tasks that a worker wrote back, after the backend had lost them, and the times. An
    /// order about one, such as a pause, ends the report.
    ///
    /// # Errors
    /// [`BackendError`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn restored(backend: &dyn Backend) -> Result<Vec<(String, Timestamp)>, BackendError> {
        let names = listed_names(backend).await?;
        let ids: Vec<_> = names.iter().map(|name| periodic_record(name)).collect();
        let records = backend.read_each(&ids).await?;
        let restored = |(name, facts): (String, Result<Facts, BackendError>)| {
            Some((name, fact(&facts.ok()?, name::RESTORED)?))
        };
        Ok(names.into_iter().zip(records).filter_map(restored).collect())
    }

    fn plan(&self) -> Option<Plan> {
        let schedule = self.schedule.clone()?;
        Some(Plan { name: self.name.clone(), schedule, policies: self.policies.clone() })
    }
}

impl Client {
    /// Lists the periodic tasks of the installation by name: live ones, and those of files and code that a worker has
    /// announced. Each has its newest tick.
    ///
    /// # Errors
    /// [`BackendError`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn periodic_tasks(&self) -> Result<Vec<PeriodicTask>, BackendError> {
        let names = self.periodic_names().await?;
        self.periodic_views(names, 1).await
    }

    /// Returns one periodic task with its newest ticks; `None` if there is none of this name.
    ///
    /// # Errors
    /// [`BackendError`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn periodic_task(&self, name: &str) -> Result<Option<PeriodicTask>, BackendError> {
        if check_name(name).is_err() {
            return Ok(None);
        }
        Ok(self.periodic_views(vec![name.to_owned()], usize::MAX).await?.pop())
    }

    /// Returns one periodic task with its newest ticks.
    ///
    /// # Errors
    /// [`PeriodicError::Unknown`], with the nearest name that exists; [`PeriodicError::Backend`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn known_periodic_task(&self, name: &str) -> Result<PeriodicTask, PeriodicError> {
        if let Some(task) = self.periodic_task(name).await? {
            return Ok(task);
        }
        let names = self.periodic_names().await?;
        let nearest = crate::nearest(name, names.iter().map(String::as_str)).map(str::to_owned);
        Err(PeriodicError::Unknown { name: name.chars().take(100).collect(), nearest })
    }

    /// Returns the names in the index, sorted.
    pub(crate) async fn periodic_names(&self) -> Result<Vec<String>, BackendError> {
        listed_names(self.app.backend().as_ref()).await
    }

    async fn periodic_views(
        &self,
        names: Vec<String>,
        ticks: usize,
    ) -> Result<Vec<PeriodicTask>, BackendError> {
        let ids: Vec<_> = names.iter().map(|name| periodic_record(name)).collect();
        let records = self.app.backend().read_each(&ids).await?;
        let mut views = Vec::new();
        for (name, facts) in names.into_iter().zip(records) {
            match facts {
                Ok(facts) => views.extend(self.view(name, &facts)),
                Err(error) => tracing::warn!(name, %error, "a periodic task has no readable record"),
            }
        }
        for view in &mut views {
            view.ticks.truncate(ticks);
        }
        let ids: Vec<RecordId> =
            views.iter().flat_map(|view| &view.ticks).map(|tick| (&tick.id).into()).collect();
        let mut records = self.app.backend().read_each(&ids).await?.into_iter();
        for tick in views.iter_mut().flat_map(|view| &mut view.ticks) {
            let Some(Ok(facts)) = records.next() else { continue };
            tick.state = self.whole_state(&tick.id, &facts).await?;
        }
        Ok(views)
    }

    /// Returns what a record says about a periodic task; `None` if it defines none.
    fn view(&self, name: String, facts: &Facts) -> Option<PeriodicTask> {
        let now = self.app.clock().now();
        let own: Option<Own> = fact(facts, name::OWN);
        let stored = facts.get(name::ORDER);
        let order = stored.and_then(|stored| read_order(stored).ok());
        let live = order.as_ref().and_then(|order| order.live());
        let (outline, source, worker): (PeriodicOutline, _, _) = match (live, &own) {
            (Some(live), _) => (live.outline.clone(), Source::Live, None),
            (None, Some(own)) => (own.outline.clone(), own.source, Some(own.worker.clone())),
            (None, None) => return None,
        };
        let mut problem = None;
        if let Some(Err(why)) =
            stored.map(|stored| trusted_order(&self.app, &name, stored, own.as_ref().map(|own| &own.outline)))
        {
            problem = Some(format!("its order is not believed: {why}"));
        }
        if live.is_none() && own.as_ref().is_some_and(|own| !own.is_attended(now)) {
            problem = Some("no live worker has its definition".to_owned());
        }
        let schedule = outline.schedule.read();
        if let Err(error) = &schedule {
            problem = Some(error.to_string());
        }
        let paused = order.as_ref().and_then(|order| order.paused);
        let cursor: Option<Cursor> = fact(facts, name::CURSOR);
        let ticks = cursor.iter().flat_map(|cursor| &cursor.ticks);
        let ticks =
            ticks.map(|tick| PeriodicTick { tick: *tick, id: tick_id(&name, *tick), state: None }).collect();
        let mut view = PeriodicTask {
            task: outline.task,
            queue: outline.queue,
            schedule: schedule.ok(),
            policies: outline.policies,
            source,
            worker,
            generation: order.as_ref().map_or(0, |order| order.generation),
            paused,
            next: None,
            ticks,
            restored: fact(facts, name::RESTORED),
            problem,
            name,
        };
        if paused.is_none() {
            let after = cursor.map_or(now, |cursor| cursor.at.max(now));
            view.next = view.plan().and_then(|plan| plan.tick_after(after));
        }
        Some(view)
    }
}

/// Returns the names in the index, sorted.
async fn listed_names(backend: &dyn Backend) -> Result<Vec<String>, BackendError> {
    let mut names = Vec::new();
    let mut after = None;
    loop {
        let page = backend.list(&Index::Periodic, after, PAGE_SIZE).await?;
        // Others may write to the index: what cannot be a name is nothing of ours.
        names.extend(page.iter().map(|(_, name)| name.clone()).filter(|name| check_name(name).is_ok()));
        if page.len() < PAGE_SIZE {
            names.sort_unstable();
            names.dedup();
            return Ok(names);
        }
        after = page.into_iter().last();
    }
}
