//! Dead letters: messages that no worker runs, kept with the reason, to be inspected, replayed or purged.
//!
//! The broker keeps them in a side queue of their task queue. The backend has an index of them,
//! so that listing and showing them takes nothing out of a queue. The index may lag; a reader that finds more letters in a
//! queue adds the rest ([`Client::index_dead_letters`]).
//!
//! A worker signs what it says about a letter. A letter whose mark no trusted key signed is shown as `unverified`.

mod index;
mod new_letter;
mod scan;
mod settle;
mod upkeep;

use crate::{
    app::App,
    backend::{BackendError, Index},
    client::Client,
    clock::Timestamp,
    id::{QueueName, TaskId, TaskName},
    record::{DeadReason, ErrorText},
    wire::{DeadMark, Digest, MarkedMessage},
};

pub(crate) use index::{add_to_index, letter_of};
pub(crate) use new_letter::NewDeadLetter;
pub use settle::DeadLetterOutcome;

/// Reason of a letter whose mark is not believed.
const UNVERIFIED: &str = "unverified";

/// One dead letter, as far as it is known without taking it out of its queue.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct DeadLetter {
    /// Id of the letter: `TASK!ATTEMPT` for a task; `refused-…` for a message that was not believed, and `unverified-…` for
    /// a letter that is not believed, the same for the same message.
    pub dead_id: String,
    /// Task queue of the message.
    pub queue: QueueName,
    /// Reason: one of the words of `docs/delivery.md`. `unverified` if no trusted key signed what the letter says of itself:
    /// its [error](Self::error) repeats the claims, and it is not replayed.
    pub reason: String,
    /// The error.
    pub error: ErrorText,
    /// Time at which it became a dead letter.
    pub at: Timestamp,
    /// Task id, as the message states it.
    pub task: Option<TaskId>,
    /// Task name, as the message states it.
    pub name: Option<TaskName>,
    /// Attempt of the message.
    pub attempt: Option<u32>,
    /// The message's size, in bytes of headers and body.
    pub size: usize,
    /// `true` if a trusted key signed the mark, or the application has no keys.
    verified: bool,
    /// The mark as it is.
    mark: DeadMark,
    /// Digest of the message; none where only the index entry is left.
    digest: Option<Digest>,
    /// Index and member under which it was found.
    listed_as: Option<(Index, String)>,
}

impl DeadLetter {
    /// Describes a message among the dead letters of this queue.
    pub(crate) fn new(
        app: &App,
        queue: &QueueName,
        mark: DeadMark,
        message: MarkedMessage,
        size: usize,
    ) -> Self {
        let doubt = app.0.trust.check_mark(&mark, queue, &message).err();
        let MarkedMessage { task, name, attempt, digest } = message;
        let (dead_id, reason, error, at) = match &doubt {
            None => (mark.dead_id.clone(), mark.reason.clone(), mark.error.clone(), mark.at),
            Some(doubt) => (
                format!("{UNVERIFIED}-{}", digest.short_text()),
                UNVERIFIED.to_owned(),
                ErrorText::new([
                    doubt.clone(),
                    format!("it claims the reason {:?}: {}", mark.reason, mark.error.chain.join(": ")),
                ]),
                mark.at.min(app.clock().now()),
            ),
        };
        let (queue, digest, verified) = (queue.clone(), Some(digest), doubt.is_none());
        Self {
            dead_id,
            queue,
            reason,
            error,
            at,
            task,
            name,
            attempt,
            size,
            verified,
            mark,
            digest,
            listed_as: None,
        }
    }

    /// Returns the words for the reasons of dead letters.
    pub fn reasons() -> impl Iterator<Item = &'static str> {
        DeadReason::ALL.into_iter().map(DeadReason::as_str).chain([UNVERIFIED])
    }

    /// Returns `true` if a worker made it of an authentic message. Every process that can publish can cause others.
    fn is_of_task(&self) -> bool {
        self.verified && self.dead_id.contains('!')
    }
}

/// Filter of dead letters. A letter matches if it fits every field that is set.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DeadFilter {
    /// Letters of this queue.
    pub queue: Option<QueueName>,
    /// Letters with this reason.
    pub reason: Option<String>,
    /// Letters of tasks with this name.
    pub name: Option<TaskName>,
    /// Letters that existed at this instant.
    pub until: Option<Timestamp>,
    /// Letters that came after this instant.
    pub since: Option<Timestamp>,
    /// Letters with these ids.
    pub dead_ids: Option<Vec<String>>,
}

impl DeadFilter {
    /// Returns `true` if a letter matches.
    pub fn fits(&self, letter: &DeadLetter) -> bool {
        let fits = |wanted: Option<bool>| wanted.unwrap_or(true);
        fits(self.queue.as_ref().map(|queue| *queue == letter.queue))
            && fits(self.reason.as_ref().map(|reason| *reason == letter.reason))
            && fits(self.name.as_ref().map(|name| letter.name.as_ref() == Some(name)))
            && fits(self.until.map(|until| letter.at <= until))
            && fits(self.since.map(|since| letter.at > since))
            && fits(self.dead_ids.as_ref().map(|ids| ids.contains(&letter.dead_id)))
    }
}

impl Client {
    /// Lists the dead letters that match, the oldest first, at most `limit`. Takes nothing out of a queue.
    ///
    /// # Errors
    /// [`BackendError`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn dead_letters(
        &self,
        which: &DeadFilter,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, BackendError> {
        index::list(&self.app, which, limit).await
    }
}
