//! Index of dead letters in the backend: an index entry, and a separate record for each letter.

use serde::{Deserialize, Serialize};

use super::DeadLetter;
use crate::{
    app::App,
    backend::{BackendError, Commit, Index, IndexUpdate},
    broker::Message,
    clock::Timestamp,
    id::{QueueName, RecordId, RecordKind, TaskId, TaskName},
    record::{ErrorText, Facts, json, name},
    wire::DeadMark,
};

/// The fact that tells about a dead letter.
#[derive(Debug, Serialize, Deserialize)]
struct IndexEntry {
    queue: String,
    dead_id: String,
    reason: String,
    error: ErrorText,
    task: Option<String>,
    name: Option<String>,
    attempt: Option<u32>,
    size: usize,
}

impl DeadLetter {
    /// Describes a message among the dead letters of this queue.
    pub(crate) fn of(queue: &QueueName, message: &Message, mark: DeadMark) -> Self {
        let DeadMark { dead_id, reason, error, at } = mark;
        Self {
            dead_id,
            queue: queue.clone(),
            reason,
            error,
            at,
            task: message.id.as_deref().and_then(|id| TaskId::parse(id).ok()),
            name: message.kind.as_deref().and_then(|name| TaskName::parse(name).ok()),
            attempt: crate::wire::attempt_of(message),
            size: message.size(),
        }
    }

    pub(super) fn member(&self) -> String {
        format!("{} {}", self.queue, self.dead_id)
    }
}

/// Returns the record of an index entry.
pub(super) fn record_of(member: &str) -> RecordId {
    RecordId::new(RecordKind::DeadLetter, member)
}

/// Adds a dead letter to the index. Adding it again changes nothing.
pub(crate) async fn add_to_index(app: &App, letter: &DeadLetter) -> Result<(), BackendError> {
    let member = letter.member();
    let entry = IndexEntry {
        queue: letter.queue.to_string(),
        dead_id: letter.dead_id.clone(),
        reason: letter.reason.clone(),
        error: letter.error.clone(),
        task: letter.task.as_ref().map(TaskId::to_string),
        name: letter.name.as_ref().map(TaskName::to_string),
        attempt: letter.attempt,
        size: letter.size,
    };
    let mut commit = Commit::new(record_of(&member));
    commit.facts = vec![(name::DEAD.into(), json(&entry))];
    app.backend().commit(vec![commit.into()]).await.into_iter().collect::<Result<Vec<_>, _>>()?;
    let update = IndexUpdate::Put { index: Index::DeadLetters, at: letter.at, member };
    app.backend().update_indexes(vec![update]).await
}

/// Removes a dead letter from the index.
pub(super) async fn remove_from_index(app: &App, letter: &DeadLetter) -> Result<(), BackendError> {
    let member = letter.member();
    let mut commit = Commit::new(record_of(&member));
    commit.drop = vec![name::DEAD.into(), name::RETRIED_AS.into()];
    // The line first: a record without a line is found by nobody, a line without its record tells too little.
    let update = IndexUpdate::Remove { index: Index::DeadLetters, member };
    app.backend().update_indexes(vec![update]).await?;
    app.backend().commit(vec![commit.into()]).await.into_iter().collect::<Result<Vec<_>, _>>().map(drop)
}

/// Returns the letter of an index entry and its record; without the record, as much as the entry says.
pub(super) fn letter(at: Timestamp, member: &str, facts: &Facts) -> Option<DeadLetter> {
    let Some(entry) = facts.read::<IndexEntry>(name::DEAD) else {
        let (queue, dead_id) = member.rsplit_once(' ')?;
        let task = dead_id.rsplit_once('!').and_then(|(id, _)| TaskId::parse(id).ok());
        return Some(DeadLetter {
            dead_id: dead_id.to_owned(),
            queue: QueueName::parse(queue).ok()?,
            reason: "unknown".to_owned(),
            error: ErrorText::default(),
            at,
            task,
            name: None,
            attempt: None,
            size: 0,
        });
    };
    Some(DeadLetter {
        dead_id: entry.dead_id,
        queue: QueueName::parse(&entry.queue).ok()?,
        reason: entry.reason,
        error: entry.error,
        at,
        task: entry.task.and_then(|id| TaskId::parse(&id).ok()),
        name: entry.name.and_then(|name| TaskName::parse(&name).ok()),
        attempt: entry.attempt,
        size: entry.size,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_without_its_record_still_names_the_letter() {
        let found = letter(Timestamp::from_micros(7), "a queue t-1!3", &Facts::new()).unwrap();
        assert_eq!((found.queue.as_str(), found.dead_id.as_str()), ("a queue", "t-1!3"));
        assert_eq!(found.task.unwrap().as_str(), "t-1");
        assert_eq!(found.reason, "unknown");
    }
}
