//! Queues that a worker follows: those that its patterns fit, and those whose tags it has.
//!
//! They become known when they are first used: senders list them in the backend. A worker without patterns and tags follows
//! none, and reads nothing.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
    time::Duration,
};

use super::{WorkerContext, orders::PREPARE_TIMEOUT};
use crate::{
    affinity::takes,
    backend::{BackendError, Index},
    broker::BrokerError,
    clock::Timestamp,
    id::{QueueName, QueuePattern},
    tag::Tag,
};
use machinist_adapter::error::chain;

/// Interval between two looks at the list of queues.
const INTERVAL: Duration = Duration::from_secs(5);
/// Number of looks after which the whole list is read again. The looks between read only what was listed since.
const WHOLE_AFTER: u32 = 12;
/// Time by which the clocks of those who list queues may differ.
const CLOCK_MARGIN: Duration = Duration::from_secs(60);
/// Number of names that are read at once.
const PAGE_SIZE: usize = 500;
/// Maximum number of names that a worker reads.
const MAX_LISTED: usize = 10_000;
/// Maximum number of queues that a worker follows.
const MAX_FOLLOWED: usize = 500;

/// Chooses the queues to follow: first those that are followed already. Returns the number of those that are too many.
fn choose(
    own: &BTreeSet<QueuePattern>,
    tags: &[Tag],
    listed: &BTreeSet<QueueName>,
    followed: &BTreeSet<QueueName>,
    most: usize,
) -> (BTreeSet<QueueName>, usize) {
    let fitting: Vec<_> = listed.iter().filter(|queue| follows(own, tags, queue)).collect();
    let (old, new): (Vec<_>, Vec<_>) = fitting.into_iter().partition(|queue| followed.contains(*queue));
    let number = old.len() + new.len();
    let chosen: BTreeSet<_> = old.into_iter().chain(new).take(most).cloned().collect();
    let left_out = number - chosen.len();
    (chosen, left_out)
}

/// Returns `true` if a worker with these queues and tags follows a queue that it does not name.
pub(super) fn follows(own: &BTreeSet<QueuePattern>, tags: &[Tag], queue: &QueueName) -> bool {
    let patterns = own.iter().map(QueuePattern::as_str);
    let has_tag = |tag: &str| tags.iter().any(|own| own.as_str() == tag);
    patterns.clone().all(|name| name != queue.as_str()) && takes(patterns, has_tag, queue.as_str())
}

/// Keeps the queues that a worker follows.
pub(super) struct QueueFollower {
    worker: Arc<WorkerContext>,
    /// Names that are listed, as far as they were read.
    listed: BTreeSet<QueueName>,
    /// Time of the newest entry that was read.
    newest: Option<Timestamp>,
    looks: u32,
    /// Queues that cannot be followed. They are tried again with the next whole list.
    refused: HashSet<QueueName>,
    /// Queues and numbers that were logged.
    told: HashSet<String>,
}

impl QueueFollower {
    pub(super) fn new(worker: Arc<WorkerContext>) -> Self {
        Self {
            worker,
            listed: BTreeSet::new(),
            newest: None,
            looks: 0,
            refused: HashSet::new(),
            told: HashSet::new(),
        }
    }

    /// Looks again and again until the worker drains.
    pub(super) async fn run(mut self) {
        let stages = self.worker.stages.clone();
        loop {
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => {}
                () = stages.reached_drain() => return,
            }
            tokio::select! {
                () = self.look() => {}
                () = stages.reached_drain() => return,
            }
        }
    }

    /// Looks for queues to follow. A backend that cannot be asked changes nothing.
    pub(super) async fn look(&mut self) {
        if let Err(error) = self.try_look().await {
            tracing::debug!(%error, "the list of queues was not read; the next look tries again");
        }
    }

    async fn try_look(&mut self) -> Result<(), BackendError> {
        let worker = Arc::clone(&self.worker);
        let presence = &worker.sessions.presence;
        let (own, tags, followed) = (presence.own_queues(), presence.tags(), presence.followed());
        let mut wanted = BTreeSet::new();
        if !tags.is_empty() || own.iter().any(QueuePattern::is_prefix) {
            let whole = self.read_list().await?;
            let listed = self.listed.difference(&self.refused.iter().cloned().collect()).cloned().collect();
            let (chosen, left_out) = choose(&own, &tags, &listed, &followed, MAX_FOLLOWED);
            if left_out > 0 && self.told.insert(String::new()) {
                tracing::warn!(
                    left_out,
                    "more queues fit the patterns and tags of this worker than the {MAX_FOLLOWED} that it follows"
                );
            }
            wanted = chosen;
            if whole {
                let unlisted: Vec<_> = followed.difference(&self.listed).cloned().collect();
                wanted.extend(self.still_there(&own, &tags, unlisted).await);
            }
            let new: Vec<_> = wanted.difference(&followed).cloned().collect();
            for queue in self.unfit(new).await {
                wanted.remove(&queue);
            }
        }
        if wanted != followed {
            let new: Vec<_> = wanted.difference(&followed).map(QueueName::as_str).collect();
            let dropped: Vec<_> = followed.difference(&wanted).map(QueueName::as_str).collect();
            tracing::info!(
                new = new.join(", "),
                dropped = dropped.join(", "),
                "this worker follows other queues"
            );
            presence.want_followed(wanted);
            worker.describe_queues();
        }
        Ok(())
    }

    /// Reads what was listed since the last look, or the whole list. Returns `true` if it was the whole list.
    async fn read_list(&mut self) -> Result<bool, BackendError> {
        let whole = self.looks.is_multiple_of(WHOLE_AFTER);
        let newest = self.newest.filter(|_| !whole);
        let mut after = newest.map(|newest| (newest.minus(CLOCK_MARGIN), String::new()));
        let mut read = BTreeSet::new();
        loop {
            let page = self.worker.app.backend().list(&Index::Queues, after.take(), PAGE_SIZE).await?;
            self.newest = self.newest.max(page.last().map(|(at, _)| *at));
            read.extend(page.iter().filter_map(|(_, name)| QueueName::parse(name).ok()));
            if page.len() < PAGE_SIZE {
                break;
            }
            if read.len() >= MAX_LISTED {
                tracing::debug!("more than {MAX_LISTED} queues are listed, and the others are not looked at");
                break;
            }
            after = page.into_iter().last();
        }
        self.looks = self.looks.wrapping_add(1);
        if whole {
            self.listed = read;
            self.refused.clear();
        } else if self.listed.len() < MAX_LISTED {
            self.listed.extend(read);
        }
        Ok(whole)
    }

    /// Returns those of these queues that exist, although they are not listed any more: a backend that has lost its data
    /// must not end their work. They are listed again.
    async fn still_there(
        &self,
        own: &BTreeSet<QueuePattern>,
        tags: &[Tag],
        mut queues: Vec<QueueName>,
    ) -> Vec<QueueName> {
        queues.retain(|queue| follows(own, tags, queue));
        if queues.is_empty() {
            return queues;
        }
        if let Ok(depths) = self.worker.app.broker().depth(&queues).await {
            queues =
                depths.into_iter().filter(|depth| depth.ready.is_some()).map(|depth| depth.queue).collect();
        }
        self.worker.list_queues(&queues).await;
        queues
    }

    /// Returns those of these queues that the worker cannot take: a queue that cannot be subscribed to would keep it from all
    /// others.
    async fn unfit(&mut self, new: Vec<QueueName>) -> Vec<QueueName> {
        let (mut unfit, mut fit) = (Vec::new(), Vec::new());
        for queue in new {
            match self.worker.may_take(&queue) {
                Ok(()) => fit.push(queue),
                Err(why) => unfit.push((queue, why)),
            }
        }
        let mut away = Vec::new();
        match self.prepare(&fit).await {
            Ok(()) => {}
            Err(PrepareError::Away) => away = fit,
            Err(PrepareError::Refused(_)) => {
                for queue in fit {
                    if !away.is_empty() {
                        // It would wait as long as the one before.
                        away.push(queue);
                        continue;
                    }
                    match self.prepare(std::slice::from_ref(&queue)).await {
                        Ok(()) => {}
                        Err(PrepareError::Refused(why)) => unfit.push((queue, why)),
                        Err(PrepareError::Away) => away.push(queue),
                    }
                }
            }
        }
        for (queue, why) in &unfit {
            if self.told.len() < MAX_LISTED && self.told.insert(queue.to_string()) {
                tracing::warn!(%queue, why, "this worker does not follow a queue that fits");
            }
            self.refused.insert(queue.clone());
        }
        // What the broker could not be asked about is looked at again with the next look.
        unfit.into_iter().map(|(queue, _)| queue).chain(away).collect()
    }

    async fn prepare(&self, queues: &[QueueName]) -> Result<(), PrepareError> {
        if queues.is_empty() {
            return Ok(());
        }
        match tokio::time::timeout(PREPARE_TIMEOUT, self.worker.app.broker().prepare(queues)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(BrokerError::Unavailable(_))) | Err(_) => Err(PrepareError::Away),
            Ok(Err(error)) => Err(PrepareError::Refused(chain(&error).join(": "))),
        }
    }
}

/// Reason that the broker has not prepared queues.
enum PrepareError {
    /// It cannot be asked now.
    Away,
    /// It refuses.
    Refused(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queues(names: &[&str]) -> BTreeSet<QueueName> {
        names.iter().map(|name| QueueName::parse(name).unwrap()).collect()
    }

    fn own(patterns: &[&str]) -> BTreeSet<QueuePattern> {
        patterns.iter().map(|pattern| QueuePattern::parse(pattern).unwrap()).collect()
    }

    #[test]
    fn a_worker_follows_what_fits_and_not_what_it_names() {
        let listed = queues(&["mail", "tenant-a", "tenant-b", "mail+gpu", "mail+cpu"]);
        let tags = [Tag::parse("gpu").unwrap()];
        let (chosen, left_out) = choose(&own(&["mail", "tenant-*"]), &tags, &listed, &queues(&[]), 9);
        assert_eq!((chosen, left_out), (queues(&["mail+gpu", "tenant-a", "tenant-b"]), 0));
        let (chosen, _) = choose(&own(&["mail"]), &[], &listed, &queues(&["tenant-a"]), 9);
        assert!(chosen.is_empty(), "the pattern was dropped");
    }

    #[test]
    fn those_that_are_followed_are_kept_where_there_are_too_many() {
        let listed = queues(&["a", "b", "c", "d"]);
        let (chosen, left_out) = choose(&own(&["*"]), &[], &listed, &queues(&["c", "d"]), 3);
        assert_eq!((chosen, left_out), (queues(&["a", "c", "d"]), 1));
    }
}
