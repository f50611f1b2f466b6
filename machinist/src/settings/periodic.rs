//! `[periodic.NAME]` of `machinist.toml`: tasks that are sent at the instants of a schedule.

use std::collections::BTreeMap;

use machinist_core::{
    QueueName, Signature,
    clock::Timestamp,
    error::chain_text,
    periodic::{Misfire, Overlap, Periodic, PeriodicError, Schedule},
    worker::Tag,
    workflow::Workflow,
};
use serde_json::Value;
use toml::de::DeValue;

use super::{Setting, SettingsError, TaskSettings, flow_file, section::Section, text, value};

/// Keys of a periodic task, under `[periodic.NAME]`.
const KEYS: [&str; 11] = [
    "flow",
    "cron",
    "every",
    "time_zone",
    "misfire",
    "overlap",
    "jitter",
    "from",
    "until",
    "catch_up",
    "expires",
];

/// Further keys, which are about one task and do not go with a workflow.
const TASK_KEYS: [&str; 13] = [
    "task",
    "args",
    "named",
    "queue",
    "requires",
    "retries",
    "backoff",
    "timeout",
    "soft_timeout",
    "retry_for",
    "retry_timeouts",
    "priority",
    "labels",
];

/// Reads all periodic tasks of a file, by name.
pub(super) fn read(
    top: &Section<'_>,
    tasks: &BTreeMap<String, TaskSettings>,
) -> Result<BTreeMap<String, Setting<Periodic>>, SettingsError> {
    let sections = top.sections("periodic", &[&KEYS[..], &TASK_KEYS].concat())?;
    let read = |(name, section): (String, Section<'_>)| {
        let periodic = read_periodic(&name, &section, tasks)?;
        Ok((name, Setting::new(periodic, section.origin())))
    };
    sections.into_iter().map(read).collect()
}

fn read_periodic(
    name: &str,
    section: &Section<'_>,
    tasks: &BTreeMap<String, TaskSettings>,
) -> Result<Periodic, SettingsError> {
    let refused = |error: PeriodicError| section.error(&format!("is refused: {error}"));
    let mut periodic = match read_flow(section, tasks)? {
        Some(workflow) => Periodic::new(name, read_schedule(section)?, workflow),
        None => {
            let signature = read_signature(section, tasks)?;
            Periodic::new(name, read_schedule(section)?, signature)
        }
    }
    .map_err(refused)?;
    if let Some(misfire) =
        section.value("misfire", |v| Misfire::parse(value::string(v, "skip, once or all")?))?
    {
        periodic = periodic.misfire(misfire);
    }
    let overlap =
        section.value("overlap", |v| Overlap::parse(value::string(v, "allow, skip, queue or cancel")?))?;
    if let Some(overlap) = overlap {
        periodic = periodic.overlap(overlap);
    }
    if let Some(jitter) = section.value("jitter", value::duration)? {
        periodic = periodic.jitter(jitter);
    }
    if let Some(from) = section.value("from", instant)? {
        periodic = periodic.from(from);
    }
    if let Some(until) = section.value("until", instant)? {
        periodic = periodic.until(until);
    }
    if let Some(age) = section.value("catch_up", value::duration)? {
        periodic = periodic.catch_up(age);
    }
    periodic.check().map_err(refused)?;
    Ok(periodic.of_file())
}

fn read_schedule(section: &Section<'_>) -> Result<Schedule, SettingsError> {
    let cron = section.value("cron", |v| {
        Schedule::cron(value::string(v, "a cron expression")?).map_err(|error| error.to_string())
    })?;
    let every = section
        .value("every", |v| Schedule::every(value::duration(v)?).map_err(|error| error.to_string()))?;
    let schedule = match (cron, every) {
        (Some(schedule), None) | (None, Some(schedule)) => schedule,
        (Some(_), Some(_)) => return Err(section.error("has both cron and every; keep one of them")),
        (None, None) => {
            return Err(section.error("has no schedule; write cron = \"0 3 * * *\" or every = \"90s\""));
        }
    };
    let in_zone = section.value("time_zone", |v| {
        let zone = value::string(v, "the name of a time zone")?;
        schedule.clone().time_zone(zone).map_err(|error| error.to_string())
    })?;
    Ok(in_zone.unwrap_or(schedule))
}

/// Reads the workflow of `flow`, whose file starts at the folder of this one.
fn read_flow(
    section: &Section<'_>,
    tasks: &BTreeMap<String, TaskSettings>,
) -> Result<Option<Workflow>, SettingsError> {
    let workflow = section.value("flow", |v| {
        let file = section.source.folder().join(value::string(v, "the name of a workflow file")?);
        flow_file::read(&file, tasks).map_err(|error| chain_text(&error))
    })?;
    let Some(workflow) = workflow else { return Ok(None) };
    if let Some(key) = TASK_KEYS.into_iter().find(|key| section.table.contains_key(*key)) {
        let why = format!(
            "has both flow and {key}, which is about one task; write it under [steps.NAME] of the file"
        );
        return Err(section.error(&why));
    }
    let expires = section.value("expires", value::positive_duration)?;
    Ok(Some(match expires {
        Some(time) => workflow.expires_in(time),
        None => workflow,
    }))
}

fn read_signature(
    section: &Section<'_>,
    tasks: &BTreeMap<String, TaskSettings>,
) -> Result<Signature, SettingsError> {
    let task = section.value("task", |v| match value::string(v, "the name of a task")? {
        "" => Err("is empty; write the name of a task".to_owned()),
        name => Ok(name.to_owned()),
    })?;
    let Some(task) = task else {
        return Err(section.error("names no task; write task = \"NAME\", or flow = \"FILE\" for a workflow"));
    };
    let mut signature = Signature::new(&task);
    let args = section.value("args", |v| {
        let list = v.as_array().ok_or_else(|| value::wrong_type(v, "a list of arguments"))?;
        list.iter().map(|item| json(item.get_ref())).collect::<Result<Vec<_>, _>>()
    })?;
    for arg in args.unwrap_or_default() {
        signature = signature.arg(arg);
    }
    for (name, arg) in
        section.value("named", |v| table(v, "a table of arguments, like { width = 3 }"))?.unwrap_or_default()
    {
        signature = signature.named_arg(name, arg);
    }
    let queue = section.value("queue", |v| {
        QueueName::parse(value::string(v, "a queue name")?).map_err(|error| error.to_string())
    })?;
    let of_task = || tasks.get(&task)?.queue.as_ref().map(|queue| queue.value.clone());
    if let Some(queue) = queue.or_else(of_task) {
        signature = signature.queue(queue.as_str());
    }
    let of_task = || tasks.get(&task)?.requires.as_ref().map(|tags| tags.value.clone());
    if let Some(tags) = section.value("requires", value::tags)?.or_else(of_task) {
        signature = signature.requires(tags.iter().map(Tag::as_str));
    }
    options(section, signature)
}

/// Reads the options that `send` has too.
fn options(section: &Section<'_>, mut signature: Signature) -> Result<Signature, SettingsError> {
    if let Some(time) = section.value("expires", value::positive_duration)? {
        signature = signature.expires_in(time);
    }
    let retries = section.value("retries", |v| {
        let number = value::integer(v, "a number of retries")?;
        u32::try_from(number).map_err(|_| format!("{number} is not a number of retries; take 0 or more"))
    })?;
    if let Some(retries) = retries {
        signature = signature.retries(retries);
    }
    if let Some(backoff) =
        section.value("backoff", |v| text::parse_backoff(value::string(v, "a back-off")?))?
    {
        signature = signature.backoff(backoff);
    }
    if let Some(limit) = section.value("timeout", value::positive_duration)? {
        signature = signature.timeout(limit);
    }
    if let Some(limit) = section.value("soft_timeout", value::positive_duration)? {
        signature = signature.soft_timeout(limit);
    }
    if let Some(limit) = section.value("retry_for", value::duration)? {
        signature = signature.retry_for(limit);
    }
    if section.value("retry_timeouts", value::boolean)? == Some(true) {
        signature = signature.retry_timeouts();
    }
    let priority = section.value("priority", |v| {
        let number = value::integer(v, "a number from 0 to 9")?;
        let fits = u8::try_from(number).ok().filter(|number| *number <= 9);
        fits.ok_or_else(|| format!("{number} is not a priority; take 0 to 9"))
    })?;
    if let Some(priority) = priority {
        signature = signature.priority(priority);
    }
    for (key, label) in section
        .value("labels", |v| table(v, "a table of labels, like { team = \"web\" }"))?
        .unwrap_or_default()
    {
        let Value::String(label) = label else {
            return Err(section.error(&format!("has a label {key} that is not text; write it in quotes")));
        };
        signature = signature.label(key, label);
    }
    Ok(signature)
}

fn instant(value: &DeValue<'_>) -> Result<Timestamp, String> {
    let text = value::instant(value)?;
    let instant: jiff::Timestamp = text.parse().map_err(|error: jiff::Error| error.to_string())?;
    Ok(Timestamp::from_micros(instant.as_microsecond()))
}

/// Reads a table of values.
fn table(value: &DeValue<'_>, expected: &str) -> Result<Vec<(String, Value)>, String> {
    let table = value.as_table().ok_or_else(|| value::wrong_type(value, expected))?;
    table.iter().map(|(name, item)| Ok((name.get_ref().to_string(), json(item.get_ref())?))).collect()
}

/// Returns a TOML value as JSON. A date becomes text. The parser of TOML bounds the nesting.
fn json(item: &DeValue<'_>) -> Result<Value, String> {
    Ok(match item {
        DeValue::String(text) => Value::from(text.as_ref()),
        DeValue::Integer(_) => Value::from(value::integer(item, "a number")?),
        DeValue::Float(number) => {
            let parsed: f64 = number.as_str().replace('_', "").parse().map_err(|_| "is not a number")?;
            let finite = serde_json::Number::from_f64(parsed);
            Value::Number(finite.ok_or("inf and nan have no form in JSON; write text, or another number")?)
        }
        DeValue::Boolean(truth) => Value::from(*truth),
        DeValue::Datetime(instant) => Value::from(instant.to_string()),
        DeValue::Array(list) => {
            list.iter().map(|item| json(item.get_ref())).collect::<Result<Vec<_>, _>>()?.into()
        }
        DeValue::Table(_) => {
            Value::Object(table(item, "a table")?.into_iter().collect::<serde_json::Map<_, _>>())
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{connector::Connectors, settings::file};
    use std::path::Path;

    fn periodic(text: &str) -> Result<BTreeMap<String, Setting<Periodic>>, String> {
        let file = file::read(Path::new("machinist.toml"), text, &Connectors::default());
        file.map(|file| file.periodic).map_err(|error| error.to_string())
    }

    #[test]
    fn a_periodic_task_is_read_with_its_place() {
        let all = periodic(
            r#"
[periodic.nightly]
task = "report"
args = ["a", 1, 2.5, true, ["x"], { deep = 1 }]
named = { width = 640 }
queue = "reports"
cron = "0 3 * * *"
time_zone = "Europe/Berlin"
misfire = "all"
overlap = "skip"
jitter = "5m"
from = 2026-12-01T00:00:00Z
until = "2027-12-01T00:00:00+01:00"
catch_up = "2h"
expires = "10m"
retries = 3
backoff = "fixed:200ms"
timeout = "30s"
soft_timeout = "20s"
retry_for = "1h"
retry_timeouts = true
priority = 3
labels = { team = "web" }
[periodic.beat]
task = "tick"
every = "90s"
"#,
        )
        .unwrap();
        assert_eq!(all.keys().collect::<Vec<_>>(), ["beat", "nightly"]);
        let nightly = &all["nightly"];
        assert_eq!(nightly.origin.to_string(), "machinist.toml:2");
        assert_eq!(nightly.value.schedule().to_string(), "0 3 * * * (Europe/Berlin)");
        assert_eq!(nightly.value.task_name(), "report");
        assert_eq!(all["beat"].value.schedule().interval(), Some(std::time::Duration::from_secs(90)));
    }

    #[test]
    fn a_workflow_is_read_from_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let read = |steps: &str, keys: &str| {
            std::fs::write(folder.path().join("night.toml"), steps).unwrap();
            let text = format!("[periodic.night]\nflow = \"night.toml\"\nevery = \"1h\"\n{keys}");
            let file = file::read(&folder.path().join("machinist.toml"), &text, &Connectors::default());
            file.map(|file| file.periodic).map_err(|error| error.to_string())
        };
        let steps = "[steps.fetch]\ntask = \"fetch\"\n[steps.store]\ntask = \"store\"\nafter = [\"fetch\"]\n";
        let all = read(steps, "overlap = \"skip\"\nexpires = \"10m\"").unwrap();
        assert_eq!(all["night"].value.task_name(), "machinist.workflow");
        for (steps, keys, problem) in [
            (steps, "retries = 3", "has both flow and retries"),
            (steps, "task = \"report\"", "has both flow and task"),
            ("[steps.fetch]\ntask = \"fetch\"\nafter = [\"fech\"]", "", "night.toml:3:10: step \"fetch\""),
        ] {
            let error = read(steps, keys).unwrap_err();
            assert!(error.contains(problem), "{error}");
            assert!(error.contains("machinist.toml:"), "{error}");
        }
        let gone = periodic("[periodic.night]\nflow = \"gone.toml\"\nevery = \"1h\"").unwrap_err();
        assert!(
            gone.contains("machinist.toml:2:8: periodic.night.flow: gone.toml cannot be read: "),
            "{gone}"
        );
    }

    #[test]
    fn what_is_wrong_is_reported_with_its_place_and_a_remedy() {
        let beat = "[periodic.beat]\ntask = \"tick\"\n";
        for (text, problem) in [
            ("[periodic.beat]\nevery = \"1s\"", "machinist.toml:1:1: [periodic.beat] names no task"),
            (beat, "has no schedule; write cron"),
            (&format!("{beat}cron = \"@daily\"\nevery = \"1s\""), "has both cron and every"),
            (
                &format!("{beat}cron = \"0 0 31 2 *\""),
                "machinist.toml:3:8: periodic.beat.cron: cron expression",
            ),
            (&format!("{beat}cron = \"0 0 31 2 *\""), "never comes"),
            (&format!("{beat}cron = \"@daily\"\ntime_zone = \"Mars/Base\""), "4:13: periodic.beat.time_zone"),
            (&format!("{beat}every = \"1s\"\ntime_zone = \"UTC\""), "leave it out"),
            (&format!("{beat}every = \"10ms\""), "the shortest is 1s"),
            (&format!("{beat}every = \"1s\"\nmisfire = \"twice\""), "write one of skip, once, all"),
            (&format!("{beat}every = \"1s\"\njitter = \"2d\""), "the longest is 1d"),
            (&format!("{beat}every = \"1s\"\npriority = 10"), "10 is not a priority"),
            (&format!("{beat}every = \"1s\"\nargs = [inf]"), "no form in JSON"),
            (&format!("{beat}every = \"1s\"\ncorn = \"x\""), "did you mean \"cron\"?"),
            ("[periodic.\"a b\"]\ntask = \"tick\"\nevery = \"1s\"", "letters, digits"),
        ] {
            let error = periodic(text).unwrap_err();
            assert!(error.contains(problem), "{error}");
        }
    }
}
