//! The parts of a worker that both its code and a configuration can give, and that a reload replaces while the worker runs.
//!
//! The code of a process does not change. So a reload applies the difference between two configurations, and the worker becomes
//! what it would be if it started with the new one.

use std::{collections::BTreeSet, mem};

use super::{BuildError, MAX_TAGS, SleepHours, Tag, builder::WorkerBuilder};
use crate::{
    app::{App, AppState},
    id::{QueueName, QueuePattern},
    limit::Limit,
};

/// Maximum number of handlers that run at once, unless it is set.
const DEFAULT_CONCURRENCY: usize = 16;

/// Parts of a worker that a reload replaces.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct ReplaceableParts {
    queues: Vec<String>,
    /// Queues of tasks, consumed if `queues` is empty.
    task_queues: Vec<String>,
    tags: Vec<String>,
    pub(super) sleep: Vec<SleepHours>,
    /// Limits of queues. The last one of a queue counts.
    pub(super) queue_limits: Vec<(String, Limit)>,
    concurrency: Option<usize>,
    keep_args: Option<bool>,
}

impl ReplaceableParts {
    /// Takes the parts out of a builder.
    pub(super) fn take(builder: &mut WorkerBuilder) -> Self {
        Self {
            queues: mem::take(&mut builder.queues),
            task_queues: mem::take(&mut builder.task_queues),
            tags: mem::take(&mut builder.tags),
            sleep: mem::take(&mut builder.sleep),
            queue_limits: mem::take(&mut builder.queue_limits),
            concurrency: builder.concurrency.take(),
            keep_args: builder.keep_args.take(),
        }
    }

    /// Returns the parts of a worker after its configuration was replaced. What its code gives stays.
    pub(super) fn replaced(&self, old: &Self, new: &Self) -> Self {
        Self {
            queues: replaced(&self.queues, &old.queues, &new.queues),
            task_queues: replaced(&self.task_queues, &old.task_queues, &new.task_queues),
            tags: replaced(&self.tags, &old.tags, &new.tags),
            sleep: replaced(&self.sleep, &old.sleep, &new.sleep),
            queue_limits: replaced(&self.queue_limits, &old.queue_limits, &new.queue_limits),
            concurrency: chosen(self.concurrency, old.concurrency, new.concurrency),
            keep_args: chosen(self.keep_args, old.keep_args, new.keep_args),
        }
    }

    /// Returns the queues and patterns of the worker. Without any, they are the default queue of the application and the queues
    /// of tasks.
    pub(super) fn own_queues(&self, app: &App) -> Result<BTreeSet<QueuePattern>, BuildError> {
        let mut queues =
            self.queues.iter().map(|queue| QueuePattern::parse(queue)).collect::<Result<BTreeSet<_>, _>>()?;
        if queues.is_empty() {
            queues.insert(app.default_queue().clone().into());
            for queue in &self.task_queues {
                queues.insert(QueueName::parse(queue)?.into());
            }
        }
        Ok(queues)
    }

    /// Returns the tags of the worker and those that the application adds, sorted and each once.
    pub(super) fn all_tags(&self, app: &App) -> Result<Vec<Tag>, BuildError> {
        let mut tags = self.tags.iter().map(|tag| Tag::parse(tag)).collect::<Result<BTreeSet<_>, _>>()?;
        if tags.len() > MAX_TAGS {
            return Err(BuildError::TooManyTags(tags.len()));
        }
        let AppState { priority_queues, fair_queues, .. } = &*app.0;
        tags.extend(priority_queues.tags().into_iter().chain(fair_queues.tag()));
        Ok(tags.into_iter().collect())
    }

    /// Maximum number of handlers that run at once.
    pub(super) fn concurrency(&self) -> usize {
        self.concurrency.unwrap_or(DEFAULT_CONCURRENCY)
    }

    /// Returns `true` if records keep the arguments of tasks whose options do not say.
    pub(super) fn keeps_args(&self) -> bool {
        self.keep_args.unwrap_or(false)
    }
}

/// Returns a list without what only the old configuration has given, and with what only the new one gives. What both give stays
/// as it is, and so does an equal part that the code gives too.
fn replaced<T: Clone + PartialEq>(own: &[T], old: &[T], new: &[T]) -> Vec<T> {
    let mut gone = old.to_vec();
    let mut all = Vec::new();
    for part in new {
        match gone.iter().position(|old| old == part) {
            Some(at) => drop(gone.remove(at)),
            None => all.push(part.clone()),
        }
    }
    let mut kept = own.to_vec();
    for part in gone {
        if let Some(at) = kept.iter().position(|own| *own == part) {
            kept.remove(at);
        }
    }
    // A builder has the configuration before the code too: the last one of a queue counts.
    all.extend(kept);
    all
}

/// Returns the new value of a configuration, unless the code has chosen another one than the old configuration.
fn chosen<T: PartialEq + Copy>(own: Option<T>, old: Option<T>, new: Option<T>) -> Option<T> {
    if own == old { new } else { own }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(limits: &[(&str, u32)]) -> Vec<(String, Limit)> {
        limits.iter().map(|(queue, most)| ((*queue).to_owned(), Limit::new().max_running(*most))).collect()
    }

    #[test]
    fn what_the_code_gives_outlives_the_part_of_a_configuration() {
        let tags = |tags: &[&str]| -> Vec<String> { tags.iter().map(|tag| (*tag).to_owned()).collect() };
        let parts = |given: &[&str]| ReplaceableParts { tags: tags(given), ..ReplaceableParts::default() };
        let own = parts(&["gpu", "big", "gpu", "coded"]);
        let after = |old: &[&str], new: &[&str]| own.replaced(&parts(old), &parts(new)).tags;
        assert_eq!(after(&["gpu", "big"], &["gpu", "big"]), own.tags);
        assert_eq!(after(&["gpu", "big"], &["zone:eu"]), ["zone:eu", "gpu", "coded"]);
        assert_eq!(after(&["gpu", "big"], &[]), ["gpu", "coded"], "the code has the tag too");
        // A worker that does not use the configuration loses nothing by it.
        assert_eq!(after(&["other"], &[]), own.tags);
    }

    #[test]
    fn a_limit_of_the_code_goes_before_that_of_a_configuration_before_and_after_a_reload() {
        let parts = |given: &[(&str, u32)]| ReplaceableParts {
            queue_limits: limits(given),
            ..ReplaceableParts::default()
        };
        // As a builder has them: those of the configuration first.
        let own = parts(&[("mail", 5), ("other", 5), ("mail", 1)]);
        let old = parts(&[("mail", 5), ("other", 5)]);
        let last = |parts: &ReplaceableParts| {
            parts.queue_limits.iter().rev().find(|(queue, _)| queue == "mail").unwrap().1.clone()
        };
        let one = Limit::new().max_running(1);
        assert_eq!(last(&own), one);
        let changed = own.replaced(&old, &parts(&[("mail", 9)]));
        assert_eq!((last(&changed), changed.queue_limits.len()), (one.clone(), 2));
        let gone = changed.replaced(&parts(&[("mail", 9)]), &parts(&[]));
        assert_eq!(gone.queue_limits, limits(&[("mail", 1)]));
    }

    #[test]
    fn a_number_that_the_code_has_chosen_stays() {
        assert_eq!(chosen(Some(2), Some(2), Some(3)), Some(3));
        assert_eq!(chosen(Some(4), Some(2), Some(3)), Some(4));
        assert_eq!(chosen(Some(2), Some(2), None), None);
        assert_eq!(chosen(None, Some(2), Some(3)), None, "the worker does not use the configuration");
    }
}
