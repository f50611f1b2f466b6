//! Recycling: a worker that has done enough, or uses too much memory, ends so that its supervisor starts it again.
//!
//! It is an order to restart that the worker gives to itself: running tasks end, and nothing is lost.

use super::memory::resident_bytes;

/// Bounds at which a worker ends.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Recycling {
    /// Maximum number of tasks that end in one process.
    pub(super) max_tasks: Option<usize>,
    /// Maximum resident memory in bytes.
    pub(super) max_memory: Option<usize>,
}

impl Recycling {
    /// Returns the reason to end now, if a bound is reached. `processed` is the number of tasks that have ended here.
    pub(super) fn due(self, processed: u64) -> Option<String> {
        self.reason(processed, self.max_memory.and_then(|_| resident_bytes()))
    }

    fn reason(self, processed: u64, memory: Option<u64>) -> Option<String> {
        let reached = |value: u64, bound: usize| usize::try_from(value).map_or(true, |value| value >= bound);
        if let Some(bound) = self.max_tasks.filter(|bound| reached(processed, *bound)) {
            return Some(format!("{processed} tasks have ended here, and max_tasks is {bound}"));
        }
        let (memory, bound) = (memory?, self.max_memory?);
        reached(memory, bound).then(|| format!("it uses {memory} bytes of memory, and max_memory is {bound}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_recycled_at_its_bounds() {
        let bounds = Recycling { max_tasks: Some(3), max_memory: Some(100) };
        assert_eq!(bounds.reason(2, Some(99)), None);
        assert!(bounds.reason(3, None).unwrap().contains("max_tasks is 3"));
        assert!(bounds.reason(0, Some(100)).unwrap().contains("max_memory is 100"));
        assert_eq!(Recycling::default().reason(u64::MAX, Some(u64::MAX)), None);
    }
}
