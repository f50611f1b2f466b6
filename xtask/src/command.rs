//! Running other programs, cargo above all, so that an interrupt ends them too and their cost is known.

use std::{
    env,
    ffi::OsStr,
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use crate::interrupt::Interrupt;

const POLL: Duration = Duration::from_millis(50);
/// How long an interrupted program may take to end by itself.
const GRACE: Duration = Duration::from_secs(5);

/// The checkout this program was started in.
#[derive(Debug)]
pub(crate) struct Workspace {
    root: PathBuf,
}

impl Workspace {
    /// By the variable that `cargo run` sets, or else by where this program was compiled.
    pub(crate) fn find() -> Result<Self> {
        let manifest_dir = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let Some(root) = manifest_dir.parent().filter(|root| root.join("Cargo.lock").is_file()) else {
            bail!("{} lies in no checkout of machinist: run `cargo xtask` in one", manifest_dir.display());
        };
        Ok(Self { root: root.to_owned() })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Where the servers live unless told otherwise: ignored by git, gone with `cargo clean`.
    pub(crate) fn services_dir(&self) -> PathBuf {
        self.target_dir().join("services")
    }

    /// Where cargo puts what it builds.
    pub(crate) fn target_dir(&self) -> PathBuf {
        let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
        self.root.join(target)
    }

    /// A cargo of this workspace, ready to be given arguments.
    pub(crate) fn cargo<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(&self.root).args(args);
        // `cargo run` describes this crate to us in variables that some build scripts (ring's) watch: handed on,
        // they would compile those crates anew at every change between `cargo xtask` and plain cargo.
        for (name, _) in env::vars_os() {
            let name_text = name.to_string_lossy();
            if ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_"]
                .iter()
                .any(|prefix| name_text.starts_with(prefix))
            {
                cargo.env_remove(&name);
            }
        }
        cargo
    }
}

/// The standard output of a cargo that is asked rather than told to work.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!(
            "{command:?} failed ({}):\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    String::from_utf8(output.stdout)
        .with_context(|| format!("{command:?} printed something that is not UTF-8"))
}

/// Runs a program to its end, its output going where ours goes.
pub(crate) fn run(command: &mut Command, interrupt: &Interrupt) -> Result<ExitStatus> {
    let mut child = spawn(command)?;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if interrupt.heard() {
            return end(&mut child);
        }
        thread::sleep(POLL);
    }
}

/// Runs a program to its end and hands on each line of its standard output.
pub(crate) fn run_lines(
    command: &mut Command,
    interrupt: &Interrupt,
    mut each: impl FnMut(&str),
) -> Result<ExitStatus> {
    let mut child = spawn(command.stdout(Stdio::piped()))?;
    let lines = lines_of(&mut child)?;
    let status = loop {
        match lines.recv_timeout(POLL) {
            Ok(line) => each(&line),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => thread::sleep(POLL),
        }
        if interrupt.heard() {
            break end(&mut child)?;
        }
        if let Some(status) = child.try_wait()? {
            break status;
        }
    };
    // Bounded: a process that the program left behind may hold the pipe open for ever.
    while let Ok(line) = lines.recv_timeout(Duration::from_secs(1)) {
        each(&line);
    }
    Ok(status)
}

/// In a process group of its own, so that an interrupt reaches what the program started in turn (cargo does not
/// hand a SIGTERM on to the tests), and reaches it once.
fn spawn(command: &mut Command) -> Result<Child> {
    command.process_group(0).stdin(Stdio::null()).spawn().with_context(|| format!("cannot run {command:?}"))
}

fn lines_of(child: &mut Child) -> Result<Receiver<String>> {
    let stdout = child.stdout.take().context("the standard output was not piped")?;
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut reader = BufReader::new(stdout);
        let mut line = Vec::new();
        // Bytes, not `lines()`: a test may print what is not UTF-8.
        while reader.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
            let text = String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned();
            if sender.send(text).is_err() {
                return;
            }
            line.clear();
        }
    });
    Ok(receiver)
}

fn end(child: &mut Child) -> Result<ExitStatus> {
    let group = Pid::from_raw(i32::try_from(child.id())?);
    let asked = Instant::now();
    let mut signal = Signal::SIGTERM;
    loop {
        // An error means that the group is gone already.
        let _ = killpg(group, signal);
        while asked.elapsed() < GRACE || signal == Signal::SIGKILL {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            thread::sleep(POLL);
        }
        signal = Signal::SIGKILL;
    }
}

/// `3 min 07 s`, `12.4 s`.
pub(crate) fn display(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if seconds >= 60 {
        format!("{} min {:02} s", seconds / 60, seconds % 60)
    } else {
        format!("{:.1} s", duration.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quiet() -> Interrupt {
        Interrupt::listen().unwrap()
    }

    #[test]
    fn every_line_is_handed_on_and_the_status_is_the_programs() {
        let mut lines = Vec::new();
        let mut command = Command::new("sh");
        command.args(["-c", "echo one; echo two; printf three; exit 3"]);
        let status = run_lines(&mut command, &quiet(), |line| lines.push(line.to_owned())).unwrap();
        assert_eq!(status.code(), Some(3));
        assert_eq!(lines, ["one", "two", "three"]);
    }

    #[test]
    fn a_failing_question_shows_what_was_said() {
        let error = output(Command::new("sh").args(["-c", "echo no such thing >&2; exit 1"])).unwrap_err();
        assert!(error.to_string().contains("no such thing"), "{error}");
    }

    #[test]
    fn durations_read_well() {
        assert_eq!(display(Duration::from_millis(12_440)), "12.4 s");
        assert_eq!(display(Duration::from_secs(187)), "3 min 07 s");
    }
}
