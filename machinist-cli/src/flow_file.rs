//! Files that describe a workflow, for `machinist send --flow`: TOML or JSON, with errors that name line and column.

use std::{
    collections::BTreeMap,
    fmt,
    io::Read,
    path::{Path, PathBuf},
    time::Duration,
};

use machinist::{
    Arg, Backoff, Signature, Workflow,
    settings::{Settings, parse_backoff, parse_duration},
    workflow::{Policy, StepPlan},
};
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, Visitor},
};
use serde_json::Value;

use crate::exit::{CliError, Code};

/// Maximum size of a file, in bytes.
const MAX_FILE_BYTES: u64 = 16 * 1024 * 1024;

/// A file: a name for people, and steps.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FlowFile {
    #[serde(default)]
    name: Option<String>,
    steps: Steps,
}

/// The steps with their names, in the order of the file.
#[derive(Debug)]
struct Steps(Vec<(String, StepFile)>);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct StepFile {
    task: String,
    #[serde(default)]
    args: Vec<Value>,
    /// Arguments with names.
    #[serde(default)]
    named: BTreeMap<String, Value>,
    #[serde(default)]
    each: Option<Vec<Vec<Value>>>,
    #[serde(default)]
    after: Vec<String>,
    #[serde(default)]
    on_failure: Option<PolicyText>,
    #[serde(default)]
    immutable: bool,
    #[serde(default)]
    on_error: Vec<String>,
    #[serde(default)]
    queue: Option<String>,
    #[serde(default)]
    retries: Option<u32>,
    #[serde(default)]
    backoff: Option<BackoffText>,
    #[serde(default)]
    timeout: Option<DurationText>,
    #[serde(default)]
    soft_timeout: Option<DurationText>,
    #[serde(default)]
    countdown: Option<DurationText>,
    #[serde(default)]
    expires: Option<DurationText>,
    #[serde(default)]
    priority: Option<u8>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Copy)]
struct DurationText(Duration);
#[derive(Debug, Clone)]
struct BackoffText(Backoff);
#[derive(Debug, Clone, Copy)]
struct PolicyText(Policy);

impl<'de> Deserialize<'de> for DurationText {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        parse_duration(&String::deserialize(from)?).map(Self).map_err(D::Error::custom)
    }
}

impl<'de> Deserialize<'de> for BackoffText {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        parse_backoff(&String::deserialize(from)?).map(Self).map_err(D::Error::custom)
    }
}

impl<'de> Deserialize<'de> for PolicyText {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        parse_policy(&String::deserialize(from)?).map(Self).map_err(D::Error::custom)
    }
}

impl<'de> Deserialize<'de> for Steps {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Steps;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table for each step, [steps.NAME]")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Steps, M::Error> {
                let mut steps: Vec<(String, StepFile)> = Vec::new();
                while let Some((name, step)) = map.next_entry::<String, StepFile>()? {
                    if steps.iter().any(|(known, _)| *known == name) {
                        return Err(M::Error::custom(format_args!("two steps have the name {name:?}")));
                    }
                    steps.push((name, step));
                }
                Ok(Steps(steps))
            }
        }
        from.deserialize_map(InOrder)
    }
}

/// Reads `fail`, `cancel_rest`, `collect`, `tolerate:N`, `tolerate:N%` or `hold`.
fn parse_policy(text: &str) -> Result<Policy, String> {
    let wrong = || {
        format!(
            "{text:?} is no policy for failures: write fail, cancel_rest, collect, tolerate:2, tolerate:10% or hold"
        )
    };
    match text {
        "fail" => Ok(Policy::Fail),
        "cancel_rest" => Ok(Policy::CancelRest),
        "collect" => Ok(Policy::Collect),
        "hold" => Ok(Policy::Hold),
        other => {
            let number = other.strip_prefix("tolerate:").ok_or_else(wrong)?;
            match number.strip_suffix('%') {
                Some(percent) => match percent.parse() {
                    Ok(percent) if percent <= 100 => Ok(Policy::ToleratePercent(percent)),
                    _ => Err(wrong()),
                },
                None => number.parse().map(Policy::Tolerate).map_err(|_| wrong()),
            }
        }
    }
}

/// Reads a workflow from a file, JSON by its suffix and else TOML, or from standard input as JSON (`-`). Steps go to the
/// queue that machinist.toml names for their tasks, unless they name one.
///
/// # Errors
/// The file cannot be read, or is no workflow: file, line, column, and the remedy.
pub(crate) fn read(file: &Path, settings: &Settings) -> Result<Workflow, CliError> {
    let (shown, text, json) = if file == Path::new("-") {
        (PathBuf::from("standard input"), bounded(std::io::stdin().lock(), file)?, true)
    } else {
        let json = file.extension().is_some_and(|suffix| suffix.eq_ignore_ascii_case("json"));
        let open = std::fs::File::open(file).map_err(|error| unreadable(file, &error))?;
        (file.to_owned(), bounded(open, file)?, json)
    };
    parse(&shown.display().to_string(), &text, json, settings)
}

fn bounded(from: impl Read, file: &Path) -> Result<String, CliError> {
    let mut text = String::new();
    let read = from.take(MAX_FILE_BYTES + 1).read_to_string(&mut text);
    read.map_err(|error| unreadable(file, &error))?;
    if text.len() as u64 > MAX_FILE_BYTES {
        let error = format!("{}: it is larger than {MAX_FILE_BYTES} bytes", file.display());
        return Err(CliError::new(Code::Usage, error).remedy("let a task send the members of a large group"));
    }
    Ok(text)
}

fn unreadable(file: &Path, error: &std::io::Error) -> CliError {
    CliError::new(Code::Usage, format!("{}: the file cannot be read: {error}", file.display()))
        .remedy("--flow takes a TOML or JSON file, or - for JSON on standard input")
}

fn parse(shown: &str, text: &str, json: bool, settings: &Settings) -> Result<Workflow, CliError> {
    let FlowFile { name, steps } = if json {
        serde_json::from_str(text).map_err(|error| {
            let place = format!("{shown}:{}:{}", error.line(), error.column());
            let problem = error.to_string();
            let problem = problem.rsplit_once(" at line ").map_or(problem.as_str(), |(problem, _)| problem);
            CliError::new(Code::Usage, format!("{place}: {problem}"))
        })?
    } else {
        toml::from_str(text).map_err(|error| {
            let (line, column) = error.span().map_or((1, 1), |span| position(text, span.start));
            CliError::new(Code::Usage, format!("{shown}:{line}:{column}: {}", error.message()))
        })?
    };
    let mut plans = Vec::with_capacity(steps.0.len());
    for (name, step) in steps.0 {
        plans.push(plan(name, step, settings));
    }
    let workflow = Workflow::of_steps(plans).map_err(|error| {
        let place = error.step.as_ref().and_then(|step| place_of(text, step, json));
        let place = place.map_or_else(String::new, |(line, column)| format!(":{line}:{column}"));
        CliError::new(Code::Usage, format!("{shown}{place}: {error}"))
    })?;
    Ok(match name {
        Some(name) => workflow.name(name),
        None => workflow,
    })
}

fn plan(name: String, step: StepFile, settings: &Settings) -> StepPlan {
    let configured = || settings.tasks.get(&step.task)?.queue.as_ref().map(|queue| queue.value.to_string());
    let queue = step.queue.clone().or_else(configured);
    let mut signature = Signature::new(&step.task);
    for arg in step.args {
        signature = signature.arg(arg);
    }
    for (name, value) in step.named {
        signature = signature.named_arg(name, value);
    }
    if let Some(queue) = queue {
        signature = signature.queue(queue);
    }
    if let Some(retries) = step.retries {
        signature = signature.retries(retries);
    }
    if let Some(BackoffText(backoff)) = step.backoff {
        signature = signature.backoff(backoff);
    }
    if let Some(DurationText(timeout)) = step.timeout {
        signature = signature.timeout(timeout);
    }
    if let Some(DurationText(timeout)) = step.soft_timeout {
        signature = signature.soft_timeout(timeout);
    }
    if let Some(DurationText(countdown)) = step.countdown {
        signature = signature.countdown(countdown);
    }
    if let Some(DurationText(expires)) = step.expires {
        signature = signature.expires_in(expires);
    }
    if let Some(priority) = step.priority {
        signature = signature.priority(priority);
    }
    for (name, value) in step.headers {
        signature = signature.header(name, value);
    }
    for (key, value) in step.labels {
        signature = signature.label(key, value);
    }
    let mut plan = StepPlan::new(name, signature).after(step.after).on_error(step.on_error);
    if step.immutable {
        plan = plan.immutable();
    }
    if let Some(PolicyText(policy)) = step.on_failure {
        plan = plan.on_failure(policy);
    }
    if let Some(each) = step.each {
        plan =
            plan.each(each.into_iter().map(|args| args.into_iter().map(Arg::from_value).collect()).collect());
    }
    plan
}

/// Returns line and column of a byte, both from 1.
fn position(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

/// Finds the place at which a step is described.
fn place_of(text: &str, step: &str, json: bool) -> Option<(usize, usize)> {
    let heading = if json { format!("\"{step}\"") } else { format!("[steps.{step}]") };
    let quoted = format!("[steps.\"{step}\"]");
    text.find(&heading).or_else(|| text.find(&quoted)).map(|at| position(text, at))
}

#[cfg(test)]
mod tests {
    use machinist::settings::Overrides;

    use super::*;

    fn error(text: &str, json: bool) -> String {
        let settings = Settings::resolve(Overrides::default(), &|_| None, None).expect("defaults");
        parse("flow", text, json, &settings).expect_err(text).text
    }

    #[test]
    fn errors_name_the_place_and_the_remedy() {
        for (text, says) in [
            (
                "[steps.a]\ntask = \"inc\"\nargz = [1]\n",
                "flow:3:1: unknown field `argz`, expected one of `task`",
            ),
            ("[steps.a]\nargs = [1]\n", "flow:1:1: missing field `task`"),
            ("[steps.a]\ntask = 3\n", "flow:2:8: invalid type"),
            ("[steps.a]\ntask = \"inc\"\ntimeout = \"soon\"\n", "flow:3:11: "),
            (
                "[steps.a]\ntask = \"inc\"\nafter = [\"b\"]\n[steps.b]\ntask = \"inc\"\nafter = [\"a\"]\n",
                "cycle",
            ),
            (
                "[steps.a]\ntask = \"inc\"\n[steps.b]\ntask = \"x\"\nafter = [\"aa\"]\n",
                "flow:3:1: step \"b\": there is no step \"aa\"",
            ),
            (
                "[steps.a]\ntask = \"inc\"\neach = [[1]]\non_failure = \"tolerate:x\"\n",
                "flow:4:14: \"tolerate:x\" is no policy",
            ),
            ("name = \"x\"\n", "missing field `steps`"),
            ("[steps]\n", "a workflow has at least one step"),
            ("[steps.a", "flow:1:"),
        ] {
            assert!(error(text, false).contains(says), "{}", error(text, false));
        }
        assert!(error("{\"steps\": {\"a\": {\"task\": \"x\", \"argz\": []}}}", true).starts_with("flow:1:"));
        assert!(
            error("{\"steps\": {\"a\": {\"task\": \"x\"}, \"a\": {\"task\": \"y\"}}}", true)
                .contains("two steps")
        );
    }

    #[test]
    fn policies_are_words() {
        assert_eq!(parse_policy("tolerate:3"), Ok(Policy::Tolerate(3)));
        assert_eq!(parse_policy("tolerate:30%"), Ok(Policy::ToleratePercent(30)));
        assert_eq!(parse_policy("cancel_rest"), Ok(Policy::CancelRest));
        assert!(parse_policy("tolerate:101%").is_err() && parse_policy("").is_err());
    }
}
