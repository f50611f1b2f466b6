//! Messages that workers do not accept: counted by queue and reason in one record of the backend, and shown at once.
//!
//! A sender whose key the workers do not have sees its tasks wait, and every process that can publish can send messages
//! that are refused. Both must be visible everywhere, and neither may fill the backend: there is one fact for each queue
//! and reason, and one small record for each of a fixed number of waiting messages.

mod tally;
mod waiting;

use serde::{Deserialize, Serialize};

use crate::{
    backend::{Backend, BackendError, Commit, Committed, Expiry},
    client::Client,
    clock::Timestamp,
    id::{QueueName, RecordId, RecordKind, TaskId},
    left_out::left_out,
    record::{FactName, Facts, UNFINISHED_TTL, json},
};

pub(crate) use tally::RefusedTally;
pub(crate) use waiting::note_waiting;

/// Maximum size of an error, in bytes.
const MAX_ERROR_BYTES: usize = 300;
/// Number of tries to add counts while other workers add theirs.
const MAX_TRIES: usize = 10;

/// Messages of one queue that workers did not accept, for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RefusedMessages {
    /// Queue that delivered them.
    pub queue: QueueName,
    /// Reason: one of the words of `docs/delivery.md`.
    pub reason: String,
    /// `true` if they wait for a worker that can read them, and are offered again for an hour; `false` if they are dead
    /// letters.
    pub waiting: bool,
    /// Number of messages so far. A message that waits is counted once.
    pub count: u64,
    /// Time at which the last one was delivered.
    pub last: Timestamp,
    /// Error of the last one.
    pub error: String,
}

impl RefusedMessages {
    /// Reads the counts of all queues. They are kept for 30 days after the last message.
    ///
    /// # Errors
    /// [`BackendError`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn read(backend: &dyn Backend) -> Result<Vec<Self>, BackendError> {
        let facts = backend.read(&[record()]).await?.pop().unwrap_or_default();
        Ok(facts.iter().filter_map(|(name, _)| facts.read(name)).collect())
    }

    /// Returns the remedy, for a person.
    pub fn remedy(&self) -> &'static str {
        remedy(&self.reason, self.waiting)
    }

    fn fact(&self) -> FactName {
        let Self { queue, reason, waiting, .. } = self;
        format!("{} {reason} {queue}", if *waiting { "waiting" } else { "dead" }).into()
    }

    /// Adds the newer counts of the same queue and reason.
    fn add(&mut self, newer: &Self) {
        self.count = self.count.saturating_add(newer.count);
        if newer.last >= self.last {
            self.last = newer.last;
            self.error.clone_from(&newer.error);
        }
    }
}

/// Returns the remedy for messages that are not accepted for this reason.
pub(crate) fn remedy(reason: &str, waiting: bool) -> &'static str {
    match (reason, waiting) {
        ("unknown-key", _) => {
            "give the workers the key with `state = \"verify\"`, or the sender a key that the workers have"
        }
        ("unregistered", _) => "run a worker of this queue that knows the task, or correct the name",
        ("undecodable", true) => "update the workers: a newer program sent it",
        ("bad-signature", _) => {
            "check that sender and workers have the same secret, namespace and vhost; otherwise somebody forges tasks"
        }
        ("unsigned", _) => "give the sender a key, or allow its tasks on this queue without a signature",
        _ => "`machinist dead list` shows the letters",
    }
}

fn record() -> RecordId {
    RecordId::new(RecordKind::Control, "refused")
}

/// Adds counts to the record. Returns `false` if other workers came first too often.
async fn add_counts(backend: &dyn Backend, counts: &[RefusedMessages]) -> Result<bool, BackendError> {
    let mut facts = backend.read(&[record()]).await?.pop().unwrap_or_default();
    for _ in 0..MAX_TRIES {
        let answers = backend.commit(vec![addition(&facts, counts).into()]).await;
        match answers.into_iter().next() {
            Some(Ok(Committed::Refused(newer))) => facts = newer,
            Some(Err(error)) => return Err(error),
            Some(Ok(Committed::Done { .. })) | None => return Ok(true),
        }
    }
    Ok(false)
}

/// Creates the commit that adds counts to the record as it was read.
fn addition(facts: &Facts, counts: &[RefusedMessages]) -> Commit {
    let mut commit = Commit::new(record());
    for count in counts {
        let name = count.fact();
        let mut sum = count.clone();
        match facts.get(&name) {
            Some(known) => {
                if let Ok(mut known) = serde_json::from_slice::<RefusedMessages>(known) {
                    known.add(count);
                    sum = known;
                }
                commit.require.push((name.clone(), known.clone()));
                commit.drop.push(name.clone());
            }
            None => commit.unless.push(name.clone()),
        }
        commit.facts.push((name, json(&sum)));
    }
    commit.expiry = Expiry::After(UNFINISHED_TTL);
    commit
}

impl Client {
    /// Returns the counts of the messages that workers did not accept, of all queues.
    ///
    /// # Errors
    /// [`BackendError`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn refused_messages(&self) -> Result<Vec<RefusedMessages>, BackendError> {
        RefusedMessages::read(&**self.app.backend()).await
    }

    /// Returns the reason for which a message waits that claims to be this task, if workers have offered one again within
    /// the last minutes. They could not verify it: it may be another message.
    ///
    /// # Errors
    /// [`BackendError`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn waiting_reason(
        &self,
        id: &TaskId,
        queue: &QueueName,
    ) -> Result<Option<String>, BackendError> {
        left_out("the message that waits under this id", waiting::waiting_reason(&self.app, id, queue).await)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(reason: &str, count: u64, last: i64) -> RefusedMessages {
        RefusedMessages {
            queue: QueueName::parse("q").expect("a name"),
            reason: reason.to_owned(),
            waiting: false,
            count,
            last: Timestamp::from_micros(last),
            error: format!("at {last}"),
        }
    }

    #[test]
    fn counts_add_up_and_the_newest_error_stays() {
        let mut facts = Facts::new();
        assert!(addition(&facts, &[refused("unsigned", 2, 5)]).apply(&mut facts));
        let stale = addition(&facts, &[refused("unsigned", 7, 1), refused("stale", 1, 1)]);
        assert!(stale.apply(&mut facts));
        assert!(!stale.apply(&mut facts), "somebody else has added meanwhile");
        let sum: RefusedMessages = facts.read(&refused("unsigned", 0, 0).fact()).expect("a count");
        assert_eq!((sum.count, sum.error.as_str()), (9, "at 5"));
    }
}
