//! All tests, against real servers, by one command.
//!
//! The servers are private ones, ended on every way out. Those that run already, started by `services up` or named
//! by their URLs in the environment, are used and left alone.

mod lanes;
mod slowest;

use std::{
    env,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::{
    command::{self, Workspace, display},
    interrupt::Interrupt,
    services::{Endpoints, Major, Release, SCREENS, Services, install_missing},
};

const AMQP_URL: &str = "MACHINIST_TEST_AMQP_URL";
const REDIS_URL: &str = "MACHINIST_TEST_REDIS_URL";
const POSTGRES_URL: &str = "MACHINIST_TEST_POSTGRES_URL";

/// Runs them; whether all passed.
pub(crate) fn run(
    workspace: &Workspace,
    interrupt: &Interrupt,
    rabbitmq: Option<Major>,
    args: &[String],
) -> Result<bool> {
    with_servers(workspace, interrupt, rabbitmq, |at| cargo_test(workspace, interrupt, args, at))
}

/// Runs each test alone, and the slowest ten times; whether all passed.
pub(crate) fn run_slowest(workspace: &Workspace, interrupt: &Interrupt) -> Result<bool> {
    with_servers(workspace, interrupt, None, |at| {
        slowest::run(workspace, interrupt, &|args| at.cargo(workspace, args), |line| say!("{line}"))
    })
}

/// Starts the servers that tests need, unless the environment names some, and ends them afterwards.
fn with_servers(
    workspace: &Workspace,
    interrupt: &Interrupt,
    rabbitmq: Option<Major>,
    test: impl FnOnce(&At) -> Result<bool>,
) -> Result<bool> {
    let named = (env::var(AMQP_URL), env::var(REDIS_URL), env::var(POSTGRES_URL));
    if let (Ok(amqp_url), Ok(redis_url), Ok(postgres_url)) = named {
        ensure!(rabbitmq.is_none(), "--rabbitmq starts a server, and {AMQP_URL} names one: unset it");
        say!("using the servers of {AMQP_URL}, {REDIS_URL} and {POSTGRES_URL}");
        let told = "servers of the environment".to_owned();
        return test(&At { amqp_url, redis_url, postgres_url, release: None, told });
    }
    let release = Release::provide(rabbitmq, workspace, interrupt)?;
    install_missing(&SCREENS)?;
    let services = Services::at(&workspace.services_dir())?.with_release(release.clone()).with_postgres();
    let up = services.up(interrupt)?;
    say!("{}", up.report());
    let Endpoints { amqp_url, redis_url, postgres_url, .. } = up.endpoints.clone();
    let postgres_url = postgres_url.context("no PostgreSQL was started")?;
    let at = At { amqp_url, redis_url, postgres_url, release: Some(release), told: up.endpoints.summary() };
    let passed = test(&at);
    // Before the verdict is looked at: they end on failure and on Ctrl-C too. What somebody else started stays.
    let ended = if up.started_in.is_some() { services.down() } else { Ok(()) };
    let passed = passed?;
    ended?;
    Ok(passed)
}

/// Where the servers are.
struct At {
    amqp_url: String,
    redis_url: String,
    postgres_url: String,
    release: Option<Release>,
    /// For a person.
    told: String,
}

impl At {
    /// A cargo that tests with these servers.
    fn cargo(&self, workspace: &Workspace, args: &[&str]) -> Command {
        let mut cargo = workspace.cargo(cargo_args(args));
        cargo
            .env(AMQP_URL, &self.amqp_url)
            .env(REDIS_URL, &self.redis_url)
            .env(POSTGRES_URL, &self.postgres_url)
            .env("MACHINIST_REQUIRE_SERVICES", "1");
        if let Some(release) = &self.release {
            release.tell(&mut cargo);
        }
        cargo
    }
}

fn cargo_test(workspace: &Workspace, interrupt: &Interrupt, args: &[String], at: &At) -> Result<bool> {
    let began = Instant::now();
    let cargo = |more: &[&str]| {
        let all: Vec<_> = args.iter().map(String::as_str).chain(more.iter().copied()).collect();
        at.cargo(workspace, &all)
    };
    let mut tally = Tally::default();
    let each = |line: &str| {
        say!("{line}");
        tally.read(line);
    };
    let passed = if args.is_empty() {
        lanes::run(workspace, interrupt, &cargo, each)?
    } else {
        // A choice of tests goes to cargo as it is.
        command::run_lines(&mut cargo(&[]), interrupt, each)?.success()
    };
    say!("\n{}", tally.summary(began.elapsed(), &at.told));
    interrupt.check()?;
    if !passed && tally.failed == 0 {
        say!("but cargo test failed: see above");
    }
    Ok(passed)
}

/// Doctests included: cargo runs them with the rest.
fn cargo_args<'a>(args: &[&'a str]) -> Vec<&'a str> {
    let mut all = vec!["test", "--all-features", "--locked", "--no-fail-fast"];
    let names_packages =
        args.iter().any(|arg| *arg == "-p" || arg.starts_with("--package") || *arg == "--workspace");
    if !names_packages {
        all.push("--workspace");
    }
    all.extend(args);
    all
}

/// What the test programs said, added up.
#[derive(Debug, Default)]
struct Tally {
    programs: u32,
    passed: u32,
    failed: u32,
    ignored: u32,
    names_of_failed: Vec<String>,
}

impl Tally {
    fn read(&mut self, line: &str) {
        if let Some(counts) = line.strip_prefix("test result: ") {
            self.programs += 1;
            self.passed += count(counts, " passed");
            self.failed += count(counts, " failed");
            self.ignored += count(counts, " ignored");
        } else if let Some(name) =
            line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED"))
        {
            self.names_of_failed.push(name.to_owned());
        }
    }

    fn summary(&self, took: Duration, servers: &str) -> String {
        let Self { programs, passed, failed, ignored, names_of_failed } = self;
        let mut lines: Vec<String> = names_of_failed.iter().map(|name| format!("failed: {name}")).collect();
        let not_run = if *ignored > 0 { format!(", {ignored} ignored") } else { String::new() };
        lines.push(format!(
            "tests: {passed} passed, {failed} failed{not_run}, in {programs} programs, {} ({servers})",
            display(took)
        ));
        lines.join("\n")
    }
}

/// The number before a word: 3 in `ok. 3 passed; 0 failed`.
fn count(text: &str, word: &str) -> u32 {
    let before = text.split_once(word).map_or("", |(before, _)| before);
    before.rsplit(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_several_programs_add_up() {
        let mut tally = Tally::default();
        for line in [
            "running 2 tests",
            "test retry::tests::it_waits ... ok",
            "test src/lib.rs - add (line 3) ... FAILED",
            "test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "test result: ok. 11 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 1.00s",
        ] {
            tally.read(line);
        }
        let expected = "failed: src/lib.rs - add (line 3)\n\
                        tests: 12 passed, 1 failed, 2 ignored, in 2 programs, 9.0 s (x)";
        assert_eq!(tally.summary(Duration::from_secs(9), "x"), expected);
    }

    #[test]
    fn naming_a_package_replaces_the_whole_workspace() {
        assert!(cargo_args(&["retry"]).contains(&"--workspace"));
        assert!(!cargo_args(&["-p", "machinist-core"]).contains(&"--workspace"));
    }
}
