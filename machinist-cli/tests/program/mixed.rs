//! A thousand tasks of many kinds, sent at once by an application and run by two workers: each has its expected end.

use machinist::{Signature, record::TaskState};
use serde_json::{Value, json};

use crate::{
    servers::servers,
    support::{Folder, WAIT_TIMEOUT},
};

const TASKS: &str = r#"
[tasks.greet]
command = ["printf", "Hello, %s!", "{who}"]
args = ["who"]
[tasks.broken]
command = ["sh", "-c", "exit 3"]
"#;

/// Returns the signature of the n-th task, and its expected end.
fn nth(n: usize) -> (Signature, TaskState, Vec<Value>) {
    match n % 10 {
        0..=3 => (Signature::new("add").arg(n).arg(1), TaskState::Success, vec![json!(n + 1)]),
        4..=6 => (Signature::new("echo").arg(n).arg("x"), TaskState::Success, vec![json!(n), json!("x")]),
        7 => (
            Signature::new("greet").arg(n.to_string()),
            TaskState::Success,
            vec![json!(format!("Hello, {n}!"))],
        ),
        8 => (Signature::new("broken"), TaskState::Failure, vec![]),
        _ => (Signature::new("fail").arg("no"), TaskState::Failure, vec![]),
    }
}

fn all_end_as_they_should(folder: &Folder) {
    folder.write("machinist.toml", TASKS);
    let workers = [folder.worker(&["--demo", "--name", "one"]), folder.worker(&["--demo", "--name", "two"])];
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let ran_by = runtime.block_on(async {
        let app = folder.app().await;
        let (signatures, expected): (Vec<_>, Vec<_>) =
            (0..1000).map(nth).map(|(signature, state, results)| (signature, (state, results))).unzip();
        let sent = app.client().send_all(signatures).await;
        let mut ran_by = std::collections::BTreeMap::<String, usize>::new();
        for (sent, (state, results)) in sent.into_iter().zip(expected) {
            let record = sent.unwrap().wait_record(WAIT_TIMEOUT).await.unwrap();
            assert_eq!(record.state, state, "{record:?}");
            assert_eq!(record.attempt, 1, "{record:?}");
            let values: Vec<Value> =
                record.results.into_iter().flat_map(|r| r.0).map(|arg| arg.value).collect();
            assert_eq!(values, results);
            *ran_by.entry(record.worker.unwrap()).or_default() += 1;
        }
        app.broker().close().await;
        ran_by
    });
    assert_eq!(ran_by.keys().collect::<Vec<_>>(), ["one", "two"], "both had a part: {ran_by:?}");
    for worker in workers {
        worker.stop().ended(0);
    }
    assert_eq!(folder.run(&["queues", "--json"]).ended(0).json()[0]["ready"], 0);
}

#[test]
fn a_thousand_mixed_tasks_on_the_embedded_file() {
    all_end_as_they_should(&Folder::new());
}

#[test]
fn a_thousand_mixed_tasks_on_rabbitmq_and_redis() {
    if let Some(folder) = servers("a_thousand_mixed_tasks_on_rabbitmq_and_redis") {
        all_end_as_they_should(&folder);
    }
}
