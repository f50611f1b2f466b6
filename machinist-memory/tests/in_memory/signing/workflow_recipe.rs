//! The recipe of `docs/wire-format.md`: workflows that Python writes, run by a real worker.

use std::process::Command;

use machinist_conformance::producer;
use machinist_core::{
    TaskDef, TaskError,
    broker::{HeaderValue, Message},
};
use serde_json::Value;

use super::support::{Harness, Running, SOON, hmac};

const SUM: TaskDef<Vec<i64>, i64> = TaskDef::new("sum");

/// Returns what the first Python program of the page prints, or the reason that Python cannot be started.
fn printed() -> std::io::Result<Value> {
    let docs = include_str!("../../../../docs/wire-format.md");
    let (_, rest) = docs.split_once("```python\n").expect("the page has a program");
    let (program, _) = rest.split_once("```").expect("the program ends");
    let output = Command::new("python3").args(["-c", program]).output()?;
    assert!(output.status.success(), "{output:?}");
    Ok(serde_json::from_slice(&output.stdout).unwrap())
}

fn message(written: &Value) -> Message {
    let text = |name: &str| written[name].as_str().map(str::to_owned);
    let value = |value: &Value| match value {
        Value::String(text) => HeaderValue::from(text.as_str()),
        other => HeaderValue::from(other.as_i64().unwrap()),
    };
    let headers = written["headers"].as_object().unwrap();
    Message {
        id: text("message_id"),
        kind: text("type"),
        content_type: text("content_type"),
        headers: headers.iter().map(|(name, v)| (name.clone().into(), value(v))).collect(),
        body: text("body").unwrap().into(),
        ..Message::default()
    }
}

#[tokio::test(start_paused = true)]
async fn python_sends_workflows() {
    let written = match printed() {
        Ok(written) => written,
        Err(error) => {
            let required = std::env::var_os("MACHINIST_REQUIRE_SERVICES").is_some_and(|v| v == "1");
            assert!(!required, "python3 is needed: {error}");
            eprintln!("SKIPPED: python_sends_workflows: python3 cannot be started: {error}");
            return;
        }
    };
    let harness = Harness::new();
    let key = hmac("producer");
    let app = harness.app(key.clone()).await;
    let worker =
        harness.worker(&app).task(SUM, async |all: Vec<i64>| Ok::<_, TaskError>(all.iter().sum::<i64>()));
    let _running = Running::start(worker);
    for (written, last, result) in [(&written[0], "second", 13), (&written[1], "total", 6)] {
        let message = producer::sign(message(written), &key);
        let id = format!("{}.{last}", message.id.as_deref().unwrap());
        harness.publish("math", message).await;
        let task = app.result(id.try_into().unwrap()).typed::<i64>();
        harness.eventually(async || task.state().await.is_ok_and(|state| state.is_final())).await;
        assert_eq!(task.wait(SOON).await.unwrap(), result, "{last}");
    }
}
