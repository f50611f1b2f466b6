//! Control over periodic tasks: adding, removing, pausing, resuming and triggering them while the workers run.

use std::time::Duration;

use super::{
    Cursor, Own, Periodic, PeriodicError, Swap, fact, name,
    order::{PeriodicOrder, TickCall, periodic_record, wake},
    schedule::Schedule,
    sealing::{sealed, signed_order, trusted_order},
    tick_id,
    view::{PeriodicTask, Triggered},
};
use crate::{
    backend::{Commit, Committed, Index, IndexUpdate},
    client::Client,
    clock::Timestamp,
    record::Facts,
    signature::SignatureParts,
    workflow::SendableParts,
};

/// Number of times that a change is tried while others change the same record.
const MAX_TRIES: usize = 20;
/// Maximum time to wait until a worker has sent an extra tick.
const TRIGGER_TIMEOUT: Duration = Duration::from_secs(20);
/// Interval at which the record is read while waiting for that, if no wake-up comes.
const TRIGGER_POLL: Duration = Duration::from_millis(200);

impl Client {
    /// Adds a live periodic task, or replaces the live one of this name. Workers follow it at once.
    ///
    /// Its first tick is after now. If one is replaced and keeps its schedule, no tick is lost. A pause stays.
    /// The definition is signed: workers follow it while they trust the key.
    ///
    /// # Errors
    /// [`PeriodicError`] for a definition that contradicts itself or that cannot be sent or signed here, and for a name that
    /// belongs to a file or to code.
    ///
    /// # Cancel safety
    /// A dropped future leaves it added or not; adding again is fine.
    pub async fn add_periodic(&self, periodic: &Periodic) -> Result<PeriodicTask, PeriodicError> {
        periodic.check()?;
        let now = self.app.clock().now();
        let name = periodic.name();
        let outline = periodic.outline(&self.app)?;
        // A tick that could not be sent is refused now.
        let parts = periodic.tick_parts(&self.app, &outline.queue);
        let parts = SignatureParts { id: tick_id(name, now), ..parts };
        let call = TickCall::of(&parts, periodic.outlined.as_ref());
        self.prepare(SendableParts { outline: periodic.outlined.clone(), ..SendableParts::from(parts) })?;
        self.change(name, Unbelieved::Replace, |facts, before| {
            if let Some(own) = attended(facts, before.as_ref(), now) {
                return Err(owned(name, &own));
            }
            let previous =
                before.as_ref().and_then(|order| order.live()).map(|live| live.outline.schedule.clone());
            let schedule = match previous.as_ref().and_then(|previous| previous.read().ok()) {
                Some(previous) if same(&previous, &periodic.plan.schedule, periodic.plan.policies.from) => {
                    previous
                }
                _ => periodic.plan.schedule.clone().counted_from(periodic.plan.policies.from.unwrap_or_else(
                    || {
                        // Ticks at whole seconds have short names.
                        Timestamp::from_micros(now.as_micros().div_euclid(1_000_000) * 1_000_000)
                    },
                )),
            };
            let mut outline = outline.clone();
            outline.schedule = schedule.stored();
            let unchanged = previous.as_ref() == Some(&outline.schedule);
            let mut order = PeriodicOrder::after(before, now);
            (order.removed, order.definition) = (false, Some(sealed(&self.app, name, outline, call.clone())));
            let cursor: Option<Cursor> = fact(facts, name::CURSOR);
            let cursor = match cursor {
                Some(cursor) if unchanged => cursor,
                Some(cursor) => cursor.passed(now, &[]),
                None => Cursor::starting(now),
            };
            Ok((order, Some(cursor)))
        })
        .await?;
        let member = name.to_owned();
        let update = IndexUpdate::Put { index: Index::Periodic, at: now, member };
        self.app.backend().update_indexes(vec![update]).await?;
        self.wake_workers().await;
        let added = self.periodic_task(name).await?;
        added.ok_or_else(|| PeriodicError::Contended { name: name.to_owned() })
    }

    /// Removes a live periodic task, or what is left of one whose file or code no worker has any more. Tasks that were sent
    /// stay.
    ///
    /// # Errors
    /// [`PeriodicError::Unknown`]; [`PeriodicError::Owned`] for one that a worker's file or code defines.
    ///
    /// # Cancel safety
    /// A dropped future leaves it removed or not; removing again is fine.
    pub async fn remove_periodic(&self, name: &str) -> Result<(), PeriodicError> {
        let now = self.app.clock().now();
        self.known(name).await?;
        self.change(name, Unbelieved::Replace, |facts, before| {
            if let Some(own) = attended(facts, before.as_ref(), now) {
                return Err(owned(name, &own));
            }
            let mut order = PeriodicOrder::after(before, now);
            (order.removed, order.paused) = (true, None);
            Ok((order, None))
        })
        .await?;
        let update = IndexUpdate::Remove { index: Index::Periodic, member: name.to_owned() };
        self.app.backend().update_indexes(vec![update]).await?;
        self.wake_workers().await;
        Ok(())
    }

    /// Pauses a periodic task of any owner: it does not tick until it is resumed, also after a restart of the workers.
    ///
    /// # Errors
    /// [`PeriodicError::Unknown`], [`PeriodicError::Untrusted`].
    ///
    /// # Cancel safety
    /// A dropped future leaves it paused or not; pausing again is fine.
    pub async fn pause_periodic(&self, name: &str) -> Result<(), PeriodicError> {
        let now = self.app.clock().now();
        self.known(name).await?;
        self.change(name, Unbelieved::Refuse, |_, before| {
            let mut order = PeriodicOrder::after(before, now);
            order.paused = order.paused.or(Some(now));
            Ok((order, None))
        })
        .await?;
        self.wake_workers().await;
        Ok(())
    }

    /// Resumes a paused periodic task. The ticks of the pause are left out.
    ///
    /// # Errors
    /// As [`pause_periodic`](Self::pause_periodic).
    ///
    /// # Cancel safety
    /// A dropped future leaves it paused or not; resuming again is fine.
    pub async fn resume_periodic(&self, name: &str) -> Result<(), PeriodicError> {
        let now = self.app.clock().now();
        self.known(name).await?;
        self.change(name, Unbelieved::Refuse, |facts, before| {
            let mut order = PeriodicOrder::after(before, now);
            let cursor: Option<Cursor> = fact(facts, name::CURSOR);
            let cursor = order.paused.take().and(cursor).map(|cursor| cursor.passed(now, &[]));
            Ok((order, cursor))
        })
        .await?;
        self.wake_workers().await;
        Ok(())
    }

    /// Has a worker send an extra tick now, also of a paused periodic task, and waits until it is sent. The schedule stays as
    /// it is.
    ///
    /// # Errors
    /// As [`pause_periodic`](Self::pause_periodic); [`PeriodicError::NotTriggered`] if no worker has sent it within 20 s;
    /// [`PeriodicError::TriggerReplaced`] if another trigger took its place before a worker had read it.
    ///
    /// # Cancel safety
    /// A dropped future leaves the tick sent or not; its id is that of the next attempt only by chance.
    pub async fn trigger_periodic(&self, name: &str) -> Result<Triggered, PeriodicError> {
        let tick = self.app.clock().now();
        self.known(name).await?;
        self.change(name, Unbelieved::Refuse, |_, before| {
            let mut order = PeriodicOrder::after(before, tick);
            order.trigger = Some(tick);
            Ok((order, None))
        })
        .await?;
        self.wake_workers().await;
        let mut watch = self.app.backend().watch(&periodic_record(name)).await?;
        let sent = async {
            loop {
                let facts = self.read(periodic_record(name)).await?;
                let cursor: Option<Cursor> = fact(&facts, name::CURSOR);
                if let Some(Cursor { triggered, ticks, .. }) = cursor.filter(|it| it.triggered >= Some(tick))
                {
                    // A later trigger replaces one that no worker has read.
                    return match triggered == Some(tick) || ticks.contains(&tick) {
                        true => Ok(Triggered { id: tick_id(name, tick), tick }),
                        false => Err(PeriodicError::TriggerReplaced { name: name.to_owned() }),
                    };
                }
                // The poll is the bound of the wait.
                let _woken = tokio::time::timeout(TRIGGER_POLL, watch.changed()).await;
            }
        };
        match tokio::time::timeout(TRIGGER_TIMEOUT, sent).await {
            Ok(sent) => sent,
            Err(_) => Err(PeriodicError::NotTriggered { name: name.to_owned() }),
        }
    }

    /// Checks that there is a periodic task of this name.
    async fn known(&self, name: &str) -> Result<(), PeriodicError> {
        self.known_periodic_task(name).await.map(drop)
    }

    /// Replaces the order about a periodic task, and perhaps its cursor, by those that `next` makes of the present ones.
    async fn change(
        &self,
        name: &str,
        unbelieved: Unbelieved,
        next: impl Fn(&Facts, Option<PeriodicOrder>) -> Result<(PeriodicOrder, Option<Cursor>), PeriodicError>,
    ) -> Result<(), PeriodicError> {
        let mut facts = self.read(periodic_record(name)).await?;
        for _ in 0..MAX_TRIES {
            match self.commit(self.changed(name, &facts, unbelieved, &next)?).await? {
                Committed::Done { .. } => return Ok(()),
                Committed::Refused(newer) => facts = newer,
            }
        }
        Err(PeriodicError::Contended { name: name.to_owned() })
    }

    fn changed(
        &self,
        name: &str,
        facts: &Facts,
        unbelieved: Unbelieved,
        next: impl Fn(&Facts, Option<PeriodicOrder>) -> Result<(PeriodicOrder, Option<Cursor>), PeriodicError>,
    ) -> Result<Commit, PeriodicError> {
        let untrusted = |why: String| PeriodicError::Untrusted { name: name.to_owned(), why };
        let stored = facts.get(name::ORDER);
        let own: Option<Own> = fact(facts, name::OWN);
        let own = own.as_ref().map(|own| &own.outline);
        let before = match stored.map(|stored| trusted_order(&self.app, name, stored, own)).transpose() {
            Ok(before) => before,
            Err(_) if unbelieved == Unbelieved::Replace => None,
            Err(why) => {
                return Err(untrusted(format!(
                    "its order is not believed ({why}); remove it, or add it again"
                )));
            }
        };
        let (order, cursor) = next(facts, before)?;
        let signed = signed_order(&self.app, name, &order).map_err(untrusted)?;
        // A key that may not send the task must not replace an order that workers believe.
        trusted_order(&self.app, name, &signed, own).map_err(untrusted)?;
        let mut swap = Swap::new(name).replace(name::ORDER, stored, signed).say(name::RESTORED, None);
        if let Some(cursor) = cursor {
            swap = swap.cursor(facts.get(name::CURSOR), &cursor);
        }
        if order.removed {
            swap = swap.say(name::OWN, None).removed();
        }
        Ok(swap.commit())
    }

    /// Wakes the workers. Without it they read the change some seconds later.
    async fn wake_workers(&self) {
        if let Err(error) = self.commit(wake()).await {
            tracing::debug!(%error, "workers learn of a periodic task some seconds later");
        }
    }
}

/// Treatment of a present order that is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unbelieved {
    /// Refused: a new signature must not make it believed.
    Refuse,
    /// Replaced as a whole.
    Replace,
}

/// Returns the definition in a file or in code that a worker has, unless a live one has its name.
fn attended(facts: &Facts, order: Option<&PeriodicOrder>, now: Timestamp) -> Option<Own> {
    let is_live = order.is_some_and(|order| order.live().is_some());
    fact(facts, name::OWN).filter(|own: &Own| !is_live && own.is_attended(now))
}

fn owned(name: &str, own: &Own) -> PeriodicError {
    PeriodicError::Owned { name: name.to_owned(), owner: own.source, worker: own.worker.clone() }
}

/// Returns `true` if a new schedule is the previous one, and no start says from when its intervals count.
fn same(previous: &Schedule, new: &Schedule, from: Option<Timestamp>) -> bool {
    match previous.interval() {
        Some(interval) => from.is_none() && new.interval() == Some(interval),
        None => previous == new,
    }
}
