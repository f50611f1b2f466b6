//! Dead letters: messages that nobody will run, kept with the reason, to be looked at, sent again or thrown away.
//!
//! They lie in the broker, beside their queue. What there is to know about each is written into the backend as well,
//! so that listing and showing them takes nothing out of a queue; that list may lag, and whoever finds more in a queue
//! than on it puts the rest there ([`Client::index_dead_letters`]).

mod index;
mod new_letter;
mod scan;
mod settle;

use crate::{
    backend::{BackendError, Index},
    client::Client,
    clock::Timestamp,
    id::{QueueName, TaskId, TaskName},
    record::ErrorText,
};

pub(crate) use index::add_to_index;
pub(crate) use new_letter::NewDeadLetter;
pub use settle::DeadLetterOutcome;

/// How many entries of the list are read at once.
const LIST_PAGE_SIZE: usize = 500;

/// One dead letter, as far as it is known without taking it out of its queue.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct DeadLetter {
    /// Its own id: `TASK.ATTEMPT` for a task, something random for what could not be believed.
    pub dead_id: String,
    /// The queue beside which it lies.
    pub queue: QueueName,
    /// Why: one of the words of `docs/delivery.md`.
    pub reason: String,
    /// What went wrong.
    pub error: ErrorText,
    /// Since when.
    pub at: Timestamp,
    /// The task, as the message calls it.
    pub task: Option<TaskId>,
    /// The task's name, as the message calls it.
    pub name: Option<TaskName>,
    /// Which attempt the message was for.
    pub attempt: Option<u32>,
    /// The message's size, in bytes of headers and body.
    pub size: usize,
}

/// Which dead letters are meant: those that fit everything that is set.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DeadFilter {
    /// Those beside this queue.
    pub queue: Option<QueueName>,
    /// Those with this reason.
    pub reason: Option<String>,
    /// Those of tasks of this name.
    pub name: Option<TaskName>,
    /// Those that were there by this instant.
    pub until: Option<Timestamp>,
    /// Those that came after this instant.
    pub since: Option<Timestamp>,
    /// Those of these ids of their own.
    pub dead_ids: Option<Vec<String>>,
}

impl DeadFilter {
    /// Whether a letter is meant.
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
    /// The dead letters that are meant, from the oldest, at most `limit`. Takes nothing out of a queue.
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
        let (mut found, mut after) = (Vec::new(), None);
        while found.len() < limit {
            let page = backend.list(Index::DeadLetters, after, LIST_PAGE_SIZE).await?;
            let ids: Vec<TaskId> = page.iter().map(|(_, member)| index::record_of(member)).collect();
            for ((at, member), facts) in page.iter().zip(backend.read(&ids).await?) {
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
