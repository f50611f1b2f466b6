//! The process between a worker and a program of a command task.
//!
//! A worker starts this program again as a supervisor, once for each run. The supervisor starts the task's program and
//! waits for it. Processes that lose their parent become its children, also those that have left the process group, so
//! it can end everything that a run has started: when the program has ended, when the worker asks for it, and when the
//! worker itself is gone, whatever ended it. [`order`] has the messages.
//!
//! It needs neither settings nor servers, and runs before anything else of the program.

pub(crate) mod order;
mod tree;

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    os::{
        fd::AsFd,
        unix::{
            net::UnixStream,
            process::{CommandExt, ExitStatusExt},
        },
    },
    process::{ChildStdin, Command, ExitCode, ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::AtomicBool,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Resource, Rlimit, Signal, WaitOptions, getrlimit, setrlimit};

use order::{KILL, Report, RunOrder, TERMINATE};

/// Time that processes get to end before they are killed.
const KILL_DELAY: Duration = Duration::from_secs(3);
/// Time between two rounds of KILL: a process can start another one meanwhile.
const KILL_INTERVAL: Duration = Duration::from_millis(10);
/// Time after which processes that KILL does not end are given up.
const GIVE_UP: Duration = Duration::from_secs(5);

/// Runs the program of one run, if this process was started for that.
pub(crate) fn run_if_asked() -> Option<ExitCode> {
    (std::env::args_os().nth(1)? == order::ARGUMENT).then(|| match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            crate::output::note(&format!("machinist: a program cannot be supervised: {error}"));
            ExitCode::FAILURE
        }
    })
}

/// Event for which a supervisor waits.
enum RunEvent {
    /// A process has ended.
    Reaped(Pid, i32),
    /// No process is left.
    AllReaped,
    /// The worker asks to end the program, or is gone.
    Terminate,
    /// The worker asks to kill the program.
    Kill,
}

fn run() -> io::Result<()> {
    let control = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let RunningProgram { program, events } = match start_ordered(&control) {
        Ok(Some(running)) => running,
        // The worker was ended before it gave the order.
        Ok(None) => return Ok(()),
        Err(error) => {
            let (errno, text) = (error.raw_os_error(), error.to_string());
            return report(&control, &Report::Failed { errno, text });
        }
    };
    // If the worker is gone, the next read tells it.
    let _gone = report(&control, &Report::Started(program.as_raw_nonzero().get()));
    let (status, left) = supervise(program, &events);
    let _gone = report(&control, &Report::Ended { status, left });
    Ok(())
}

/// Program that runs.
struct RunningProgram {
    program: Pid,
    events: Receiver<RunEvent>,
}

/// Takes the order of the worker, and starts the program. Returns `None` if the worker was ended before it gave the order.
///
/// Everything that the system can refuse comes before the program, above all the threads: what runs cannot be started
/// again, and says nothing about the task if it has to be ended for a thread.
///
/// # Errors
/// The program does not run.
fn start_ordered(control: &UnixStream) -> io::Result<Option<RunningProgram>> {
    // Signals to all processes of a service are for the worker, which decides what ends. A handler, unlike an ignored
    // signal, does not pass to the program.
    for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT] {
        signal_hook::flag::register(signal.as_raw(), Arc::new(AtomicBool::new(false)))?;
    }
    lead_session();
    let mut from_worker = BufReader::new(control.try_clone()?);
    let mut line = String::new();
    from_worker.read_line(&mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    let order: RunOrder = serde_json::from_str(&line)?;
    let mut input = vec![0; order.input_bytes];
    from_worker.read_exact(&mut input)?;
    #[cfg(target_os = "linux")]
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    let (sender, events) = channel();
    let requests = sender.clone();
    spawn_thread(move || read_requests(from_worker, &requests))?;
    let (begin_reaping, begun) = channel();
    // Without a program there is nothing to reap, and the thread would end at once.
    spawn_thread(move || {
        if begun.recv().is_ok() {
            reap(&sender);
        }
    })?;
    let (give_stdin, stdin) = channel::<ChildStdin>();
    spawn_thread(move || {
        if let Ok(mut stdin) = stdin.recv() {
            // A program need not read its input; a closed pipe is no failure.
            let _not_read = stdin.write_all(&input);
        }
    })?;
    report(control, &Report::Starting)?;
    let (program, stdin) = start(&order)?;
    // The threads wait for these as long as this process lives.
    let _sent = begin_reaping.send(());
    let _sent = stdin.map(|stdin| give_stdin.send(stdin));
    Ok(Some(RunningProgram { program, events }))
}

/// Starts a thread.
///
/// # Errors
/// The system refuses it. `thread::spawn` would panic.
fn spawn_thread(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().spawn(work).map(drop)
}

/// Makes this process the leader of a session, so that the worker finds the processes of the run by its id, also if this
/// process is killed before it reports the program.
///
/// A process that leads a group cannot start a session. The worker starts this one as a leader, because a signal from
/// the terminal would end it before its handlers are in place; so it joins the group of the worker for a moment.
fn lead_session() {
    let group = rustix::process::getppid().and_then(tree::group);
    // Without a session, the worker ends the group of the program, once it knows it.
    let _not_possible = group.map(|group| {
        rustix::process::setpgid(None, Some(group))?;
        rustix::process::setsid()
    });
}

/// Ends the processes of a run whose supervisor was killed, and returns how many could not be ended. The supervisor has
/// not been reaped, so no other session can have its id.
///
/// # Cancel safety
/// Safe: some processes may be left.
pub(crate) async fn end_orphans(supervisor: Pid) -> usize {
    let give_up = Instant::now() + GIVE_UP;
    loop {
        let left = tree::kill_session(supervisor);
        if left == 0 || give_up < Instant::now() {
            return left;
        }
        tokio::time::sleep(KILL_INTERVAL).await;
    }
}

/// Starts the program. Returns its standard input too.
fn start(order: &RunOrder) -> io::Result<(Pid, Option<ChildStdin>)> {
    if let Some(soft) = order.open_files {
        let limit = Rlimit { current: Some(soft), ..getrlimit(Resource::Nofile) };
        setrlimit(Resource::Nofile, limit)?;
    }
    let mut command = Command::new(&order.program);
    command.args(&order.args).env_clear().envs(order.environment.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::piped()).process_group(0);
    if let Some(folder) = &order.folder {
        command.current_dir(folder);
    }
    if let Some(ids) = order.user {
        command.uid(ids.user).gid(ids.group);
    }
    let mut child = command.spawn()?;
    let id = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let id = id.ok_or_else(|| io::Error::other("the system gave the program no process id"))?;
    Ok((id, child.stdin.take()))
}

fn report(mut to: &UnixStream, report: &Report) -> io::Result<()> {
    let mut line = serde_json::to_vec(report)?;
    line.push(b'\n');
    to.write_all(&line)
}

/// Passes on what the worker asks for, until it is gone.
fn read_requests(from_worker: impl BufRead, requests: &Sender<RunEvent>) {
    for request in from_worker.bytes() {
        let event = match request {
            Ok(TERMINATE) => RunEvent::Terminate,
            Ok(KILL) => RunEvent::Kill,
            Ok(_) => continue,
            Err(_) => break,
        };
        if requests.send(event).is_err() {
            return;
        }
    }
    // Nobody receives it where the program has ended already.
    let _over = requests.send(RunEvent::Terminate);
}

/// Reaps the processes below this one until none is left.
fn reap(ended: &Sender<RunEvent>) {
    loop {
        let event = match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((process, status))) => RunEvent::Reaped(process, status.as_raw()),
            Ok(None) | Err(rustix::io::Errno::INTR) => continue,
            Err(_) => RunEvent::AllReaped,
        };
        let last = matches!(event, RunEvent::AllReaped);
        if ended.send(event).is_err() || last {
            return;
        }
    }
}

/// Waits until the program and all processes below it have ended, and ends them when it is time. Returns the wait
/// status of the program, and the number of processes that could not be ended.
fn supervise(program: Pid, events: &Receiver<RunEvent>) -> (i32, usize) {
    let mut status = None;
    let mut kill_at: Option<Instant> = None;
    let mut kill = false;
    let mut give_up: Option<Instant> = None;
    loop {
        match (kill, give_up) {
            (true, None) => {
                tree::signal(program, Signal::KILL);
                give_up = Some(Instant::now() + GIVE_UP);
            }
            // The number of a group that has ended can come back: it is not used again.
            (true, Some(_)) => tree::kill(),
            (false, _) => {}
        }
        let wait = match (kill, kill_at) {
            (true, _) => KILL_INTERVAL,
            (false, Some(at)) => at.saturating_duration_since(Instant::now()),
            (false, None) => Duration::MAX,
        };
        match events.recv_timeout(wait) {
            Ok(RunEvent::Reaped(process, raw)) => {
                if process == program {
                    status = Some(raw);
                    kill = true;
                }
            }
            Ok(RunEvent::Terminate) if kill_at.is_none() => {
                tree::signal(program, Signal::TERM);
                kill_at = Some(Instant::now() + KILL_DELAY);
            }
            Ok(RunEvent::Terminate) => {}
            Ok(RunEvent::Kill) | Err(RecvTimeoutError::Timeout) => kill = true,
            Ok(RunEvent::AllReaped) | Err(RecvTimeoutError::Disconnected) => {
                return (status.unwrap_or_default(), 0);
            }
        }
        if give_up.is_some_and(|at| at < Instant::now()) {
            let killed = ExitStatus::from_raw(Signal::KILL.as_raw()).into_raw();
            return (status.unwrap_or(killed), tree::descendants().len());
        }
    }
}
