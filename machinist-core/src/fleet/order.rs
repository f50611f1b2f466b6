//! Orders to workers: they are given with a number that rises, awaited, and can be asked for by their id.

use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use super::WorkerInfo;
use crate::{
    backend::{BackendError, Committed},
    client::Client,
    clock::Timestamp,
    control::ControlError,
    id::{RecordId, SessionId, TaskId},
    left_out::left_out,
    record::{
        Facts, OrderAnswer, answer_of, give_lasting_order, give_order, is_alive, keep_note, name,
        name_record, note_record, withdraw_order,
    },
    rfc3339,
    security::{OrderNote, WorkerAction, WorkerOrder, next_number},
};

/// Time after which an order is not obeyed any more, and its answer is not awaited.
const ORDER_TIMEOUT: Duration = Duration::from_secs(20);
/// Interval at which answers are looked for.
const ANSWER_INTERVAL: Duration = Duration::from_millis(50);
/// Number of times that an order is given again when others give orders to the same workers at the same time.
const MAX_TRIES: usize = 20;

/// Result of an order to one worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct OrderResult {
    /// Name of the worker.
    pub worker: String,
    /// `true` if the worker has obeyed.
    pub done: bool,
    /// Reason that it has not.
    pub reason: Option<String>,
    /// Time of the answer.
    #[serde(serialize_with = "rfc3339::if_known")]
    pub at: Option<Timestamp>,
    /// Id of the session that has answered.
    pub incarnation: Option<String>,
    /// Time from the order to the answer, as the sender saw it.
    #[serde(skip)]
    pub took: Duration,
}

/// An order of the last day, with its answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct OrderReport {
    /// Id of the order.
    pub id: String,
    /// Action that was ordered, as a word.
    pub action: &'static str,
    /// `true` if running tasks were to be handed back.
    pub now: bool,
    /// Name of the key that has signed the order.
    pub by: Option<String>,
    /// Time of the order.
    #[serde(serialize_with = "rfc3339::instant")]
    pub at: Timestamp,
    /// Answers, one for each worker that was ordered.
    pub results: Vec<OrderResult>,
}

/// Error of an order to workers.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OrderError {
    /// The order cannot be signed by a key that may command workers.
    #[error("the order cannot be signed: {0}")]
    Key(String),
    /// The backend could not be asked.
    #[error("the backend could not be asked")]
    Backend(#[from] BackendError),
    /// Others change the same state again and again.
    #[error("others give orders to {0} at the same time; try again")]
    Contended(String),
    /// A worker has not told what it runs.
    #[error("{worker} has not told what it runs: {reason}")]
    NotTold {
        /// Name of the worker.
        worker: String,
        /// Reason.
        reason: String,
    },
    /// The switch is set, and the tasks that wait could not be released.
    #[error("the tasks that wait could not be released")]
    Release(#[from] ControlError),
}

impl OrderResult {
    fn unanswered(worker: &str, reason: String) -> Self {
        let worker = worker.to_owned();
        Self { worker, done: false, reason: Some(reason), at: None, incarnation: None, took: Duration::ZERO }
    }

    /// Takes the answer from the record of the worker's name, if it is there.
    fn read(&mut self, facts: &Facts, id: &str) {
        let answer = answer_of(facts, id).and_then(|answer| serde_json::from_slice(answer).ok());
        if let Some(OrderAnswer { done, reason, at, session }) = answer {
            (self.done, self.reason, self.at, self.incarnation) = (done, reason, Some(at), Some(session));
        }
    }
}

impl Client {
    /// Gives an order to these workers, and waits at most 20 s for their answers. Returns the id of the order, and one
    /// result for each worker.
    ///
    /// A pause or a resumption is what is wanted of the name from then on, also if the worker dies before it answers. With
    /// `now`, running tasks are handed back instead of being awaited.
    ///
    /// # Errors
    /// [`OrderError`]; after [`OrderError::Backend`] any part of it may have been ordered.
    ///
    /// # Cancel safety
    /// A dropped future leaves each worker ordered or not.
    pub async fn order_workers(
        &self,
        workers: &[WorkerInfo],
        action: WorkerAction,
        now: bool,
    ) -> Result<(String, Vec<OrderResult>), OrderError> {
        let id = TaskId::fresh().to_string();
        let issued = self.app.clock().now();
        let names = workers.iter().map(|worker| worker.name.clone()).collect();
        let note = OrderNote { action: action.clone(), now, issued, workers: names };
        let note = self.app.0.trust.sign_note(&id, &note).map_err(OrderError::Key)?;
        self.commit(keep_note(&id, &note)).await?;
        let order = WorkerOrder {
            id: id.clone(),
            action,
            now,
            session: None,
            number: next_number(issued, None),
            issued,
            expires: issued.plus(ORDER_TIMEOUT),
        };
        self.give(workers, &order).await?;
        let ordered = Instant::now();
        let mut results = self.answers(workers, &id, ordered).await?;
        self.tell_of_the_gone(workers, &order.action, &mut results).await?;
        for unanswered in results.iter().filter(|result| result.at.is_none()) {
            let withdrawn = self.commit(withdraw_order(&unanswered.worker, &id)).await;
            left_out("the name of a worker", withdrawn.map(Some))?;
        }
        Ok((id, results))
    }

    /// Returns an order that was given within the last day, with its answers. A worker keeps its last 20 answers. `None` if
    /// there is no such order, or none that is believed.
    ///
    /// # Errors
    /// [`BackendError`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn order(&self, id: &str) -> Result<Option<OrderReport>, BackendError> {
        let facts = self.read(note_record(id)).await?;
        let Some(stored) = facts.get(name::ABOUT) else { return Ok(None) };
        let (note, by) = match self.app.0.trust.read_note(id, stored) {
            Ok(read) => read,
            Err(why) => {
                tracing::warn!(id, why, "the note of this order is not believed");
                return Ok(None);
            }
        };
        let records: Vec<_> = note.workers.iter().map(|worker| name_record(worker)).collect();
        let mut results = Vec::new();
        for (worker, facts) in note.workers.iter().zip(self.app.backend().read_each(&records).await?) {
            let mut result = OrderResult::unanswered(worker, "it has not answered".to_owned());
            match facts {
                Ok(facts) => result.read(&facts, id),
                Err(error) => result.reason = Some(error.to_string()),
            }
            results.push(result);
        }
        let OrderNote { action, now, issued, .. } = note;
        Ok(Some(OrderReport { id: id.to_owned(), action: action.as_str(), now, by, at: issued, results }))
    }

    /// Writes an order to the records of these workers. A lasting one gets a number above that of what was wanted before.
    async fn give(&self, workers: &[WorkerInfo], order: &WorkerOrder) -> Result<(), OrderError> {
        let trust = &self.app.0.trust;
        let mut left: Vec<_> = workers.iter().collect();
        for _ in 0..MAX_TRIES {
            let records: Vec<_> = left.iter().map(|worker| name_record(&worker.name)).collect();
            let mut commits = Vec::new();
            let mut asked = Vec::new();
            for (worker, facts) in left.into_iter().zip(self.app.backend().read_each(&records).await?) {
                // One whose record another program has spoilt cannot be ordered. The others can.
                let Some(facts) = left_out("the name of a worker", facts.map(Some))? else { continue };
                let mut order = order.clone();
                let commit = if order.action.is_lasting() {
                    let before = facts.get(name::WANTED);
                    let seen = before.and_then(|stored| trust.read_order(&worker.name, stored).ok());
                    order.number = next_number(order.issued, seen.map(|seen| seen.number));
                    let signed = trust.sign_order(&worker.name, &order).map_err(OrderError::Key)?;
                    give_lasting_order(&worker.name, &order.id, &signed, before)
                } else {
                    order.session = Some(worker.incarnation.clone());
                    let signed = trust.sign_order(&worker.name, &order).map_err(OrderError::Key)?;
                    give_order(&worker.name, &order.id, &signed)
                };
                commits.push(commit.into());
                asked.push(worker);
            }
            let answers = self.app.backend().commit(commits).await;
            let mut refused = Vec::new();
            for (worker, answer) in asked.into_iter().zip(answers) {
                if let Some(Committed::Refused(_)) = left_out("the name of a worker", answer.map(Some))? {
                    refused.push(worker);
                }
            }
            left = refused;
            if left.is_empty() {
                return Ok(());
            }
        }
        Err(OrderError::Contended(left.first().map_or_else(String::new, |worker| worker.name.clone())))
    }

    /// Says of those who have not answered that their process has gone, where its session has ended.
    async fn tell_of_the_gone(
        &self,
        workers: &[WorkerInfo],
        action: &WorkerAction,
        results: &mut [OrderResult],
    ) -> Result<(), BackendError> {
        let unanswered = workers.iter().zip(results).filter(|(_, result)| result.at.is_none());
        let (sessions, mut results): (Vec<_>, Vec<_>) = unanswered
            .map(|(worker, result)| (RecordId::from(&SessionId::from(worker.incarnation.as_str())), result))
            .unzip();
        if sessions.is_empty() {
            return Ok(());
        }
        for (result, facts) in results.iter_mut().zip(self.app.backend().read_each(&sessions).await?) {
            if facts.is_ok_and(|facts| !is_alive(&facts)) {
                let then = if action.is_lasting() { ", and the next one of its name obeys" } else { "" };
                result.reason =
                    Some(format!("no answer within {ORDER_TIMEOUT:?}: its process has gone{then}"));
            }
        }
        Ok(())
    }

    /// Waits for the answers to an order.
    async fn answers(
        &self,
        workers: &[WorkerInfo],
        id: &str,
        ordered: Instant,
    ) -> Result<Vec<OrderResult>, BackendError> {
        let none = |worker: &WorkerInfo| {
            let reason = format!("no answer within {ORDER_TIMEOUT:?}");
            OrderResult { took: ORDER_TIMEOUT, ..OrderResult::unanswered(&worker.name, reason) }
        };
        let mut results: Vec<_> = workers.iter().map(none).collect();
        while ordered.elapsed() < ORDER_TIMEOUT && results.iter().any(|result| result.at.is_none()) {
            tokio::time::sleep(ANSWER_INTERVAL).await;
            let mut waiting: Vec<_> = results.iter_mut().filter(|result| result.at.is_none()).collect();
            let records: Vec<_> = waiting.iter().map(|result| name_record(&result.worker)).collect();
            for (result, facts) in waiting.iter_mut().zip(self.app.backend().read_each(&records).await?) {
                let Ok(facts) = facts else { continue };
                result.read(&facts, id);
                if result.at.is_some() {
                    result.took = ordered.elapsed();
                }
            }
        }
        Ok(results)
    }
}
