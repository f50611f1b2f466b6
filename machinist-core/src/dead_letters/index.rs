//! Indexes of dead letters in the backend: index entries, and a separate record for each letter.
//!
//! One index has all letters of tasks. Every process that can publish can also cause letters: it sends messages that no
//! worker accepts, or puts messages among the dead letters. Another index has these. It has a fixed number of places for each
//! queue, and its entries expire.

use std::{collections::VecDeque, time::Duration};

use serde::{Deserialize, Serialize};

use super::{DeadFilter, DeadLetter};
use crate::{
    app::App,
    backend::{Backend, BackendError, Commit, Committed, Expiry, Index, IndexUpdate},
    clock::Timestamp,
    id::{QueueName, RecordId, RecordKind, TaskId, TaskName},
    record::{ErrorText, Facts, json, name},
    sign::sha256,
    wire::{DeadMark, Digest, MarkSignature, MarkedMessage, dead_id},
};

/// Number of index entries in one page.
const PAGE_SIZE: usize = 500;
/// Number of places for letters of messages that are not believed, for each queue.
const REFUSED_PLACES: u32 = 10_000;
/// Time for which such a letter is listed.
const REFUSED_TTL: Duration = Duration::from_secs(7 * 24 * 3600);
/// Maximum size of the error of such a letter in the index, in bytes.
const REFUSED_ERROR_BYTES: usize = 500;

/// The fact that tells about a dead letter.
#[derive(Debug, Serialize, Deserialize)]
struct IndexEntry {
    queue: String,
    dead_id: String,
    reason: String,
    error: ErrorText,
    #[serde(default)]
    at: Option<Timestamp>,
    task: Option<String>,
    name: Option<String>,
    attempt: Option<u32>,
    size: usize,
    #[serde(default)]
    digest: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    signature: Option<String>,
}

/// Place of a letter: the index, and the member that is also the name of its record.
pub(super) struct Place {
    pub(super) index: Index,
    pub(super) member: String,
}

impl Place {
    /// Returns the place of a letter. Letters of messages that are not believed share places by chance.
    pub(super) fn of(letter: &DeadLetter) -> Self {
        let DeadLetter { queue, dead_id, .. } = letter;
        if letter.is_of_task() {
            Self { index: Index::DeadLetters, member: format!("{queue} {dead_id}") }
        } else {
            let member = format!("{queue} #{}", place_number(queue, dead_id));
            Self { index: Index::Refused, member }
        }
    }

    pub(super) fn record(&self) -> RecordId {
        record_of(&self.member)
    }
}

/// Returns the number of the place of something that is not believed, by its queue and its id.
pub(super) fn place_number(queue: &QueueName, id: &str) -> u32 {
    let digest = sha256(format!("{queue} {id}").as_bytes());
    u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]) % REFUSED_PLACES
}

/// Returns the record of an index entry.
fn record_of(member: &str) -> RecordId {
    RecordId::new(RecordKind::DeadLetter, member)
}

/// Adds a dead letter to its index. Adding it again changes nothing. The letter of a message that is not believed is not
/// added where its place is taken.
pub(crate) async fn add_to_index(app: &App, letter: &DeadLetter) -> Result<(), BackendError> {
    let place = Place::of(letter);
    let mut commit = Commit::new(place.record());
    let mut entry = entry_of(letter);
    if letter.is_of_task() {
        // Whatever else is there is not this letter.
        commit.drop = vec![name::DEAD.into()];
    } else {
        entry.error.shorten(REFUSED_ERROR_BYTES);
        commit.unless = vec![name::DEAD.into()];
        commit.expiry = Expiry::AfterUnlessSet(REFUSED_TTL);
    }
    commit.facts = vec![(name::DEAD.into(), json(&entry))];
    for committed in app.backend().commit(vec![commit.into()]).await {
        match committed? {
            Committed::Done { .. } => {}
            // Its own entry, or that of another letter: the index names the place either way.
            Committed::Refused(_) => return Ok(()),
        }
    }
    let Place { index, member } = place;
    // Entries of messages that are not believed expire: what counts is when the entry was made.
    let at = if letter.is_of_task() { letter.at } else { app.clock().now() };
    app.backend().update_indexes(vec![IndexUpdate::Put { index, at, member }]).await
}

fn entry_of(letter: &DeadLetter) -> IndexEntry {
    let DeadMark { dead_id, reason, error, at, signature } = letter.mark.clone();
    IndexEntry {
        queue: letter.queue.to_string(),
        dead_id,
        reason,
        error,
        at: Some(at),
        task: letter.task.as_ref().map(TaskId::to_string),
        name: letter.name.as_ref().map(TaskName::to_string),
        attempt: letter.attempt,
        size: letter.size,
        digest: letter.digest.map(Digest::to_text).unwrap_or_default(),
        signature: signature.as_ref().map(MarkSignature::to_text),
    }
}

/// Removes a dead letter from its index. Only removes, so that it works in a backend that is full.
pub(super) async fn remove_from_index(app: &App, letter: &DeadLetter) -> Result<(), BackendError> {
    let computed = Place::of(letter);
    let Place { index, member } = match &letter.listed_as {
        Some((index, member)) => Place { index: index.clone(), member: member.clone() },
        None => computed,
    };
    let mut commit = Commit::new(record_of(&member));
    commit.drop = vec![name::DEAD.into()];
    // The line first: a record without a line is found by nobody, a line without its record tells too little.
    app.backend().update_indexes(vec![IndexUpdate::Remove { index, member }]).await?;
    app.backend().commit(vec![commit.into()]).await.into_iter().collect::<Result<Vec<_>, _>>().map(drop)
}

/// Returns those of these letters that are not listed.
pub(super) async fn unlisted(app: &App, letters: Vec<DeadLetter>) -> Result<Vec<DeadLetter>, BackendError> {
    let records: Vec<RecordId> = letters.iter().map(|letter| Place::of(letter).record()).collect();
    let facts = app.backend().read_each(&records).await?;
    let is_listed = |letter: &DeadLetter, facts: &Result<Facts, BackendError>| {
        // A record that cannot be used cannot be written either.
        let Ok(facts) = facts else { return true };
        match facts.read::<IndexEntry>(name::DEAD) {
            // Letters of one place share it by chance.
            Some(_) if !letter.is_of_task() => true,
            Some(entry) => {
                entry.dead_id == letter.dead_id
                    && entry.signature.is_some() == letter.mark.signature.is_some()
            }
            None => false,
        }
    };
    let all = letters.into_iter().zip(facts);
    Ok(all.filter(|(letter, facts)| !is_listed(letter, facts)).map(|(letter, _)| letter).collect())
}

/// Returns the number of index entries of a queue, and removes those that have expired. Reads the indexes page by page,
/// and no record.
pub(super) async fn count_listed(app: &App, queue: &QueueName) -> Result<u64, BackendError> {
    let of_queue = format!("{queue} ");
    let expired = app.clock().now().minus(REFUSED_TTL);
    let mut count = 0;
    for index in [Index::DeadLetters, Index::Refused] {
        let mut after = None;
        loop {
            let page = app.backend().list(&index, after, PAGE_SIZE).await?;
            let mut over = Vec::new();
            for (at, member) in page.iter().filter(|(_, member)| member.starts_with(&of_queue)) {
                if index == Index::Refused && *at < expired {
                    over.push(IndexUpdate::Remove { index: index.clone(), member: member.clone() });
                } else {
                    count += 1;
                }
            }
            if !over.is_empty() {
                app.backend().update_indexes(over).await?;
            }
            if page.len() < PAGE_SIZE {
                break;
            }
            after = page.into_iter().last();
        }
    }
    Ok(count)
}

/// Lists the dead letters that match, the oldest first, at most `limit`.
pub(super) async fn list(
    app: &App,
    which: &DeadFilter,
    limit: usize,
) -> Result<Vec<DeadLetter>, BackendError> {
    let mut of_tasks = Lines::of(app, Index::DeadLetters);
    let mut refused = Lines::of(app, Index::Refused);
    let mut found = Vec::new();
    while found.len() < limit {
        of_tasks.fill(which).await?;
        refused.fill(which).await?;
        let (first, second) = (of_tasks.next_at(), refused.next_at());
        let older = match (first, second) {
            (None, None) => break,
            (Some(first), Some(second)) if second < first => &mut refused,
            (None, Some(_)) => &mut refused,
            _ => &mut of_tasks,
        };
        found.extend(older.buffer.pop_front());
    }
    if !refused.over.is_empty()
        && let Err(error) = app.backend().update_indexes(refused.over).await
    {
        tracing::debug!(%error, "expired entries of the index were not removed");
    }
    Ok(found)
}

/// Returns the dead letter of a task. Of a task that has not ended, it also searches the letters that came after `since`,
/// one page of each index: the broker or another process may have made one.
pub(crate) async fn letter_of(
    app: &App,
    queue: &QueueName,
    task: &TaskId,
    attempt: u32,
    since: Timestamp,
    ended: bool,
) -> Result<Option<DeadLetter>, BackendError> {
    let member = format!("{queue} {}", dead_id(task, attempt));
    let facts = app.backend().read(&[record_of(&member)]).await?.pop().unwrap_or_default();
    if !facts.is_empty() {
        return Ok(listed_letter(app, &Index::DeadLetters, since, &member, &facts));
    }
    if ended {
        return Ok(None);
    }
    for index in [Index::Refused, Index::DeadLetters] {
        let page = app.backend().list(&index, Some((since, String::new())), PAGE_SIZE).await?;
        let of_queue = format!("{queue} ");
        let page: Vec<_> = page.into_iter().filter(|(_, member)| member.starts_with(&of_queue)).collect();
        let ids: Vec<RecordId> = page.iter().map(|(_, member)| record_of(member)).collect();
        for ((at, member), facts) in page.iter().zip(app.backend().read_each(&ids).await?) {
            let letter = listed_letter(app, &index, *at, member, &facts.unwrap_or_default());
            if let Some(letter) = letter.filter(|letter| letter.task.as_ref() == Some(task)) {
                return Ok(Some(letter));
            }
        }
    }
    Ok(None)
}

/// The letters of an index, in order, page by page.
struct Lines<'a> {
    app: &'a App,
    index: Index,
    after: Option<(Timestamp, String)>,
    ended: bool,
    buffer: VecDeque<DeadLetter>,
    /// Lines whose record has expired.
    over: Vec<IndexUpdate>,
}

impl<'a> Lines<'a> {
    fn of(app: &'a App, index: Index) -> Self {
        Self { app, index, after: None, ended: false, buffer: VecDeque::new(), over: Vec::new() }
    }

    fn next_at(&self) -> Option<Timestamp> {
        self.buffer.front().map(|letter| letter.at)
    }

    /// Reads on until a letter matches, or the index ends.
    async fn fill(&mut self, which: &DeadFilter) -> Result<(), BackendError> {
        let backend: &dyn Backend = &**self.app.backend();
        while self.buffer.is_empty() && !self.ended {
            let page = backend.list(&self.index, self.after.take(), PAGE_SIZE).await?;
            let ids: Vec<RecordId> = page.iter().map(|(_, member)| record_of(member)).collect();
            for ((at, member), facts) in page.iter().zip(backend.read_each(&ids).await?) {
                // The line alone tells something.
                let facts = facts.unwrap_or_default();
                if facts.is_empty() && self.index == Index::Refused {
                    let (index, member) = (self.index.clone(), member.clone());
                    self.over.push(IndexUpdate::Remove { index, member });
                    continue;
                }
                let letter = listed_letter(self.app, &self.index, *at, member, &facts);
                self.buffer.extend(letter.filter(|letter| which.fits(letter)));
            }
            self.ended = page.len() < PAGE_SIZE;
            self.after = page.into_iter().last();
        }
        Ok(())
    }
}

/// Returns the letter of an index entry and its record; without the record, as much as the entry says.
fn listed_letter(app: &App, index: &Index, at: Timestamp, member: &str, facts: &Facts) -> Option<DeadLetter> {
    let listed_as = Some((index.clone(), member.to_owned()));
    let Some(entry) = facts.read::<IndexEntry>(name::DEAD) else {
        let (queue, dead_id) = member.rsplit_once(' ')?;
        let task = dead_id.rsplit_once('!').and_then(|(id, _)| TaskId::parse(id).ok());
        let dead_id = dead_id.to_owned();
        let mark = DeadMark {
            dead_id: dead_id.clone(),
            reason: "unknown".to_owned(),
            error: ErrorText::default(),
            at,
            signature: None,
        };
        return Some(DeadLetter {
            dead_id,
            queue: QueueName::parse(queue).ok()?,
            reason: mark.reason.clone(),
            error: mark.error.clone(),
            at,
            task,
            name: None,
            attempt: None,
            size: 0,
            verified: false,
            mark,
            digest: None,
            listed_as,
        });
    };
    let mark = DeadMark {
        dead_id: entry.dead_id,
        reason: entry.reason,
        error: entry.error,
        at: entry.at.unwrap_or(at),
        signature: entry.signature.as_deref().and_then(MarkSignature::parse),
    };
    let queue = QueueName::parse(&entry.queue).ok()?;
    // An entry of an earlier version has none.
    let digest = Digest::parse(&entry.digest).unwrap_or_else(|| Digest::of_text(member));
    let marked = MarkedMessage {
        task: entry.task.and_then(|id| TaskId::parse(&id).ok()),
        name: entry.name.and_then(|name| TaskName::parse(&name).ok()),
        attempt: entry.attempt,
        digest,
    };
    Some(DeadLetter { listed_as, ..DeadLetter::new(app, &queue, mark, marked, entry.size) })
}
