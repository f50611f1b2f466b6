//! The answer to "why does it not run?": asks the stores, and lets pure functions decide and speak.

mod answer;
mod code;
mod decide;
mod gather;
mod situation;
mod spent;
#[cfg(test)]
mod tests;

use machinist_adapter::error::chain;
use serde::Serialize;

pub use code::{WhyClass, WhyReason};
pub use spent::TimeSpent;

use crate::{
    backend::BackendError,
    client::Client,
    error::ResultError,
    id::{QueueName, TaskId},
};
use answer::Words;

/// Answer to the question why a task or a queue stands still.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Why {
    /// The task, if the question was about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The queue, if the question was about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<String>,
    /// Reason that decides.
    pub reason: WhyReason,
    /// Class of the reason.
    pub class: WhyClass,
    /// The reason in one sentence.
    pub sentence: String,
    /// Advice to people.
    pub advice: String,
    /// Every other reason that holds.
    pub also: Vec<WhyReason>,
    /// Content of the stores.
    pub evidence: Evidence,
}

/// Content of the stores about a task or a queue, as far as the answer rests on it.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Evidence {
    /// State in its record.
    pub state: Option<String>,
    /// Task name.
    pub task: Option<String>,
    /// Queue.
    pub queue: Option<String>,
    /// Newest attempt.
    pub attempt: Option<u32>,
    /// Worker that ran it last.
    pub worker: Option<String>,
    /// Time of its last start, or of sending if it was never started.
    pub since: Option<String>,
    /// Time before which it does not start.
    pub due: Option<String>,
    /// Reason of its parking.
    pub parked: Option<String>,
    /// Source of the limit that holds it back: `live`, or the workers that have it in their code or configuration.
    pub limit_source: Option<String>,
    /// Error of its end, or of its last attempt.
    pub error: Option<String>,
    /// Id of its dead letter.
    pub dead_letter: Option<String>,
    /// Number of the workflow's tasks that have ended.
    pub steps_done: Option<u32>,
    /// Number of the workflow's tasks.
    pub steps_total: Option<u32>,
    /// Names of the steps that it waits for.
    pub missing: Vec<String>,
    /// `true` if its queue is paused for all workers.
    pub queue_paused: bool,
    /// Number of live workers that take tasks from its queue.
    pub consumers: usize,
    /// Number of messages that wait in its queue.
    pub ready: Option<u64>,
    /// Names of tasks that the workers of its queue run, as of their last renewal.
    pub running: Vec<String>,
    /// Parts of its time, if it was started.
    pub time_spent: Vec<TimeSpent>,
}

impl Why {
    /// Creates the answer about a task or a queue that cannot be looked at, because the broker or the backend is away.
    /// `problem` is the error in one line.
    pub fn away(id: Option<&TaskId>, queue: Option<&QueueName>, backend: bool, problem: &str) -> Self {
        let reason = if backend { WhyReason::BackendAway } else { WhyReason::BrokerAway };
        Self::new(id, queue, &[reason], answer::away(reason, problem), Evidence::default())
    }

    fn new(
        id: Option<&TaskId>,
        queue: Option<&QueueName>,
        found: &[WhyReason],
        words: Words,
        evidence: Evidence,
    ) -> Self {
        let reason = found.first().copied().unwrap_or(WhyReason::Queued);
        Self {
            id: id.map(TaskId::to_string),
            queue: queue.map(QueueName::to_string),
            reason,
            class: reason.class(),
            sentence: words.sentence,
            advice: words.advice,
            also: found.iter().skip(1).copied().collect(),
            evidence,
        }
    }

    fn of_task(situation: &situation::TaskSituation) -> Self {
        let found = decide::of_task(situation);
        let words = answer::of_task(found.first().copied().unwrap_or(WhyReason::Queued), situation);
        let mut why =
            Self::new(Some(&situation.id), None, &found, words, answer::evidence_of_task(situation));
        if why.reason == WhyReason::Limited && situation.limit_is_zero {
            why.class = WhyClass::Act;
        }
        why
    }

    fn of_queue(situation: &situation::QueueSituation) -> Self {
        let found = decide::of_queue(situation);
        let words = answer::of_queue(found.first().copied().unwrap_or(WhyReason::Queued), situation);
        Self::new(None, Some(&situation.name), &found, words, answer::evidence_of_queue(situation))
    }
}

impl Client {
    /// Says why a task does not run, or what it does. A server that is away is an answer too.
    ///
    /// # Errors
    /// [`ResultError`]: the backend refuses, or nobody trusted wrote the outcome of the task.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn why(&self, id: &TaskId) -> Result<Why, ResultError> {
        match gather::task(self, id).await {
            Ok(situation) => Ok(Why::of_task(&situation)),
            Err(ResultError::Backend(error @ BackendError::Unavailable(_))) => {
                Ok(Why::away(Some(id), None, true, &chain(&error).join(": ")))
            }
            Err(error) => Err(error),
        }
    }

    /// Says why the tasks of a queue do not run, if something is in their way.
    ///
    /// # Errors
    /// [`BackendError`] if the backend refuses.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn why_queue(&self, queue: &QueueName) -> Result<Why, BackendError> {
        match gather::queue(self, queue.clone()).await {
            Ok(situation) => Ok(Why::of_queue(&situation)),
            Err(error @ BackendError::Unavailable(_)) => {
                Ok(Why::away(None, Some(queue), true, &chain(&error).join(": ")))
            }
            Err(error) => Err(error),
        }
    }
}
