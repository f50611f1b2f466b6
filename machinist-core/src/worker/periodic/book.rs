//! The periodic tasks as a worker knows them: orders from the backend, and definitions of its file and its code.
//!
//! The worker keeps every order that it has believed, and its cursor. If the backend has lost them without a mark of
//! removal, it writes them back. An order of an older generation than a known one is an old copy, and is replaced too.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::time::Instant;

use super::{
    active::Active,
    ticking::{Ticked, Ticking},
    turns::Turns,
};
use crate::{
    app::App,
    backend::{BackendError, Commit, Committed, Index, IndexUpdate},
    clock::Timestamp,
    id::RecordId,
    periodic::{
        Cursor, Own, Periodic, PeriodicOrder, PeriodicOutline, Plan, Swap, check_steps, fact, name,
        periodic_record, trusted_order,
    },
    record::{Facts, json},
    worker::WorkerContext,
};

/// Interval at which the worker that has the turn says that it has a definition.
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(60);
/// The index of periodic tasks, in the log.
const LIST: &str = "the list of periodic tasks";
/// A record of a periodic task, in the log.
const RECORD: &str = "the record of a periodic task";
/// Wait before a tick is tried again that could not be sent.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// The periodic tasks that this worker knows, by name.
pub(super) struct Book(BTreeMap<Arc<str>, Entry>);

/// One periodic task.
#[derive(Default)]
struct Entry {
    /// Definition of this worker's file or code.
    own: Option<(Periodic, PeriodicOutline)>,
    /// Record as it was last read.
    facts: Facts,
    /// Newest order that was believed.
    order: Option<(Bytes, PeriodicOrder)>,
    /// `true` if the stored order is not believed. It may be newer, by a key that is not known here yet.
    unbelieved: bool,
    /// Furthest cursor that was read.
    cursor: Option<Cursor>,
    /// Definition in force, if this worker can send it.
    active: Option<Arc<Active>>,
    /// Order from which `active` was made; `None` for the definition of this worker's file or code.
    active_order: Option<Bytes>,
    /// Time at which to look at it again.
    next: Option<Timestamp>,
    announced: Option<Instant>,
    /// `true` if it was logged that a live periodic task takes the place of this worker's definition.
    shadowed: bool,
    /// Problem that was logged last.
    logged: Option<String>,
}

impl Book {
    /// Begins with the definitions of a worker's file and code. The builder has checked them.
    pub(super) fn new(app: &App, own: Vec<Periodic>) -> Self {
        let mut book = Self(BTreeMap::new());
        book.replace_own(app, own);
        book
    }

    /// Puts other definitions of the file and the code in the place of those that are known. All that was read stays: the
    /// orders that the backend may lose, and the furthest cursors. Until the next refresh nothing is in force.
    pub(super) fn replace_own(&mut self, app: &App, own: Vec<Periodic>) {
        for entry in self.0.values_mut() {
            (entry.own, entry.active, entry.active_order) = (None, None, None);
            (entry.announced, entry.shadowed) = (None, false);
        }
        for own in own {
            let outline = own.outline(app).ok();
            let entry = self.0.entry(own.name().into()).or_default();
            entry.own = outline.map(|outline| (own, outline));
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the names that this worker can send.
    pub(super) fn active_names(&self) -> Vec<Arc<str>> {
        self.0.iter().filter(|(_, entry)| entry.active.is_some()).map(|(name, _)| Arc::clone(name)).collect()
    }

    /// Reads all records, and writes back what the backend has lost.
    pub(super) async fn refresh(&mut self, worker: &WorkerContext) -> Result<(), BackendError> {
        // Without the list, those that are known go on.
        for name in worker.passed_over(LIST, worker.app.client().periodic_names().await)? {
            self.0.entry(name.into()).or_default();
        }
        let names: Vec<_> = self.0.keys().cloned().collect();
        self.read(worker, &names).await?;
        let now = worker.now();
        let lost = self.0.iter().filter_map(|(name, entry)| Some((name.clone(), entry.restored(name, now)?)));
        let (names, commits): (Vec<_>, Vec<_>) = lost.unzip();
        if !commits.is_empty() {
            self.restore(worker, names, commits).await?;
        }
        // What is removed, or was never there, is forgotten; the mark of a removal is kept with the entry.
        self.0.retain(|_, entry| entry.own.is_some() || entry.order.is_some() || !entry.facts.is_empty());
        Ok(())
    }

    async fn restore(
        &mut self,
        worker: &WorkerContext,
        names: Vec<Arc<str>>,
        commits: Vec<Arc<Commit>>,
    ) -> Result<(), BackendError> {
        let answers = worker.app.backend().commit(commits).await;
        let mut updates = Vec::new();
        for (name, answer) in names.iter().zip(answers) {
            // A refusal means that another worker was faster.
            if let Some(Committed::Done { .. }) = worker.passed_over(RECORD, answer.map(Some))? {
                tracing::warn!(%name, "the backend has lost a periodic task; it was written back");
            }
            updates.push(IndexUpdate::Put {
                index: Index::Periodic,
                at: worker.now(),
                member: name.to_string(),
            });
        }
        worker.passed_over(LIST, worker.app.backend().update_indexes(updates).await)?;
        self.read(worker, &names).await
    }

    /// Reads the records of these names.
    async fn read(&mut self, worker: &WorkerContext, names: &[Arc<str>]) -> Result<(), BackendError> {
        let ids: Vec<RecordId> = names.iter().map(|name| periodic_record(name)).collect();
        if ids.is_empty() {
            return Ok(());
        }
        let records = worker.app.backend().read_each(&ids).await?;
        for (name, facts) in names.iter().zip(records) {
            let Some(entry) = self.0.get_mut(name) else { continue };
            match facts {
                Ok(facts) => entry.learn(worker, name, facts),
                Err(error) => {
                    entry.active = None;
                    entry.complain(name, &error.to_string());
                }
            }
        }
        Ok(())
    }

    /// Has the worker with the turn say which definitions of a file or of code it has, and begin their cursors.
    pub(super) async fn announce(
        &mut self,
        worker: &WorkerContext,
        turns: &Turns,
    ) -> Result<(), BackendError> {
        let now = worker.now();
        let mut commits = Vec::new();
        let mut names = Vec::new();
        for (name, entry) in &mut self.0 {
            let Some((own, outline)) = entry.own.as_ref().filter(|_| entry.is_own() && turns.has(name))
            else {
                continue;
            };
            if entry.announced.is_some_and(|last| last.elapsed() < ANNOUNCE_INTERVAL) {
                continue;
            }
            let (source, outline) = (own.source, outline.clone());
            let said = Own { source, worker: worker.name.to_string(), at: now, outline };
            let mut swap = Swap::new(name).say(name::OWN, Some(json(&said)));
            let stored = entry.facts.get(name::CURSOR);
            if stored.is_none() || entry.cursor.is_none() {
                if stored.is_some() {
                    tracing::warn!(%name, "the cursor of a periodic task cannot be read: it begins again now");
                }
                let cursor = entry.cursor.clone().unwrap_or_else(|| Cursor::starting(now));
                swap = swap.cursor(stored, &cursor);
            }
            commits.push(Arc::new(swap.commit()));
            names.push(Arc::clone(name));
        }
        if commits.is_empty() {
            return Ok(());
        }
        let answers = worker.app.backend().commit(commits).await;
        let put =
            |name: &Arc<str>| IndexUpdate::Put { index: Index::Periodic, at: now, member: name.to_string() };
        let listed = worker.app.backend().update_indexes(names.iter().map(put).collect()).await;
        worker.passed_over(LIST, listed)?;
        self.read(worker, &names).await?;
        for (name, answer) in names.iter().zip(answers) {
            let answer = worker.passed_over(RECORD, answer.map(Some))?;
            if let (Some(Committed::Done { .. }), Some(entry)) = (answer, self.0.get_mut(name)) {
                entry.announced = Some(Instant::now());
            }
        }
        Ok(())
    }

    /// Returns the names for which this worker has the turn, and to which it has to look now.
    pub(super) fn due_names(&self, now: Timestamp, turns: &Turns) -> Vec<Arc<str>> {
        let due = |(name, entry): &(&Arc<str>, &Entry)| {
            entry.active.is_some() && entry.next.is_some_and(|next| next <= now) && turns.has(name)
        };
        self.0.iter().filter(due).map(|(name, _)| Arc::clone(name)).collect()
    }

    /// Returns the time at which this worker has to look at the first of the periodic tasks whose turn it has.
    pub(super) fn next(&self, turns: &Turns) -> Option<Timestamp> {
        let held = self.0.iter().filter(|(name, entry)| entry.active.is_some() && turns.has(name));
        held.filter_map(|(_, entry)| entry.next).min()
    }

    /// Sends the ticks of these names that are due, by the records as they are now.
    pub(super) async fn tick(
        &mut self,
        worker: &WorkerContext,
        turns: &Turns,
        names: Vec<Arc<str>>,
    ) -> Result<(), BackendError> {
        self.read(worker, &names).await?;
        let ready = names.iter().filter_map(|name| {
            let entry = self.0.get(name)?;
            let ticking = Ticking {
                worker,
                active: Arc::clone(entry.active.as_ref()?),
                turn_end: turns.end(name)?,
                order: entry.order.as_ref().map(|(_, order)| order.clone()),
                stored: entry.facts.get(name::CURSOR).cloned(),
                cursor: entry.cursor.clone()?,
            };
            Some((name, ticking))
        });
        let (names, ticking): (Vec<_>, Vec<_>) = ready.unzip();
        let ticked = join_all(ticking.into_iter().map(Ticking::send_due)).await;
        let now = worker.now();
        for (name, Ticked { cursor, next, problem }) in names.into_iter().zip(ticked) {
            let Some(entry) = self.0.get_mut(name) else { continue };
            entry.cursor = Some(cursor.later(entry.cursor.as_ref()));
            entry.next = next;
            match problem {
                Some(problem) => {
                    entry.complain(name, &problem);
                    entry.next = Some(now.plus(RETRY_INTERVAL));
                }
                None => entry.logged = None,
            }
        }
        Ok(())
    }
}

impl Entry {
    /// Returns `true` if the definition of this worker's file or code is in force.
    fn is_own(&self) -> bool {
        self.own.is_some() && self.order.as_ref().is_none_or(|(_, order)| order.live().is_none())
    }

    /// Takes note of the record as it is.
    fn learn(&mut self, worker: &WorkerContext, name: &str, facts: Facts) {
        let stored: Option<Cursor> = fact(&facts, name::CURSOR);
        if let Some(stored) = stored {
            self.cursor = Some(stored.later(self.cursor.as_ref()));
        }
        // One that is lost is believed no longer than one that is stored.
        let known = || self.order.as_ref().map(|(known, _)| known);
        let order = facts.get(name::ORDER).or_else(known).cloned();
        self.facts = facts;
        let unbelieved = order.and_then(|stored| self.learn_order(worker, name, stored).err());
        self.unbelieved = unbelieved.is_some();
        let active = match unbelieved {
            Some(why) => Err(format!("its order is not believed: {why}")),
            None => self.activate(worker, name),
        };
        match active {
            Ok(active) => {
                if active.is_some() && self.active.is_none() {
                    // What ticks from now on is looked at once.
                    self.next = Some(worker.now());
                }
                self.active = active;
            }
            Err(problem) => {
                self.active = None;
                self.complain(name, &problem);
            }
        }
    }

    /// Takes note of a stored order.
    fn learn_order(&mut self, worker: &WorkerContext, name: &str, stored: Bytes) -> Result<(), String> {
        let own = self.own.as_ref().map(|(_, outline)| outline);
        // Checked each time: keys are revoked while the worker runs.
        let order = trusted_order(&worker.app, name, &stored, own)?;
        let is_known =
            |known: &Bytes| *known == stored || trusted_order(&worker.app, name, known, own).is_ok();
        self.order.take_if(|(known, _)| !is_known(known));
        if self.order.as_ref().is_none_or(|(_, known)| order.generation > known.generation) {
            self.order = Some((stored, order));
            self.next = Some(worker.now());
        }
        Ok(())
    }

    /// Returns the definition in force, if this worker can send it.
    fn activate(&mut self, worker: &WorkerContext, name: &str) -> Result<Option<Arc<Active>>, String> {
        let live = self.order.as_ref().filter(|(_, order)| order.live().is_some());
        let from = live.map(|(stored, _)| stored.clone());
        if let Some(active) = self.active.clone().filter(|_| self.active_order == from) {
            check(worker, from.as_ref(), &active)?;
            return Ok(Some(active));
        }
        let live = live.and_then(|(_, order)| order.live());
        let active = match (live, &self.own) {
            (Some(live), own) => {
                if own.is_some() && !self.shadowed {
                    self.shadowed = true;
                    tracing::warn!(
                        name,
                        "a live periodic task has the name of one in this worker's file or code, which is not used; remove \
                         the live one, or rename the other"
                    );
                }
                let PeriodicOutline { task, queue, schedule, policies } = live.outline.clone();
                let schedule = schedule.read().map_err(|error| error.to_string())?;
                let (parts, outline) = live.open(&worker.app, name)?.into_parts(&task, &queue);
                let plan = Plan { name: name.to_owned(), schedule, policies };
                Active { plan, parts, outline, task, queue }
            }
            (None, Some((own, outline))) => {
                let PeriodicOutline { task, queue, .. } = outline.clone();
                let parts = own.tick_parts(&worker.app, &queue);
                Active { plan: own.plan.clone(), parts, outline: own.outlined.clone(), task, queue }
            }
            (None, None) => return Ok(None),
        };
        check(worker, from.as_ref(), &active)?;
        if self.cursor.is_none() && live.is_some() {
            self.cursor = Some(Cursor::starting(worker.now()));
        }
        self.active_order = from;
        Ok(Some(Arc::new(active)))
    }

    /// Returns the commit that writes back what the backend has lost, if it has.
    fn restored(&self, name: &str, now: Timestamp) -> Option<Arc<Commit>> {
        let (known, order) = self.order.as_ref()?;
        let stored = self.facts.get(name::ORDER);
        if stored == Some(known) || self.unbelieved || (stored.is_none() && order.removed) {
            return None;
        }
        let mut swap = Swap::new(name).replace(name::ORDER, stored, known.clone());
        swap = swap.say(name::RESTORED, Some(json(&now)));
        if let Some(cursor) = &self.cursor {
            let stored = self.facts.get(name::CURSOR);
            swap = swap.cursor(stored, cursor);
        }
        if order.removed {
            swap = swap.removed();
        }
        Some(Arc::new(swap.commit()))
    }

    /// Logs a problem once as long as it lasts.
    fn complain(&mut self, name: &str, problem: &str) {
        if self.logged.as_deref() != Some(problem) {
            tracing::warn!(name, "a periodic task does not tick here: {problem}");
            self.logged = Some(problem.to_owned());
        }
    }
}

/// Checks that this worker can send the ticks, and that who ordered them may.
fn check(worker: &WorkerContext, order: Option<&Bytes>, active: &Active) -> Result<(), String> {
    active.check_sendable(worker)?;
    match (order, &active.parts.flow) {
        (Some(order), Some(flow)) => {
            check_steps(&worker.app, order, flow).map_err(|why| format!("its order is not believed: {why}"))
        }
        _ => Ok(()),
    }
}
