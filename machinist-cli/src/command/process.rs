//! One run of a program, under a supervisor.
//!
//! A run that ends early ends everything that it has started: a shell script's children do not outlive their task. They
//! are asked to end (TERM) and, three seconds later, forced to (KILL). The [supervisor](crate::supervisor) does that,
//! also when this process is gone.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt, io, mem,
    os::unix::{net::UnixStream, process::ExitStatusExt},
    pin::pin,
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    process::{Pid, Signal, kill_process_group},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader},
    process::{Child, Command},
};
use tokio_util::sync::CancellationToken;

use crate::{
    executable,
    supervisor::{
        self,
        order::{ARGUMENT, KILL, Report, RunOrder, TERMINATE},
    },
};

/// Maximum size of a run's standard output, in bytes.
pub(crate) const MAX_OUTPUT_BYTES: usize = 1024 * 1024;
/// Maximum time to wait for the rest of the output after a program has ended.
const OUTPUT_GRACE: Duration = Duration::from_secs(2);
/// Maximum time to wait for killed programs before this process ends.
const KILL_GRACE: Duration = Duration::from_secs(5);
/// Time between two checks that all killed programs have ended.
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// Minimum time between two notes about a shortage.
const NOTE_INTERVAL: Duration = Duration::from_secs(10);
/// Number of lines of standard error that the error of a failed run repeats.
const ERROR_LINES: usize = 10;
/// Maximum length of a line of standard error that is kept, in bytes: a little more than the log takes, so that the log shows
/// that the line was cut.
const MAX_LINE_BYTES: usize = 4100;
/// Size of what is read of standard error at once.
const CHUNK_BYTES: usize = 64 * 1024;

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
    /// Its supervisor was killed, so its exit code is unknown.
    Unsupervised,
}

/// Programs that run, so that none outlives this process.
#[derive(Debug, Clone, Default)]
pub(crate) struct Programs {
    /// Sockets of the supervisors, by their process ids.
    running: Arc<Mutex<BTreeMap<u32, UnixStream>>>,
    /// Time of the last note about a shortage.
    noted: Arc<Mutex<Option<Instant>>>,
}

impl Programs {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u32, UnixStream>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Logs that programs cannot be started, once in [`NOTE_INTERVAL`].
    pub(crate) fn note_shortage(&self, error: &io::Error) {
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        if noted.is_none_or(|at| at.elapsed() >= NOTE_INTERVAL) {
            *noted = Some(Instant::now());
            tracing::warn!(%error, "programs cannot be started now, and their tasks wait: lower the concurrency, or raise the limit");
        }
    }

    fn request(&self, supervisor: u32, request: u8) {
        if let Some(control) = self.lock().get_mut(&supervisor) {
            ask(control, request);
        }
    }

    /// Kills every program, because this process is about to exit, and waits until they have ended.
    ///
    /// # Cancel safety
    /// Safe: the programs are killed either way.
    pub(crate) async fn kill_all(&self) {
        for control in self.lock().values_mut() {
            ask(control, KILL);
        }
        let ended = async {
            while !self.lock().is_empty() {
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        };
        if tokio::time::timeout(KILL_GRACE, ended).await.is_err() {
            tracing::warn!("programs were killed, and have not ended");
        }
    }
}

/// Sends a request to a supervisor. One that has ended needs none.
fn ask(control: &mut UnixStream, request: u8) {
    let _ended = io::Write::write_all(control, &[request]);
}

/// Supervisor that runs. If it is dropped alive, because its run was dropped, it ends its program in the background.
struct RunSupervisor {
    id: u32,
    /// `None` after its end.
    process: Option<Child>,
    programs: Programs,
}

impl RunSupervisor {
    fn start(program: &std::ffi::OsStr, programs: &Programs) -> io::Result<(Self, UnixStream)> {
        let (ours, theirs) = UnixStream::pair()?;
        let registered = ours.try_clone()?;
        let mut command = Command::new(executable());
        // The name of the program is for people who list processes.
        command.arg(ARGUMENT).arg(program).stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)));
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        // One after the other, because each start needs some more files while it lasts.
        let mut all = programs.lock();
        let process = command.spawn()?;
        // INVARIANT: the process was just spawned and has not been waited for.
        let id = process.id().expect("a running process has an id");
        all.insert(id, registered);
        drop(all);
        Ok((Self { id, process: Some(process), programs: programs.clone() }, ours))
    }

    /// Ends what its run has started, after it was killed itself. Returns the number of processes that could not be ended.
    async fn end_orphans(&self) -> usize {
        match i32::try_from(self.id).ok().and_then(Pid::from_raw) {
            Some(id) => supervisor::end_orphans(id).await,
            None => 0,
        }
    }

    /// Waits until it has ended.
    async fn ended(&mut self) -> io::Result<()> {
        if let Some(process) = &mut self.process {
            process.wait().await?;
        }
        self.process = None;
        self.programs.lock().remove(&self.id);
        Ok(())
    }
}

impl Drop for RunSupervisor {
    fn drop(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        self.programs.request(self.id, TERMINATE);
        let (id, programs) = (self.id, self.programs.clone());
        let finish = async move {
            if let Err(error) = process.wait().await {
                tracing::warn!(%error, "the end of a program cannot be awaited");
            }
            programs.lock().remove(&id);
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(finish)),
            // The closed socket ends the program too.
            Err(_) => drop(self.programs.lock().remove(&id)),
        }
    }
}

/// Error of a run whose supervisor ended before it could start the program: the system refused it memory, for example, or
/// killed it. Nothing of the task has run.
#[derive(Debug)]
struct NoSupervisor;

impl fmt::Display for NoSupervisor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the supervisor of the program ended before it started the program")
    }
}

impl std::error::Error for NoSupervisor {}

/// Returns `true` for an error of a start that comes from a shortage on this host: too many open files, processes or
/// threads, or too little memory. It says nothing about the task.
pub(crate) fn is_shortage(error: &io::Error) -> bool {
    let shortages = [Errno::MFILE, Errno::NFILE, Errno::AGAIN, Errno::NOMEM];
    error.raw_os_error().is_some_and(|code| shortages.iter().any(|errno| errno.raw_os_error() == code))
        || error.get_ref().is_some_and(|error| error.is::<NoSupervisor>())
}

/// Runs a program to its end, with `input` on its standard input, and passes each line of its standard error to `log`.
///
/// # Errors
/// The program could not be started.
///
/// # Cancel safety
/// Safe: if the future is dropped early, everything that the run has started is ended in the background.
pub(crate) async fn run(
    order: &RunOrder,
    input: &[u8],
    log: impl FnMut(&str),
    cancel: &CancellationToken,
    programs: &Programs,
) -> io::Result<ProgramEnd> {
    let (mut supervisor, control) = RunSupervisor::start(&order.program, programs)?;
    control.set_nonblocking(true)?;
    let (reports, mut requests) = tokio::net::UnixStream::from_std(control)?.into_split();
    let mut reports = BufReader::new(reports).lines();
    let mut line = serde_json::to_vec(&RunOrder { input_bytes: input.len(), ..order.clone() })?;
    line.push(b'\n');
    line.extend_from_slice(input);
    // A supervisor that somebody ended does not read; the missing report tells it.
    let _ended = requests.write_all(&line).await;
    let mut report = next_report(&mut reports).await?;
    let is_starting = report == Some(Report::Starting);
    if is_starting {
        report = next_report(&mut reports).await?;
    }
    let group = match report {
        Some(Report::Started(id)) => Pid::from_raw(id),
        Some(Report::Failed { errno, text }) => {
            supervisor.ended().await?;
            return Err(errno.map_or_else(|| io::Error::other(text), io::Error::from_raw_os_error));
        }
        None if !is_starting => {
            supervisor.ended().await?;
            return Err(io::Error::other(NoSupervisor));
        }
        // The program may run.
        Some(Report::Starting | Report::Ended { .. }) | None => None,
    };
    // INVARIANT: both are piped above, and taken once.
    let process = supervisor.process.as_mut().expect("the supervisor runs");
    let stdout = process.stdout.take().expect("stdout is piped");
    let stderr = process.stderr.take().expect("stderr is piped");
    let (mut output, mut last_lines) = (Vec::new(), VecDeque::new());
    let mut end = {
        let too_long = || programs.request(supervisor.id, KILL);
        let reads = async {
            tokio::join!(read_output(stdout, too_long, &mut output), read_log(stderr, log, &mut last_lines))
        };
        let mut reads = pin!(reads);
        let work = async {
            tokio::select! {
                end = next_report(&mut reports) => {
                    // A process that could not be ended can keep the pipes open forever.
                    let _elapsed = tokio::time::timeout(OUTPUT_GRACE, reads).await;
                    end
                }
                _ = &mut reads => next_report(&mut reports).await,
            }
        };
        tokio::select! {
            end = work => Some(end?),
            () = cancel.cancelled() => None,
        }
    };
    let cancelled = end.is_none();
    if cancelled {
        programs.request(supervisor.id, TERMINATE);
        end = Some(next_report(&mut reports).await?);
    }
    let Some(Some(Report::Ended { status, left })) = end else {
        if let Some(group) = group {
            // The next owner of the number could be somebody else, but only after all of this group have ended.
            let _ended = kill_process_group(group, Signal::KILL);
        }
        note_left(order, supervisor.end_orphans().await);
        return Ok(ProgramEnd::Unsupervised);
    };
    note_left(order, left);
    supervisor.ended().await?;
    if cancelled {
        return Ok(ProgramEnd::Cancelled);
    }
    let overflow = output.len() > MAX_OUTPUT_BYTES;
    let last_lines = Vec::from(last_lines).join("\n").trim().to_owned();
    let status = ExitStatusExt::from_raw(status);
    Ok(ProgramEnd::Finished(FinishedRun { status, stdout: output, overflow, last_lines }))
}

/// Logs that processes of a program could not be ended.
fn note_left(order: &RunOrder, left: usize) {
    if left > 0 {
        tracing::warn!(left, program = %order.program.display(), "processes of a program could not be ended");
    }
}

/// Returns the next report of a supervisor; `None` if it has ended.
async fn next_report<R: AsyncRead + Unpin>(
    reports: &mut tokio::io::Lines<BufReader<R>>,
) -> io::Result<Option<Report>> {
    match reports.next_line().await {
        Ok(Some(line)) => Ok(Some(serde_json::from_str(&line)?)),
        Ok(None) => Ok(None),
        // It ended while it had something to read.
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads standard output to its end. If it is too long, calls `too_long`, which ends the program.
async fn read_output(from: impl AsyncRead + Unpin, too_long: impl FnOnce(), output: &mut Vec<u8>) {
    let read = from.take(MAX_OUTPUT_BYTES as u64 + 1).read_to_end(output).await;
    if let Err(error) = read {
        tracing::warn!(%error, "the output of a command cannot be read to its end");
    }
    if output.len() > MAX_OUTPUT_BYTES {
        too_long();
    }
}

/// Passes the lines of standard error to `log`, as many at once as there are, and keeps the last ones.
async fn read_log(mut from: impl AsyncRead + Unpin, log: impl FnMut(&str), last: &mut VecDeque<String>) {
    let mut lines = ErrorLines { begun: Vec::new(), last, log };
    let mut chunk = vec![0; CHUNK_BYTES];
    // An unreadable pipe ends the log, not the task.
    while let Ok(count @ 1..) = from.read(&mut chunk).await {
        lines.add(&chunk[..count]);
    }
    lines.finish();
}

/// Lines of standard error.
struct ErrorLines<'a, L> {
    /// Begin of a line whose end has not come.
    begun: Vec<u8>,
    last: &'a mut VecDeque<String>,
    log: L,
}

impl<L: FnMut(&str)> ErrorLines<'_, L> {
    fn add(&mut self, mut chunk: &[u8]) {
        if !self.begun.is_empty()
            && let Some(end) = chunk.iter().position(|byte| *byte == b'\n')
        {
            self.begin(&chunk[..end]);
            chunk = &chunk[end + 1..];
            self.finish();
        }
        if let Some(end) = chunk.iter().rposition(|byte| *byte == b'\n') {
            self.pass(&chunk[..end]);
            chunk = &chunk[end + 1..];
        }
        self.begin(chunk);
    }

    /// Keeps the begin of a line, at most a little more than a line may have.
    fn begin(&mut self, bytes: &[u8]) {
        let free = MAX_LINE_BYTES.saturating_sub(self.begun.len());
        self.begun.extend_from_slice(&bytes[..bytes.len().min(free)]);
    }

    fn finish(&mut self) {
        if !self.begun.is_empty() {
            let line = mem::take(&mut self.begun);
            self.pass(&line);
        }
    }

    /// Passes lines without the last line break.
    fn pass(&mut self, lines: &[u8]) {
        let text = String::from_utf8_lossy(lines);
        let text = if text.contains('\r') { text.replace("\r\n", "\n").into() } else { text };
        let text = text.strip_suffix('\r').unwrap_or(&text);
        if text.split('\n').any(|line| line.len() > MAX_LINE_BYTES) {
            let lines: Vec<&str> = text.split('\n').map(cut).collect();
            (self.log)(&lines.join("\n"));
        } else {
            (self.log)(text);
        }
        let first = self.last.len();
        for line in text.rsplit('\n').take(ERROR_LINES) {
            self.last.insert(first, cut(line).trim_end().to_owned());
        }
        self.last.drain(..self.last.len().saturating_sub(ERROR_LINES));
    }
}

/// Cuts a line that is too long.
fn cut(line: &str) -> &str {
    let end = (0..=line.len().min(MAX_LINE_BYTES)).rev().find(|at| line.is_char_boundary(*at));
    &line[..end.unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the lines of standard error that comes in these pieces, and the last ones.
    fn lines(pieces: &[&[u8]]) -> (Vec<String>, Vec<String>) {
        let (mut passed, mut last) = (Vec::new(), VecDeque::new());
        let log = |text: &str| passed.extend(text.split('\n').map(str::to_owned));
        let mut lines = ErrorLines { begun: Vec::new(), last: &mut last, log };
        pieces.iter().for_each(|piece| lines.add(piece));
        lines.finish();
        (passed, last.into())
    }

    #[tokio::test]
    async fn a_supervisor_that_ends_before_the_program_is_a_shortage() {
        // The program of this test stands for the supervisor: it finds no test of these names, and ends.
        let order = RunOrder {
            program: "/no/such/program".into(),
            args: Vec::new(),
            environment: Vec::new(),
            folder: None,
            user: None,
            open_files: None,
            input_bytes: 0,
        };
        let ended = run(&order, b"{}", |_| {}, &CancellationToken::new(), &Programs::default()).await;
        let error = ended.expect_err("nothing has run");
        assert!(is_shortage(&error), "{error}");
    }

    #[test]
    fn lines_are_the_same_however_they_come() {
        let text = "one\r\n\ntwo é\nthree\r\nfour";
        let whole = lines(&[text.as_bytes()]);
        assert_eq!(whole.0, ["one", "", "two é", "three", "four"]);
        assert_eq!(whole.0, whole.1);
        let bytes: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
        assert_eq!(lines(&bytes).1, whole.1);
    }

    #[test]
    fn bytes_that_are_no_text_and_long_lines_are_harmless() {
        let (passed, last) = lines(&[b"\xff\xfe\n", &[b'x'; 1024 * 1024], &[b'x'; 1024 * 1024], b"\nend"]);
        assert_eq!((passed[0].as_str(), passed[2].as_str()), ("\u{fffd}\u{fffd}", "end"));
        assert_eq!((passed[1].len(), last[1].len()), (MAX_LINE_BYTES, MAX_LINE_BYTES));
        let whole = [&[b'x'; 9000][..], b"\nend\n"].concat();
        assert_eq!(lines(&[&whole]).0.iter().map(String::len).collect::<Vec<_>>(), [MAX_LINE_BYTES, 3]);
        let many: Vec<u8> = (0..100).flat_map(|n| format!("{n}\n").into_bytes()).collect();
        assert_eq!(lines(&[&many]).1, (90..100).map(|n| n.to_string()).collect::<Vec<_>>());
    }
}
