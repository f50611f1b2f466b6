//! Affinity: tasks that only workers with certain tags may run.
//!
//! Such tasks have separate queues: `render+gpu+zone:eu` holds the tasks of queue `render` that require both tags. On a
//! shared queue, a task that a worker refuses would come back to the same worker at once. A worker of `render` that has the
//! tags consumes the queue as soon as it is listed.

use std::{borrow::Cow, collections::BTreeSet};

use crate::{id::QueueName, tag::Tag};

/// Sign between the name of a queue and the tags that its tasks require.
const SIGN: char = '+';

/// A queue of tasks that require tags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TagQueue<'q> {
    /// Queue to which its tasks were sent.
    pub(crate) base: &'q str,
    /// Tags that they require, sorted and each once.
    pub(crate) tags: Vec<&'q str>,
}

impl<'q> TagQueue<'q> {
    /// Reads the name of a queue. `None` if its tasks require no tags.
    pub(crate) fn of(queue: &'q str) -> Option<Self> {
        // Nearly no queue has the sign, and every delivery asks more than once.
        if !queue.as_bytes().contains(&(SIGN as u8)) {
            return None;
        }
        let mut words = queue.split(SIGN);
        let base = words.next().filter(|base| !base.is_empty())?;
        let tags: Vec<_> = words.collect();
        let is_sorted = tags.windows(2).all(|pair| pair[0] < pair[1]);
        let are_tags = !tags.is_empty() && tags.iter().all(|tag| Tag::parse(tag).is_ok());
        (is_sorted && are_tags).then_some(Self { base, tags })
    }

    /// Returns the required tags that a worker does not have.
    pub(crate) fn missing<'a>(
        &'a self,
        has: impl Fn(&str) -> bool + 'a,
    ) -> impl Iterator<Item = &'q str> + 'a {
        self.tags.iter().copied().filter(move |tag| !has(tag))
    }
}

/// Returns the queue to which the tasks of a queue were sent: of `render+gpu`, whose tasks require a tag, it is `render`.
/// `None` for a queue whose tasks require no tags.
pub fn base_queue(queue: &QueueName) -> Option<QueueName> {
    QueueName::parse(TagQueue::of(queue.as_str())?.base).ok()
}

/// Returns a queue, and then the queue to which its tasks were sent, if that is another one. A setting of the first goes
/// before one of the second.
pub(crate) fn with_base(queue: &QueueName) -> impl Iterator<Item = Cow<'_, QueueName>> {
    std::iter::once(Cow::Borrowed(queue)).chain(base_queue(queue).map(Cow::Owned))
}

/// Returns the name of the queue without the tags that its tasks require.
pub(crate) fn without_tags(queue: &str) -> &str {
    match TagQueue::of(queue) {
        Some(of) => of.base,
        // That of no queue yet.
        None if queue.starts_with(SIGN) => "",
        None => queue,
    }
}

/// Returns the name of the queue for the tasks of a queue that require these tags. Without a queue, it begins with the sign,
/// and [`completed`] adds the queue.
pub(crate) fn requiring<'t>(queue: &'t str, tags: impl Iterator<Item = &'t str>) -> String {
    let mut all: BTreeSet<&str> = tags.collect();
    let own = TagQueue::of(queue);
    all.extend(own.iter().flat_map(|own| own.tags.iter().copied()));
    let base = own.map_or(queue, |own| own.base).to_owned();
    all.into_iter().fold(base, |name, tag| format!("{name}{SIGN}{tag}"))
}

/// Returns the name of the queue of a task, with the default for one that names no queue.
pub(crate) fn completed(queue: &str, default: &str) -> String {
    match queue.strip_prefix(SIGN) {
        Some(tags) => requiring(default, tags.split(SIGN)),
        None if queue.is_empty() => default.to_owned(),
        None => queue.to_owned(),
    }
}

/// Returns `true` if a worker with these queues takes tasks from a queue. A pattern is the name of a queue, or the beginning
/// of names followed by `*`.
pub(crate) fn takes<'p>(
    mut patterns: impl Iterator<Item = &'p str> + Clone,
    has_tag: impl Fn(&str) -> bool,
    queue: &str,
) -> bool {
    let fits = |name: &str| {
        patterns.clone().any(|pattern| match pattern.strip_suffix('*') {
            Some(beginning) => name.starts_with(beginning),
            None => name == pattern,
        })
    };
    let is_fitting = match TagQueue::of(queue) {
        Some(of) => of.missing(has_tag).next().is_none() && fits(of.base),
        None => fits(queue),
    };
    is_fitting || patterns.any(|pattern| pattern == queue)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(name: &str) -> QueueName {
        QueueName::parse(name).unwrap()
    }

    #[test]
    fn the_tags_of_a_queue_are_sorted_and_each_once() {
        let requiring = |queue: &str, tags: &[&str]| super::requiring(queue, tags.iter().copied());
        assert_eq!(requiring("render", &["zone:eu", "gpu", "gpu"]), "render+gpu+zone:eu");
        assert_eq!(requiring("render+gpu", &["a"]), "render+a+gpu");
        assert_eq!(requiring("render", &[]), "render");
        assert_eq!(completed(&requiring("", &["gpu"]), "default"), "default+gpu");
        assert_eq!(
            (completed("", "default"), completed("mail", "default")),
            ("default".into(), "mail".into())
        );
        assert_eq!(
            (without_tags("render+gpu"), without_tags("+gpu"), without_tags("c++")),
            ("render", "", "c++")
        );
    }

    #[test]
    fn a_queue_is_read_back_and_other_names_are_no_queues_of_tags() {
        let of = TagQueue::of("render+gpu+zone:eu").unwrap();
        assert_eq!((of.base, &*of.tags), ("render", &["gpu", "zone:eu"][..]));
        for name in ["render", "c++", "+gpu", "a+GPU", "a+z+b", "a+b+b"] {
            assert_eq!(TagQueue::of(name), None, "{name}");
        }
        assert_eq!(base_queue(&queue("render+gpu")), Some(queue("render")));
        assert_eq!(base_queue(&queue("render")), None);
        let names = |name: &str| with_base(&queue(name)).map(|queue| queue.to_string()).collect::<Vec<_>>();
        assert_eq!(names("render+gpu"), ["render+gpu", "render"]);
        assert_eq!(names("render"), ["render"]);
    }

    #[test]
    fn a_worker_takes_what_it_names_what_its_patterns_fit_and_what_its_tags_allow() {
        let takes = |queues: &[&str], tags: &[&str], queue: &str| {
            super::takes(queues.iter().copied(), |tag| tags.contains(&tag), queue)
        };
        assert!(takes(&["mail"], &[], "mail") && !takes(&["mail"], &[], "mails"));
        assert!(takes(&["tenant-*"], &[], "tenant-a") && !takes(&["tenant-*"], &[], "mail"));
        assert!(
            takes(&["render"], &["gpu", "big"], "render+gpu") && !takes(&["render"], &["gpu"], "render+cpu")
        );
        assert!(!takes(&["*"], &[], "render+gpu"), "a pattern does not stand for tags");
        assert!(takes(&["ren*"], &["gpu"], "render+gpu"));
        assert!(takes(&["render+gpu"], &[], "render+gpu"), "a queue that is named is taken");
    }
}
