//! The slowest tests, again and again.
//!
//! A test that waits for servers, leases and retries may fail once in a hundred runs: because a machine is busy, or because of
//! a rare order of events. The slowest tests wait most.

use std::{
    collections::{BTreeMap, VecDeque},
    process::Command,
    time::Duration,
};

use anyhow::Result;

use super::lanes::{self, Ended, TestProgram};
use crate::{
    command::{self, Workspace, display},
    interrupt::Interrupt,
};

/// How many tests are repeated.
const SLOWEST: usize = 30;
/// How often each of them runs.
const TIMES: usize = 10;

/// One test, and the program that has it.
struct Test<'a> {
    program: &'a TestProgram,
    name: String,
}

/// What the runs of each test came to, by its name.
#[derive(Default)]
struct Runs(BTreeMap<String, Vec<(bool, Duration)>>);

/// Runs every test alone once, and the slowest again; whether all passed.
pub(super) fn run(
    workspace: &Workspace,
    interrupt: &Interrupt,
    cargo: &dyn Fn(&[&str]) -> Command,
    mut each: impl FnMut(&str),
) -> Result<bool> {
    let Some(programs) = lanes::build(interrupt, cargo, &mut each)? else { return Ok(false) };
    let libraries = lanes::library_path(workspace);
    let command = |program: &TestProgram, args: &[&str]| {
        let mut command = lanes::as_cargo_runs_it(program, &libraries, cargo);
        command.args(args);
        command
    };
    let mut tests = BTreeMap::new();
    for program in &programs {
        let listed = command::output(&mut command(program, &["--list", "--format", "terse"]))?;
        let listed = names(&listed)
            .map(|name| (format!("{}: {name}", program.name), Test { program, name: name.to_owned() }));
        tests.extend(listed);
    }
    let runs_of = |test: &Test<'_>| command(test.program, &["--exact", &test.name]);
    let mut runs = Runs::default();
    each(&format!("each of {} tests alone", tests.len()));
    let once = tests.iter().map(|(name, test)| (name.clone(), runs_of(test))).collect();
    lanes::in_lanes(once, interrupt, |ended| runs.add(ended, &mut each))?;
    let slowest = runs.slowest(SLOWEST);
    each(&format!("the {} slowest again, until each has run {TIMES} times", slowest.len()));
    let again: VecDeque<_> = (1..TIMES)
        .flat_map(|_| &slowest)
        .filter_map(|name| Some((name.clone(), runs_of(tests.get(name)?))))
        .collect();
    lanes::in_lanes(again, interrupt, |ended| runs.add(ended, &mut each))?;
    for name in &slowest {
        each(&runs.told(name));
    }
    Ok(runs.all_passed())
}

/// The names of the tests that a program lists.
fn names(listed: &str) -> impl Iterator<Item = &str> {
    listed.lines().filter_map(|line| line.strip_suffix(": test"))
}

impl Runs {
    fn add(&mut self, ended: Ended, each: &mut dyn FnMut(&str)) {
        let Ended { name, lines, passed, took } = ended;
        if !passed {
            each(&format!("\n== {name}, {}: FAILED", display(took)));
            lines.iter().for_each(|line| each(line));
        }
        self.0.entry(name).or_default().push((passed, took));
    }

    /// The tests that took longest, the slowest first.
    fn slowest(&self, number: usize) -> Vec<String> {
        let longest = |runs: &[(bool, Duration)]| runs.iter().map(|(_, took)| *took).max();
        let mut all: Vec<_> = self.0.iter().map(|(name, runs)| (longest(runs), name)).collect();
        all.sort_by(|one, other| other.cmp(one));
        all.into_iter().take(number).map(|(_, name)| name.clone()).collect()
    }

    /// A line about a test.
    fn told(&self, name: &str) -> String {
        let runs = self.0.get(name).map_or(&[][..], Vec::as_slice);
        let passed = runs.iter().filter(|(passed, _)| *passed).count();
        let took = || runs.iter().map(|(_, took)| *took);
        let (least, most) = (took().min().unwrap_or_default(), took().max().unwrap_or_default());
        format!("{passed} of {} passed, in {} to {}: {name}", runs.len(), display(least), display(most))
    }

    fn all_passed(&self) -> bool {
        self.0.values().flatten().all(|(passed, _)| *passed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_found_in_the_list_of_a_program() {
        let listed = "a::b: test\nc: test\nd: benchmark\n\n2 tests, 1 benchmark\n";
        assert_eq!(names(listed).collect::<Vec<_>>(), ["a::b", "c"]);
    }

    #[test]
    fn the_slowest_are_repeated_and_one_failure_counts() {
        let mut runs = Runs::default();
        let mut add = |name: &str, passed: bool, seconds: u64| {
            let took = Duration::from_secs(seconds);
            runs.add(Ended { name: name.to_owned(), lines: Vec::new(), passed, took }, &mut |_| {});
        };
        add("quick", true, 1);
        add("slow", true, 30);
        add("middling", true, 9);
        add("slow", false, 20);
        assert_eq!(runs.slowest(2), ["slow", "middling"]);
        assert_eq!(runs.told("slow"), "1 of 2 passed, in 20.0 s to 30.0 s: slow");
        assert!(!runs.all_passed());
    }
}
