//! Limit of open files: as many programs at once as it allows, and no more.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Open files of one run of a command task: two ends of a socket, two pipes, and the handle of the process.
const FILES_PER_RUN: u64 = 5;
/// Open files that a worker needs in addition: for connections that it opens again, and while it starts a program.
const RESERVE: u64 = 14;

/// Number of runs that fit into the limit of open files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fit {
    /// Number of programs that can run at once, at most the wanted one.
    pub(crate) concurrency: usize,
    /// Limit of open files in force.
    pub(crate) limit: u64,
    /// Limit that the wanted number needs.
    pub(crate) needed: u64,
    /// Soft limit before it was raised; programs get it back.
    pub(crate) soft_before: Option<u64>,
}

/// Raises the soft limit of open files, as far as `wanted` programs at once need it and the hard limit allows it. Call
/// it with all connections open.
pub(crate) fn fit(wanted: usize) -> Fit {
    let open = std::fs::read_dir("/proc/self/fd").map_or(RESERVE, |files| files.count() as u64);
    let before = getrlimit(Resource::Nofile);
    let needed = needed(open, wanted);
    let mut limit = before.current.unwrap_or(u64::MAX);
    if limit < needed {
        let raised = before.maximum.unwrap_or(u64::MAX).min(needed);
        if setrlimit(Resource::Nofile, Rlimit { current: Some(raised), ..before }).is_ok() {
            limit = raised;
        }
    }
    Fit { concurrency: wanted.min(runs(open, limit)), limit, needed, soft_before: before.current }
}

fn needed(open: u64, runs: usize) -> u64 {
    open + RESERVE + FILES_PER_RUN * runs as u64
}

fn runs(open: u64, limit: u64) -> usize {
    usize::try_from(limit.saturating_sub(open + RESERVE) / FILES_PER_RUN).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_runs_fit_as_the_limit_allows() {
        assert_eq!(needed(20, 500), 2534);
        assert_eq!(runs(20, needed(20, 500)), 500);
        assert_eq!(runs(20, needed(20, 500) - 1), 499);
        assert_eq!(runs(20, 34), 0);
        assert_eq!(runs(20, 10), 0);
    }
}
