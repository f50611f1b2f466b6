//! One process of a scenario: its signals, its end, what it uses.

use std::{
    fs::File,
    path::Path,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::process::{Child, Command};

/// This very program in another part. It is killed when dropped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    pid: u32,
}

/// What a process uses at one moment.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    pub(crate) cpu: Duration,
    pub(crate) rss_mib: u64,
    pub(crate) fds: usize,
}

impl Process {
    pub(crate) fn start(args: &[String], log: &Path) -> Result<Self> {
        Self::start_with(args, log, None)
    }

    /// With so many bytes of stack for each of its threads.
    pub(crate) fn start_with(args: &[String], log: &Path, stack: Option<u64>) -> Result<Self> {
        let log = File::options().create(true).append(true).open(log);
        let log = log.context("cannot write a log")?;
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(args)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // A Ctrl-C is for the harness, which ends the others in its order.
            .process_group(0)
            .kill_on_drop(true)
            .envs(stack.map(|stack| ("RUST_MIN_STACK", stack.to_string())));
        let child = command.spawn().context("cannot start this program again")?;
        let pid = child.id().context("it has ended already")?;
        Ok(Self { child, pid })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    pub(crate) fn signal(&self, signal: Signal) {
        if let Ok(pid) = i32::try_from(self.pid)
            && let Err(error) = kill(Pid::from_raw(pid), signal)
        {
            tracing::debug!(%error, pid, "it has ended already");
        }
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits for its end; `None` if that takes too long.
    pub(crate) async fn end(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        match tokio::time::timeout(limit, self.child.wait()).await {
            Ok(status) => Ok(Some(status?)),
            Err(_) => Ok(None),
        }
    }

    /// What it uses; nothing if it has ended.
    pub(crate) fn usage(&self) -> Usage {
        let proc = |file: &str| format!("/proc/{}/{file}", self.pid);
        let stat = std::fs::read_to_string(proc("stat")).unwrap_or_default();
        let fields: Vec<u64> = stat
            .rsplit_once(')')
            .map(|(_, rest)| rest.split_whitespace().map(|word| word.parse().unwrap_or(0)).collect())
            .unwrap_or_default();
        let field = |number: usize| fields.get(number).copied().unwrap_or(0);
        // User and system time in ticks of 10 ms, resident pages of 4 KiB: proc(5).
        Usage {
            cpu: Duration::from_millis((field(11) + field(12)) * 10),
            rss_mib: field(21) * 4 / 1024,
            fds: std::fs::read_dir(proc("fd")).map_or(0, Iterator::count),
        }
    }
}
