//! Switches for all workers: task names that are disabled, and queues that are paused. Each is signed, with a number that
//! rises.

use std::{collections::BTreeSet, time::Duration};

use super::{OrderError, OrderResult, WorkerFilter};
use crate::{
    admission::WaitReason,
    backend::{BackendError, Committed},
    client::Client,
    id::{QueueName, TaskName},
    record::{Switch, control_record, set_switch, switches},
    security::{SwitchSetting, WorkerAction, next_number},
};

/// Time between two released tasks after a name was enabled: at most a thousand each second.
const RELEASE_PACE: Duration = Duration::from_millis(1);
/// Number of times that a switch is set again when others set it at the same time.
const MAX_TRIES: usize = 20;

impl Client {
    /// Disables a task name for all workers: its tasks wait until the name is [enabled](Self::enable_task) again. Runs that
    /// have begun go on. Workers know it within a second, and those that miss the wake-up with their next renewal.
    ///
    /// Where a backend loses its data, a worker that knows it writes it back.
    ///
    /// # Errors
    /// [`OrderError`].
    ///
    /// # Cancel safety
    /// A dropped future leaves the name disabled or not.
    pub async fn disable_task(&self, task: &TaskName) -> Result<(), OrderError> {
        self.set_switch(&Switch::Task(task.clone()), true).await
    }

    /// Enables a task name again, and releases the tasks that wait for it, at most a thousand each second. Returns their
    /// number.
    ///
    /// # Errors
    /// [`OrderError`]: the name may be enabled. Asking again is fine.
    ///
    /// # Cancel safety
    /// A dropped future leaves the name disabled or not, and each task released or not; asking again is fine.
    pub async fn enable_task(&self, task: &TaskName) -> Result<usize, OrderError> {
        self.set_switch(&Switch::Task(task.clone()), false).await?;
        Ok(self.release_parked(&WaitReason::disabled(task), RELEASE_PACE).await?)
    }

    /// Returns the task names that are disabled for all workers.
    ///
    /// # Errors
    /// [`BackendError`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn disabled_tasks(&self) -> Result<Vec<TaskName>, BackendError> {
        let task = |switch| match switch {
            Switch::Task(task) => Some(task),
            Switch::Queue(_) => None,
        };
        Ok(self.switched_off().await?.into_iter().filter_map(task).collect())
    }

    /// Pauses a queue: every worker unsubscribes from it, and nothing that waits in it starts until it is
    /// [resumed](Self::resume_queue). Runs that have begun go on. Waits at most 20 s for the live workers of the queue, and
    /// returns the id of the question to them and their answers. A worker that starts later obeys too.
    ///
    /// # Errors
    /// [`OrderError`]; after [`OrderError::Backend`] the queue may be paused.
    ///
    /// # Cancel safety
    /// A dropped future leaves the queue paused or not.
    pub async fn pause_queue(&self, queue: &QueueName) -> Result<(String, Vec<OrderResult>), OrderError> {
        self.switch_queue(queue, true).await
    }

    /// Resumes a queue that was paused, and waits at most 20 s for the live workers of the queue.
    ///
    /// # Errors
    /// [`OrderError`]; after [`OrderError::Backend`] the queue may be resumed.
    ///
    /// # Cancel safety
    /// A dropped future leaves the queue paused or not.
    pub async fn resume_queue(&self, queue: &QueueName) -> Result<(String, Vec<OrderResult>), OrderError> {
        self.switch_queue(queue, false).await
    }

    /// Returns the queues that are paused for all workers.
    ///
    /// # Errors
    /// [`BackendError`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn paused_queues(&self) -> Result<BTreeSet<QueueName>, BackendError> {
        let queue = |switch| match switch {
            Switch::Queue(queue) => Some(queue),
            Switch::Task(_) => None,
        };
        Ok(self.switched_off().await?.into_iter().filter_map(queue).collect())
    }

    async fn switch_queue(
        &self,
        queue: &QueueName,
        off: bool,
    ) -> Result<(String, Vec<OrderResult>), OrderError> {
        self.set_switch(&Switch::Queue(queue.clone()), off).await?;
        let of_queue = WorkerFilter { queue: Some(queue.clone()), ..WorkerFilter::new() };
        let workers = self.workers(&of_queue).await?;
        self.order_workers(&workers, WorkerAction::Settle, false).await
    }

    /// Returns the switches that are off and believed here, in the order of their names.
    async fn switched_off(&self) -> Result<BTreeSet<Switch>, BackendError> {
        let control = self.read(control_record()).await?;
        let trust = &self.app.0.trust;
        let is_off = |(switch, stored): (Switch, _)| {
            trust.read_switch(&switch.fact(), stored).is_ok_and(|setting| setting.off).then_some(switch)
        };
        Ok(switches(&control).filter_map(is_off).collect())
    }

    async fn set_switch(&self, switch: &Switch, off: bool) -> Result<(), OrderError> {
        let trust = &self.app.0.trust;
        for _ in 0..MAX_TRIES {
            let control = self.read(control_record()).await?;
            let before = control.get(&switch.fact());
            let seen = before.and_then(|stored| trust.read_switch(&switch.fact(), stored).ok());
            let at = self.app.clock().now();
            let number = next_number(at, seen.map(|seen| seen.number));
            let setting = SwitchSetting { off, number, at };
            let signed = trust.sign_switch(&switch.fact(), setting).map_err(OrderError::Key)?;
            if let Committed::Done { .. } = self.commit(set_switch(switch, &signed, before)).await? {
                return Ok(());
            }
        }
        Err(OrderError::Contended(switch.fact().into_owned()))
    }
}
