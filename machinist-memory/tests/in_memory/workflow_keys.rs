//! Workflows under keys: what is encrypted stays encrypted, and what a key may not call is not called.

use std::{sync::Arc, time::Duration};

use machinist_core::{
    App, ControlError, SendError, TaskDef, TaskError, TaskId, Worker,
    backend::{Backend, Commit},
    id::{RecordId, RecordKind},
    record::{FailureKind, TaskState},
    sign::{Algorithm, Key, KeyState, Keyring},
    workflow::{chain, chord},
};
use machinist_memory::{MemoryBackend, MemoryBroker};

use crate::support::Running;

const ECHO: TaskDef<String, String> = TaskDef::new("echo");
const JOIN: TaskDef<Vec<String>, String> = TaskDef::new("join");
const MAIL: TaskDef<String, ()> = TaskDef::new("mail");
const BREAKS: TaskDef<String, String> = TaskDef::new("breaks");
const WAIT: Duration = Duration::from_secs(60);

async fn echo(text: String) -> Result<String, TaskError> {
    Ok(text)
}

async fn join(all: Vec<String>) -> Result<String, TaskError> {
    Ok(all.concat())
}

async fn breaks(_: String) -> Result<String, TaskError> {
    Err(TaskError::permanent("broken"))
}

async fn app(broker: &Arc<MemoryBroker>, backend: &Arc<MemoryBackend>, keys: Vec<Key>) -> App {
    let builder = App::builder(broker.clone(), backend.clone()).keyring(Keyring::new(keys).unwrap());
    builder.build().await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn steps_joins_and_arguments_of_an_encrypted_workflow_stay_encrypted() {
    let (broker, backend) = (Arc::new(MemoryBroker::new()), Arc::new(MemoryBackend::new()));
    let keys = vec![
        Key::generate(Algorithm::HmacSha256, "sign").unwrap(),
        Key::generate(Algorithm::XChaCha20Poly1305, "hide").unwrap(),
    ];
    let app = app(&broker, &backend, keys).await;
    let worker = Running::start(Worker::builder(&app).task(ECHO, echo).task(JOIN, join));
    let workflow = chord(["open", "sesame"].map(|word| ECHO.call(word)), JOIN.with(())).then(ECHO.with(()));
    let root = workflow.id().clone();
    let joined = app.client().send(workflow).await.unwrap().wait(WAIT).await.unwrap();
    assert_eq!(joined, "opensesame");
    let names = ["", ".s0.0", ".s0.1", ".s1", ".s2"].map(|path| {
        let id: TaskId = format!("{root}{path}").try_into().unwrap();
        RecordId::from(&id)
    });
    let join = RecordId::new(RecordKind::Join, &format!("{root}.s1"));
    for name in names.into_iter().chain([join]) {
        let facts = backend.read(std::slice::from_ref(&name)).await.unwrap().pop().unwrap();
        assert!(!facts.is_empty(), "{name}");
        for (fact, value) in facts.iter() {
            let text = String::from_utf8_lossy(value);
            assert!(!text.contains("sesame") && !text.contains("open"), "{name} {fact}: {text}");
        }
    }
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_key_sends_no_workflow_with_a_step_that_it_may_not_call() {
    let (broker, backend) = (Arc::new(MemoryBroker::new()), Arc::new(MemoryBackend::new()));
    let key = Key::generate(Algorithm::HmacSha256, "web").unwrap().for_tasks(["echo"]).unwrap();
    let app = app(&broker, &backend, vec![key]).await;
    let refused = app.client().send(chain(ECHO.call("x")).then(MAIL.with(()))).await.unwrap_err();
    assert!(
        matches!(&refused, SendError::Key { why, .. } if why.contains("\"s1\"") && why.contains("mail")),
        "{refused}"
    );
    let error = chain(ECHO.call("x")).on_error(MAIL.call("y"));
    assert!(matches!(app.client().send(error).await, Err(SendError::Key { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_step_that_the_key_of_a_worker_may_not_publish_is_rejected_and_said() {
    let (broker, backend) = (Arc::new(MemoryBroker::new()), Arc::new(MemoryBackend::new()));
    let web = Key::generate(Algorithm::Ed25519, "web").unwrap();
    let own = Key::generate(Algorithm::HmacSha256, "own").unwrap().for_tasks(["echo"]).unwrap();
    let trusted = web.clone().with_state(KeyState::Verify);
    let sender = app(&broker, &backend, vec![web, own.clone().with_state(KeyState::Verify)]).await;
    let working = app(&broker, &backend, vec![own, trusted]).await;
    let worker = Running::start(Worker::builder(&working).task(ECHO, echo));
    let workflow = chain(ECHO.call("x")).then(MAIL.with(())).on_success(ECHO.call("after").immutable());
    let root = workflow.id().clone();
    let mailed = sender.client().send(workflow).await.unwrap();
    let ended = mailed.wait_record(WAIT).await.unwrap();
    assert_eq!((ended.state, ended.kind), (TaskState::Failure, Some(FailureKind::Rejected)));
    let after: TaskId = format!("{root}.s2").try_into().unwrap();
    let after = sender.result(after).wait_record(WAIT).await.unwrap();
    assert_eq!(after.kind, Some(FailureKind::Upstream));
    assert!(after.error.unwrap().message().contains(".s1"));
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_workflow_whose_root_has_an_end_that_no_worker_signed_is_not_sent_again() {
    let (broker, backend) = (Arc::new(MemoryBroker::new()), Arc::new(MemoryBackend::new()));
    let app = app(&broker, &backend, vec![Key::generate(Algorithm::HmacSha256, "own").unwrap()]).await;
    let worker = Running::start(Worker::builder(&app).task(ECHO, echo).task(BREAKS, breaks));
    let workflow = chain(ECHO.call("x")).then(BREAKS.with(()));
    let root = workflow.id().clone();
    let ended = app.client().send(workflow).await.unwrap().wait_record(WAIT).await.unwrap();
    assert_eq!(ended.state, TaskState::Failure);
    let mut forged = Commit::new(root.clone());
    let end = r#"{"at":5,"state":"FAILURE","kind":"error","error":["made up"]}"#;
    forged.drop = vec!["end".into()];
    forged.facts = vec![("end".into(), end.into())];
    backend.commit(vec![forged.into()]).await.pop().unwrap().unwrap();
    let refused = app.client().retry_workflow(&root).await;
    assert!(
        matches!(&refused, Err(ControlError::NoMessage { why, .. }) if why.contains("no signature")),
        "{refused:?}"
    );
    worker.stop().await;
}
