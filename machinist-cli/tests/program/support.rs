//! Folders in which the program runs, and workers that end with their test. Every wait has a timeout.

use std::{
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    time::{Duration, Instant},
};

use machinist::{
    App, AppExt, TaskId,
    record::Facts,
    settings::{Overrides, Settings},
    sign::{Algorithm, Key},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::namespace::delete_delays;

/// Maximum time of a wait, also on a busy host, which may stop for a minute or two.
pub(crate) const WAIT_TIMEOUT: Duration = Duration::from_secs(600);

/// New folder, and the variables of the environment for commands in it.
#[derive(Debug)]
pub(crate) struct Folder {
    dir: tempfile::TempDir,
    environment: Vec<(String, String)>,
    /// RabbitMQ and the namespace on it, of which the delays are deleted with the folder.
    pub(crate) shared: Option<(String, String)>,
}

impl Drop for Folder {
    fn drop(&mut self) {
        let Some((broker, namespace)) = &self.shared else { return };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        // A test that has failed says more than a broker that is away.
        if let Err(error) = runtime.block_on(delete_delays(broker, namespace)) {
            eprintln!("{namespace} stays on the broker: {error}");
        }
    }
}

/// Output and exit code of a command.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    /// Returns the only JSON value on standard output.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Fails the test unless the command ended with this code.
    #[track_caller]
    pub(crate) fn ended(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:?}");
        self
    }

    /// Fails the test unless standard error contains all of these.
    #[track_caller]
    pub(crate) fn reports(self, words: &[&str]) -> Self {
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} is missing: {self:?}");
        }
        self
    }
}

impl Folder {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), environment: Vec::new(), shared: None }
    }

    /// Creates a folder with a machinist.toml.
    pub(crate) fn with(toml: &str) -> Self {
        let folder = Self::new();
        folder.write("machinist.toml", toml);
        folder
    }

    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Returns an application with the settings of the folder, for tests that send or work themselves.
    pub(crate) async fn app(&self) -> App {
        let env = |name: &str| {
            let set = self.environment.iter().find(|(set, _)| set == name);
            set.map(|(_, value)| value.into())
        };
        let file = format!("sqlite://{}", self.path().join("machinist.db").display());
        let embedded = |name| env(name).is_none().then(|| file.clone());
        let flags = Overrides {
            broker: embedded("MACHINIST_BROKER"),
            backend: embedded("MACHINIST_BACKEND"),
            ..Overrides::default()
        };
        App::from_settings(&Settings::resolve(flags, &env, None).unwrap()).await.unwrap()
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Writes a file with this mode.
    pub(crate) fn write_with_mode(&self, name: &str, text: &str, mode: u32) {
        use std::os::unix::fs::PermissionsExt;
        let path = self.write(name, text);
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    /// Creates a key file, and returns its path.
    pub(crate) fn key(&self, name: &str, id: &str) -> String {
        let path = self.path().join(name);
        Key::generate(Algorithm::HmacSha256, id).unwrap().write_new(&path).unwrap();
        path.display().to_string()
    }

    /// Creates an executable script.
    pub(crate) fn script(&self, name: &str, body: &str) {
        use std::os::unix::fs::PermissionsExt;
        let path = self.write(name, &format!("#!/bin/sh\n{body}\n"));
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_machinist"));
        command
            .args(arguments)
            .current_dir(self.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs the program to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        self.start(arguments).end()
    }

    /// Starts the program without waiting.
    pub(crate) fn start(&self, arguments: &[&str]) -> Running {
        Running::spawn(self.command(arguments))
    }

    /// Starts the program from a shell that changes its limits before.
    pub(crate) fn start_limited(&self, limits: &str, arguments: &[&str]) -> Running {
        let program = self.command(&[]);
        let mut shell = Command::new("sh");
        shell
            .args(["-c", &format!("{limits}; exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_machinist")])
            .args(arguments)
            .current_dir(self.path())
            .env_clear()
            .envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
        Running::spawn(shell)
    }

    /// Starts a line of a shell.
    pub(crate) fn start_shell(&self, line: &str) -> Running {
        let program = self.command(&[]);
        let mut shell = Command::new("sh");
        shell.args(["-c", line]).current_dir(self.path()).env_clear();
        shell.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
        Running::spawn(shell)
    }

    /// Starts a worker and waits until it is ready.
    pub(crate) fn worker(&self, arguments: &[&str]) -> Running {
        let mut worker = self.start(&[&["worker"], arguments].concat());
        worker.stderr.until("is ready");
        worker
    }

    /// Sends a task and returns its id.
    pub(crate) fn send(&self, arguments: &[&str]) -> String {
        self.run(&[&["send"], arguments].concat()).ended(0).stdout.trim().to_owned()
    }

    /// Sends a task, waits for its end, and returns its outcome.
    pub(crate) fn outcome(&self, arguments: &[&str]) -> Value {
        let ran = self.run(&[&["send", "--wait=10m", "--json"], arguments].concat());
        assert!(ran.code <= 1, "{ran:?}");
        ran.json()
    }

    /// Returns the facts of a task in the backend, without changes.
    pub(crate) fn facts(&self, id: &str) -> Facts {
        let id = TaskId::parse(id).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { self.app().await.backend().read(&[id.into()]).await.unwrap().remove(0) })
    }

    pub(crate) fn status(&self, id: &str) -> Value {
        self.run(&["status", id, "--json"]).json()
    }
}

/// Running program. It is killed when it is dropped, so that no test leaves one behind.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    pub(crate) stdout: Output,
    pub(crate) stderr: Output,
}

impl Running {
    fn spawn(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stdout = lines(child.stdout.take().unwrap());
        let stderr = lines(child.stderr.take().unwrap());
        Self { child, stdout: Output::new(stdout), stderr: Output::new(stderr) }
    }

    /// Returns the process id.
    pub(crate) fn id(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.id()), signal).unwrap();
    }

    /// Asks the program to end, and waits until it has.
    pub(crate) fn stop(self) -> Ran {
        self.signal(Signal::SIGTERM);
        self.end()
    }

    /// Waits until the program has ended.
    pub(crate) fn end(mut self) -> Ran {
        self.stdout.rest();
        self.stderr.rest();
        let code = eventually("the program ends", || self.child.try_wait().unwrap());
        Ran {
            code: code.code().unwrap_or(-1),
            stdout: std::mem::take(&mut self.stdout.seen),
            stderr: std::mem::take(&mut self.stderr.seen),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // After a successful test it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Standard output or standard error, line by line.
#[derive(Debug)]
pub(crate) struct Output {
    lines: Receiver<String>,
    seen: String,
}

impl Output {
    fn new(lines: Receiver<String>) -> Self {
        Self { lines, seen: String::new() }
    }

    /// Reads until a line contains this, and returns the line.
    #[track_caller]
    pub(crate) fn until(&mut self, word: &str) -> String {
        loop {
            match self.lines.recv_timeout(WAIT_TIMEOUT) {
                Ok(line) => {
                    self.seen.push_str(&line);
                    if line.contains(word) {
                        return line;
                    }
                }
                Err(error) => panic!("{word:?} was not printed ({error}): {}", self.seen),
            }
        }
    }

    /// Reads until the output is closed.
    pub(crate) fn rest(&mut self) {
        loop {
            match self.lines.recv_timeout(WAIT_TIMEOUT) {
                Ok(line) => self.seen.push_str(&line),
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => panic!("the program does not end: {}", self.seen),
            }
        }
    }
}

fn lines(from: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut line = Vec::new();
        while from.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
            if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                return;
            }
            line.clear();
        }
    });
    receiver
}

/// Polls until there is an answer.
#[track_caller]
pub(crate) fn eventually<T>(what: &str, ask: impl FnMut() -> Option<T>) -> T {
    eventually_else(|| what.to_owned(), ask)
}

/// Waits until there is an answer. `what` is asked what is missing if there is none.
pub(crate) fn eventually_else<T>(what: impl Fn() -> String, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + WAIT_TIMEOUT;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "never: {}", what());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until a process is gone, or is a zombie.
pub(crate) fn gone(id: &str) {
    eventually("the process ends", || {
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        let state = stat.rsplit(") ").next().unwrap_or_default().chars().next();
        matches!(state, None | Some('Z' | 'X')).then_some(())
    });
}

/// Waits until a file has contents, and returns them.
pub(crate) fn contents(path: &Path) -> String {
    eventually("the file is written", || {
        std::fs::read_to_string(path)
            .ok()
            .filter(|text| text.ends_with('\n'))
            .map(|text| text.trim().to_owned())
    })
}
