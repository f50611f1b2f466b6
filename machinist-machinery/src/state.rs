//! Records of Go machinery: the state of a task under its bare id, and the members of a group.
//!
//! A record has no guard: every writer replaces it. So each write here is decided from what is there, and replaces that
//! alone.

use machinist_core::{Arg, MirroredState, SentTask, TaskId, clock::Timestamp, record::TaskState};
use serde_json::{Value, value::RawValue};

use crate::{
    json::{RawFields, raw, write_text},
    value,
};

/// State of a task as Go names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GoState {
    Pending,
    Received,
    Started,
    Retry,
    Success,
    Failure,
}

impl GoState {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::Received => "RECEIVED",
            Self::Started => "STARTED",
            Self::Retry => "RETRY",
            Self::Success => "SUCCESS",
            Self::Failure => "FAILURE",
        }
    }

    const fn is_final(self) -> bool {
        matches!(self, Self::Success | Self::Failure)
    }
}

/// A state to be written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NewState<'a> {
    pub(crate) id: &'a str,
    pub(crate) name: &'a str,
    pub(crate) state: GoState,
    /// Results of a success.
    pub(crate) results: &'a [Arg],
    /// Error of a failure.
    pub(crate) error: &'a str,
    pub(crate) at: Timestamp,
}

/// Returns the record to write in place of the one that was found; `None` if that one stays: a state that passes replaces
/// no end.
pub(crate) fn decide_state(found: Option<&[u8]>, new: &NewState<'_>) -> Option<String> {
    let fields = found.and_then(|found| serde_json::from_slice::<RawFields>(found).ok());
    let state = fields.as_ref().and_then(state_of);
    if !new.state.is_final() && state.is_some_and(|state| matches!(&*state, "SUCCESS" | "FAILURE")) {
        return None;
    }
    // A task that is sent again counts from then on, as in Go.
    let kept = fields.filter(|_| new.state != GoState::Pending);
    let created = kept.as_ref().and_then(|fields| fields.get("CreatedAt")).map(|at| at.get().to_owned());
    let name = kept.as_ref().and_then(|fields| fields.get("TaskName")).map(|name| name.get().to_owned());
    let mut out = String::from("{\"TaskUUID\":");
    write_text(&mut out, new.id);
    out.push_str(",\"TaskName\":");
    match name.filter(|name| name != "\"\"") {
        Some(name) => out.push_str(&name),
        None => write_text(&mut out, new.name),
    }
    out.push_str(",\"State\":");
    write_text(&mut out, new.state.as_str());
    out.push_str(",\"Results\":");
    match new.state {
        GoState::Success => write_results(&mut out, new.results),
        _ => out.push_str("null"),
    }
    out.push_str(",\"Error\":");
    write_text(&mut out, if new.state == GoState::Failure { new.error } else { "" });
    out.push_str(",\"CreatedAt\":");
    match created {
        Some(created) => out.push_str(&created),
        None => write_text(&mut out, &instant(new.at)),
    }
    out.push_str(",\"TTL\":0}");
    Some(out)
}

/// Returns the record that shows the end of a task again; `None` if that of an end is there, or none any more.
pub(crate) fn decide_end_again(found: Option<&[u8]>, end: &NewState<'_>) -> Option<String> {
    let shown = MemberState::of(Some(found?));
    if shown.has_ended() { None } else { decide_state(found, end) }
}

/// Returns the record of a task that is sent.
pub(crate) fn pending(task: &SentTask) -> String {
    let (id, name) = (task.id.as_str(), task.name.as_str());
    let new = NewState { id, name, state: GoState::Pending, results: &[], error: "", at: task.at };
    decide_state(None, &new).unwrap_or_default()
}

fn state_of(fields: &RawFields) -> Option<String> {
    serde_json::from_str(fields.get("State")?.get()).ok()
}

/// State of a member of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MemberState {
    Succeeded,
    Failed,
    /// It has not ended, or runs once more.
    Running,
    /// It has no record, or none that can be read.
    Gone,
}

impl MemberState {
    /// Reads the state of a member from its record.
    pub(crate) fn of(found: Option<&[u8]>) -> Self {
        let fields = found.and_then(|found| serde_json::from_slice::<RawFields>(found).ok());
        match fields.as_ref().and_then(state_of).as_deref() {
            Some("SUCCESS") => Self::Succeeded,
            Some("FAILURE") => Self::Failed,
            Some("PENDING" | "RECEIVED" | "STARTED" | "RETRY") => Self::Running,
            _ => Self::Gone,
        }
    }

    pub(crate) const fn has_ended(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }
}

/// Reads the state of a task; `None` if the record is none.
pub(crate) fn read_state(found: &[u8]) -> Option<MirroredState> {
    let text = String::from_utf8_lossy(found);
    let fields: RawFields = serde_json::from_str(&text).ok()?;
    let get = |name: &str| serde_json::from_str::<Option<String>>(fields.get(name)?.get()).ok()?;
    let state = match &*state_of(&fields)? {
        "PENDING" => TaskState::Pending,
        "RECEIVED" => TaskState::Received,
        "STARTED" => TaskState::Started,
        "RETRY" => TaskState::Retry,
        "SUCCESS" => TaskState::Success,
        "FAILURE" => TaskState::Failure,
        _ => return None,
    };
    let mut read = MirroredState::new(state, get("TaskName").unwrap_or_default());
    read.error = get("Error").unwrap_or_default();
    let sent = get("CreatedAt").and_then(|at| at.parse::<jiff::Timestamp>().ok());
    read.sent_at = sent.map(|at| Timestamp::from_micros(at.as_microsecond()));
    let results = fields.get("Results").map_or("null", RawValue::get);
    let results: Option<Vec<RawFields>> = serde_json::from_str(results).ok()?;
    for result in results.unwrap_or_default() {
        read.results.0.push(read_result(&result)?);
    }
    Some(read)
}

/// Reads a result. What does not fit its type is kept as it is: the task has ended, and its sender is told.
fn read_result(result: &RawFields) -> Option<Arg> {
    let kind: String = serde_json::from_str(result.get("Type")?.get()).ok()?;
    let written = result.get("Value")?;
    value::read_arg(String::new(), kind.clone(), written).ok().or_else(|| {
        let mut arg = Arg::from_value(serde_json::from_str::<Value>(written.get()).ok()?);
        arg.kind = kind;
        Some(arg)
    })
}

/// Returns the results of a record as arguments of a callback, each as JSON.
pub(crate) fn results_as_args(found: &[u8]) -> Option<Vec<String>> {
    let fields: RawFields = serde_json::from_slice(found).ok()?;
    let results: Option<Vec<RawFields>> = serde_json::from_str(fields.get("Results")?.get()).ok()?;
    let arg = |result: &RawFields| {
        let (kind, value) = (result.get("Type")?.get(), result.get("Value")?.get());
        Some(format!("{{\"Name\":\"\",\"Type\":{kind},\"Value\":{value}}}"))
    };
    results.unwrap_or_default().iter().map(arg).collect()
}

/// Returns the type of Go and the JSON of a result. What Go has no type for is text that holds JSON.
fn result(arg: &Arg) -> (String, String) {
    let kind = match arg.kind.as_str() {
        "[]byte" => "[]uint8",
        kind => kind,
    };
    match value::write(kind, &arg.value) {
        Ok(value) => (kind.to_owned(), value.get().to_owned()),
        Err(_) => {
            let mut out = String::new();
            match &arg.value {
                Value::String(text) => write_text(&mut out, text),
                other => write_text(&mut out, &other.to_string()),
            }
            ("string".to_owned(), out)
        }
    }
}

/// Writes results as arguments of a callback, each as JSON.
pub(crate) fn args_of(results: &[Arg]) -> Vec<String> {
    let arg = |arg: &Arg| {
        let (kind, value) = result(arg);
        format!("{{\"Name\":\"\",\"Type\":\"{kind}\",\"Value\":{value}}}")
    };
    results.iter().map(arg).collect()
}

fn write_results(out: &mut String, results: &[Arg]) {
    out.push('[');
    for (at, arg) in results.iter().enumerate() {
        if at > 0 {
            out.push(',');
        }
        let (kind, value) = result(arg);
        out.push_str(&format!("{{\"Type\":\"{kind}\",\"Value\":{value}}}"));
    }
    out.push(']');
}

fn instant(at: Timestamp) -> String {
    jiff::Timestamp::from_microsecond(at.as_micros()).map_or_else(|_| String::new(), |at| at.to_string())
}

/// Name of the field that says which task of ours has triggered a chord. Go leaves it alone.
const TRIGGERED_BY: &str = "TriggeredBy";
/// Name of the field that says that all else that follows this task had been published before.
const TRIGGERED_SINCE: &str = "TriggeredSince";

/// The members of a group.
#[derive(Debug, Clone)]
pub(crate) struct GroupMeta {
    fields: RawFields,
    pub(crate) members: Vec<String>,
    /// `true` if somebody has triggered its callback, or is about to.
    pub(crate) triggered: bool,
}

impl GroupMeta {
    /// Returns the record of a new group, as Go writes it.
    pub(crate) fn new_record(id: &str, members: &[TaskId], at: Timestamp) -> String {
        let mut out = String::from("{\"GroupUUID\":");
        write_text(&mut out, id);
        out.push_str(",\"TaskUUIDs\":[");
        for (at, member) in members.iter().enumerate() {
            if at > 0 {
                out.push(',');
            }
            write_text(&mut out, member.as_str());
        }
        out.push_str("],\"ChordTriggered\":false,\"Lock\":false,\"CreatedAt\":");
        write_text(&mut out, &instant(at));
        out.push_str(",\"TTL\":0}");
        out
    }

    /// Reads the record of a group; `None` if it is none.
    pub(crate) fn parse(found: &[u8]) -> Option<Self> {
        let fields: RawFields = serde_json::from_slice(found).ok()?;
        let members = serde_json::from_str(fields.get("TaskUUIDs")?.get()).ok()?;
        let triggered = fields.get("ChordTriggered").is_some_and(|flag| flag.get() == "true");
        Some(Self { fields, members, triggered })
    }

    /// Returns `true` if this task has triggered the callback, and owes it unless its record says that it was published.
    /// `followed` is `true` if the record says so of what the task owed at first: then the callback of a chord that the task
    /// has triggered before is not owed any more.
    pub(crate) fn is_owed_by(&self, id: &str, followed: bool) -> bool {
        let by = self.fields.get(TRIGGERED_BY);
        let by = by.and_then(|by| serde_json::from_str::<String>(by.get()).ok());
        let since = self.fields.get(TRIGGERED_SINCE).is_some_and(|since| since.get() == "true");
        self.triggered && by.as_deref() == Some(id) && (since || !followed)
    }

    /// Returns the record in which this task has triggered the callback. `followed` is `true` if all else that follows the
    /// task was published before.
    pub(crate) fn trigger(mut self, id: &str, followed: bool) -> String {
        let mut by = String::new();
        write_text(&mut by, id);
        self.fields.put("ChordTriggered", raw("true".to_owned()));
        self.fields.put(TRIGGERED_BY, raw(by));
        if followed {
            self.fields.put(TRIGGERED_SINCE, raw("true".to_owned()));
        }
        let mut out = String::new();
        self.fields.write(&mut out);
        out
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::samples::sample;

    /// The record of a sample.
    fn record(name: &str) -> String {
        sample("records", name)["value_raw"].as_str().unwrap().to_owned()
    }

    fn arg(kind: &str, value: Value) -> Arg {
        let mut arg = Arg::from_value(value);
        kind.clone_into(&mut arg.kind);
        arg
    }

    /// Writes the state of a sample over an earlier record of the same task.
    fn rewritten(name: &str, state: GoState, results: &[Arg], error: &str) {
        let written = record(name);
        let found: Value = serde_json::from_str(&written).unwrap();
        let (id, task) = (found["TaskUUID"].as_str().unwrap(), found["TaskName"].as_str().unwrap());
        let at = Timestamp::from_micros(1);
        let before = written.replace(state.as_str(), "STARTED");
        let new = NewState { id, name: task, state, results, error, at };
        assert_eq!(decide_state(Some(before.as_bytes()), &new).unwrap(), written, "{name}");
    }

    #[test]
    fn records_are_those_of_go() {
        rewritten("started", GoState::Started, &[], "");
        rewritten("success", GoState::Success, &[arg("int64", json!(2))], "");
        rewritten("success-no-result", GoState::Success, &[], "");
        rewritten(
            "success-two-results",
            GoState::Success,
            &[arg("string", json!("x")), arg("int64", json!(1))],
            "",
        );
        let many = [
            arg("[]int64", json!([1, 2])),
            arg("bool", json!(true)),
            arg("float64", json!(0.5)),
            arg("[]byte", json!("aGk=")),
        ];
        rewritten("success-many-types", GoState::Success, &many, "");
        rewritten("failure", GoState::Failure, &[], "boom");
        rewritten("failure-panic", GoState::Failure, &[], "oops");
        let pending = NewState {
            id: "task_x",
            name: "add",
            state: GoState::Pending,
            results: &[],
            error: "",
            at: Timestamp::from_micros(1_500_000),
        };
        let expected = r#"{"TaskUUID":"task_x","TaskName":"add","State":"PENDING","Results":null,"Error":"","CreatedAt":"1970-01-01T00:00:01.5Z","TTL":0}"#;
        assert_eq!(decide_state(Some(record("started").as_bytes()), &pending).unwrap(), expected);
    }

    /// The names of all records.
    fn records() -> Vec<String> {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/machinery/samples/records");
        let files = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
        files.map(|file| file.file_stem().unwrap().to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn every_record_of_go_is_read() {
        let records = records();
        assert_eq!(records.len(), 19);
        for name in records {
            let (written, value) = (record(&name), &sample("records", &name)["value"]);
            if name.starts_with("group-") {
                let meta = GroupMeta::parse(written.as_bytes()).unwrap();
                assert_eq!(json!(meta.members), value["TaskUUIDs"], "{name}");
                assert_eq!(json!(meta.triggered), value["ChordTriggered"], "{name}");
                continue;
            }
            let read = read_state(written.as_bytes()).unwrap();
            assert_eq!(json!(read.state), value["State"], "{name}");
            assert_eq!(
                (json!(read.name), json!(read.error)),
                (value["TaskName"].clone(), value["Error"].clone())
            );
            let sent = value["CreatedAt"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
            assert_eq!(read.sent_at, Some(Timestamp::from_micros(sent.as_microsecond())), "{name}");
            let kinds: Vec<&str> = read.results.0.iter().map(|result| result.kind.as_str()).collect();
            let results = value["Results"].as_array().map_or(&[][..], Vec::as_slice);
            let expected: Vec<_> = results.iter().map(|result| result["Type"].as_str().unwrap()).collect();
            assert_eq!(kinds, expected, "{name}");
        }
    }

    #[test]
    fn what_is_sent_is_written_as_go_writes_it() {
        let at = Timestamp::from_micros(1_500_000);
        let at_that_time = |name: &str| {
            let created = sample("records", name)["value"]["CreatedAt"].as_str().unwrap().to_owned();
            record(name).replace(&created, &instant(at))
        };
        for name in records().iter().filter(|name| name.starts_with("pending-")) {
            let value = &sample("records", name)["value"];
            let text = |field: &str| value[field].as_str().unwrap();
            let id = text("TaskUUID").try_into().unwrap();
            let task = SentTask::new(id, text("TaskName").try_into().unwrap(), at);
            assert_eq!(pending(&task), at_that_time(name), "{name}");
        }
        let meta = GroupMeta::parse(record("group-meta").as_bytes()).unwrap();
        let members: Vec<TaskId> =
            meta.members.iter().map(|member| member.as_str().try_into().unwrap()).collect();
        let group = &sample("records", "group-meta")["value"]["GroupUUID"];
        let written = GroupMeta::new_record(group.as_str().unwrap(), &members, at);
        assert_eq!(written, at_that_time("group-meta"));
    }

    #[test]
    fn what_passes_replaces_no_end_and_an_end_replaces_anything() {
        let new = |state| NewState {
            id: "t",
            name: "add",
            state,
            results: &[],
            error: "",
            at: Timestamp::from_micros(1),
        };
        for state in [GoState::Pending, GoState::Received, GoState::Started, GoState::Retry] {
            assert_eq!(decide_state(Some(record("success").as_bytes()), &new(state)), None);
            assert_eq!(decide_state(Some(record("failure").as_bytes()), &new(state)), None);
            assert!(decide_state(Some(b"not JSON"), &new(state)).is_some());
        }
        assert!(decide_state(Some(record("failure").as_bytes()), &new(GoState::Success)).is_some());
        assert!(decide_state(None, &new(GoState::Success)).is_some());
    }

    #[test]
    fn an_end_is_shown_again_in_place_of_a_state_that_passes() {
        let at = Timestamp::from_micros(1);
        let end =
            NewState { id: "t", name: "fail", state: GoState::Failure, results: &[], error: "boom", at };
        let again = |found: Option<&str>| decide_end_again(found.map(str::as_bytes), &end);
        for passing in ["pending-plain", "started", "retry-count"] {
            let again = again(Some(&record(passing))).unwrap();
            assert!(again.contains(r#""State":"FAILURE""#) && again.contains("boom"), "{again}");
        }
        assert!(again(Some("overwritten")).is_some());
        for ended in ["success", "failure"] {
            assert_eq!(again(Some(&record(ended))), None, "somebody has shown an end");
        }
        assert_eq!(again(None), None, "it has expired");
    }

    #[test]
    fn results_that_go_has_no_type_for_are_text() {
        let texts =
            args_of(&[arg("json", json!({"a": [1]})), arg("int64", Value::Null), arg("json", json!("x"))]);
        let values: Vec<Value> = texts.iter().map(|text| serde_json::from_str(text).unwrap()).collect();
        let text = |text: &str| json!({"Name": "", "Type": "string", "Value": text});
        assert_eq!(values, [text(r#"{"a":[1]}"#), text("null"), text("x")]);
    }

    #[test]
    fn a_chord_says_who_has_triggered_it() {
        let meta = GroupMeta::parse(record("group-meta").as_bytes()).unwrap();
        assert!(!meta.triggered && meta.members.len() == 3);
        let since = meta.clone().trigger("task_x", true);
        let triggered = meta.trigger("task_x", false);
        let go = triggered.replace(r#","TriggeredBy":"task_x""#, "").replace("true", "false");
        assert_eq!(go, record("group-meta"), "and nothing else changes");
        let meta = GroupMeta::parse(triggered.as_bytes()).unwrap();
        assert!(meta.is_owed_by("task_x", false) && !meta.is_owed_by("task_y", false));
        assert!(!meta.is_owed_by("task_x", true), "published before the record said that all was");
        let meta = GroupMeta::parse(since.as_bytes()).unwrap();
        assert!(meta.is_owed_by("task_x", true) && !meta.is_owed_by("task_y", true));
        assert!(meta.is_owed_by("task_x", false), "the record was lost since");
        let theirs = GroupMeta::parse(record("group-meta-chord-triggered").as_bytes()).unwrap();
        assert!(theirs.triggered && !theirs.is_owed_by("task_x", false));
        assert!(GroupMeta::parse(b"[]").is_none());
    }

    #[test]
    fn results_of_a_record_are_arguments() {
        let args = results_as_args(record("success-two-results").as_bytes()).unwrap();
        assert_eq!(args[0], r#"{"Name":"","Type":"string","Value":"x"}"#);
        assert_eq!(results_as_args(record("success-no-result").as_bytes()).unwrap(), [""; 0]);
        assert_eq!(results_as_args(record("started").as_bytes()).unwrap(), [""; 0], "null is no result");
    }

    #[test]
    fn the_record_of_a_member_says_how_far_it_is() {
        let of = |name: &str| MemberState::of(Some(record(name).as_bytes()));
        assert_eq!((of("success"), of("failure")), (MemberState::Succeeded, MemberState::Failed));
        assert_eq!((of("started"), of("pending-plain")), (MemberState::Running, MemberState::Running));
        assert_eq!((of("group-meta"), MemberState::of(None)), (MemberState::Gone, MemberState::Gone));
        assert_eq!(MemberState::of(Some(b"{\"State\":5}")), MemberState::Gone);
    }
}
