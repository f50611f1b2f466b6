//! Steps that each pass or fail, and the lines that say so: what `ci` and `nightly` print.
//!
//! Every step runs even after one has failed, so that one run shows everything there is to mend.

use std::{
    fmt,
    time::{Duration, Instant},
};

use anyhow::Result;

use crate::{command::display, interrupt::Interrupt};

/// What the steps so far came to.
#[derive(Debug)]
pub(crate) struct Report<'a> {
    interrupt: &'a Interrupt,
    began: Instant,
    lines: Vec<Line>,
    passed: bool,
}

/// What one step came to.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) step: String,
    pub(crate) verdict: String,
    /// Nothing for a step that was not run.
    pub(crate) took: Option<Duration>,
}

impl<'a> Report<'a> {
    pub(crate) fn new(interrupt: &'a Interrupt) -> Self {
        Self { interrupt, began: Instant::now(), lines: Vec::new(), passed: true }
    }

    /// Runs a step, unless an interrupt was heard, and adds its line.
    pub(crate) fn step(&mut self, name: &str, check: impl FnOnce() -> Result<bool>) {
        let began = Instant::now();
        let verdict = match self.interrupt.check().and_then(|()| check()) {
            Ok(true) => "ok".to_owned(),
            Ok(false) => "FAILED".to_owned(),
            Err(error) => format!("FAILED: {error:#}"),
        };
        self.passed &= verdict == "ok";
        self.line(name, &verdict, Some(began.elapsed()));
    }

    /// Adds a line. It is printed at once, for people who watch, and again at the end, for people who read a log from
    /// below.
    pub(crate) fn line(&mut self, step: &str, verdict: &str, took: Option<Duration>) {
        let line = Line { step: step.to_owned(), verdict: verdict.to_owned(), took };
        say!("== {line}");
        self.lines.push(line);
    }

    pub(crate) fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// Prints all lines; whether every step passed.
    pub(crate) fn finish(self) -> Result<bool> {
        say!();
        self.lines.iter().for_each(|line| say!("{line}"));
        say!("{:<10} {}", "all", display(self.began.elapsed()));
        self.interrupt.check()?;
        Ok(self.passed)
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { step, verdict, took } = self;
        write!(f, "{step:<10} {:<12} {verdict}", took.map(display).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_step_fails_the_report_and_the_next_still_runs() {
        let interrupt = Interrupt::listen().unwrap();
        let mut report = Report::new(&interrupt);
        report.step("one", || Ok(false));
        report.step("two", || Ok(true));
        let verdicts: Vec<&str> = report.lines().iter().map(|line| line.verdict.as_str()).collect();
        assert_eq!(verdicts, ["FAILED", "ok"]);
        assert!(!report.finish().unwrap());
    }
}
