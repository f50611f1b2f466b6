//! The program as process 1, as in a container without an init.
//!
//! The system treats process 1 in a special way: signals that it does not handle do nothing, and every process that
//! loses its parent becomes its child and has to be reaped. So the program starts itself again as a child, which is an
//! ordinary process. Process 1 passes signals on, reaps, and ends with the exit code of that child.

use std::{
    io::{self, IsTerminal, stdin},
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Command, ExitCode, ExitStatus},
    sync::mpsc::channel,
    thread,
};

use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process};
use signal_hook::{consts, iterator::Signals};

use crate::executable;

/// First argument that makes the program behave as process 1 wherever it runs. The rest is its command line.
const ARGUMENT: &str = "internal-first-process";
/// Signals that are passed on to the child.
const PASSED_ON: [i32; 8] = [
    consts::SIGTERM,
    consts::SIGINT,
    consts::SIGHUP,
    consts::SIGQUIT,
    consts::SIGUSR1,
    consts::SIGUSR2,
    consts::SIGCONT,
    consts::SIGWINCH,
];

/// Runs the command line in a child, if this process is process 1. Returns the exit code of the child.
pub(crate) fn run_if_first() -> Option<ExitCode> {
    let asked = std::env::args_os().nth(1).is_some_and(|word| word == ARGUMENT);
    if !asked && !getpid().is_init() {
        return None;
    }
    let skipped = if asked { 2 } else { 1 };
    let mut command = Command::new(executable());
    command.args(std::env::args_os().skip(skipped));
    match run(command) {
        Ok(code) => Some(code),
        Err(error) => {
            crate::output::note(&format!(
                "machinist: cannot start as a child of process 1, and goes on as process 1: {error}"
            ));
            // Asked for by a test: there is no command line to go on with.
            asked.then_some(ExitCode::FAILURE)
        }
    }
}

fn run(mut command: Command) -> io::Result<ExitCode> {
    let mut signals = Signals::new(PASSED_ON)?;
    #[cfg(target_os = "linux")]
    rustix::process::set_child_subreaper(Some(getpid()))?;
    // Before the child: the system can refuse a thread, and then this process does the work itself.
    let (started, starts) = channel();
    thread::Builder::new().spawn(move || {
        let Ok(child) = starts.recv() else { return };
        for signal in signals.forever() {
            if let Some(signal) = Signal::from_named_raw(signal) {
                // A child that has just ended needs no signal.
                let _gone = kill_process(child, signal);
            }
        }
    })?;
    // A group of its own, so that a terminal sends its signals once.
    let child = command.process_group(0).spawn()?;
    let child = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let child = child.ok_or_else(|| io::Error::other("the system gave the child no process id"))?;
    if stdin().is_terminal() {
        // Only the foreground of a terminal hears Ctrl-C. Where the terminal is not ours, it stays as it is.
        let _not_ours = rustix::termios::tcsetpgrp(stdin(), child);
    }
    // The thread waits for it, and does not end before.
    let _sent = started.send(child);
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((process, status))) if process == child => {
                return Ok(exit_code(ExitStatus::from_raw(status.as_raw())));
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Returns the exit code of a process as a shell tells it: 128 and the number of the signal that ended it.
fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX))
}
