//! Part of the installation that a user sees. Pure.
//!
//! A user who does not see everything sees what names a queue and a task that fit. Where these are not known, as of a workflow
//! or of a group of failures in many queues, nothing is seen.

use machinist::{
    DeadLetter, FailureGroup, HistoryPoint, RegisteredName, WorkerInfo, periodic::PeriodicTask,
    record::Record,
};

use crate::panel::PanelView;

/// Queues and tasks that a user sees.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Sight {
    /// Patterns of the queues; `None` for all.
    pub(crate) queues: Option<Vec<String>>,
    /// Patterns of the names of tasks; `None` for all.
    pub(crate) tasks: Option<Vec<String>>,
}

/// Returns `true` if a name fits one of these patterns: it is the name, or ends with `*` and is its begin.
fn fits(patterns: Option<&Vec<String>>, name: Option<&str>) -> bool {
    let Some(patterns) = patterns else { return true };
    let fits = |name: &str, pattern: &str| match pattern.strip_suffix('*') {
        Some(begin) => name.starts_with(begin),
        None => name == pattern,
    };
    name.is_some_and(|name| patterns.iter().any(|pattern| fits(name, pattern)))
}

impl Sight {
    /// Returns `true` if nothing is left out.
    pub(crate) fn is_whole(&self) -> bool {
        self.queues.is_none() && self.tasks.is_none()
    }

    pub(crate) fn queue(&self, queue: &str) -> bool {
        fits(self.queues.as_ref(), Some(queue))
    }

    fn task_name(&self, task: &str) -> bool {
        fits(self.tasks.as_ref(), Some(task))
    }

    /// Returns `true` if a task of this name in this queue is seen. What is not known fits no pattern.
    pub(crate) fn task(&self, task: Option<&str>, queue: Option<&str>) -> bool {
        fits(self.tasks.as_ref(), task) && fits(self.queues.as_ref(), queue)
    }

    pub(crate) fn record(&self, record: &Record) -> bool {
        self.task(record.name.as_deref(), record.queue.as_deref())
    }

    pub(crate) fn letter(&self, letter: &DeadLetter) -> bool {
        self.task(letter.name.as_ref().map(|name| name.as_str()), Some(letter.queue.as_str()))
    }

    pub(crate) fn periodic(&self, task: &PeriodicTask) -> bool {
        self.task(Some(task.task.as_str()), Some(task.queue.as_str()))
    }

    /// Returns `true` if all failures of a group are seen.
    pub(crate) fn group(&self, group: &FailureGroup) -> bool {
        // With as many queues as it names at most, there may be more.
        let all_known = self.queues.is_none() || group.queues.len() < FailureGroup::MAX_QUEUES;
        self.task_name(&group.task) && all_known && group.queues.iter().all(|queue| self.queue(queue))
    }

    /// Returns `true` if a worker takes tasks from no queue that is not seen.
    pub(crate) fn whole_worker(&self, worker: &WorkerInfo) -> bool {
        self.is_whole()
            || (worker.patterns.is_empty() && worker.queues.iter().all(|queue| self.queue(queue)))
                && worker.tasks.iter().all(|task| self.task_name(task))
    }

    /// Reduces the description of a worker. Returns `false` if it is not seen at all.
    pub(crate) fn reduce_worker(&self, worker: &mut WorkerInfo) -> bool {
        worker.queues.retain(|queue| self.queue(queue));
        worker.tasks.retain(|task| self.task_name(task));
        worker.open_circuits.retain(|task| self.task_name(task));
        // It is not told which queues or tasks these are of.
        worker.patterns.clear();
        worker.limits.clear();
        worker.runs.clear();
        worker.roles.clear();
        !worker.queues.is_empty()
    }

    /// Reduces a task that workers know. Returns `false` if it is not seen at all.
    pub(crate) fn reduce_registered(&self, task: &mut RegisteredName) -> bool {
        task.queues.retain(|queue| self.queue(queue));
        self.task_name(&task.name) && !task.queues.is_empty()
    }

    /// Reduces a bucket of the history. Returns `false` if nothing is left.
    pub(crate) fn reduce_point(&self, point: &mut HistoryPoint) -> bool {
        point.tasks.retain(|queue, tasks| {
            tasks.retain(|task, _| self.task(Some(task), Some(queue)));
            !tasks.is_empty()
        });
        point.queues.retain(|queue, _| self.queue(queue));
        !point.tasks.is_empty() || !point.queues.is_empty()
    }

    /// Reduces the value of a panel.
    pub(crate) fn of<T: Clone>(&self, seen: PanelView<T>, reduce: impl FnOnce(&mut T)) -> PanelView<T> {
        if self.is_whole() { seen } else { seen.reduced(reduce) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sight(queues: Option<&[&str]>, tasks: Option<&[&str]>) -> Sight {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Sight { queues: queues.map(owned), tasks: tasks.map(owned) }
    }

    #[test]
    fn names_and_begins_fit_and_what_is_not_known_does_not() {
        let all = Sight::default();
        assert!(all.is_whole() && all.queue("x") && all.task(None, None));
        let some = sight(Some(&["mail", "tenant-*"]), None);
        assert!(some.queue("mail") && some.queue("tenant-7") && some.task(None, Some("mail")));
        assert!(!some.queue("mail2") && !some.queue("Mail") && !some.task(Some("a"), None));
        let tasks = sight(None, Some(&["shop.*"]));
        assert!(tasks.task(Some("shop.pay"), None) && tasks.queue("any"));
        assert!(!tasks.task(Some("shop"), Some("any")) && !tasks.task(None, Some("any")));
        let both = sight(Some(&["mail"]), Some(&["shop.*"]));
        assert!(both.task(Some("shop.pay"), Some("mail")) && !both.task(Some("shop.pay"), Some("other")));
        let none = sight(Some(&[]), None);
        assert!(!none.is_whole() && !none.queue(""));
    }
}
