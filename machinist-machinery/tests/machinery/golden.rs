//! The samples of the real program, in both directions.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use lapin::types::AMQPValue;
use machinist_core::{
    Arg, NestedGroup, NestedTask, Profile, TaskMessage,
    broker::{HeaderValue, Message},
    clock::Timestamp,
};
use machinist_machinery::MachineryProfile;
use serde_json::{Value, json};

use crate::go::{delay_queue, group_record, state_record};

/// Every sample of a folder, by name.
fn samples(folder: &str) -> BTreeMap<String, Value> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/machinery/samples").join(folder);
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let sample = |path: std::path::PathBuf| {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        (name, serde_json::from_slice(&fs::read(path).unwrap()).unwrap())
    };
    files.map(sample).collect()
}

/// A sample as the broker delivers it.
fn message(sample: &Value) -> Message {
    let mut message =
        Message { body: sample["body_raw"].as_str().unwrap().to_owned().into(), ..Message::default() };
    message.content_type = Some("application/json".to_owned());
    message.priority = Some(u8::try_from(sample["properties"]["priority"].as_u64().unwrap()).unwrap());
    for (name, value) in sample["headers"].as_object().into_iter().flatten() {
        let value = match value {
            Value::String(text) => HeaderValue::from(text.as_str()),
            Value::Bool(flag) => HeaderValue::Bool(*flag),
            number => HeaderValue::from(number.as_i64().unwrap()),
        };
        message.headers.insert(name.clone().into(), value);
    }
    message
}

fn profile() -> MachineryProfile {
    MachineryProfile::new("machinery_tasks")
}

fn read(message: &Message) -> TaskMessage {
    let task = profile().read(message).unwrap();
    assert_eq!(task.invalid, None);
    task
}

#[test]
fn every_message_is_read_and_written_byte_for_byte() {
    let samples = samples("messages");
    assert_eq!(samples.len(), 19);
    for (name, sample) in samples {
        let came = message(&sample);
        let task = read(&came);
        assert_eq!(task.id.as_str(), sample["body"]["UUID"], "{name}");
        assert_eq!(task.name.as_str(), sample["body"]["Name"], "{name}");
        let values: Vec<_> = task.args.iter().map(|arg| (&arg.kind, &arg.name)).collect();
        let sent = sample["body"]["Args"].as_array().map_or(&[][..], Vec::as_slice);
        let expected: Vec<_> =
            sent.iter().map(|arg| (arg["Type"].as_str().unwrap(), arg["Name"].as_str().unwrap())).collect();
        assert_eq!(
            values.iter().map(|(kind, name)| (&***kind, &***name)).collect::<Vec<_>>(),
            expected,
            "{name}"
        );
        assert_eq!(profile().write(&task, Some(&came)).unwrap(), came, "{name}");
    }
}

#[test]
fn new_tasks_are_written_as_go_writes_them() {
    let samples = samples("messages");
    for name in ["plain", "named-args", "every-type", "on-success-as-published", "on-error-as-published"] {
        let sample = &samples[name];
        let came = message(sample);
        let queue = MachineryProfile::new(sample["routing_key"].as_str().unwrap());
        assert_eq!(queue.write(&read(&came), None).unwrap(), came, "{name}");
    }
    let delayed = profile().write(&read(&message(&samples["delayed-eta"])), None).unwrap();
    let text = std::str::from_utf8(&delayed.body).unwrap();
    assert!(text.contains(r#""ETA":"2026-11-20T23:37:33.307237Z""#), "{text}");
}

/// A task inside another, as a workflow of ours has it.
fn inside(body: &Value) -> NestedTask {
    let message = Message { body: body.to_string().into(), ..Message::default() };
    let mut task = profile().read(&message).unwrap();
    for (field, list) in [("OnSuccess", &mut task.nested.on_success), ("OnError", &mut task.nested.on_error)]
    {
        list.extend(body[field].as_array().into_iter().flatten().map(inside));
    }
    NestedTask::new(task, "other".try_into().unwrap())
}

#[test]
fn what_follows_a_task_is_written_as_go_writes_it() {
    let samples = samples("messages");
    let queue = profile().queue("other".try_into().unwrap(), "key");
    for name in ["chain-first-step", "callbacks", "group-member-0", "chord-member-0"] {
        let mut came = message(&samples[name]);
        // What Go leaves to its worker is written out: the id, the routing key, and headers without content.
        let nested = std::str::from_utf8(&came.body).unwrap();
        let nested = nested.replace("\"RoutingKey\":\"\"", "\"RoutingKey\":\"key\"");
        let nested = nested.replace("\"Headers\":null", "\"Headers\":{}");
        let parts: Vec<&str> = nested.split("{\"UUID\":\"\"").collect();
        let mut body = parts[0].to_owned();
        for (at, part) in parts[1..].iter().enumerate() {
            body.push_str(&format!("{{\"UUID\":\"task_{at}\"{part}"));
        }
        came.body = body.clone().into();
        let sample: Value = serde_json::from_str(&body).unwrap();
        let mut task = inside(&sample).task;
        if let Some(group) = sample["GroupUUID"].as_str().filter(|group| !group.is_empty()) {
            let size = u32::try_from(sample["GroupTaskCount"].as_u64().unwrap()).unwrap();
            let mut group = NestedGroup::new(group.try_into().unwrap(), size);
            let callback = &sample["ChordCallback"];
            group.callback = callback.is_object().then(|| Box::new(inside(callback)));
            task.nested.group = Some(group);
        }
        assert_eq!(queue.write(&task, None).unwrap(), came, "{name}");
    }
}

#[test]
fn results_go_to_all_that_follow_or_to_none() {
    let task = |name: &str| TaskMessage::new(name.try_into().unwrap(), name.try_into().unwrap());
    let next = |ignores| {
        let mut next = NestedTask::new(task("next"), "other".try_into().unwrap());
        next.ignores_results = ignores;
        next
    };
    let queue = profile().queue("other".try_into().unwrap(), "key");
    let mut parent = task("parent");
    parent.nested.on_success = vec![next(true), next(true)];
    let body: Value = serde_json::from_slice(&queue.write(&parent, None).unwrap().body).unwrap();
    assert_eq!((&body["Immutable"], &body["OnSuccess"][0]["Immutable"]), (&json!(true), &json!(false)));
    parent.nested.on_success.push(next(false));
    let refused =
        |queue: &MachineryProfile, task: &TaskMessage| queue.write(task, None).unwrap_err().to_string();
    assert!(refused(&queue, &parent).contains("to all or to none"));
    let mut member = task("member");
    let mut callback = next(true);
    callback.task.nested.on_success = vec![next(false)];
    let mut group = NestedGroup::new("g".try_into().unwrap(), 1);
    group.callback = Some(Box::new(callback));
    member.nested.group = Some(group);
    assert!(refused(&queue, &member).contains("either all of them get results"));
    parent.nested.on_success.truncate(1);
    assert!(refused(&profile(), &parent).contains("add [queues.other]"));
}

#[test]
fn every_type_reaches_the_task_with_its_value() {
    let task = read(&message(&samples("messages")["every-type"]));
    let value = |at: usize| &task.args[at].value;
    assert_eq!(value(5), &json!(i64::MIN));
    assert_eq!(value(10), &json!(u64::MAX));
    assert_eq!((value(11).as_f64(), value(13).as_f64()), (Some(0.1), Some(1e300)));
    assert_eq!(value(15), "grüße <&> \"q\" \n \u{2028} 😀");
    assert_eq!(value(25), &json!([1, u64::MAX]));
    assert_eq!((value(28), value(29)), (&json!("aGVsbG8="), &json!("AQL/")));
}

#[test]
fn options_become_those_of_the_task() {
    let samples = samples("messages");
    let task = read(&message(&samples["options"]));
    let retry = task.retry.unwrap();
    assert_eq!(
        (task.id.as_str(), task.priority, task.attempt, task.retries),
        ("task_custom-id", Some(5), 1, Some(0))
    );
    let waits: Vec<_> =
        (0..4).map(|retries| retry.next_delay(retries, 0.5).map(|wait| wait.as_secs())).collect();
    assert_eq!(waits, [Some(3), Some(5), Some(8), None], "after a RetryTimeout of 2");
    let headers = read(&message(&samples["headers"])).headers;
    assert_eq!((&*headers["x-bool"], &*headers["x-int"]), ("true", "7"));
    let once = read(&message(&samples["plain"])).retry.unwrap();
    assert_eq!(once.next_delay(0, 0.5), None);
    let eta = read(&message(&samples["delayed-eta"])).eta.unwrap();
    assert_eq!(eta, Timestamp::from_micros(1_795_217_853_307_237));
}

/// What a worker of Go does to a task that has failed: it knows the body alone.
fn retried_by_go(message: &Message, eta: &str) -> Message {
    let mut body: Value = serde_json::from_slice(&message.body).unwrap();
    body["RetryCount"] = (body["RetryCount"].as_i64().unwrap() - 1).into();
    body["ETA"] = eta.into();
    Message { body: body.to_string().into(), ..Message::default() }
}

#[test]
fn a_retry_counts_down_and_knows_its_attempt_through_a_worker_of_go() {
    let first = message(&samples("messages")["options"]);
    let mut task = read(&first);
    (task.attempt, task.retries) = (2, Some(1));
    task.eta = Some(Timestamp::from_micros(1_795_217_853_307_237).plus(Duration::from_secs(3)));
    let second = profile().write(&task, Some(&first)).unwrap();
    let body: Value = serde_json::from_slice(&second.body).unwrap();
    assert_eq!((&body["RetryCount"], &body["RetryTimeout"]), (&json!(2), &json!(3)));
    assert_eq!(body["ETA"], "2026-11-20T23:37:36.307237Z");
    assert_eq!((&body["UUID"], &body["Immutable"]), (&json!("task_custom-id"), &json!(true)));
    assert!(body["Headers"]["machinist"].is_string(), "Go cannot publish a number of the body as a header");
    let again = read(&second);
    assert_eq!((again.attempt, again.retries, again.retry.as_ref().unwrap().max_retries), (2, Some(1), 3));
    assert_eq!(again.retry.unwrap().next_delay(1, 0.5), Some(Duration::from_secs(5)));
    assert!(again.headers.is_empty(), "handlers do not see the mark");

    let third = read(&retried_by_go(&second, "2026-11-20T23:37:41.3Z"));
    assert_eq!((third.attempt, third.retries, third.retry.unwrap().max_retries), (3, Some(2), 3));

    let mut new = read(&second);
    (new.id, new.attempt, new.retries) = ("task_again".try_into().unwrap(), 1, Some(0));
    let new = read(&profile().write(&new, Some(&second)).unwrap());
    assert_eq!((new.attempt, new.retry.unwrap().max_retries), (1, 3), "a new task has all its retries");
}

#[test]
fn a_task_that_asks_for_a_later_run_keeps_its_retries() {
    let late = message(&samples("messages")["delayed-retry-later"]);
    let first = std::str::from_utf8(&late.body).unwrap();
    let first = first
        .replace("\"2026-11-20T23:37:59.503196373Z\"", "null")
        .replace("\"RetryCount\":0", "\"RetryCount\":2");
    let first = Message { body: first.into(), ..late.clone() };
    let mut task = read(&first);
    (task.attempt, task.retries) = (2, Some(0));
    task.eta = read(&late).eta;
    let second = profile().write(&task, Some(&first)).unwrap();
    let mut body: Value = serde_json::from_slice(&second.body).unwrap();
    assert_eq!((&body["RetryCount"], &body["RetryTimeout"]), (&json!(2), &json!(0)));
    assert_eq!(body["ETA"], "2026-11-20T23:37:59.503196Z");
    let again = read(&second);
    assert_eq!((again.attempt, again.retries, again.retry.unwrap().max_retries), (2, Some(0), 2));
    // Apart from the mark of ours and the nanoseconds, it is the message of Go.
    (body["Headers"], body["RetryCount"]) = (json!({}), json!(0));
    body["ETA"] = json!("2026-11-20T23:37:59.503196373Z");
    assert_eq!(body, serde_json::from_slice::<Value>(&late.body).unwrap());
}

#[test]
fn a_time_may_be_over_or_very_far_away() {
    let at = |eta: &str| {
        let mut body: Value = serde_json::from_slice(&message(&samples("messages")["plain"]).body).unwrap();
        body["ETA"] = json!(eta);
        read(&Message { body: body.to_string().into(), ..Message::default() }).eta.unwrap()
    };
    assert_eq!(at("1970-01-01T00:00:02Z"), Timestamp::from_micros(2_000_000), "it runs at once");
    let eighty = Duration::from_secs(80 * 365 * 86400);
    for far in ["2107-01-01T00:00:00Z", "9999-12-30T00:00:00Z", "9999-12-31T23:59:59Z"] {
        assert!(at(far) > at("2026-11-20T23:37:33Z").plus(eighty), "{far}");
    }
}

#[test]
fn the_model_of_go_writes_what_go_writes() {
    let records = samples("records");
    for name in ["pending-plain", "started", "success", "failure"] {
        let value = &records[name]["value"];
        let text = |field: &str| value[field].as_str().unwrap();
        let (id, task, state) = (text("TaskUUID"), text("TaskName"), text("State"));
        let written = state_record(id, task, state, &value["Results"], text("Error"), &value["CreatedAt"]);
        assert_eq!(written, *value, "{name}");
    }
    let group = &records["group-meta"]["value"];
    let members: Vec<String> = serde_json::from_value(group["TaskUUIDs"].clone()).unwrap();
    let (id, created) = (group["GroupUUID"].as_str().unwrap(), group["CreatedAt"].as_str().unwrap());
    assert_eq!(group_record(id, &members, created), *group);

    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/machinery/samples/topology.json");
    let topology: Value = serde_json::from_slice(&fs::read(folder).unwrap()).unwrap();
    let queues = topology["queues"].as_array().unwrap();
    let delays: Vec<_> =
        queues.iter().filter(|q| q["name"].as_str().unwrap().starts_with("delay.")).collect();
    assert_eq!(delays.len(), 5);
    for queue in delays {
        let name = queue["name"].as_str().unwrap();
        let [_, millis, exchange, key] = name.split('.').collect::<Vec<_>>()[..] else { panic!("{name}") };
        let (ours, arguments) = delay_queue(exchange, key, millis.parse().unwrap());
        let plain = |value: &AMQPValue| match value {
            AMQPValue::LongString(text) => json!(text.to_string()),
            AMQPValue::LongLongInt(number) => json!(number),
            other => panic!("{other:?}"),
        };
        let ours_by_name: BTreeMap<String, Value> =
            arguments.inner().iter().map(|(name, value)| (name.to_string(), plain(value))).collect();
        let theirs = queue["arguments"].as_array().unwrap().iter();
        let theirs: BTreeMap<String, Value> =
            theirs.map(|argument| (argument[0].as_str().unwrap().to_owned(), argument[2].clone())).collect();
        assert_eq!((ours.as_str(), ours_by_name), (name, theirs));
    }
}

#[test]
fn what_is_wrong_in_a_message_is_said() {
    let body = |change: &dyn Fn(&mut Value)| {
        let mut body: Value = serde_json::from_slice(&message(&samples("messages")["plain"]).body).unwrap();
        change(&mut body);
        Message { body: body.to_string().into(), ..Message::default() }
    };
    let malformed = |message: Message| profile().read(&message).unwrap_err().to_string();
    for (text, says) in [("", "is empty"), ("[]", "not a JSON object"), ("{", "not a JSON object")] {
        let error = malformed(Message { body: text.into(), ..Message::default() });
        assert!(error.contains(says), "{error}");
    }
    assert!(malformed(body(&|body| body["Name"] = json!(""))).contains("name"));
    assert!(malformed(body(&|body| body["UUID"] = json!(5))).contains("UUID cannot be 5"));
    let invalid = |change: &dyn Fn(&mut Value)| profile().read(&body(change)).unwrap().invalid.unwrap();
    let arg = |kind: &str, value: Value| {
        invalid(&|body| body["Args"][0] = json!({"Name": "", "Type": kind, "Value": value}))
    };
    assert_eq!(arg("decimal", json!(1)), "Reflect task args error: decimal is not one of supported types");
    assert!(arg("int8", json!(128)).starts_with("the value 128 is no int8"));
    assert!(invalid(&|body| body["ETA"] = json!("2026-11-20T23:37:33")).contains("time zone"));
    assert!(invalid(&|body| body["Args"] = json!("x")).contains("Args cannot be \"x\""));
    assert!(invalid(&|body| body["OnSuccess"] = json!([{"Name": 1}])).contains("Name cannot be 1"));
    assert!(invalid(&|body| body["Priority"] = json!(300)).contains("Priority 300"));

    let nameless = body(&|body| body["UUID"] = json!(""));
    assert_eq!(profile().read(&nameless).unwrap_err(), machinist_core::ProfileError::Unidentified);
    let named = profile().identify(&nameless, &"x".try_into().unwrap()).unwrap();
    assert_eq!(read(&named).id.as_str(), "task_x");
}

#[test]
fn what_go_cannot_express_is_not_written() {
    let task = || TaskMessage::new("t".try_into().unwrap(), "add".try_into().unwrap());
    let refused = |task: TaskMessage| profile().write(&task, None).unwrap_err().to_string();
    let with = |kind: &str, value: Value| {
        let mut task = task();
        let mut arg = Arg::from_value(value);
        kind.clone_into(&mut arg.kind);
        task.args = vec![arg];
        task
    };
    assert!(refused(with("json", json!({"a": 1}))).contains("json is not one of supported types"));
    assert!(refused(with("int64", Value::Null)).contains("null is no int64"));
    let mut timed = task();
    timed.timeout = Some(Duration::from_secs(1));
    assert!(refused(timed).contains("no timeout of a task"));
    let mut expiring = task();
    expiring.expires = Some(Timestamp::from_micros(1));
    assert!(refused(expiring).contains("no expiry of a task"));
}
