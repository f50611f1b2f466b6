//! Priorities on a broker that does not order the messages of a queue: separate queues for higher priorities.
//!
//! `mail+priority:high` holds the tasks of queue `mail` with priority 7 to 9. The name is that of a queue of tasks that
//! [require tags](crate::affinity), so such queues are listed, paused, limited and followed as those are. Every worker of an
//! application with such queues has their tags, and gives slots by the weights of the classes.

use std::collections::HashSet;

use crate::{
    affinity::{requiring, with_base},
    id::{InvalidName, QueueName},
    tag::Tag,
};

/// A class of priorities that has a separate queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PriorityClass {
    tag: &'static str,
    /// Lowest priority of the class.
    from: u8,
    /// Weight of its queue for each weight of the queue of the other tasks.
    weight: u32,
}

/// The classes, the highest first. Lower priorities are those of the queue itself.
const CLASSES: [PriorityClass; 2] = [
    PriorityClass { tag: "priority:high", from: 7, weight: 9 },
    PriorityClass { tag: "priority:medium", from: 4, weight: 3 },
];

/// Queues whose tasks with higher priorities have separate queues.
#[derive(Debug, Default)]
pub(crate) struct PriorityQueues(HashSet<QueueName>);

impl PriorityQueues {
    /// `is_native` is `true` for a broker that honours priorities itself, and then no queue is separated.
    pub(crate) fn new(queues: HashSet<QueueName>, is_native: bool) -> Self {
        Self(if is_native { HashSet::new() } else { queues })
    }

    /// Returns `true` if no queue is separated: the usual case, which costs no more than this.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the queue for a task of this queue with this priority.
    ///
    /// # Errors
    /// The name would be too long for a queue.
    pub(crate) fn queue_of(&self, queue: QueueName, priority: Option<u8>) -> Result<QueueName, InvalidName> {
        if self.is_empty() {
            return Ok(queue);
        }
        let priority = priority.unwrap_or(0);
        let is_separated = with_base(&queue).any(|queue| self.0.contains(&*queue));
        match CLASSES.iter().find(|class| priority >= class.from) {
            Some(class) if is_separated => {
                QueueName::parse(&requiring(queue.as_str(), std::iter::once(class.tag)))
            }
            _ => Ok(queue),
        }
    }

    /// Returns the tags of a worker that takes tasks of all classes.
    pub(crate) fn tags(&self) -> Vec<Tag> {
        let tags = CLASSES.iter().filter_map(|class| Tag::parse(class.tag).ok());
        if self.is_empty() { Vec::new() } else { tags.collect() }
    }
}

/// Returns the factor by which the weight of a queue with these tags is larger than that of its base, because of the priority
/// of its tasks.
pub(crate) fn weight_of_class(tags: &[&str]) -> u32 {
    CLASSES.iter().find(|class| tags.contains(&class.tag)).map_or(1, |class| class.weight)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(name: &str) -> QueueName {
        QueueName::parse(name).unwrap()
    }

    #[test]
    fn tasks_with_higher_priorities_have_separate_queues() {
        let queues = PriorityQueues::new(HashSet::from([queue("mail")]), false);
        let of = |name: &str, priority| queues.queue_of(queue(name), priority).unwrap().to_string();
        assert_eq!(of("mail", None), "mail");
        let all: Vec<_> = (0..10).map(|priority| of("mail", Some(priority))).collect();
        assert!(all[..4].iter().all(|name| name == "mail"), "{all:?}");
        assert!(all[4..7].iter().all(|name| name == "mail+priority:medium"), "{all:?}");
        assert!(all[7..].iter().all(|name| name == "mail+priority:high"), "{all:?}");
        assert_eq!(of("mail+gpu", Some(9)), "mail+gpu+priority:high");
        assert_eq!(of("mail+zone:eu", Some(9)), "mail+priority:high+zone:eu");
        assert_eq!(of("mail+priority:high", Some(9)), "mail+priority:high");
        assert_eq!(of("other", Some(9)), "other");
        let tags: [&[&str]; 4] = [&[], &["gpu"], &["priority:medium"], &["gpu", "priority:high"]];
        assert_eq!(tags.map(weight_of_class), [1, 1, 3, 9]);
    }

    #[test]
    fn a_broker_with_priorities_needs_no_separate_queues() {
        let native = PriorityQueues::new(HashSet::from([queue("mail")]), true);
        assert_eq!(native.queue_of(queue("mail"), Some(9)).unwrap(), queue("mail"));
        assert!(native.is_empty() && native.tags().is_empty());
        let separated = PriorityQueues::new(HashSet::from([queue("mail")]), false);
        assert_eq!(separated.tags().len(), CLASSES.len(), "every class has a tag");
    }
}
