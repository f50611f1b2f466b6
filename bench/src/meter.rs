//! Processor time and memory, as the kernel counts them.

use std::fs;

use anyhow::{Context, Result};
use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeValLike,
};

/// Processor time that this process has used, in microseconds.
pub(crate) fn own_cpu_us() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    Ok((usage.user_time().num_microseconds() + usage.system_time().num_microseconds()) as f64)
}

/// Processor time of another process, in microseconds. By thread and in nanoseconds: the sum that the kernel keeps
/// for the process counts in ticks of 10 ms. Threads that have ended are missing; servers keep theirs.
pub(crate) fn cpu_us(pid: u32) -> Result<f64> {
    let mut nanos = 0u64;
    let threads = format!("/proc/{pid}/task");
    for thread in fs::read_dir(&threads).with_context(|| format!("cannot read {threads}"))? {
        // A thread may end while we look.
        let Ok(stat) = fs::read_to_string(thread?.path().join("schedstat")) else { continue };
        nanos += stat.split(' ').next().unwrap_or("0").parse::<u64>()?;
    }
    Ok(nanos as f64 / 1000.0)
}

/// A line of this process's status that counts kibibytes: `VmRSS`, `VmHWM`.
pub(crate) fn own_kib(name: &str) -> Result<u64> {
    kib(std::process::id(), name)
}

/// The same line of another process's status.
pub(crate) fn kib(pid: u32, name: &str) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let number = line.and_then(|line| line.split_whitespace().next()).context("no such line of status")?;
    Ok(number.parse()?)
}
