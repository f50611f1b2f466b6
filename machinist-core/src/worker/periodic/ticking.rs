//! The ticks of one periodic task: each is published and confirmed, and only then the cursor passes it.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::time::Instant;

use super::active::Active;
use crate::{
    args::Results,
    backend::Committed,
    clock::Timestamp,
    control::ControlError,
    error::{BoxError, SendError},
    mirror::MirroredTick,
    periodic::{Cursor, Overlap, PeriodicOrder, Swap, name, tick_id},
    record::{TaskState, json, name as task_fact},
    result::AsyncResult,
    worker::WorkerContext,
};
use machinist_adapter::error::chain;

/// Maximum number of ticks that are published together.
const MAX_BATCH: usize = 100;
/// Wait before a periodic task that another worker has taken over is looked at again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Interval at which a tick that waits for the end of the last one looks for it.
const QUEUE_INTERVAL: Duration = Duration::from_secs(1);

/// One periodic task whose turn this worker has.
pub(super) struct Ticking<'a> {
    pub(super) worker: &'a WorkerContext,
    pub(super) active: Arc<Active>,
    /// Time until which nobody else has the turn.
    pub(super) turn_end: Instant,
    pub(super) order: Option<PeriodicOrder>,
    /// Cursor as it is stored.
    pub(super) stored: Option<Bytes>,
    /// Cursor as this worker knows it: never before the stored one.
    pub(super) cursor: Cursor,
}

/// Result of looking at one periodic task.
pub(super) struct Ticked {
    pub(super) cursor: Cursor,
    /// Time at which to look again.
    pub(super) next: Option<Timestamp>,
    /// Reason that ticks which are due were not sent.
    pub(super) problem: Option<String>,
}

/// Error of a worker whose turn is over, or that another worker was faster than.
#[derive(Debug, thiserror::Error)]
#[error("another worker has the turn")]
struct Overtaken;

/// Decision by the state of the last tick's task.
enum OverlapStep {
    Send,
    LeaveOut,
    Wait,
}

impl Ticking<'_> {
    /// Sends what is due.
    pub(super) async fn send_due(mut self) -> Ticked {
        let (next, problem) = match self.try_send_due().await {
            Ok(next) => (next, None),
            Err(error) if error.is::<Overtaken>() => {
                tracing::debug!(name = self.active.plan.name, %error, "the ticks are left to another worker");
                (Some(self.worker.now().plus(RETRY_INTERVAL)), None)
            }
            Err(error) => (None, Some(chain(&*error).join(": "))),
        };
        Ticked { cursor: self.cursor, next, problem }
    }

    async fn try_send_due(&mut self) -> Result<Option<Timestamp>, BoxError> {
        let now = self.worker.now();
        let trigger = self.order.as_ref().and_then(|order| order.pending_trigger(&self.cursor, now));
        if let Some(tick) = trigger {
            self.publish(&[tick]).await?;
            self.pass(self.cursor.triggered(tick)).await?;
        }
        if self.order.as_ref().is_some_and(|order| order.paused.is_some()) {
            return Ok(None);
        }
        loop {
            let now = self.worker.now();
            let due = self.active.plan.due(self.cursor.at, now);
            let Some(first) = due.send.first().copied() else {
                if due.cursor > self.cursor.at {
                    self.pass(self.cursor.passed(due.cursor, &[])).await?;
                }
                return Ok(due.next);
            };
            let batch = match self.active.plan.policies.overlap {
                Overlap::Allow => &due.send[..due.send.len().min(MAX_BATCH)],
                _ => &due.send[..1],
            };
            let passed = if batch.len() == due.send.len() { due.cursor } else { batch[batch.len() - 1] };
            match self.overlap_step().await? {
                OverlapStep::Send => {
                    let taken = self.taken(batch).await?;
                    self.publish(&taken).await?;
                    self.pass(self.cursor.passed(passed, &taken)).await?;
                }
                OverlapStep::LeaveOut => {
                    tracing::info!(
                        name = self.active.plan.name,
                        tick = %first,
                        "a tick is left out: the task of the last one has not ended"
                    );
                    self.pass(self.cursor.passed(passed, &[])).await?;
                }
                OverlapStep::Wait => return Ok(Some(now.plus(QUEUE_INTERVAL))),
            }
        }
    }

    /// Decides by the policy and the state of the last tick's task.
    async fn overlap_step(&self) -> Result<OverlapStep, BoxError> {
        let overlap = self.active.plan.policies.overlap;
        let Some(last) = self.cursor.ticks.first().filter(|_| overlap != Overlap::Allow) else {
            return Ok(OverlapStep::Send);
        };
        let client = self.worker.app.client();
        let id = tick_id(&self.active.plan.name, *last);
        let facts = client.read(&id).await?;
        // Without a record it counts as ended.
        if client.whole_state(&id, &facts).await?.is_none_or(TaskState::is_final) {
            return Ok(OverlapStep::Send);
        }
        let revoked = match overlap {
            Overlap::Skip => return Ok(OverlapStep::LeaveOut),
            Overlap::Queue => return Ok(OverlapStep::Wait),
            Overlap::Allow => return Ok(OverlapStep::Send),
            Overlap::Cancel if facts.has(task_fact::OUTLINE) => {
                Box::pin(client.revoke_workflow(&id)).await.map(drop)
            }
            Overlap::Cancel => client.revoke(&id).await.map(drop),
        };
        match revoked {
            Ok(()) | Err(ControlError::Unknown { .. }) => Ok(OverlapStep::Send),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns the ticks that no other program has taken which shares the queue.
    async fn taken(&self, ticks: &[Timestamp]) -> Result<Vec<Timestamp>, BoxError> {
        let Active { plan, queue, .. } = &*self.active;
        let (Some(mirror), Some(cron)) = (self.worker.app.0.rules.mirror(queue), plan.schedule.cron_text())
        else {
            return Ok(ticks.to_vec());
        };
        let mut taken = Vec::with_capacity(ticks.len());
        for &at in ticks {
            let next = plan.schedule.after(at).unwrap_or(at);
            let tick =
                MirroredTick { now: self.worker.now(), ..MirroredTick::new(&plan.name, cron, at, next) };
            if mirror.take_tick(&tick).await? {
                taken.push(at);
            } else {
                tracing::debug!(name = plan.name, tick = %at, "the program that shares the queue has the tick");
            }
        }
        Ok(taken)
    }

    /// Publishes ticks, each confirmed. Published again after a failure, they are the same tasks.
    async fn publish(&self, ticks: &[Timestamp]) -> Result<(), BoxError> {
        if Instant::now() >= self.turn_end {
            return Err(Overtaken.into());
        }
        let client = self.worker.app.client();
        let prepared =
            ticks.iter().map(|tick| client.prepare(self.active.tick(tick_id(&self.active.plan.name, *tick))));
        let sent: Vec<Result<AsyncResult<Results>, SendError>> = client.publish(prepared.collect()).await;
        sent.into_iter().collect::<Result<Vec<_>, _>>()?;
        Ok(())
    }

    /// Moves the stored cursor. It fails if another worker has moved it.
    async fn pass(&mut self, cursor: Cursor) -> Result<(), BoxError> {
        let swap = Swap::new(&self.active.plan.name).cursor(self.stored.as_ref(), &cursor);
        match self.worker.app.client().commit(swap.commit()).await? {
            Committed::Done { .. } => {
                self.stored = Some(json(&cursor));
                self.cursor = cursor;
                Ok(())
            }
            Committed::Refused(facts) => {
                // The reply to this very change may have been lost.
                if facts.get(name::CURSOR) == Some(&json(&cursor)) {
                    self.stored = Some(json(&cursor));
                    self.cursor = cursor;
                    return Ok(());
                }
                Err(Overtaken.into())
            }
        }
    }
}
