//! The client's side of parking: who waits and why, and the release.

use std::time::Duration;

use crate::{
    admission::WaitReason,
    backend::{BackendError, Index, IndexUpdate},
    broker::{Publish, PublishError, Target},
    client::Client,
    control::ControlError,
    error::SendError,
    id::TaskId,
    record::{Facts, Parked, name, parked, unpark},
};

/// Number of index entries that are read at once.
const PAGE_SIZE: usize = 100;

/// A task that waits because a rule of admission refuses its start.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ParkedTask {
    /// Task id.
    pub id: TaskId,
    /// Reason and times of its parking.
    pub parked: Parked,
}

impl Client {
    /// Lists tasks that wait for this reason, those that have waited longest first, at most `limit`. Tasks that were started
    /// or have ended are left out and removed from the index.
    ///
    /// The list may lack tasks: it is written with best effort, and a task that is not listed comes back by itself.
    ///
    /// # Errors
    /// [`BackendError`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn parked(&self, reason: &WaitReason, limit: usize) -> Result<Vec<ParkedTask>, BackendError> {
        let index = Index::Parked(reason.text());
        let mut found = Vec::new();
        let mut after = None;
        while found.len() < limit {
            let page = self.app.backend().list(&index, after, PAGE_SIZE).await?;
            for (id, facts) in self.listed(&page).await? {
                match parked(&facts).filter(|parked| parked.reason == reason.as_str()) {
                    Some(parked) => found.push(ParkedTask { id, parked }),
                    None => self.unlist(&index, &id).await?,
                }
            }
            if page.len() < PAGE_SIZE {
                break;
            }
            after = page.into_iter().last();
        }
        found.truncate(limit);
        Ok(found)
    }

    /// Publishes the tasks that wait for this reason again, those that have waited longest first, at most one in each
    /// `pace`, and returns their number. Call it after the reason was lifted: otherwise they are parked again, and wait.
    ///
    /// A task whose message is too large for its record, or cannot be verified here, is left out: it comes back by itself,
    /// at most an hour after it was parked.
    ///
    /// # Errors
    /// [`ControlError`] if the backend or the broker cannot be asked. What was released is released; asking again is fine.
    ///
    /// # Cancel safety
    /// A dropped future leaves each task released or not; asking again is fine.
    pub async fn release_parked(&self, reason: &WaitReason, pace: Duration) -> Result<usize, ControlError> {
        let index = Index::Parked(reason.text());
        let mut released = 0;
        let mut after = None;
        let mut next = tokio::time::Instant::now();
        let began = self.app.clock().now();
        loop {
            let mut page = self.app.backend().list(&index, after, PAGE_SIZE).await?;
            // A task that is parked again is listed behind the others. Released again and again, it would make this endless.
            page.retain(|(since, _)| *since <= began);
            for (id, facts) in self.listed(&page).await? {
                if parked(&facts).is_none_or(|parked| parked.reason != reason.as_str()) {
                    self.unlist(&index, &id).await?;
                    continue;
                }
                tokio::time::sleep_until(next).await;
                next = tokio::time::Instant::now() + pace;
                match self.release(&id, &facts).await {
                    Ok(()) => released += 1,
                    Err(error @ (ControlError::Backend(_) | ControlError::Broker(_))) => return Err(error),
                    Err(error) => {
                        tracing::warn!(%id, %error, "a parked task cannot be released: it comes back by itself");
                        continue;
                    }
                }
                self.unlist(&index, &id).await?;
            }
            if page.len() < PAGE_SIZE {
                return Ok(released);
            }
            after = page.into_iter().last();
        }
    }

    /// Publishes the task that has waited longest for this reason again, and returns `false` if none waits.
    pub(crate) async fn release_one(&self, reason: &WaitReason) -> Result<bool, ControlError> {
        let index = Index::Parked(reason.text());
        loop {
            let page = self.app.backend().list(&index, None, 1).await?;
            let Some((_, member)) = page.first() else { return Ok(false) };
            let Some((id, facts)) = self.listed(&page).await?.next() else {
                // Its record cannot be read: it comes back by itself.
                let update = IndexUpdate::Remove { index: index.clone(), member: member.clone() };
                self.app.backend().update_indexes(vec![update]).await?;
                continue;
            };
            // Taken out first: of two that free a place, one releases it.
            self.unlist(&index, &id).await?;
            if parked(&facts).is_some_and(|parked| parked.reason == reason.as_str())
                && self.release(&id, &facts).await.is_ok()
            {
                return Ok(true);
            }
        }
    }

    /// Publishes the next guard of a parked task for an immediate start, and records it: the guard that comes back later
    /// is then not needed. A process that dies in between leaves two copies, which the record makes harmless.
    async fn release(&self, id: &TaskId, facts: &Facts) -> Result<(), ControlError> {
        let kept = self.kept_envelope(id, facts, name::PARKED_MESSAGE, self.app.clock().now())?;
        let guard = kept.next_guard(self.app.clock().now());
        let target = Target::Queue(self.app.0.rules.queue_of(&guard));
        let publish = Publish { target, message: self.message(&guard)?, delay: Duration::ZERO };
        self.publish_one(publish).await.map_err(|source| match source {
            source @ (PublishError::Unavailable(_) | PublishError::Unknown(_)) => {
                ControlError::unpublished(source)
            }
            source => SendError::Publish { id: id.clone(), source }.into(),
        })?;
        // Refused: it has ended meanwhile.
        self.commit(unpark(id, guard.attempt, guard.generation)).await?;
        Ok(())
    }
}
