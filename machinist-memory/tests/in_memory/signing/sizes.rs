//! MaxSizes: an error to the sender, a dead letter where it arrives all the same.

use machinist_core::{Json, MaxSizes, SendError, State, TaskDef, TaskError, Worker, record};
use serde_json::{Value, json};

use super::support::{Harness, Running, SOON, hmac};

const TAKE: TaskDef<(Json<Value>,), ()> = TaskDef::new("take");
const GIVE: TaskDef<(), String> = TaskDef::new("give");
const FAIL: TaskDef<(), ()> = TaskDef::new("fail");

async fn take(State(()): State<()>, _value: Json<Value>) -> Result<(), TaskError> {
    Ok(())
}

async fn give() -> Result<String, TaskError> {
    Ok("x".repeat(400))
}

async fn fail() -> Result<(), TaskError> {
    Err(TaskError::permanent("é".repeat(400)))
}

fn nested(depth: usize) -> Value {
    (0..depth).fold(json!(1), |inner, _| json!([inner]))
}

fn tight() -> MaxSizes {
    MaxSizes::default().body(600).headers(900).args(2).depth(8).results(200).errors(99)
}

#[tokio::test(start_paused = true)]
async fn every_limit_holds_at_both_ends() {
    let harness = Harness::new();
    let key = hmac("k");
    let wide = harness.app(key.clone()).await;
    let app = harness.builder().keyring(key).max_sizes(tight()).build().await.unwrap();
    let worker =
        Worker::builder(&app).queue("math").task(TAKE, take).task(GIVE, give).task(FAIL, fail).state(());
    let _running = Running::start(worker);
    let large = || TAKE.call((Json(json!("x".repeat(700))),));
    let deep = || TAKE.call((Json(nested(6)),));
    let many = || machinist_core::Signature::new("take").arg(1i64).arg(2i64).arg(3i64);
    for (signature, what) in
        [(large().untyped(), "body"), (deep().untyped(), "levels of nesting"), (many(), "arguments")]
    {
        match app.client().send(signature).await {
            Err(SendError::TooLarge { what: found, .. }) => assert_eq!(found, what),
            other => panic!("{what}: {other:?}"),
        }
    }
    // At the limit is not beyond it.
    app.client().send(TAKE.call((Json(nested(5)),))).await.unwrap().wait(SOON).await.unwrap();
    for signature in [large().untyped(), deep().untyped(), many()] {
        wide.client().send(signature).await.unwrap();
    }
    assert_eq!(harness.dead("math", 3).await, ["too-large", "malformed", "malformed"]);
    // Headers are the sender's library's, not the sender's: only a limit below what every message has shows it.
    let narrow = harness
        .builder()
        .keyring(hmac("k"))
        .max_sizes(MaxSizes::default().headers(100))
        .build()
        .await
        .unwrap();
    match narrow.client().send(GIVE.call(())).await {
        Err(SendError::TooLarge { what, limit, .. }) => assert_eq!((what, limit), ("headers", 100)),
        other => panic!("headers: {other:?}"),
    }
    let worker = Worker::builder(&narrow).queue("narrow").task(GIVE, give);
    let _narrow = Running::start(worker);
    let unread = wide.client().send(GIVE.call(()).queue("narrow")).await.unwrap();
    assert_eq!(harness.dead("narrow", 1).await, ["too-large"]);
    assert_eq!(unread.state().await.unwrap(), record::TaskState::Pending);
    let too_much = app.client().send(GIVE.call(())).await.unwrap().wait_record(SOON).await.unwrap();
    assert_eq!(too_much.state, record::TaskState::Failure);
    assert!(too_much.error.unwrap().message().contains("returned more than 200 bytes"));
    let failed = app.client().send(FAIL.call(())).await.unwrap().wait_record(SOON).await.unwrap();
    assert_eq!(failed.error.unwrap().message(), format!("{}…", "é".repeat(49)));
}
