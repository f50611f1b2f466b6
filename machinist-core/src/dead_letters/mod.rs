//! Dead letters: messages that no worker runs, kept with the reason, to be inspected, replayed or purged.
//!
//! The broker keeps them in a side queue of their task queue. The backend has an index of them,
//! so that listing and showing them takes nothing out of a queue. The index may lag; a reader that finds more letters in a
//! queue adds the rest ([`Client::index_dead_letters`]).

mod index;
mod new_letter;
mod scan;
mod settle;

use crate::{
    backend::{BackendError, Index},
    client::Client,
    clock::Timestamp,
    id::{QueueName, RecordId, TaskId, TaskName},
    record::ErrorText,
};

pub(crate) use index::add_to_index;
pub(crate) use new_letter::NewDeadLetter;
pub use settle::DeadLetterOutcome;

/// Number of index entries in one page.
const LIST_PAGE_SIZE: usize = 500;

/// One dead letter, as far as it is known without taking it out of its queue.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct DeadLetter {
    /// Id of the letter: `TASK!ATTEMPT` for a task, random for a message that could not be verified.
    pub dead_id: String,
    /// Task queue of the message.
    pub queue: QueueName,
    /// Reason: one of the words of `docs/delivery.md`.
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
        let backend = &self.app.0.backend;
        let mut found = Vec::new();
        let mut after = None;
        while found.len() < limit {
            let page = backend.list(&Index::DeadLetters, after, LIST_PAGE_SIZE).await?;
            let ids: Vec<RecordId> = page.iter().map(|(_, member)| index::record_of(member)).collect();
            for ((at, member), facts) in page.iter().zip(backend.read_each(&ids).await?) {
                // The line alone tells something.
                let facts = facts.unwrap_or_default();
                found.extend(index::letter(*at, member, &facts).filter(|letter| which.fits(letter)));
            }
            if page.len() < LIST_PAGE_SIZE {
                break;
            }
            after = page.into_iter().last();
        }
        found.truncate(limit);
        Ok(found)
    }
}
