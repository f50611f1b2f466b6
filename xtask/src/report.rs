//! Steps that each pass or fail, and the lines that say so: what `ci` and `nightly` print.
//!
//! Every step runs even after one has failed, so that one run shows everything there is to mend.

use std::{
    fmt, thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};

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
        let checked = self.interrupt.check().and_then(|()| check());
        self.ended(name, checked, began.elapsed());
    }

    fn ended(&mut self, name: &str, checked: Result<bool>, took: Duration) {
        let verdict = match checked {
            Ok(true) => "ok".to_owned(),
            Ok(false) => "FAILED".to_owned(),
            Err(error) => format!("FAILED: {error:#}"),
        };
        self.passed &= verdict == "ok";
        self.line(name, &verdict, Some(took));
    }

    /// Runs a step on a thread while `others` adds steps, and adds its line after theirs.
    pub(crate) fn step_beside(
        &mut self,
        name: &str,
        check: impl FnOnce() -> Result<bool> + Send,
        others: impl FnOnce(&mut Self),
    ) {
        let began = Instant::now();
        let (checked, took) = thread::scope(|scope| {
            let beside = scope.spawn(|| (check(), began.elapsed()));
            others(self);
            beside.join().unwrap_or_else(|_| (Err(anyhow!("it panicked")), began.elapsed()))
        });
        self.ended(name, checked, took);
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

    #[test]
    fn a_step_beside_others_runs_with_them_and_fails_the_report() {
        let interrupt = Interrupt::listen().unwrap();
        let mut report = Report::new(&interrupt);
        let (told, heard) = std::sync::mpsc::channel();
        let waits = move || Ok(heard.recv_timeout(Duration::from_secs(60)).is_err());
        report.step_beside("long", waits, |report| report.step("short", || Ok(told.send(()).is_ok())));
        let lines: Vec<_> = report.lines().iter().map(|line| (&*line.step, &*line.verdict)).collect();
        assert_eq!(lines, [("short", "ok"), ("long", "FAILED")]);
        assert!(!report.finish().unwrap());
    }
}
