//! Processes below this one or of a session, and signals to all of them.

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
    for (id, place) in running() {
        children.entry(place.parent).or_default().push(id);
    }
    below(getpid().as_raw_nonzero().get(), &children).into_iter().filter_map(Pid::from_raw).collect()
}

/// Kills all processes of a session. Returns how many there were; none where there is no `/proc`.
pub(super) fn kill_session(session: Pid) -> usize {
    let members = running().into_iter().filter(|(_, place)| Pid::from_raw(place.session) == Some(session));
    let members: Vec<Pid> = members.filter_map(|(id, _)| Pid::from_raw(id)).collect();
    for process in &members {
        let _gone = kill_process(*process, Signal::KILL);
    }
    members.len()
}

/// Returns the process group of a process; `None` where there is no `/proc`, or where the group is not of this container.
pub(super) fn group(process: Pid) -> Option<Pid> {
    Pid::from_raw(place(process.as_raw_nonzero().get())?.group)
}

/// Place of a process among the others. An id is 0 if it is not of this container, or of the kernel.
#[derive(Debug, PartialEq, Eq)]
struct ProcessPlace {
    parent: i32,
    group: i32,
    session: i32,
}

/// Returns all processes that have not ended, from `/proc`.
fn running() -> Vec<(i32, ProcessPlace)> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ids.filter_map(|id| Some((id, place(id)?))).collect()
}

/// Returns the place of a process; `None` for one that has ended.
fn place(id: i32) -> Option<ProcessPlace> {
    // A process that has just ended has no file any more.
    parse(&std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?)
}

/// Reads a `/proc/ID/stat`; `None` for a process that has ended and waits to be reaped.
fn parse(stat: &str) -> Option<ProcessPlace> {
    // The name of the program stands in parentheses, and may itself contain them.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    let mut next = || fields.next()?.parse().ok();
    Some(ProcessPlace { parent: next()?, group: next()?, session: next()? })
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
    fn a_process_has_a_place() {
        assert_eq!(parse("12 (sh) S 7 12 11 0"), Some(ProcessPlace { parent: 7, group: 12, session: 11 }));
        assert_eq!(
            parse("12 (a) b) (c) R 7 12 11 0"),
            Some(ProcessPlace { parent: 7, group: 12, session: 11 })
        );
        assert_eq!(parse("12 (sh) Z 7 12 11 0"), None);
        assert_eq!(parse(""), None);
    }

    #[test]
    fn everything_below_a_process_is_found() {
        let children = BTreeMap::from([(1, vec![2, 9]), (2, vec![3, 4]), (4, vec![5]), (9, vec![10])]);
        assert_eq!(below(2, &children), BTreeSet::from([3, 4, 5]));
        assert_eq!(below(5, &children), BTreeSet::new());
    }
}
