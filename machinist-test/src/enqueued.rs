//! Tasks that wait in the broker, and patterns for them.

use std::{collections::BTreeMap, fmt, ops::RangeBounds, time::Duration};

use machinist_core::{QueueName, TaskMessage};
use serde_json::Value;

/// A task that waits in its queue.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Enqueued {
    /// The task: id, name, arguments, attempt, headers.
    pub task: TaskMessage,
    /// Queue in which it waits.
    pub queue: QueueName,
    /// Time until it is due; zero if it can run now.
    pub due: Duration,
}

impl fmt::Display for Enqueued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let args: Vec<_> = self.task.args.iter().map(|arg| arg.value.to_string()).collect();
        write!(f, "{}({}) in queue {}", self.task.name, args.join(", "), self.queue)?;
        if !self.due.is_zero() {
            write!(f, ", due in {:?}", self.due)?;
        }
        if self.task.attempt > 1 {
            write!(f, ", attempt {}", self.task.attempt)?;
        }
        Ok(())
    }
}

/// Test of one task, with its description.
type Check = (String, Box<dyn Fn(&Enqueued) -> bool>);

/// Pattern for tasks that wait. Without options it fits every task.
///
/// # Examples
/// ```
/// use machinist_core::{TaskDef, TaskError};
/// use machinist_test::{EnqueuedPattern, TestApp};
///
/// const MAIL: TaskDef<(String, u32), ()> = TaskDef::new("mail.send").queue("mail");
///
/// # async fn mail(_to: String, _template: u32) -> Result<(), TaskError> { Ok(()) }
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// # let app = TestApp::new(|worker| worker.task(MAIL, mail)).await;
/// app.send(MAIL.call(("ada@example.org", 7))).await;
/// let welcome = EnqueuedPattern::new().name("mail.*").queue("mail").arg((1, 7));
/// assert_eq!(app.enqueued().iter().filter(|one| welcome.fits(one)).count(), 1);
/// # }
/// ```
#[derive(Default)]
#[must_use]
pub struct EnqueuedPattern {
    checks: Vec<Check>,
    count: Option<usize>,
}

impl EnqueuedPattern {
    /// Creates a pattern that fits every task.
    pub fn new() -> Self {
        Self::default()
    }

    fn check(mut self, text: String, fits: impl Fn(&Enqueued) -> bool + 'static) -> Self {
        self.checks.push((text, Box::new(fits)));
        self
    }

    /// Fits tasks of this name. A `*` stands for any text.
    pub fn name(self, name: impl Into<String>) -> Self {
        let name = name.into();
        self.check(format!("name = {name:?}"), move |one| fits(&name, one.task.name.as_str()))
    }

    /// Fits tasks with exactly these arguments.
    pub fn args<T: Into<Value>>(self, args: impl IntoIterator<Item = T>) -> Self {
        let args: Vec<Value> = args.into_iter().map(Into::into).collect();
        let text = format!("args = {}", Value::from(args.clone()));
        self.check(text, move |one| one.task.args.iter().map(|arg| &arg.value).eq(args.iter()))
    }

    /// Fits tasks whose argument at a place, counted from 0, has this value.
    pub fn arg(self, (place, value): (usize, impl Into<Value>)) -> Self {
        let value = value.into();
        let text = format!("arg {place} = {value}");
        self.check(text, move |one| one.task.args.get(place).is_some_and(|arg| arg.value == value))
    }

    /// Fits tasks for which `test` returns `true`.
    pub fn matching(self, test: impl Fn(&Enqueued) -> bool + 'static) -> Self {
        self.check("matching = a function".to_owned(), test)
    }

    /// Fits tasks in this queue.
    pub fn queue(self, queue: impl Into<String>) -> Self {
        let queue = queue.into();
        self.check(format!("queue = {queue:?}"), move |one| one.queue.as_str() == queue)
    }

    /// Fits tasks that are due after this time, to the second; zero for those that can run now.
    pub fn due(self, due: Duration) -> Self {
        let tolerance = Duration::from_secs(1);
        self.check(format!("due = {due:?}"), move |one| one.due.abs_diff(due) < tolerance)
    }

    /// Fits tasks that are due within this range.
    pub fn due_within(self, range: impl RangeBounds<Duration> + fmt::Debug + 'static) -> Self {
        self.check(format!("due_within = {range:?}"), move |one| range.contains(&one.due))
    }

    /// Fits tasks of this attempt.
    pub fn attempt(self, attempt: u32) -> Self {
        self.check(format!("attempt = {attempt}"), move |one| one.task.attempt == attempt)
    }

    /// Fits tasks that have this header.
    pub fn header(self, (name, value): (impl Into<String>, impl Into<String>)) -> Self {
        let (name, value) = (name.into(), value.into());
        let text = format!("header {name:?} = {value:?}");
        let has = move |headers: &BTreeMap<String, String>| headers.get(&name) == Some(&value);
        self.check(text, move |one| has(&one.task.headers))
    }

    /// Sets the exact number of tasks that fit. Without it, one or more are enough.
    pub fn count(mut self, count: usize) -> Self {
        self.count = Some(count);
        self
    }

    /// Returns `true` if the pattern fits a task.
    pub fn fits(&self, one: &Enqueued) -> bool {
        self.checks.iter().all(|(_, fits)| fits(one))
    }

    /// Returns the error of an assertion about these tasks.
    pub(crate) fn problem(&self, all: &[Enqueued], wanted: bool) -> Option<String> {
        let fitting = all.iter().filter(|one| self.fits(one)).count();
        let holds = match (wanted, self.count) {
            (true, Some(count)) => fitting == count,
            (true, None) => fitting > 0,
            (false, _) => fitting == 0,
        };
        if holds {
            return None;
        }
        let mut text = format!("{fitting} waiting tasks fit ({self:?})");
        match (wanted, self.count) {
            (true, Some(count)) => text += &format!(", expected {count}"),
            (true, None) => text += ", expected at least one",
            (false, _) => text += ", expected none",
        }
        text += "; these wait:";
        if all.is_empty() {
            text += " none";
        }
        for one in all {
            text += &format!("\n  {one}");
        }
        Some(text)
    }
}

impl fmt::Debug for EnqueuedPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let checks: Vec<_> = self.checks.iter().map(|(text, _)| text.as_str()).collect();
        f.write_str(&checks.join(", "))
    }
}

/// Returns `true` if a text fits a pattern in which `*` stands for any text.
fn fits(pattern: &str, text: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(text) = text.strip_prefix(start) else { return false };
    let ends = text.char_indices().map(|(at, _)| at).chain([text.len()]);
    ends.into_iter().any(|at| fits(rest, &text[at..]))
}

#[cfg(test)]
mod tests {
    use super::fits;

    #[test]
    fn a_star_stands_for_any_text() {
        for (pattern, text, fit) in [
            ("mail", "mail", true),
            ("mail", "mail.send", false),
            ("mail.*", "mail.send", true),
            ("*.send", "mail.send", true),
            ("m*l*", "mail", true),
            ("m*x*", "mail", false),
            ("*", "", true),
        ] {
            assert_eq!(fits(pattern, text), fit, "{pattern} {text}");
        }
    }
}
