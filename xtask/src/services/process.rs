//! A process that outlives the command that started it, and is recognised later without doubt.
//!
//! A pid alone is no identity: after a reboot or a long day it belongs to somebody else, and ending it would end
//! a stranger. The pid file therefore also holds the start time that the kernel keeps for each process.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::{
        signal::{Signal, killpg},
        wait::{WaitPidFlag, waitpid},
    },
    unistd::Pid,
};

/// RabbitMQ takes a few seconds to close its files.
const GRACE: Duration = Duration::from_secs(20);
/// The kernel ends a killed process at once, unless its disk hangs.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// One process, living or dead; leader of its own process group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Process {
    pid: i32,
    /// In clock ticks since boot.
    started: u64,
}

impl Process {
    /// Starts a program that will not end with us, and records it before anything else can go wrong.
    pub(super) fn start(command: &mut Command, log: &Path, pid_file: &Path) -> Result<Self> {
        let out = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut child = command
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {:?}", command.get_program()))?;
        let pid = i32::try_from(child.id())?;
        // There even if it has ended already, because nobody has waited for it yet.
        let started = stat(pid).with_context(|| format!("/proc/{pid}/stat cannot be read"))?.started;
        if let Err(error) = fs::write(pid_file, format!("{pid} {started}\n")) {
            child.kill()?;
            child.wait()?;
            return Err(error).with_context(|| format!("cannot write {}", pid_file.display()));
        }
        Ok(Self { pid, started })
    }

    /// What a pid file says; `None` where there is no file.
    pub(super) fn recorded(pid_file: &Path) -> Result<Option<Self>> {
        let Ok(text) = fs::read_to_string(pid_file) else { return Ok(None) };
        let mut words = text.split_whitespace();
        let recorded =
            words.next().and_then(|pid| pid.parse().ok()).zip(words.next().and_then(|s| s.parse().ok()));
        let Some((pid, started)) = recorded else {
            bail!("{} holds no pid: end the process by hand and remove the file", pid_file.display());
        };
        Ok(Some(Self { pid, started }))
    }

    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    pub(super) fn is_alive(&self) -> bool {
        stat(self.pid).is_some_and(|stat| stat.started == self.started && stat.runs())
    }

    /// Sends a signal to it and to what it started.
    pub(super) fn signal(&self, signal: Signal) -> Result<()> {
        killpg(Pid::from_raw(self.pid), signal)
            .with_context(|| format!("cannot send {signal} to {}", self.pid))
    }

    /// Kills it as a power cut would, and waits until it is gone.
    pub(super) fn kill(&self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        let deadline = Instant::now() + KILL_TIMEOUT;
        while self.is_alive() {
            ensure!(Instant::now() < deadline, "process {} does not end", self.pid);
            thread::sleep(Duration::from_millis(10));
        }
        // A child of this process keeps its pid until it is waited for, and PostgreSQL takes the pid for a server that runs. An
        // error means that it is no child of this process.
        let _ = waitpid(Pid::from_raw(self.pid), Some(WaitPidFlag::WNOHANG));
        Ok(())
    }

    /// Ends it and waits until it is gone; `false` if it was not running.
    pub(super) fn end(&self) -> Result<bool> {
        if !self.is_alive() {
            return Ok(false);
        }
        for (signal, timeout) in [(Signal::SIGTERM, GRACE), (Signal::SIGKILL, KILL_TIMEOUT)] {
            // An error means that it ended in this very moment.
            let _ = killpg(Pid::from_raw(self.pid), signal);
            let deadline = Instant::now() + timeout;
            while Instant::now() < deadline {
                if !self.is_alive() {
                    return Ok(true);
                }
                thread::sleep(Duration::from_millis(50));
            }
        }
        bail!("process {} does not end", self.pid);
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Stat {
    zombie: bool,
    threads: u64,
    started: u64,
}

impl Stat {
    /// Whether it still holds its files and ports. A process is a zombie as soon as its first thread has ended, and the
    /// others, which share its files, may need a moment longer.
    fn runs(&self) -> bool {
        !self.zombie || self.threads > 1
    }
}

fn stat(pid: i32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// See proc(5): the second field is a name in parentheses that may itself hold spaces and parentheses.
fn parse_stat(line: &str) -> Option<Stat> {
    let (_, rest) = line.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let zombie = matches!(fields.next()?, "Z" | "X");
    let threads = fields.nth(16)?.parse().ok()?;
    Some(Stat { zombie, threads, started: fields.nth(1)?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_time_is_the_22nd_field_whatever_the_name() {
        let line = "42 (a) b (c) S 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 10 11";
        assert_eq!(parse_stat(line), Some(Stat { zombie: false, threads: 1, started: 987_654 }));
    }

    #[test]
    fn a_zombie_whose_threads_still_end_keeps_its_port() {
        let line = |state: char, threads: u32| {
            parse_stat(&format!(
                "42 (redis-server) {state} 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 {threads} 0 987654 10 11"
            ))
            .unwrap()
        };
        assert!(line('S', 1).runs());
        assert!(line('Z', 4).runs());
        assert!(!line('Z', 1).runs());
    }

    #[test]
    fn another_process_with_the_same_pid_is_not_ours() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let me = Process { pid, started: stat(pid).unwrap().started };
        assert!(me.is_alive());
        let stranger = Process { pid, started: me.started + 1 };
        assert!(!stranger.is_alive());
        assert!(!stranger.end().unwrap());
    }

    #[test]
    fn what_was_started_is_recognised_by_its_file_and_ended() {
        let dir = std::env::temp_dir().join(format!("machinist-xtask-process-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let pid_file = dir.join("sleep.pid");
        let started = Process::start(Command::new("sleep").arg("600"), &dir.join("log"), &pid_file).unwrap();
        let recorded = Process::recorded(&pid_file).unwrap().unwrap();
        assert_eq!(recorded, started);
        assert!(recorded.is_alive());
        assert!(recorded.end().unwrap());
        assert!(!recorded.is_alive());
        assert!(!recorded.end().unwrap());
        fs::remove_dir_all(&dir).unwrap();
    }
}
