//! Programs of different wire versions beside each other.

use std::sync::{Arc, Mutex};

use machinist_core::{State, TaskContext, TaskDef, TaskError, broker::Broker, sign::Algorithm, sign::Key};

use super::support::{ADD, HOUR, Harness, Running, SOON, hmac, queue};

const LABELLED: TaskDef<(), ()> = TaskDef::new("labelled");

type Seen = Arc<Mutex<Vec<String>>>;

async fn labelled(State(seen): State<Seen>, cx: TaskContext) -> Result<(), TaskError> {
    assert_eq!(cx.label("team"), Some("search"));
    assert_eq!(cx.label("tea"), None);
    let labels: Vec<String> = cx.labels().map(|(key, value)| format!("{key}={value}")).collect();
    seen.lock().unwrap().push(labels.join(" "));
    if cx.attempt() == 1 { Err("the first time")? } else { Ok(()) }
}

#[tokio::test(start_paused = true)]
async fn labels_reach_the_handler_of_every_attempt_and_are_not_encrypted() {
    let harness = Harness::new();
    let hide = Key::generate(Algorithm::XChaCha20Poly1305, "hide").unwrap();
    let keys = machinist_core::sign::Keyring::new([hmac("k"), hide]).unwrap();
    let app = harness.app(keys).await;
    let seen = Seen::default();
    let call = LABELLED.call(()).label("tenant", "acme").label("team", "ops").label("team", "search");
    let sent = app.client().send(call.retries(1)).await.unwrap();
    let message = harness.take("math").await;
    assert_eq!(message.headers["machinist-version"].as_int(), Some(2));
    let pairs = message.headers["machinist-pairs"].as_text();
    assert_eq!(pairs, Some("label.team=6:search,label.tenant=4:acme"));
    harness.publish("math", message).await;
    let _running = Running::start(harness.worker(&app).task(LABELLED, labelled).state(Arc::clone(&seen)));
    sent.wait(SOON).await.unwrap();
    assert_eq!(*seen.lock().unwrap(), ["team=search tenant=acme", "team=search tenant=acme"]);
}

#[tokio::test(start_paused = true)]
async fn a_label_that_cannot_be_sent_is_an_error_of_its_sender() {
    let harness = Harness::new();
    let app = harness.app(hmac("k")).await;
    let refused = app.client().send(ADD.call((1, 2)).label("te am", "x")).await.unwrap_err().to_string();
    assert!(refused.contains("the key of label \"te am\" is not 1 to 32 letters"), "{refused}");
    let many = (0..9).fold(ADD.call((1, 2)), |call, n| call.label(format!("k{n}"), ""));
    let refused = app.client().send(many).await.unwrap_err().to_string();
    assert!(refused.ends_with("it has 9 labels, and the maximum is 8"), "{refused}");
    let depth = harness.broker.depth(&[queue("math")]).await.unwrap();
    assert_eq!(depth[0].ready.unwrap_or_default(), 0);
}

/// What this worker does with tomorrow's message, yesterday's worker does with a message that has pairs: it reads
/// version 2 as one that it does not know.
#[tokio::test(start_paused = true)]
async fn a_message_of_a_newer_version_waits_for_a_newer_worker() {
    let harness = Harness::new();
    let app = harness.app(hmac("k")).await;
    let sent = app.client().send(ADD.call((1, 2)).label("team", "search")).await.unwrap();
    let todays = harness.take("math").await;
    let mut tomorrows = todays.clone();
    tomorrows.headers.insert("machinist-version".into(), 4.into());
    tomorrows.headers.insert("machinist-tomorrow".into(), "x".into());
    harness.publish("math", tomorrows.clone()).await;
    let running = harness.work(&app);
    tokio::time::sleep(HOUR / 2).await;
    assert!(harness.broker.dead_letters(&queue("math")).is_empty(), "it is not buried");
    assert_eq!(harness.added(), 0);
    running.stop().await;
    let mut waits = harness.take("math").await;
    assert!(waits.headers.remove("machinist-unread-since").is_some());
    assert_eq!(waits, tomorrows, "it was offered again as it was, with its signature");

    harness.publish("math", todays).await;
    let _running = harness.work(&app);
    assert_eq!(sent.wait(SOON).await.unwrap(), 3, "the worker of that version runs it");
}

#[tokio::test(start_paused = true)]
async fn a_message_of_a_newer_version_is_buried_after_an_hour() {
    let harness = Harness::new();
    let app = harness.app(hmac("k")).await;
    app.client().send(ADD.call((1, 2))).await.unwrap();
    let mut message = harness.take("math").await;
    message.headers.insert("machinist-version".into(), 4.into());
    harness.publish("math", message).await;
    let _running = harness.work(&app);
    assert_eq!(harness.dead("math", 1).await, ["undecodable"]);
}

#[tokio::test(start_paused = true)]
async fn pairs_in_a_message_of_version_1_are_refused_at_once() {
    let harness = Harness::new();
    let app = harness.app(hmac("k")).await;
    app.client().send(ADD.call((1, 2))).await.unwrap();
    let mut message = harness.take("math").await;
    message.headers.insert("machinist-pairs".into(), "label.team=6:search".into());
    harness.publish("math", message).await;
    let _running = harness.work(&app);
    harness.settle().await;
    assert_eq!(harness.dead("math", 1).await, ["undecodable"]);
}
