//! All test programs of the workspace, three at a time.
//!
//! Most tests wait for servers, leases and retries, and cargo runs one program after the other. Three at once take much
//! less time on two cores. What a program prints appears when it has ended, so lines do not mix.

use std::{
    collections::VecDeque,
    env,
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{
    command::{self, Workspace, display},
    interrupt::Interrupt,
};

/// How many programs run at once.
const LANES: usize = 3;

/// A test program that cargo has built.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TestProgram {
    /// Package and target, for a person.
    pub(super) name: String,
    executable: PathBuf,
    /// Where cargo would run it.
    package_dir: PathBuf,
}

/// The programs that take minutes, by their targets. They begin first, or one of them runs alone at the end.
const LONG: [&str; 4] = ["program", "machinist_core", "rabbitmq", "in_memory"];

impl TestProgram {
    /// Its turn: the long ones come first.
    fn turn(&self) -> usize {
        let target = self.name.rsplit(": ").next().unwrap_or(&self.name);
        LONG.iter().position(|long| *long == target).unwrap_or(LONG.len())
    }
}

/// What a program came to.
pub(super) struct Ended {
    pub(super) name: String,
    pub(super) lines: Vec<String>,
    pub(super) passed: bool,
    pub(super) took: Duration,
}

/// Builds all test programs, runs them and the doctests, and hands on each line; whether all passed.
pub(super) fn run(
    workspace: &Workspace,
    interrupt: &Interrupt,
    cargo: &dyn Fn(&[&str]) -> Command,
    mut each: impl FnMut(&str),
) -> Result<bool> {
    let Some(mut programs) = build(interrupt, cargo, &mut each)? else { return Ok(false) };
    programs.sort_by_key(TestProgram::turn);
    let libraries = library_path(workspace);
    let mut commands = VecDeque::from([("doctests".to_owned(), cargo(&["--doc"]))]);
    commands.extend(programs.into_iter().map(|program| {
        let command = as_cargo_runs_it(&program, &libraries, cargo);
        (program.name, command)
    }));
    let mut passed = true;
    in_lanes(commands, interrupt, |ended| {
        let Ended { name, lines, passed: one_passed, took } = ended;
        each(&format!("\n== {name}, {}{}", display(took), if one_passed { "" } else { ": FAILED" }));
        lines.iter().for_each(|line| each(line));
        passed &= one_passed;
    })?;
    Ok(passed)
}

/// Builds all test programs. `None` if they do not compile.
pub(super) fn build(
    interrupt: &Interrupt,
    cargo: &dyn Fn(&[&str]) -> Command,
    each: &mut dyn FnMut(&str),
) -> Result<Option<Vec<TestProgram>>> {
    let mut messages = Vec::new();
    let mut build = cargo(&["--no-run", "--message-format=json-render-diagnostics"]);
    let built = command::run_lines(&mut build, interrupt, |line| messages.push(line.to_owned()))?;
    interrupt.check()?;
    if !built.success() {
        each(&format!("the tests do not compile ({built})"));
        return Ok(None);
    }
    // What the compiler has written goes to the disk first: a server that waits for bytes of its own would wait behind it, for
    // half a minute at times.
    command::run(&mut Command::new("sync"), interrupt)?;
    programs(&messages).map(Some)
}

/// Runs named commands, as many at once as there are lanes, and hands on what each came to.
pub(super) fn in_lanes(
    commands: VecDeque<(String, Command)>,
    interrupt: &Interrupt,
    mut each: impl FnMut(Ended),
) -> Result<()> {
    let waiting = Mutex::new(commands);
    let (sender, ended) = mpsc::channel();
    thread::scope(|scope| -> Result<()> {
        for _ in 0..LANES {
            let (waiting, sender) = (&waiting, sender.clone());
            scope.spawn(move || {
                while let Some((name, mut command)) = next(waiting) {
                    // Nobody receives only after an error, which ends the run.
                    if sender.send(run_one(name, &mut command, interrupt)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        for one in ended {
            each(one?);
        }
        Ok(())
    })?;
    interrupt.check()
}

fn next(waiting: &Mutex<VecDeque<(String, Command)>>) -> Option<(String, Command)> {
    let mut waiting: MutexGuard<'_, _> = waiting.lock().unwrap_or_else(PoisonError::into_inner);
    waiting.pop_front()
}

fn run_one(name: String, command: &mut Command, interrupt: &Interrupt) -> Result<Ended> {
    interrupt.check()?;
    let began = Instant::now();
    let mut lines = Vec::new();
    let status = command::run_lines(command, interrupt, |line| lines.push(line.to_owned()))
        .with_context(|| format!("cannot run {name}"))?;
    if !status.success() {
        lines.push(format!("{name} ended with {status}"));
    }
    Ok(Ended { name, lines, passed: status.success(), took: began.elapsed() })
}

/// The test programs among the messages of cargo.
fn programs(messages: &[String]) -> Result<Vec<TestProgram>> {
    let mut programs = Vec::new();
    for message in messages {
        // Other lines are what build scripts print.
        let Ok(message) = serde_json::from_str::<Value>(message) else { continue };
        let is_test = message["reason"] == "compiler-artifact" && message["profile"]["test"] == true;
        let Some(executable) = message["executable"].as_str().filter(|_| is_test) else { continue };
        let manifest = message["manifest_path"].as_str().context("cargo names no manifest of a test")?;
        let package_dir = Path::new(manifest).parent().context("a manifest is in no directory")?.to_owned();
        let package = package_dir.file_name().unwrap_or_default().to_string_lossy();
        let target = message["target"]["name"].as_str().unwrap_or_default();
        let name = if package.replace('-', "_") == target.replace('-', "_") {
            target.to_owned()
        } else {
            format!("{package}: {target}")
        };
        programs.push(TestProgram { name, executable: executable.into(), package_dir });
    }
    if programs.is_empty() {
        bail!("cargo built no test program");
    }
    Ok(programs)
}

/// In the directory of its package, with the variables that tests read.
pub(super) fn as_cargo_runs_it(
    program: &TestProgram,
    libraries: &OsStr,
    cargo: &dyn Fn(&[&str]) -> Command,
) -> Command {
    let like = cargo(&[]);
    let mut command = Command::new(&program.executable);
    for (name, value) in like.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
        .current_dir(&program.package_dir)
        .env("CARGO", like.get_program())
        .env("CARGO_MANIFEST_DIR", &program.package_dir)
        .env("LD_LIBRARY_PATH", libraries);
    command
}

/// Where the loader finds the libraries of the compiler, which tests of procedural macros need.
pub(super) fn library_path(workspace: &Workspace) -> OsString {
    let mut paths = vec![workspace.target_dir().join("debug").join("deps")];
    let mut rustc = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    if let Ok(libraries) = command::output(rustc.args(["--print", "target-libdir"])) {
        paths.push(libraries.trim().into());
    }
    let before = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    paths.extend(env::split_paths(&before));
    env::join_paths(paths).unwrap_or(before)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_programs_are_found_among_the_messages_of_cargo() {
        let message = |package: &str, target: &str, test: bool| {
            format!(
                r#"{{"reason":"compiler-artifact","manifest_path":"/w/{package}/Cargo.toml","target":{{"name":"{target}"}},
                    "profile":{{"test":{test}}},"executable":"/w/target/debug/deps/{target}-1"}}"#
            )
            .replace('\n', "")
        };
        let messages = [
            message("machinist-cli", "machinist", false),
            "printed by a build script".to_owned(),
            r#"{"reason":"build-finished","success":true}"#.to_owned(),
            message("machinist-cli", "program", true),
            message("machinist-core", "machinist_core", true),
        ];
        let found = programs(&messages).unwrap();
        let names: Vec<&str> = found.iter().map(|program| program.name.as_str()).collect();
        assert_eq!(names, ["machinist-cli: program", "machinist_core"]);
        let turns: Vec<usize> = found.iter().map(TestProgram::turn).collect();
        assert_eq!(turns, [0, 1]);
        assert_eq!(found[0].package_dir, Path::new("/w/machinist-cli"));
        assert!(programs(&messages[..3]).is_err());
    }
}
