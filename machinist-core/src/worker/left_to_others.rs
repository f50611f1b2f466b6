//! Tasks whose handler has asked for another worker: this one refuses their next attempt for some seconds.
//!
//! The memory is this worker's alone, as that of circuits: it costs no round trip, and a process that is new is another worker.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, PoisonError},
};

use crate::id::TaskId;

/// Maximum number of tasks that are remembered. The oldest is forgotten first.
const MAX_TASKS: usize = 10_000;
/// Number of times that a task is refused. If no other worker has taken it by then, it runs here again.
const MAX_REFUSALS: u32 = 5;

/// Tasks that a worker leaves to others.
#[derive(Debug, Default)]
pub(super) struct LeftToOthers(Mutex<Remembered>);

#[derive(Debug, Default)]
struct Remembered {
    refusals_left: HashMap<TaskId, u32>,
    /// In the order in which they were first left.
    order: VecDeque<TaskId>,
}

impl LeftToOthers {
    /// Notes that the next attempt of a task is for another worker.
    pub(super) fn leave(&self, task: &TaskId) {
        let mut remembered = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if remembered.refusals_left.insert(task.clone(), MAX_REFUSALS).is_none() {
            remembered.order.push_back(task.clone());
        }
        if remembered.order.len() > MAX_TASKS
            && let Some(oldest) = remembered.order.pop_front()
        {
            remembered.refusals_left.remove(&oldest);
        }
    }

    /// Returns `true` if this worker refuses the task now.
    pub(super) fn refuses(&self, task: &TaskId) -> bool {
        let mut remembered = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match remembered.refusals_left.get_mut(task) {
            None | Some(0) => false,
            Some(left) => {
                *left -= 1;
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_refused_some_times() {
        let left = LeftToOthers::default();
        let (task, other) = (TaskId::fresh(), TaskId::fresh());
        left.leave(&task);
        assert!(!left.refuses(&other));
        assert!((0..MAX_REFUSALS).all(|_| left.refuses(&task)));
        assert!(!left.refuses(&task), "nobody else has taken it");
        left.leave(&task);
        assert!(left.refuses(&task), "it has failed here again");
    }

    #[test]
    fn the_oldest_is_forgotten() {
        let left = LeftToOthers::default();
        let first = TaskId::fresh();
        left.leave(&first);
        (0..MAX_TASKS).for_each(|_| left.leave(&TaskId::fresh()));
        assert!(!left.refuses(&first));
        let remembered = left.0.lock().unwrap();
        assert_eq!((remembered.order.len(), remembered.refusals_left.len()), (MAX_TASKS, MAX_TASKS));
    }
}
