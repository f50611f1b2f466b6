//! Workflow files: named steps in TOML or JSON, checked before anything is sent. Pure, except that the file is read.
//!
//! Every error names the file, the line, the column, the step and the remedy.

mod node;
mod step;
mod tree;

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    path::Path,
};

use machinist_core::{
    Signature,
    worker::Tag,
    workflow::{Workflow, WorkflowError},
};

use super::TaskSettings;
use node::{check_keys, find, string, table};
use step::step;
use tree::Problem;

/// Maximum size of a file, in bytes.
const MAX_FILE_BYTES: u64 = 16 * 1024 * 1024;
const FILE_KEYS: [&str; 2] = ["name", "steps"];

/// Error of a workflow file. The text names the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FlowFileError {
    /// The file cannot be read.
    #[error("{file} cannot be read")]
    Unreadable {
        /// The file.
        file: String,
        /// The reason.
        #[source]
        error: io::Error,
    },
    /// The text is no workflow.
    #[error("{file}:{line}:{column}: {why}")]
    Invalid {
        /// The file.
        file: String,
        /// Line of the mistake, counted from 1.
        line: usize,
        /// Column of the mistake, counted from 1, in characters.
        column: usize,
        /// The step, the mistake, and the remedy.
        why: String,
    },
}

/// Reads a workflow from a file: JSON if its name ends in `.json`, else TOML. A step without a queue or tags gets those of its
/// task in the settings.
///
/// # Errors
/// [`FlowFileError`].
pub fn read(path: &Path, tasks: &BTreeMap<String, TaskSettings>) -> Result<Workflow, FlowFileError> {
    let file = path.display().to_string();
    let is_json = path.extension().is_some_and(|suffix| suffix.eq_ignore_ascii_case("json"));
    match File::open(path) {
        Ok(open) => read_text(open, file, is_json, tasks),
        Err(error) => Err(FlowFileError::Unreadable { file, error }),
    }
}

/// Reads a workflow in JSON, from standard input for example. `file` is its name in errors.
///
/// # Errors
/// [`FlowFileError`].
pub fn read_json(
    input: impl Read,
    file: impl Into<String>,
    tasks: &BTreeMap<String, TaskSettings>,
) -> Result<Workflow, FlowFileError> {
    read_text(input, file.into(), true, tasks)
}

fn read_text(
    input: impl Read,
    file: String,
    is_json: bool,
    tasks: &BTreeMap<String, TaskSettings>,
) -> Result<Workflow, FlowFileError> {
    let text = match bounded(input) {
        Ok(text) => text,
        Err(error) => return Err(FlowFileError::Unreadable { file, error }),
    };
    let configured = |task: &str| {
        let signature = Signature::new(task);
        let Some(options) = tasks.get(task) else { return signature };
        let queue = options.queue.iter().map(|queue| queue.value.to_string());
        let signature = queue.fold(signature, Signature::queue);
        signature.requires(options.requires.iter().flat_map(|tags| &tags.value).map(Tag::as_str))
    };
    workflow(&text, is_json, &configured).map_err(|Problem { at, why }| {
        let (line, column) = position(&text, at);
        FlowFileError::Invalid { file, line, column, why }
    })
}

/// Reads a text that is not too large.
fn bounded(from: impl Read) -> io::Result<String> {
    let mut text = String::new();
    from.take(MAX_FILE_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        let why =
            format!("it is larger than {MAX_FILE_BYTES} bytes; let a task send the members of a large group");
        return Err(io::Error::other(why));
    }
    Ok(text)
}

/// Returns line and column of an offset, both counted from 1, the column in characters.
fn position(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

fn workflow(text: &str, is_json: bool, configured: &dyn Fn(&str) -> Signature) -> Result<Workflow, Problem> {
    let document = if is_json { tree::json(text)? } else { tree::toml(text)? };
    let top = table(&document, "a table with steps")?;
    check_keys(top, &FILE_KEYS, "")?;
    let steps = find(top, "steps").ok_or_else(|| {
        Problem::new(document.at, "the file has no steps; write [steps.NAME] and task = \"…\"")
    })?;
    let steps = table(&steps.node, "a table of steps, like [steps.first]")?;
    let names: Vec<&str> = steps.iter().map(|entry| entry.key.as_str()).collect();
    let plans = steps.iter().map(|entry| step(entry, &names, configured)).collect::<Result<Vec<_>, _>>()?;
    let workflow = Workflow::of_steps(plans).map_err(|error| {
        let at =
            error.step.as_deref().and_then(|step| find(steps, step)).map_or(document.at, |entry| entry.at);
        let WorkflowError { step, why } = error;
        Problem::new(at, step.map(|step| format!("step \"{step}\": {why}")).unwrap_or(why))
    })?;
    match find(top, "name") {
        None => Ok(workflow),
        Some(name) => Ok(workflow.name(string(&name.node, "name")?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str, is_json: bool) -> String {
        let problem = workflow(text, is_json, &|task| Signature::new(task)).unwrap_err();
        let (line, column) = position(text, problem.at);
        format!("{line}:{column}: {}", problem.why)
    }

    #[test]
    fn every_key_is_read() {
        let text = r#"
            name = "all"
            [steps.many]
            task = "a"
            args = [1, "x", { y = [1.5] }]
            each = [[1], []]
            on_failure = "tolerate:10%"
            queue = "q"
            retries = 3
            retry_for = "1h"
            retry_timeouts = true
            timeout = "20s"
            soft_timeout = "10s"
            backoff = "fixed:1s"
            priority = 9
            headers = { tenant = "a" }
            labels = { team = "b" }
            countdown = "1s"
            expires = "1h"
            named = { width = 640 }
            on_error = ["tell"]
            [steps.last]
            task = "b"
            after = ["many"]
            immutable = true
            [steps.tell]
            task = "c"
        "#;
        assert_eq!(workflow(text, false, &|task| Signature::new(task)).unwrap().shown_name(), Some("all"));
        let json =
            r#"{"steps": {"a": {"task": "t", "each": [[1], [null]]}, "b": {"task": "t", "after": ["a"]}}}"#;
        assert_eq!(workflow(json, true, &|task| Signature::new(task)).unwrap().shown_name(), None);
    }

    #[test]
    fn errors_name_the_position_the_step_and_the_remedy() {
        let step = |keys: &str| format!("[steps.a]\ntask = \"t\"\n{keys}\n[steps.b]\ntask = \"t\"\n");
        for (text, said) in [
            (String::new(), "1:1: the file has no steps; write [steps.NAME]"),
            ("steps = 1".to_owned(), "1:9: expected a table of steps"),
            ("stepz = 1".to_owned(), "1:1: unknown key \"stepz\"; did you mean \"steps\"?"),
            ("[steps]".to_owned(), "1:1: a workflow has at least one step"),
            ("[steps.a]\nargs = [1]".to_owned(), "1:8: step \"a\": it has no task; write task ="),
            ("[steps.a]\ntask = \"t\"\nx = ".to_owned(), "3:5: "),
            ("name = 1\n[steps.a]\ntask = \"t\"".to_owned(), "1:8: expected text in quotes for name"),
            ("[steps.A]\ntask = \"t\"".to_owned(), "1:8: step \"A\": a name is 1 to 40 small letters"),
            (step("argz = [1]"), "3:1: step \"a\": unknown key \"argz\"; did you mean \"args\"?"),
            (step("zzz = [1]"), "3:1: step \"a\": unknown key \"zzz\"; a step has task, args, named"),
            (
                step("args = 1"),
                "3:8: step \"a\": expected a list for args, like [\"a\", 2], and it is a number",
            ),
            (step("each = [1]"), "3:9: step \"a\": expected a list for each"),
            (
                step("after = [\"bb\"]"),
                "3:10: step \"a\": after: there is no step \"bb\"; did you mean \"b\"?",
            ),
            (step("after = \"b\""), "3:9: step \"a\": expected a list for after"),
            (
                step("on_error = [\"zzz\"]"),
                "3:13: step \"a\": on_error: there is no step \"zzz\"; the steps are a, b",
            ),
            (step("after = [\"a\"]"), "1:8: step \"a\": it comes after itself: the steps form a cycle"),
            (
                step("on_failure = \"stop\""),
                "3:14: step \"a\": on_failure: \"stop\" is no policy; write fail",
            ),
            (step("on_failure = \"hold\""), "1:8: step \"a\": only a group has a policy"),
            (step("timeout = \"5\""), "3:11: step \"a\": timeout: \"5\" has no unit"),
            (step("timeout = \"0s\""), "3:11: step \"a\": timeout: 0s would end every run"),
            (step("retries = -1"), "3:11: step \"a\": retries: -1 is not in 0 to"),
            (step("priority = 10"), "3:12: step \"a\": priority: 10 is not in 0 to 9"),
            (step("queue = \"a.dead\""), "3:9: step \"a\": queue: "),
            (step("immutable = 1"), "3:13: step \"a\": expected true or false for immutable"),
            (step("labels = { a = 1 }"), "3:16: step \"a\": expected text in quotes for labels"),
        ] {
            let error = error(&text, false);
            assert!(error.starts_with(said), "{text}\n{error}");
        }
        let group = format!("[steps.a]\ntask = \"t\"\neach = [{}]", "[],".repeat(10_001));
        assert!(
            error(&group, false)
                .starts_with("1:8: step \"a\": a group has at most 10000 members: let a task")
        );
    }

    #[test]
    fn errors_in_json_have_positions_too() {
        for (text, said) in [
            (
                "{\"steps\": {\"a\":\n  {\"task\": \"t\", \"argz\": 1}}}",
                "2:17: step \"a\": unknown key \"argz\"",
            ),
            ("{\"steps\": {\"a\": {}}}", "1:12: step \"a\": it has no task"),
            ("{\"steps\"", "1:"),
            ("[]", "1:1: expected a table with steps, and it is a list"),
        ] {
            let error = error(text, true);
            assert!(error.starts_with(said), "{text}\n{error}");
        }
    }
}
