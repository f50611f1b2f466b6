//! Workflow files: named steps in TOML or JSON, checked before anything is sent. Pure, except that the file is read.
//!
//! Every error names the file, the line, the column, the step and the remedy.

mod tree;

use std::{io::Read, path::Path};

use machinist::{
    Arg, QueueName, Signature, TaskName,
    settings::{Settings, parse_backoff, parse_duration},
    workflow::{Policy, StepPlan, Workflow, WorkflowError},
};
use serde_json::Value;

use crate::exit::{CliError, Code};
use tree::{Node, Problem, Tree, TreeEntry};

/// Maximum size of a file, in bytes.
const MAX_FILE_BYTES: u64 = 16 * 1024 * 1024;
const FILE_KEYS: [&str; 2] = ["name", "steps"];
const STEP_KEYS: [&str; 20] = [
    "task",
    "args",
    "named",
    "each",
    "after",
    "on_failure",
    "immutable",
    "on_error",
    "queue",
    "retries",
    "retry_for",
    "retry_timeouts",
    "timeout",
    "soft_timeout",
    "backoff",
    "priority",
    "headers",
    "labels",
    "countdown",
    "expires",
];

/// Reads a workflow from a file: JSON if its name ends in `.json`, else TOML; `-` is JSON on standard input. A step without a
/// queue gets the one of its task in the settings.
///
/// # Errors
/// The file cannot be read, or is no workflow: the position, the step and the remedy.
pub(crate) fn read(path: &Path, settings: &Settings) -> Result<Workflow, CliError> {
    let from_input = path == Path::new("-");
    let shown = if from_input { "standard input".to_owned() } else { path.display().to_string() };
    let text = if from_input {
        bounded(std::io::stdin().lock())
    } else {
        std::fs::File::open(path).and_then(bounded)
    };
    let text = text.map_err(|error| {
        CliError::new(Code::Usage, format!("--flow: {shown} cannot be read: {error}"))
            .remedy("it takes a TOML or JSON file, or - for JSON on standard input")
    })?;
    let is_json = from_input || path.extension().is_some_and(|suffix| suffix.eq_ignore_ascii_case("json"));
    let queue_of = |task: &str| Some(settings.tasks.get(task)?.queue.as_ref()?.value.to_string());
    workflow(&text, is_json, &queue_of).map_err(|Problem { at, why }| {
        let (line, column) = position(&text, at);
        CliError::new(Code::Usage, format!("{shown}:{line}:{column}: {why}"))
            .remedy("nothing was sent; docs/workflows.md describes the file")
    })
}

/// Reads a text that is not too large.
fn bounded(from: impl Read) -> std::io::Result<String> {
    let mut text = String::new();
    from.take(MAX_FILE_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        let why =
            format!("it is larger than {MAX_FILE_BYTES} bytes; let a task send the members of a large group");
        return Err(std::io::Error::other(why));
    }
    Ok(text)
}

/// Returns line and column of an offset, both counted from 1, the column in characters.
fn position(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

fn workflow(
    text: &str,
    is_json: bool,
    queue_of: &dyn Fn(&str) -> Option<String>,
) -> Result<Workflow, Problem> {
    let document = if is_json { tree::json(text)? } else { tree::toml(text)? };
    let top = table(&document, "a table with steps")?;
    check_keys(top, &FILE_KEYS, "")?;
    let steps = find(top, "steps").ok_or_else(|| {
        Problem::new(document.at, "the file has no steps; write [steps.NAME] and task = \"…\"")
    })?;
    let steps = table(&steps.node, "a table of steps, like [steps.first]")?;
    let names: Vec<&str> = steps.iter().map(|entry| entry.key.as_str()).collect();
    let plans = steps.iter().map(|entry| step(entry, &names, queue_of)).collect::<Result<Vec<_>, _>>()?;
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

fn step(
    entry: &TreeEntry,
    names: &[&str],
    queue_of: &dyn Fn(&str) -> Option<String>,
) -> Result<StepPlan, Problem> {
    let name = &entry.key;
    let in_step = |problem: Problem| Problem { why: format!("step \"{name}\": {}", problem.why), ..problem };
    read_step(entry, names, queue_of).map_err(in_step)
}

fn read_step(
    entry: &TreeEntry,
    names: &[&str],
    queue_of: &dyn Fn(&str) -> Option<String>,
) -> Result<StepPlan, Problem> {
    let keys = table(&entry.node, "a table with a task, like { task = \"resize\" }")?;
    check_keys(keys, &STEP_KEYS, "a step has ")?;
    let node = |key: &str| find(keys, key).map(|entry| &entry.node);
    let task = node("task").ok_or_else(|| Problem::new(entry.at, "it has no task; write task = \"…\""))?;
    let task = parsed(task, "task", |text| TaskName::parse(text).map_err(|e| e.to_string()))?;
    let mut signature = Signature::new(task.to_string());
    for value in node("args").map(|args| list(args, "args", "[\"a\", 2]")).transpose()?.unwrap_or_default() {
        signature = signature.arg(value.value());
    }
    for named in node("named")
        .map(|named| table(named, "a table, like { width = 640 }"))
        .transpose()?
        .unwrap_or_default()
    {
        signature = signature.named_arg(&named.key, named.node.value());
    }
    signature = options(signature, &node)?;
    if find(keys, "queue").is_none()
        && let Some(queue) = queue_of(task.as_str())
    {
        signature = signature.queue(queue);
    }
    let mut plan = StepPlan::new(&entry.key, signature);
    if let Some(each) = node("each") {
        plan = plan.each(members(each)?);
    }
    if let Some(after) = node("after") {
        plan = plan.after(references(after, "after", names)?);
    }
    if let Some(caught) = node("on_error") {
        plan = plan.on_error(references(caught, "on_error", names)?);
    }
    if let Some(on_failure) = node("on_failure") {
        plan = plan.on_failure(parsed(on_failure, "on_failure", policy)?);
    }
    if node("immutable").map(|immutable| truth(immutable, "immutable")).transpose()? == Some(true) {
        plan = plan.immutable();
    }
    Ok(plan)
}

/// Adds the options that `send` has too.
fn options<'a>(
    mut signature: Signature,
    node: &impl Fn(&str) -> Option<&'a Node>,
) -> Result<Signature, Problem> {
    let duration = |key: &str| node(key).map(|given| parsed(given, key, parse_duration)).transpose();
    if let Some(queue) = node("queue") {
        let queue = parsed(queue, "queue", |text| QueueName::parse(text).map_err(|e| e.to_string()))?;
        signature = signature.queue(queue.as_str());
    }
    if let Some(retries) = node("retries") {
        signature = signature.retries(number(retries, "retries", u32::MAX)?);
    }
    if let Some(limit) = duration("retry_for")? {
        signature = signature.retry_for(limit);
    }
    if node("retry_timeouts").map(|given| truth(given, "retry_timeouts")).transpose()? == Some(true) {
        signature = signature.retry_timeouts();
    }
    for key in ["timeout", "soft_timeout"] {
        let Some(limit) = duration(key)? else { continue };
        if limit.is_zero() {
            let at = node(key).map_or(0, |node| node.at);
            let why = format!("{key}: 0s would end every run at once; leave it out for no timeout");
            return Err(Problem::new(at, why));
        }
        signature = if key == "timeout" { signature.timeout(limit) } else { signature.soft_timeout(limit) };
    }
    if let Some(backoff) = node("backoff") {
        signature = signature.backoff(parsed(backoff, "backoff", parse_backoff)?);
    }
    if let Some(priority) = node("priority") {
        let priority = number(priority, "priority", 9)?;
        signature = signature.priority(u8::try_from(priority).unwrap_or(u8::MAX));
    }
    if let Some(headers) = node("headers") {
        for header in table(headers, "a table of texts, like { tenant = \"a\" }")? {
            signature = signature.header(&header.key, string(&header.node, "headers")?);
        }
    }
    if let Some(labels) = node("labels") {
        for label in table(labels, "a table of texts, like { team = \"a\" }")? {
            signature = signature.label(&label.key, string(&label.node, "labels")?);
        }
    }
    if let Some(countdown) = duration("countdown")? {
        signature = signature.countdown(countdown);
    }
    if let Some(expires) = duration("expires")? {
        signature = signature.expires_in(expires);
    }
    Ok(signature)
}

fn members(each: &Node) -> Result<Vec<Vec<Arg>>, Problem> {
    let member = |member: &Node| {
        let args = list(member, "each", "[[\"a\"], [\"b\"]]: one list of arguments for each member")?;
        Ok(args.iter().map(|arg| Arg::from_value(arg.value())).collect())
    };
    list(each, "each", "[[\"a\"], [\"b\"]]")?.iter().map(member).collect()
}

/// Reads the names of other steps.
fn references(node: &Node, key: &str, names: &[&str]) -> Result<Vec<String>, Problem> {
    let reference = |item: &Node| {
        let name = string(item, key)?;
        if names.contains(&name) {
            return Ok(name.to_owned());
        }
        let why = format!("{key}: there is no step \"{name}\"; {}", nearest(name, names, "the steps are "));
        Err(Problem::new(item.at, why))
    };
    list(node, key, "[\"first\", \"second\"]")?.iter().map(reference).collect()
}

fn policy(text: &str) -> Result<Policy, String> {
    let number = |text: &str| text.parse::<u32>().ok();
    let known = match text {
        "fail" => Some(Policy::Fail),
        "cancel_rest" => Some(Policy::CancelRest),
        "collect" => Some(Policy::Collect),
        "hold" => Some(Policy::Hold),
        _ => text.strip_prefix("tolerate:").and_then(|tolerated| match tolerated.strip_suffix('%') {
            Some(percent) => number(percent)
                .filter(|n| *n <= 100)
                .and_then(|n| u8::try_from(n).ok())
                .map(Policy::ToleratePercent),
            None => number(tolerated).map(Policy::Tolerate),
        }),
    };
    known.ok_or_else(|| {
        format!("\"{text}\" is no policy; write fail, cancel_rest, collect, tolerate:2, tolerate:10% or hold")
    })
}

fn find<'a>(entries: &'a [TreeEntry], key: &str) -> Option<&'a TreeEntry> {
    entries.iter().find(|entry| entry.key == key)
}

fn check_keys(entries: &[TreeEntry], known: &[&str], all: &str) -> Result<(), Problem> {
    let Some(unknown) = entries.iter().find(|entry| !known.contains(&entry.key.as_str())) else {
        return Ok(());
    };
    let all = if all.is_empty() { "the keys here are " } else { all };
    let why = format!("unknown key \"{}\"; {}", unknown.key, nearest(&unknown.key, known, all));
    Err(Problem::new(unknown.at, why))
}

/// Proposes the word that was probably meant, or lists all.
fn nearest(word: &str, known: &[&str], all: &str) -> String {
    let best = known.iter().map(|name| (strsim::damerau_levenshtein(word, name), name)).min();
    match best {
        Some((distance, name)) if distance <= 1 + word.len() / 4 => format!("did you mean \"{name}\"?"),
        _ if known.len() > STEP_KEYS.len() => format!("there are {} others", known.len()),
        _ => format!("{all}{}", known.join(", ")),
    }
}

fn expected(node: &Node, expected: &str) -> Problem {
    Problem::new(node.at, format!("expected {expected}, and it is {}", node.kind()))
}

fn table<'a>(node: &'a Node, what: &str) -> Result<&'a [TreeEntry], Problem> {
    match &node.tree {
        Tree::Table(entries) => Ok(entries),
        _ => Err(expected(node, what)),
    }
}

fn list<'a>(node: &'a Node, key: &str, example: &str) -> Result<&'a [Node], Problem> {
    match &node.tree {
        Tree::List(list) => Ok(list),
        _ => Err(expected(node, &format!("a list for {key}, like {example}"))),
    }
}

fn string<'a>(node: &'a Node, key: &str) -> Result<&'a str, Problem> {
    match &node.tree {
        Tree::Single(Value::String(text)) => Ok(text),
        _ => Err(expected(node, &format!("text in quotes for {key}"))),
    }
}

fn truth(node: &Node, key: &str) -> Result<bool, Problem> {
    match &node.tree {
        Tree::Single(Value::Bool(truth)) => Ok(*truth),
        _ => Err(expected(node, &format!("true or false for {key}"))),
    }
}

fn number(node: &Node, key: &str, max: u32) -> Result<u32, Problem> {
    let Tree::Single(Value::Number(number)) = &node.tree else {
        return Err(expected(node, &format!("a number for {key}")));
    };
    let fitting = number.as_u64().and_then(|number| u32::try_from(number).ok()).filter(|n| *n <= max);
    fitting.ok_or_else(|| Problem::new(node.at, format!("{key}: {number} is not in 0 to {max}")))
}

/// Reads a text with a function whose error is a sentence.
fn parsed<T>(node: &Node, key: &str, read: impl Fn(&str) -> Result<T, String>) -> Result<T, Problem> {
    read(string(node, key)?).map_err(|why| Problem::new(node.at, format!("{key}: {why}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str, is_json: bool) -> String {
        let problem = workflow(text, is_json, &|_| None).unwrap_err();
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
        assert_eq!(workflow(text, false, &|_| None).unwrap().shown_name(), Some("all"));
        let json =
            r#"{"steps": {"a": {"task": "t", "each": [[1], [null]]}, "b": {"task": "t", "after": ["a"]}}}"#;
        assert_eq!(workflow(json, true, &|_| None).unwrap().shown_name(), None);
    }

    #[test]
    fn policies_are_words() {
        for (text, known) in [
            ("fail", Policy::Fail),
            ("cancel_rest", Policy::CancelRest),
            ("collect", Policy::Collect),
            ("hold", Policy::Hold),
            ("tolerate:3", Policy::Tolerate(3)),
            ("tolerate:100%", Policy::ToleratePercent(100)),
        ] {
            assert_eq!(policy(text), Ok(known));
        }
        for wrong in ["", "tolerate", "tolerate:", "tolerate:-1", "tolerate:101%", "tolerate:1%%", "Fail"] {
            assert!(policy(wrong).unwrap_err().contains("write fail, cancel_rest"), "{wrong}");
        }
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
