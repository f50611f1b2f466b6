//! The last version beside this one, over the same servers: the worker of each runs what the program of the other sends.
//!
//! docs/versions.md promises it, and the order of an upgrade rests on it. The last version is that of the newest tag. Until
//! there is one, a commit stands for it whose messages and records this version reads.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use crate::{
    command::{self, Workspace},
    interrupt::Interrupt,
    services::{self, Endpoints, Services},
};

/// Stands for the last version until there is a tag.
const UNRELEASED: &str = "45053ca29fa78ea1c81721f86bb8c665010d7f6b";
/// Time within which each task ends.
const PATIENCE: &str = "--wait=60s";

/// Tasks that every version has: they are in the file, and not in the program.
const TASKS: [(&str, &str); 4] = [
    ("inc", r#"["sh", "-c", "echo $(($1 + 1))", "inc", "{0}"]"#),
    ("total", r#"["python3", "-c", "import json,sys; print(sum(json.load(sys.stdin)['args'][-1]))"]"#),
    (
        "once",
        r#"["sh", "-c", "if [ -e \"$1\" ]; then echo done; else touch \"$1\"; exit 1; fi", "once", "{0}"]"#,
    ),
    ("fails", r#"["sh", "-c", "echo broken >&2; exit 1"]"#),
];
const CHORD: &str = r#"
[steps.many]
task = "inc"
each = [[1], [2], [3], [4], [5], [6], [7], [8], [9], [10]]
[steps.total]
task = "total"
after = ["many"]
[steps.last]
task = "inc"
after = ["total"]
"#;

/// A built program, with the name of its version.
struct Program {
    version: String,
    path: PathBuf,
}

/// Builds both versions and lets them work for each other; whether all ended as it should.
pub(crate) fn run(workspace: &Workspace, interrupt: &Interrupt) -> Result<bool> {
    let dir = workspace.target_dir().join("versions");
    let Some(old) = build_last(workspace, interrupt, &dir)? else { return Ok(false) };
    let mut build = workspace.cargo(["build", "--locked", "-p", "machinist-cli", "--bin", "machinist"]);
    if !command::run(&mut build, interrupt)?.success() {
        return Ok(false);
    }
    let path = workspace.target_dir().join("debug/machinist");
    let new = Program { version: "this version".to_owned(), path };
    services::install_missing(&services::SERVERS)?;
    let services = Services::at(&dir.join("services"))?;
    services.down()?;
    let up = services.up(interrupt)?;
    say!("{}", up.report());
    let both = [(&old, &new), (&new, &old)].into_iter().enumerate().try_fold(
        true,
        |passed, (at, (sender, worker))| {
            let folder = Folder::new(&dir.join(format!("exchange-{at}")), &up.endpoints, &new)?;
            Ok(folder.exchange(sender, worker, interrupt)? && passed)
        },
    );
    // Before the outcome is looked at: they end on failure and on Ctrl-C too.
    services.down()?;
    both
}

/// Builds the program of the last version from the history, beside this checkout.
fn build_last(workspace: &Workspace, interrupt: &Interrupt, dir: &Path) -> Result<Option<Program>> {
    let git = |args: &[&str]| {
        let mut git = Command::new("git");
        git.current_dir(workspace.root()).args(args);
        git
    };
    let version = command::output(&mut git(&["describe", "--tags", "--abbrev=0", "--match", "v*"]))
        .map_or_else(|_| UNRELEASED.to_owned(), |tag| tag.trim().to_owned());
    let source = dir.join("source");
    if source.exists() {
        fs::remove_dir_all(&source).with_context(|| format!("cannot remove {}", source.display()))?;
    }
    fs::create_dir_all(&source).with_context(|| format!("cannot create {}", source.display()))?;
    let archive = dir.join("source.tar");
    command::output(git(&["archive", "--output"]).arg(&archive).arg(&version)).with_context(|| {
        format!("the history has no {version}: fetch it with `git fetch --tags --unshallow`")
    })?;
    command::output(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&source))?;
    let target = dir.join("target");
    let mut build = workspace.cargo(["build", "--locked", "-p", "machinist-cli", "--bin", "machinist"]);
    build.current_dir(&source).env("CARGO_TARGET_DIR", &target);
    say!("building {version}");
    let built = command::run(&mut build, interrupt)?.success();
    Ok(built.then(|| Program { version, path: target.join("debug/machinist") }))
}

/// A folder with settings, in which both versions run.
struct Folder {
    path: PathBuf,
    amqp_url: String,
    redis_url: String,
}

impl Folder {
    fn new(path: &Path, endpoints: &Endpoints, new: &Program) -> Result<Self> {
        if path.exists() {
            fs::remove_dir_all(path)?;
        }
        fs::create_dir_all(path).with_context(|| format!("cannot create {}", path.display()))?;
        // Each exchange has a queue that no other program uses.
        let queue = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let tasks = TASKS
            .map(|(name, command)| format!("[tasks.{name}]\ncommand = {command}\nqueue = \"{queue}\"\n"));
        fs::write(path.join("machinist.toml"), tasks.concat())?;
        fs::write(path.join("chord.toml"), CHORD)?;
        let Endpoints { amqp_url, redis_url, .. } = endpoints.clone();
        let folder = Self { path: path.to_owned(), amqp_url, redis_url };
        command::output(&mut folder.command(new, &["keygen", "--out", "machinist.key"]))?;
        Ok(folder)
    }

    fn command(&self, program: &Program, args: &[&str]) -> Command {
        let mut command = Command::new(&program.path);
        command
            .current_dir(&self.path)
            .args(args)
            .env("MACHINIST_BROKER", &self.amqp_url)
            .env("MACHINIST_BACKEND", &self.redis_url)
            .env("MACHINIST_KEY_FILE", "machinist.key");
        command
    }

    /// Lets one version send tasks and the other one run them, and both read the ends.
    fn exchange(&self, sender: &Program, worker: &Program, interrupt: &Interrupt) -> Result<bool> {
        say!("\n{} sends, {} works", sender.version, worker.version);
        let log = fs::File::create(self.path.join("worker.log"))?;
        let mut running = self.command(worker, &["worker"]).stdout(Stdio::null()).stderr(log).spawn()?;
        let passed = self.send_all(sender, worker, interrupt);
        end(&mut running)?;
        passed
    }

    fn send_all(&self, sender: &Program, worker: &Program, interrupt: &Interrupt) -> Result<bool> {
        // What is sent, the exit code, and the last line of the output if the task succeeds.
        let sent: [(&str, &[&str], i32, &str); 5] = [
            ("a task", &["inc", "1"], 0, "2"),
            ("a delayed task", &["inc", "2", "--countdown", "2s"], 0, "3"),
            ("a retry", &["once", "ran-once", "--retries", "3", "--backoff", "fixed:1s"], 0, "done"),
            ("a failure", &["fails", "--retries", "0"], 1, ""),
            ("a workflow", &["--flow", "chord.toml"], 0, "66"),
        ];
        let mut passed = true;
        for (what, args, code, end) in sent {
            interrupt.check()?;
            let args = [&["send", PATIENCE], args].concat();
            let output = self.command(sender, &args).output()?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let id = text.lines().next().unwrap_or_default();
            let last = text.lines().last().unwrap_or_default();
            let ended = output.status.code() == Some(code) && (code != 0 || last == end);
            let state = if code == 0 { "SUCCESS" } else { "FAILURE" };
            let read =
                [sender, worker].into_iter().all(|program| self.state(program, id).as_deref() == Some(state));
            say!("{what:<15} {}", if ended && read { "ok" } else { "FAILED" });
            if !(ended && read) {
                say!("{text}{}", String::from_utf8_lossy(&output.stderr));
            }
            passed &= ended && read;
        }
        Ok(passed)
    }

    /// Returns the state of a task as one version reads it.
    fn state(&self, program: &Program, id: &str) -> Option<String> {
        let output = self.command(program, &["status", id, "--json"]).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let record: serde_json::Value = serde_json::from_str(&text).ok()?;
        Some(record.get("state")?.as_str()?.to_owned())
    }
}

/// Ends a worker as a service manager does.
fn end(worker: &mut Child) -> Result<()> {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(worker.id())?);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
    let status = worker.wait()?;
    ensure!(status.success(), "the worker ended with {status}");
    Ok(())
}
