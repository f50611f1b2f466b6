//! One run of a program, in a separate process group.
//!
//! A run that ends early ends the whole group: a shell script's children do not outlive their task. The group is asked
//! to end (TERM) and, three seconds later, forced to (KILL).

use std::{
    collections::{BTreeSet, VecDeque},
    convert::Infallible,
    future::pending,
    io,
    pin::pin,
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::{Child, Command},
};
use tokio_util::sync::CancellationToken;

/// Maximum size of a run's standard output, in bytes.
pub(crate) const MAX_OUTPUT_BYTES: usize = 1024 * 1024;
/// Time that a process group gets to end before it is killed.
const KILL_DELAY: Duration = Duration::from_secs(3);
/// Time between two checks that a process group has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Maximum time to wait for the rest of the output after a program has ended.
const OUTPUT_GRACE: Duration = Duration::from_secs(2);
/// Number of lines of standard error that the error of a failed run repeats.
const ERROR_LINES: usize = 10;
/// Maximum length of a line of standard error, in bytes; longer lines are cut.
const MAX_LINE_BYTES: usize = 4096;

/// Result of a run that ended by itself.
#[derive(Debug)]
pub(crate) struct FinishedRun {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    /// `true` if it was stopped because it wrote more than [`MAX_OUTPUT_BYTES`].
    pub(crate) overflow: bool,
    /// Last lines of its standard error.
    pub(crate) last_lines: String,
}

/// End of a run.
#[derive(Debug)]
pub(crate) enum ProgramEnd {
    Finished(FinishedRun),
    /// It was cancelled, and all its processes have ended.
    Cancelled,
}

/// Process groups that are alive, so that none outlives this process.
#[derive(Debug, Clone, Default)]
pub(crate) struct ProcessGroups(Arc<Mutex<BTreeSet<i32>>>);

impl ProcessGroups {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeSet<i32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Kills every group, because this process is about to exit.
    pub(crate) fn kill_all(&self) {
        for group in std::mem::take(&mut *self.lock()) {
            signal(group, Signal::SIGKILL);
        }
    }
}

/// Live process group. If it is dropped alive, because its run was dropped, it is ended in the background.
struct ProcessGroup {
    leader: i32,
    groups: ProcessGroups,
    over: bool,
}

impl ProcessGroup {
    fn register(groups: &ProcessGroups, child: &Child) -> Self {
        // INVARIANT: the child was just spawned and has not been waited for.
        let leader = child.id().and_then(|id| i32::try_from(id).ok()).expect("a running child has an id");
        groups.lock().insert(leader);
        Self { leader, groups: groups.clone(), over: false }
    }

    /// Kills the processes that the leader left running when it ended.
    fn leader_ended(&mut self) {
        signal(self.leader, Signal::SIGKILL);
        self.groups.lock().remove(&self.leader);
        self.over = true;
    }

    async fn end(mut self, child: &mut Child) -> io::Result<()> {
        signal(self.leader, Signal::SIGTERM);
        if tokio::time::timeout(KILL_DELAY, child.wait()).await.is_err() {
            signal(self.leader, Signal::SIGKILL);
            child.wait().await?;
        }
        self.leader_ended();
        Ok(())
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let leader = self.leader;
        let groups = self.groups.clone();
        signal(leader, Signal::SIGTERM);
        let finish = async move {
            // Polled often, so that no other group that reuses the number is killed.
            for _ in 0..KILL_DELAY.as_millis() / POLL_INTERVAL.as_millis() {
                tokio::time::sleep(POLL_INTERVAL).await;
                if killpg(Pid::from_raw(leader), None) == Err(nix::errno::Errno::ESRCH) {
                    groups.lock().remove(&leader);
                    return;
                }
            }
            signal(leader, Signal::SIGKILL);
            groups.lock().remove(&leader);
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(finish)),
            Err(_) => signal(leader, Signal::SIGKILL),
        }
    }
}

/// Sends a signal to a process group; a group that has ended is no error.
fn signal(group: i32, signal: Signal) {
    if let Err(error) = killpg(Pid::from_raw(group), signal)
        && error != nix::errno::Errno::ESRCH
    {
        tracing::warn!(group, %signal, %error, "the processes of a command could not be ended");
    }
}

/// Runs a program to its end. Writes `input` to its standard input, and passes each line of its standard error to `log`.
///
/// # Errors
/// The program could not be started.
///
/// # Cancel safety
/// Safe: if the future is dropped early, the whole process group is ended in the background.
pub(crate) async fn run(
    mut command: Command,
    input: Vec<u8>,
    log: impl FnMut(&str),
    cancel: &CancellationToken,
    groups: &ProcessGroups,
) -> io::Result<ProgramEnd> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn()?;
    let mut group = ProcessGroup::register(groups, &child);
    // INVARIANT: all three are piped above, and taken once.
    let mut stdin = child.stdin.take().expect("stdin is piped");
    let stdout = child.stdout.take().expect("stdout is piped");
    let stderr = child.stderr.take().expect("stderr is piped");
    let leader = group.leader;
    let feed = async move {
        // A program need not read its input; a closed pipe is no failure.
        if let Err(error) = stdin.write_all(&input).await {
            tracing::debug!(%error, "the command did not read its arguments");
        }
        drop(stdin);
        pending::<Infallible>().await
    };
    let wait = async {
        let status = child.wait().await;
        group.leader_ended();
        status
    };
    let mut output = Vec::new();
    let mut last_lines = VecDeque::new();
    let finished = {
        let mut reads = pin!(async {
            tokio::join!(read_output(stdout, leader, &mut output), read_log(stderr, log, &mut last_lines))
        });
        let mut wait = pin!(wait);
        let work = async {
            tokio::select! {
                status = &mut wait => {
                    // A process that left the group can keep the pipes open forever.
                    let _elapsed = tokio::time::timeout(OUTPUT_GRACE, reads).await;
                    status
                }
                _ = &mut reads => wait.await,
            }
        };
        tokio::select! {
            status = work => Some(status),
            never = feed => match never {},
            () = cancel.cancelled() => None,
        }
    };
    let Some(status) = finished else {
        if !group.over {
            group.end(&mut child).await?;
        }
        return Ok(ProgramEnd::Cancelled);
    };
    let overflow = output.len() > MAX_OUTPUT_BYTES;
    let last_lines = Vec::from(last_lines).join("\n").trim().to_owned();
    Ok(ProgramEnd::Finished(FinishedRun { status: status?, stdout: output, overflow, last_lines }))
}

/// Reads standard output to its end. If it is too long, kills the group.
async fn read_output(from: impl AsyncRead + Unpin, group: i32, output: &mut Vec<u8>) {
    let read = from.take(MAX_OUTPUT_BYTES as u64 + 1).read_to_end(output).await;
    if let Err(error) = read {
        tracing::warn!(%error, "the output of a command cannot be read to its end");
    }
    if output.len() > MAX_OUTPUT_BYTES {
        signal(group, Signal::SIGKILL);
    }
}

/// Passes each line of standard error to `log`, and keeps the last ones.
async fn read_log(mut from: impl AsyncRead + Unpin, mut log: impl FnMut(&str), last: &mut VecDeque<String>) {
    let mut take_line = |line: &mut Vec<u8>| {
        let text = String::from_utf8_lossy(line).trim_end().to_owned();
        line.clear();
        log(&text);
        if last.len() == ERROR_LINES {
            last.pop_front();
        }
        last.push_back(text);
    };
    let mut line = Vec::new();
    let mut chunk = [0; 4096];
    // An unreadable pipe ends the log, not the task.
    while let Ok(count @ 1..) = from.read(&mut chunk).await {
        for byte in &chunk[..count] {
            match byte {
                b'\n' => take_line(&mut line),
                byte if line.len() < MAX_LINE_BYTES => line.push(*byte),
                _ => {}
            }
        }
    }
    if !line.is_empty() {
        take_line(&mut line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    async fn finish(script: &str, input: &[u8]) -> (FinishedRun, Vec<String>) {
        let mut lines = Vec::new();
        let never = CancellationToken::new();
        let groups = ProcessGroups::default();
        let run = run(sh(script), input.to_vec(), |line| lines.push(line.to_owned()), &never, &groups);
        let ended = tokio::time::timeout(Duration::from_secs(20), run).await.expect("the run ends").unwrap();
        match ended {
            ProgramEnd::Finished(finished) => (finished, lines),
            ProgramEnd::Cancelled => panic!("it was not cancelled"),
        }
    }

    /// Returns `true` if a process exists and is not a zombie.
    fn alive(id: i32) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
    }

    async fn gone(id: i32) {
        let gone = async {
            while alive(id) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), gone).await.expect("the process ends");
    }

    /// Waits until a script has written the id of its child to a file, and returns that id.
    async fn child_of(folder: &std::path::Path) -> i32 {
        let file = folder.join("child");
        let read = async {
            loop {
                let id = std::fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok());
                match id {
                    Some(id) => return id,
                    None => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(20), read).await.expect("the script starts")
    }

    #[tokio::test]
    async fn input_output_and_log_are_carried() {
        let (finished, lines) = finish("cat; echo one >&2; printf two >&2; exit 3", b"in").await;
        assert_eq!(finished.stdout, b"in");
        assert_eq!(finished.status.code(), Some(3));
        assert_eq!(lines, ["one", "two"]);
        assert_eq!(finished.last_lines, "one\ntwo");
    }

    #[tokio::test]
    async fn a_program_need_not_read_its_input() {
        let (finished, _) = finish("exit 0", &vec![b'x'; 4 << 20]).await;
        assert!(finished.status.success());
    }

    #[tokio::test]
    async fn too_much_output_ends_the_run() {
        let (finished, _) = finish("yes", b"").await;
        assert!(finished.overflow);
        let (finished, _) = finish("yes | head -c 1048576", b"").await;
        assert!(!finished.overflow && finished.status.success());
    }

    #[tokio::test]
    async fn a_long_log_is_cut_and_its_end_is_kept() {
        let (finished, lines) = finish("head -c 100000 /dev/zero | tr '\\0' x >&2; seq 100 >&2", b"").await;
        assert_eq!(lines[0].len(), MAX_LINE_BYTES);
        assert!(finished.last_lines.ends_with("99\n100"));
        assert_eq!(finished.last_lines.lines().count(), ERROR_LINES);
    }

    #[tokio::test]
    async fn what_a_command_leaves_running_ends_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let script = format!("sleep 1000 & echo $! > {}/child; echo done", folder.path().display());
        let (finished, _) = finish(&script, b"").await;
        assert_eq!(finished.stdout, b"done\n");
        gone(child_of(folder.path()).await).await;
    }

    #[tokio::test]
    async fn who_leaves_the_group_holds_up_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("child");
        let file = file.display();
        let script = format!(
            "setsid sh -c 'echo $$ > {file}; exec sleep 1000' & until [ -s {file} ]; do sleep 0.01; done; echo done"
        );
        let (finished, _) = finish(&script, b"").await;
        assert_eq!(finished.stdout, b"done\n");
        let left = child_of(folder.path()).await;
        assert!(alive(left));
        nix::sys::signal::kill(Pid::from_raw(left), Signal::SIGKILL).unwrap();
    }

    #[tokio::test]
    async fn cancellation_ends_the_whole_group_before_it_returns() {
        let folder = tempfile::tempdir().unwrap();
        let script = format!("sleep 1000 & echo $! > {}/child; wait", folder.path().display());
        let cancel = CancellationToken::new();
        let groups = ProcessGroups::default();
        let (ended, child) = tokio::join!(run(sh(&script), Vec::new(), |_| {}, &cancel, &groups), async {
            let child = child_of(folder.path()).await;
            cancel.cancel();
            child
        });
        assert!(matches!(ended.unwrap(), ProgramEnd::Cancelled));
        gone(child).await;
        assert!(groups.lock().is_empty());
    }

    #[tokio::test]
    async fn a_dropped_run_ends_its_group_even_if_it_ignores_the_request() {
        let folder = tempfile::tempdir().unwrap();
        let script =
            format!("trap '' TERM; sleep 1000 & echo $! > {}/child; wait; wait", folder.path().display());
        let never = CancellationToken::new();
        let groups = ProcessGroups::default();
        let run = run(sh(&script), Vec::new(), |_| {}, &never, &groups);
        let child = tokio::select! {
            _ = run => panic!("the run does not end by itself"),
            child = child_of(folder.path()) => child,
        };
        gone(child).await;
    }
}
