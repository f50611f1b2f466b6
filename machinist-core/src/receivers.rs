//! The question whether anybody receives a task, for people who have just sent it.

use std::collections::BTreeSet;

use crate::{
    affinity::TagQueue,
    backend::BackendError,
    broker::BrokerError,
    builtin::WORKFLOW_TASK,
    client::Client,
    fleet::{WorkerFilter, WorkerInfo},
    id::{QueueName, TaskName},
    nearest::nearest,
    record::PresenceState,
};

/// Lack of a worker that could run a task.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum NoReceiver {
    /// No worker consumes the queue.
    NoConsumer {
        /// Queue with the nearest name that a worker consumes, if one is near.
        nearest: Option<String>,
        /// Queues of the workers that know the task.
        task_is_in: BTreeSet<String>,
    },
    /// No worker of the queue has the tags that the task requires.
    NoTag {
        /// Queue of the workers that lack them.
        queue: String,
        /// Tags that the task requires.
        tags: Vec<String>,
    },
    /// Workers consume the queue, and none of them knows the task.
    UnknownTask {
        /// The nearest name that a worker of the queue knows, if one is near.
        nearest: Option<String>,
        /// Queues of the workers that know the task.
        task_is_in: BTreeSet<String>,
    },
}

/// Error of the question for receivers.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiverError {
    /// The broker could not be asked.
    #[error("the broker could not be asked")]
    Broker(#[from] BrokerError),
    /// The backend could not be asked.
    #[error("the backend could not be asked")]
    Backend(#[from] BackendError),
}

impl Client {
    /// Returns the lack of a worker that takes tasks from this queue and knows this task; `None` if there is one, or if
    /// the stores do not tell: the broker counts consumers that no live worker describes.
    ///
    /// # Errors
    /// [`ReceiverError`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn no_receiver(
        &self,
        queue: &QueueName,
        task: &TaskName,
    ) -> Result<Option<NoReceiver>, ReceiverError> {
        let workers = self.workers(&WorkerFilter::new()).await?;
        let Some(lack) = lack(queue, task, &workers) else { return Ok(None) };
        let depths = self.app.broker().depth(std::slice::from_ref(queue)).await?;
        let consumers = depths.first().and_then(|depth| depth.consumers).unwrap_or(0);
        let described = workers.iter().filter(|worker| consumes(worker, queue)).count() as u64;
        Ok(Some(lack).filter(|_| consumers <= described))
    }
}

fn consumes(worker: &WorkerInfo, queue: &QueueName) -> bool {
    worker.takes_from(queue)
}

/// Decides from the descriptions of all live workers. A worker that drains takes no more tasks; one that sleeps takes them
/// when it is resumed.
fn lack(queue: &QueueName, task: &TaskName, workers: &[WorkerInfo]) -> Option<NoReceiver> {
    let live: Vec<_> = workers.iter().filter(|worker| worker.state != PresenceState::Draining).collect();
    let knows = |worker: &&&WorkerInfo| task.as_str() == WORKFLOW_TASK || worker.may_know(task.as_str());
    let consumers: Vec<_> = live.iter().filter(|worker| consumes(worker, queue)).collect();
    let task_is_in = || live.iter().filter(knows).flat_map(|worker| worker.queues.iter().cloned()).collect();
    if consumers.is_empty() {
        if let Some(required) = TagQueue::of(queue.as_str()) {
            let tags = required.tags.iter().map(|tag| (*tag).to_owned()).collect();
            return Some(NoReceiver::NoTag { queue: required.base.to_owned(), tags });
        }
        let queues = live.iter().flat_map(|worker| &worker.queues).map(String::as_str);
        let nearest = nearest(queue.as_str(), queues).map(str::to_owned);
        return Some(NoReceiver::NoConsumer { nearest, task_is_in: task_is_in() });
    }
    if consumers.iter().any(knows) {
        return None;
    }
    let names = consumers.iter().flat_map(|worker| &worker.tasks).map(String::as_str);
    let nearest = nearest(task.as_str(), names).map(str::to_owned);
    Some(NoReceiver::UnknownTask { nearest, task_is_in: task_is_in() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::Timestamp,
        record::{MAX_DESCRIBED_TASKS, WorkerHealth},
    };

    fn worker(queues: &[&str], tasks: &[&str]) -> WorkerInfo {
        let owned = |all: &[&str]| all.iter().map(ToString::to_string).collect();
        WorkerInfo {
            name: "w".into(),
            incarnation: "1".into(),
            state: PresenceState::Awake,
            health: WorkerHealth::Green,
            health_reason: None,
            host: None,
            pid: 1,
            version: None,
            started_at: Timestamp::from_micros(0),
            patterns: Vec::new(),
            shapes: Default::default(),
            asleep: None,
            wakes: false,
            queues: owned(queues),
            tasks: owned(tasks),
            tags: Vec::new(),
            limits: Default::default(),
            concurrency: 1,
            running: 0,
            processed: 0,
            failed: 0,
            retried: 0,
            memory: None,
            open_circuits: Vec::new(),
            runs: Vec::new(),
            roles: Vec::new(),
        }
    }

    fn lack_of(queue: &str, task: &str, workers: &[WorkerInfo]) -> Option<NoReceiver> {
        lack(&QueueName::parse(queue).unwrap(), &TaskName::parse(task).unwrap(), workers)
    }

    #[test]
    fn a_queue_without_a_worker_is_told_with_the_nearest_one() {
        let workers = [worker(&["mail"], &["send_mail"])];
        let none = || BTreeSet::new();
        assert_eq!(
            lack_of("mial", "other", &workers),
            Some(NoReceiver::NoConsumer { nearest: Some("mail".into()), task_is_in: none() })
        );
        assert_eq!(
            lack_of("video", "send_mail", &workers),
            Some(NoReceiver::NoConsumer { nearest: None, task_is_in: BTreeSet::from(["mail".into()]) })
        );
        assert_eq!(
            lack_of("mail", "send_mail", &[]),
            Some(NoReceiver::NoConsumer { nearest: None, task_is_in: none() })
        );
    }

    #[test]
    fn an_unknown_name_is_told_with_the_nearest_one_of_its_queue() {
        let workers = [worker(&["mail"], &["send_mail"]), worker(&["video"], &["send_mial"])];
        assert_eq!(lack_of("mail", "send_mail", &workers), None);
        let told = |nearest: Option<&str>, queues: &[&str]| {
            let task_is_in = queues.iter().map(ToString::to_string).collect();
            Some(NoReceiver::UnknownTask { nearest: nearest.map(str::to_owned), task_is_in })
        };
        assert_eq!(lack_of("mail", "send_mial", &workers), told(Some("send_mail"), &["video"]));
        assert_eq!(lack_of("mail", "resize", &workers), told(None, &[]));
    }

    #[test]
    fn a_worker_counts_that_sleeps_or_may_know_more_than_it_describes() {
        let asleep = WorkerInfo { state: PresenceState::Asleep, ..worker(&["q"], &["a"]) };
        assert_eq!(lack_of("q", "a", &[asleep]), None);
        let many: Vec<String> = (0..MAX_DESCRIBED_TASKS).map(|number| format!("t{number}")).collect();
        assert_eq!(lack_of("q", "a", &[WorkerInfo { tasks: many, ..worker(&["q"], &[]) }]), None);
        let draining = WorkerInfo { state: PresenceState::Draining, ..worker(&["q"], &["a"]) };
        assert!(matches!(lack_of("q", "a", &[draining]), Some(NoReceiver::NoConsumer { .. })));
    }
}
