//! The answer to "why does it not run?": asks the stores, and lets a pure function decide.

mod decide;

use serde::Serialize;

pub use decide::{WhyClass, WhyReason};

use crate::{client::Client, error::ResultError, fleet::WorkerFilter, id::TaskId, record::Record};
use decide::{Situation, reasons};

/// Answer to the question why a task does not run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Why {
    /// The task.
    pub id: String,
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

/// Content of the stores about a task.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Evidence {
    /// State in its record.
    pub state: Option<String>,
    /// Task name.
    pub task: Option<String>,
    /// Queue.
    pub queue: Option<String>,
    /// Worker that ran it last.
    pub worker: Option<String>,
    /// Time before which it does not start.
    pub due: Option<String>,
    /// Reason of its parking.
    pub parked: Option<String>,
    /// `true` if its queue is paused for all workers.
    pub queue_paused: bool,
    /// Number of live workers that take tasks from its queue.
    pub consumers: usize,
}

impl Client {
    /// Says why a task does not run, or what it does.
    ///
    /// # Errors
    /// [`ResultError`] if the backend cannot be asked.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn why(&self, id: &TaskId) -> Result<Why, ResultError> {
        let record = match self.result(id.clone()).record().await {
            Ok(record) => record,
            Err(ResultError::Unknown { .. }) => {
                return Ok(answer(id, &[WhyReason::UnknownId], Evidence::default()));
            }
            Err(error) => return Err(error),
        };
        let workers = self.workers(&WorkerFilter::new()).await?;
        let (disabled, paused) = tokio::try_join!(self.disabled_tasks(), self.paused_queues())?;
        let queue_paused = paused.iter().any(|name| record.queue.as_deref() == Some(name.as_str()));
        let disabled = disabled.iter().any(|name| record.name.as_deref() == Some(name.as_str()));
        let now = self.app.clock().now();
        let found = reasons(&Situation { record: &record, workers: &workers, disabled, queue_paused, now });
        let consumes = |queues: &[String]| queues.iter().any(|name| record.queue.as_ref() == Some(name));
        let consumers = workers.iter().filter(|worker| consumes(&worker.queues)).count();
        Ok(answer(id, &found, Evidence { consumers, queue_paused, ..evidence(&record) }))
    }
}

fn evidence(record: &Record) -> Evidence {
    Evidence {
        state: Some(record.state.to_string()),
        task: record.name.clone(),
        queue: record.queue.clone(),
        worker: record.worker.clone(),
        due: record.eta.map(|eta| eta.to_string()),
        parked: record.parked.as_ref().map(|parked| parked.reason.clone()),
        queue_paused: false,
        consumers: 0,
    }
}

fn answer(id: &TaskId, found: &[WhyReason], evidence: Evidence) -> Why {
    let reason = found.first().copied().unwrap_or(WhyReason::Queued);
    let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "?".to_owned());
    let (task, queue, worker) = (text(&evidence.task), text(&evidence.queue), text(&evidence.worker));
    let due = text(&evidence.due);
    let sentence = match reason {
        WhyReason::UnknownId => {
            "there is no record: it was never sent, its record has expired, or it is in another backend"
                .to_owned()
        }
        WhyReason::Ended => format!("it has ended in {}", text(&evidence.state)),
        WhyReason::Running => format!("worker {worker} runs it"),
        WhyReason::WorkerGone => format!("worker {worker} ran it and is not live any more"),
        WhyReason::Delayed => format!("its time is {due}"),
        WhyReason::Retry => format!("its next run is due at {due}"),
        WhyReason::Disabled => format!("the task {task} is disabled for all workers"),
        WhyReason::CircuitOpen => {
            format!(
                "a worker failed the task {task} again and again, and left this one to others for a while"
            )
        }
        WhyReason::Limited => format!("a rule refuses its start: {}", text(&evidence.parked)),
        WhyReason::NoConsumer => format!("no live worker takes tasks from queue {queue}"),
        WhyReason::UnknownTask => format!("no live worker of queue {queue} knows the task {task}"),
        WhyReason::Paused if evidence.queue_paused => format!("queue {queue} is paused for all workers"),
        WhyReason::Paused => format!("every worker of queue {queue} that knows the task {task} is asleep"),
        WhyReason::Busy => format!("no worker of queue {queue} that knows the task {task} has a free slot"),
        WhyReason::Queued => format!("it waits for its turn in queue {queue}"),
    };
    Why {
        id: id.to_string(),
        reason,
        class: reason.class(),
        sentence,
        advice: match reason {
            WhyReason::Paused if evidence.queue_paused => {
                format!("`machinist queues resume {queue}` lets workers take from it")
            }
            reason => reason.advice().to_owned(),
        },
        also: found.iter().skip(1).copied().collect(),
        evidence,
    }
}
