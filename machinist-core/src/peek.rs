//! Looks at the first messages of a queue, which stay where they are.
//!
//! A broker may count each look as a delivery, and bury a message that was delivered too often. So a look that has found
//! messages with few deliveries left is remembered, and no other look follows for a day. One look at a time is made at a queue.

use std::time::Duration;

use crate::{
    backend::{BackendError, Commit, Committed, Expiry},
    broker::{BrokerError, Message, PeekedMessage},
    client::Client,
    id::{QueueName, RecordId, RecordKind, RunId, TaskId},
    record::{Record, TaskState, end_turn, json, take_turn},
    security::{Acceptance, accept},
};

/// Maximum number of messages of one look.
const MAX_MESSAGES: u16 = 100;
/// Maximum time of a look.
const LIMIT: Duration = Duration::from_secs(5);
/// Time after which another look may be made where one has died.
const TURN: Duration = Duration::from_secs(15);
/// Number of deliveries that looks leave to workers.
const LEFT_TO_WORKERS: u64 = 500;
/// Time for which nobody looks after that.
const REST: Duration = Duration::from_secs(24 * 3600);
/// Fact with the deliveries that were left.
const LEFT: &str = "left";

/// First messages of a queue, which wait there.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct QueuePeek {
    /// Tasks in the order of delivery, as their records show them. A task without a record is as its message says, and
    /// [`Record::locked`] gives the reason if the message is not believed.
    pub records: Vec<Record>,
    /// Number of messages that name no task.
    pub unnamed: u64,
}

/// Error of a look at a queue.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PeekError {
    /// The broker has no way to look.
    #[error("this broker cannot show messages that wait")]
    NotSupported,
    /// Somebody else looks at the queue.
    #[error("another look at queue {0} is going on; try again in some seconds")]
    Busy(QueueName),
    /// Each look brings messages closer to the delivery limit.
    #[error(
        "queue {queue} has messages with {left} deliveries left until the broker buries them, and each look takes one; \
         they are left to workers for a day"
    )]
    Spent {
        /// The queue.
        queue: QueueName,
        /// Deliveries that were left.
        left: u64,
    },
    /// The broker did not answer in time.
    #[error("the broker did not show the messages of queue {0} within {LIMIT:?}")]
    Timeout(QueueName),
    /// The broker cannot be asked, or refuses.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// The backend cannot be asked.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

fn record_of_looks(queue: &QueueName) -> RecordId {
    RecordId::new(RecordKind::Control, &format!("peek {queue}"))
}

impl Client {
    /// Looks at the first messages of a queue, 100 at most, and leaves them there in their order.
    ///
    /// # Errors
    /// [`PeekError`]. No message is lost or moved by it.
    ///
    /// # Cancel safety
    /// The messages are back in the queue when the broker has noticed it. For 15 s nobody else can look.
    pub async fn peek_queue(&self, queue: &QueueName, limit: u16) -> Result<QueuePeek, PeekError> {
        let (work, holder) = (format!("peek {queue}"), RunId::fresh());
        match self.commit(take_turn(&work, holder.as_str(), TURN)).await? {
            Committed::Done { .. } => {}
            Committed::Refused(_) => return Err(PeekError::Busy(queue.clone())),
        }
        let looked = self.look(queue, limit.min(MAX_MESSAGES)).await;
        let ended = self.commit(end_turn(&work, holder.as_str())).await;
        let peeked = looked?;
        // Its time may be over, so it is no error if somebody else has it.
        let (Committed::Done { .. } | Committed::Refused(_)) = ended?;
        self.peeked_tasks(queue, peeked).await
    }

    /// Asks the broker, unless messages have too few deliveries left.
    async fn look(&self, queue: &QueueName, limit: u16) -> Result<Vec<PeekedMessage>, PeekError> {
        let record = record_of_looks(queue);
        let known = self.app.backend().read(std::slice::from_ref(&record)).await?.pop().unwrap_or_default();
        if let Some(left) = known.read::<u64>(LEFT) {
            return Err(PeekError::Spent { queue: queue.clone(), left });
        }
        let peeked = match tokio::time::timeout(LIMIT, self.app.broker().peek(queue, limit)).await {
            Ok(peeked) => peeked?.ok_or(PeekError::NotSupported)?,
            Err(_) => return Err(PeekError::Timeout(queue.clone())),
        };
        let left = peeked.iter().filter_map(|message| message.deliveries_left).min();
        if let Some(left) = left.filter(|left| *left <= LEFT_TO_WORKERS) {
            let mut commit = Commit::new(record);
            commit.facts = vec![(LEFT.into(), json(&left))];
            commit.expiry = Expiry::After(REST);
            let (Committed::Done { .. } | Committed::Refused(_)) = self.commit(commit).await?;
        }
        Ok(peeked)
    }

    /// Returns the tasks of messages, from their records where there are any.
    async fn peeked_tasks(
        &self,
        queue: &QueueName,
        peeked: Vec<PeekedMessage>,
    ) -> Result<QueuePeek, PeekError> {
        let mut found = QueuePeek::default();
        for PeekedMessage { message, .. } in &peeked {
            match self.record_of_message(queue, message) {
                Some(record) => found.records.push(record),
                None => found.unnamed += 1,
            }
        }
        let ids: Vec<RecordId> = found.records.iter().map(|record| RecordId::from(&record.id)).collect();
        let facts = if ids.is_empty() { Vec::new() } else { self.app.backend().read_each(&ids).await? };
        for (record, facts) in found.records.iter_mut().zip(facts) {
            let Ok(facts) = facts else { continue };
            match self.app.record_of(&record.id, facts) {
                Ok(Some(known)) => *record = known,
                Ok(None) => {}
                Err(error) => record.locked = Some(error.to_string()),
            }
        }
        Ok(found)
    }

    /// Returns what a message says about its task; `None` if it names none.
    fn record_of_message(&self, queue: &QueueName, message: &Message) -> Option<Record> {
        let app = &self.app.0;
        let said = accept(&app.trust, &app.rules, &app.max_sizes, queue, message, app.clock.now());
        match said {
            Acceptance::Accepted(envelope, _)
            | Acceptance::Rejected(envelope, ..)
            | Acceptance::Undecryptable(envelope, _) => Some(Record {
                name: Some(envelope.name.to_string()),
                queue: Some(envelope.queue.to_string()),
                attempt: envelope.attempt,
                sent_at: Some(envelope.issued),
                eta: envelope.eta,
                expires_at: envelope.expires,
                ..Record::of(envelope.id, TaskState::Pending)
            }),
            Acceptance::Deferred(reason, error)
            | Acceptance::NotOurs(reason, error)
            | Acceptance::Refused(reason, error) => Some(Record {
                name: message.kind.clone(),
                queue: Some(queue.to_string()),
                locked: Some(format!("{}: {error}", reason.as_str())),
                ..Record::of(TaskId::parse(message.id.as_deref()?).ok()?, TaskState::Pending)
            }),
            Acceptance::Unidentified => None,
        }
    }
}
