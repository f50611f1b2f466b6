//! What takes too long for the continuous integration: `cargo xtask nightly`, by hand, overnight, or before a release.
//!
//! The result of each step is written into docs/reliability.md, with the commit and the day, so that the page shows what
//! was last seen and not what somebody remembers.

use std::{fs, process::Command};

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::{
    chaos,
    command::{self, Workspace, display},
    deny,
    interrupt::Interrupt,
    package,
    report::{Line, Report},
    services::Major,
    test, versions,
};

/// Where the rows of the steps stand.
const PAGE: &str = "docs/reliability.md";
const BEGIN: &str = "| nightly step | commit | day | took | result |\n|---|---|---|---|---|\n";

/// Part of the nightly run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Step {
    /// Licences, sources and banned crates, with a cargo-deny that is installed where it is missing.
    Deny,
    /// Every published crate, packed and compiled alone.
    Package,
    /// All tests against RabbitMQ 4.
    #[value(name = "rabbitmq-4")]
    RabbitMq4,
    /// Each test alone, and the thirty slowest ten times.
    Slowest,
    /// Ten thousand tasks of Go machinery in a mixed fleet, whose workers of ours are killed.
    Machinery,
    /// The worker of the last version beside this client, and the reverse.
    Versions,
    /// Every chaos scenario at its full size, two at a time.
    Chaos,
}

/// Runs the given steps, or all of them, and writes their results down; whether all passed.
pub(crate) fn run(workspace: &Workspace, interrupt: &Interrupt, chosen: &[Step]) -> Result<bool> {
    let commit = command::output(Command::new("git").current_dir(workspace.root()).args([
        "rev-parse",
        "--short=10",
        "HEAD",
    ]))?;
    let mut report = Report::new(interrupt);
    for step in Step::value_variants().iter().filter(|step| chosen.is_empty() || chosen.contains(step)) {
        report.step(&step.name(), || step.run(workspace, interrupt));
        // After each step: a long run that is interrupted keeps what it has seen.
        let day = command::output(Command::new("date").args(["-u", "+%F"]))?;
        if let Some(line) = report.lines().last() {
            record(workspace, line, commit.trim(), day.trim())?;
        }
    }
    report.finish()
}

impl Step {
    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    fn run(self, workspace: &Workspace, interrupt: &Interrupt) -> Result<bool> {
        match self {
            Self::Deny => {
                if deny::installed(workspace).is_none() && !deny::install(workspace, interrupt)? {
                    return Ok(false);
                }
                let program =
                    deny::installed(workspace).context("cargo-deny is not where it was installed")?;
                deny::run(workspace, interrupt, &program)
            }
            Self::Package => package::run(workspace, interrupt),
            Self::RabbitMq4 => test::run(workspace, interrupt, Some(Major::Four), &[]),
            Self::Slowest => test::run_slowest(workspace, interrupt),
            Self::Machinery => {
                let rounds = "env.MACHINIST_MACHINERY_ROUNDS='83'";
                let args = ["--config", rounds, "--test", "machinery", "a_mixed_fleet", "--", "--nocapture"];
                let args = args.map(str::to_owned);
                test::run(workspace, interrupt, None, &args)
            }
            Self::Versions => versions::run(workspace, interrupt),
            Self::Chaos => {
                let args = ["--all", "--size", "nightly", "--lanes", "2"].map(str::to_owned);
                chaos::run(workspace, interrupt, None, &args)
            }
        }
    }
}

fn record(workspace: &Workspace, line: &Line, commit: &str, day: &str) -> Result<()> {
    let path = workspace.root().join(PAGE);
    let page = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let took = line.took.map(display).unwrap_or_default();
    // A failure's causes would break the table; the output has them.
    let result = if line.verdict == "ok" { "ok" } else { "FAILED" };
    let row = format!("| {} | {commit} | {day} | {took} | {result} |", line.step);
    let page =
        with_row(&page, &line.step, &row).with_context(|| format!("{PAGE} has no table of the steps"))?;
    fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))
}

/// The page with a row of the table replaced or added; nothing where the page has no such table.
fn with_row(page: &str, step: &str, row: &str) -> Option<String> {
    let (before, rest) = page.split_once(BEGIN)?;
    let end = rest.lines().take_while(|line| line.starts_with('|')).map(|line| line.len() + 1).sum();
    let (rows, after) = rest.split_at(end);
    let own = format!("| {step} |");
    let mut rows: Vec<&str> = rows.lines().collect();
    match rows.iter_mut().find(|old| old.starts_with(&own)) {
        Some(old) => *old = row,
        None => rows.push(row),
    }
    Some(format!("{before}{BEGIN}{}\n{after}", rows.join("\n")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_replaced_or_added_and_the_rest_of_the_page_stays() {
        let page = format!("# Page\n\n{BEGIN}| deny | a | d | 1 s | ok |\n\nAfter.\n");
        let replaced = with_row(&page, "deny", "| deny | b | e | 2 s | FAILED |").unwrap();
        assert_eq!(replaced, format!("# Page\n\n{BEGIN}| deny | b | e | 2 s | FAILED |\n\nAfter.\n"));
        let added = with_row(&page, "chaos", "| chaos | b | e | 2 s | ok |").unwrap();
        let rows = "| deny | a | d | 1 s | ok |\n| chaos | b | e | 2 s | ok |\n";
        assert_eq!(added, format!("# Page\n\n{BEGIN}{rows}\nAfter.\n"));
        assert_eq!(with_row("# Page\n", "deny", ""), None);
    }
}
