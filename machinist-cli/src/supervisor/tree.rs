//! Processes below this one, and signals to all of them.

use std::collections::{BTreeMap, BTreeSet};

use rustix::process::{Pid, Signal, getpgid, getpid, kill_process, kill_process_group};

/// Sends a signal to a process group and to all processes below this one.
pub(super) fn signal(group: Pid, signal: Signal) {
    // A process that is gone is no error, and one of another user is counted where it is still there at the end.
    let _gone = kill_process_group(group, signal);
    for process in descendants() {
        // Members of the group have it already: a second TERM can mean something else to a program.
        if getpgid(Some(process)) != Ok(group) {
            let _gone = kill_process(process, signal);
        }
    }
}

/// Kills all processes below this one.
pub(super) fn kill() {
    for process in descendants() {
        let _gone = kill_process(process, Signal::KILL);
    }
}

/// Returns the processes below this one, from `/proc`; none where there is no `/proc`.
pub(super) fn descendants() -> Vec<Pid> {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    for id in entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()) {
        // A process that has just ended has no file any more.
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        if let Some(parent) = parent(&stat) {
            children.entry(parent).or_default().push(id);
        }
    }
    below(getpid().as_raw_nonzero().get(), &children).into_iter().filter_map(Pid::from_raw).collect()
}

/// Returns the parent of a process from its `/proc/ID/stat`; `None` for one that has ended and waits to be reaped.
fn parent(stat: &str) -> Option<i32> {
    // The name of the program stands in parentheses, and may itself contain them.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.next()?.parse().ok()
}

/// Returns everything below a process, in any order.
fn below(root: i32, children: &BTreeMap<i32, Vec<i32>>) -> BTreeSet<i32> {
    let mut found = BTreeSet::new();
    let mut rest = vec![root];
    while let Some(process) = rest.pop() {
        rest.extend(
            children.get(&process).into_iter().flatten().copied().filter(|child| found.insert(*child)),
        );
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_names_its_parent() {
        assert_eq!(parent("12 (sh) S 7 12 12 0"), Some(7));
        assert_eq!(parent("12 (a) b) (c) R 7 12 12 0"), Some(7));
        assert_eq!(parent("12 (sh) Z 7 12 12 0"), None);
        assert_eq!(parent(""), None);
    }

    #[test]
    fn everything_below_a_process_is_found() {
        let children = BTreeMap::from([(1, vec![2, 9]), (2, vec![3, 4]), (4, vec![5]), (9, vec![10])]);
        assert_eq!(below(2, &children), BTreeSet::from([3, 4, 5]));
        assert_eq!(below(5, &children), BTreeSet::new());
    }
}
