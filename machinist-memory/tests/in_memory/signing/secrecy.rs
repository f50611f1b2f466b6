//! What is encrypted is read by whoever has the key, and by nobody else: over the in-memory adapters.

use std::time::Duration;

use machinist_conformance::says;
use machinist_core::{
    App, ControlError, DeadFilter, DeadLetterOutcome, ResultError, TaskContext, TaskDef, TaskError,
    WorkerBuilder,
    backend::Backend,
    broker::{HeaderValue, Message},
    id::{RecordId, RecordKind},
    limit::{Limit, LimitKey, LimitTarget},
    record::{FailureKind, TaskState},
    sign::{Algorithm, Key, KeyState, Keyring},
    worker::TaskOptions,
};

use super::support::{ADD, HOUR, Harness, Running, SOON, hmac, queue};

/// Says what it was given wherever a task can say something: note, log, error of a first run, result.
const TELL: TaskDef<(String,), String> = TaskDef::new("tell");
/// The same, and never succeeds.
const TELL_AND_FAIL: TaskDef<(String,), String> = TaskDef::new("tell_and_fail");
const SECRET: &str = "the-plain-text-that-nobody-is-to-find";

async fn tell(cx: TaskContext, what: String) -> Result<String, TaskError> {
    cx.progress(1, 2, what.clone());
    cx.log(&what);
    // So long that the note is written by itself.
    tokio::time::sleep(Duration::from_secs(5)).await;
    if cx.attempt() == 1 { Err(TaskError::new(what)) } else { Ok(what) }
}

async fn tell_and_fail(cx: TaskContext, what: String) -> Result<String, TaskError> {
    cx.progress(1, 2, what.clone());
    Err(TaskError::permanent(what))
}

fn cipher(id: &str) -> Key {
    Key::generate(Algorithm::XChaCha20Poly1305, id).unwrap()
}

fn reads(key: &Key) -> Key {
    key.clone().with_state(KeyState::Verify)
}

fn ring<const N: usize>(keys: [&Key; N]) -> Keyring {
    Keyring::new(keys.map(Key::clone)).unwrap()
}

fn work(harness: &Harness, app: &App) -> Running {
    let builder: WorkerBuilder = harness.worker(app);
    Running::start(builder.task(TELL, tell).task(TELL_AND_FAIL, tell_and_fail))
}

/// Whether a text stands anywhere in a message.
fn message_says(message: &Message, text: &str) -> bool {
    let body = says(&String::from_utf8_lossy(&message.body), text);
    body || message.headers.values().filter_map(HeaderValue::as_text).any(|value| says(value, text))
}

async fn facts_say(harness: &Harness, id: &machinist_core::TaskId, text: &str) -> bool {
    let log = RecordId::new(RecordKind::Log, id.as_str());
    let records = harness.backend.read(&[id.into(), log]).await.unwrap();
    assert!(!records[0].is_empty());
    let mut facts = records.iter().flat_map(machinist_core::record::Facts::iter);
    facts.any(|(_, value)| says(&String::from_utf8_lossy(value), text))
}

#[tokio::test(start_paused = true)]
async fn nothing_that_it_says_lies_anywhere() {
    for (hidden, sender_has_the_key) in [(true, true), (true, false), (false, false)] {
        let harness = Harness::new();
        let (sign, hide) = (hmac("k"), cipher("secret"));
        // A worker that only decrypts hides the outcome of what came hidden; one that encrypts hides every outcome.
        let of_sender = if sender_has_the_key { ring([&sign, &hide]) } else { ring([&sign]) };
        let of_worker = match (hidden, sender_has_the_key) {
            (true, true) => ring([&sign, &reads(&hide)]),
            (true, false) => ring([&sign, &hide]),
            (false, _) => ring([&sign]),
        };
        let (sender, app) = (harness.app(of_sender).await, harness.app(of_worker.clone()).await);
        let reader = harness.app(of_worker).await;
        let told = sender.client().send(TELL.call((SECRET.to_owned(),)).retries(1)).await.unwrap();
        let message = harness.take("math").await;
        assert_eq!(message_says(&message, SECRET), !sender_has_the_key);
        harness.publish("math", message).await;
        let running = work(&harness, &app);
        let read = reader.result(told.id().clone()).typed::<String>();
        let mut seen = None;
        loop {
            let record = read.changed(seen.as_ref(), SOON).await.unwrap();
            assert!(!hidden || !facts_say(&harness, told.id(), SECRET).await, "{record:?}");
            if record.state == TaskState::Success {
                break;
            }
            seen = Some(record);
        }
        assert_eq!(read.wait(SOON).await.unwrap(), SECRET);
        let record = read.record().await.unwrap();
        assert_eq!((record.progress.unwrap().note.as_str(), record.log.trim_end()), (SECRET, SECRET));
        assert_eq!(record.history[0].error.message(), SECRET);
        let log = read.log().await.unwrap();
        assert!(log.lines.len() == 2 && log.lines.iter().all(|line| line.text == SECRET), "{log:?}");

        let failed = sender.client().send(TELL_AND_FAIL.call((SECRET.to_owned(),))).await.unwrap();
        let failed = reader.result(failed.id().clone());
        let error = failed.wait_record(SOON).await.unwrap().error.unwrap();
        assert_eq!(error.message(), SECRET);
        assert_eq!(harness.dead("math", 1).await, ["failed"]);
        let letter = harness.broker.dead_letters(&queue("math")).remove(0);
        assert_eq!(message_says(&letter, SECRET), !sender_has_the_key, "{letter:?}");
        // A failed task's message is kept in its record, as it came.
        assert_eq!(facts_say(&harness, failed.id(), SECRET).await, !sender_has_the_key);
        let letters = reader.client().dead_letters(&DeadFilter::default(), 10).await.unwrap();
        assert_eq!(letters[0].error.message().contains(SECRET), !hidden, "{letters:?}");
        running.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn without_the_key_results_are_known_to_be_there_and_cannot_be_read() {
    let harness = Harness::new();
    let (sign, hide) = (hmac("k"), cipher("secret"));
    let app = harness.app(ring([&sign, &hide])).await;
    let _running = work(&harness, &app);
    let told = app.client().send(TELL.call((SECRET.to_owned(),)).retries(1)).await.unwrap();
    let failed = app.client().send(TELL_AND_FAIL.call((SECRET.to_owned(),))).await.unwrap();
    assert_eq!(told.wait(SOON).await.unwrap(), SECRET);
    failed.wait_record(SOON).await.unwrap();
    let revoked = Key::revoked("secret").unwrap();
    for (other, words) in [
        (ring([&sign]), "key secret, which is not in the ring here"),
        (ring([&sign, &cipher("secret")]), "does not open with key secret"),
        (ring([&sign, &revoked]), "key secret, which is revoked"),
    ] {
        let other = harness.app(other).await;
        for (id, state) in [(told.id(), TaskState::Success), (failed.id(), TaskState::Failure)] {
            let result = other.result(id.clone());
            let locked = result.wait(SOON).await.unwrap_err();
            assert!(matches!(&locked, ResultError::Undecryptable { .. }), "{locked:?}");
            assert!(locked.to_string().contains(words), "{locked}");
            let log = result.log().await.unwrap();
            assert!(log.lines.is_empty());
            assert_eq!(log.locked.is_some(), state == TaskState::Success, "{log:?}");
            let record = result.record().await.unwrap();
            assert_eq!((record.state, record.results.is_none()), (state, true));
            assert!(
                record.locked.as_ref().unwrap().contains(words) && !format!("{record:?}").contains(SECRET)
            );
        }
        let again = other.client().retry(failed.id()).await;
        assert!(
            matches!(&again, Err(ControlError::NoMessage { why, .. }) if why.contains(words)),
            "{again:?}"
        );
    }
    // What is hidden is bound to its task: nobody passes it off as another's, signed or not.
    let of = [told.id().into(), failed.id().into()];
    let facts = harness.backend.read(&of).await.unwrap();
    let mut commit = machinist_core::backend::Commit::new(failed.id().clone());
    commit.drop = vec!["end".into()];
    commit.facts = vec![("end".into(), facts[0].get("end").unwrap().clone())];
    harness.backend.commit(vec![commit.into()]).await;
    assert!(matches!(failed.wait(SOON).await, Err(ResultError::Forged { .. })));
    let unsigned = harness.builder().keyring(ring([&hide])).allow_unsigned().build().await.unwrap();
    let stolen = unsigned.result(failed.id().clone()).wait(SOON).await;
    assert!(stolen.is_err(), "{stolen:?}");
}

#[tokio::test(start_paused = true)]
async fn a_worker_waits_for_the_key_for_an_hour() {
    let harness = Harness::new();
    let (sign, hide) = (hmac("k"), cipher("secret"));
    let sender = harness.app(ring([&sign, &hide])).await;
    let app = harness.app(ring([&sign])).await;
    let running = harness.work(&app);
    let late = sender.client().send(ADD.call((1, 1)).countdown(HOUR / 2)).await.unwrap();
    let sum = sender.client().send(ADD.call((2, 3))).await.unwrap();
    tokio::time::sleep(HOUR / 4).await;
    assert_eq!(sum.state().await.unwrap(), TaskState::Pending);
    app.replace_keyring(ring([&sign, &reads(&hide)])).unwrap();
    assert_eq!((sum.wait(HOUR).await.unwrap(), late.wait(HOUR).await.unwrap()), (5, 2));
    running.stop().await;

    app.replace_keyring(ring([&sign])).unwrap();
    let running = harness.work(&app);
    let began = tokio::time::Instant::now();
    let never = sender.client().send(ADD.call((4, 4))).await.unwrap();
    let end = never.wait_record(2 * HOUR).await.unwrap();
    let (kind, error) = (end.kind, end.error.unwrap());
    assert_eq!(kind, Some(FailureKind::Rejected));
    assert!(began.elapsed() >= HOUR && error.chain[1].contains("which is not in the ring here"), "{error:?}");
    assert_eq!(harness.dead("math", 1).await, ["unknown-key"]);
    running.stop().await;

    // A revoked one opens nothing, and nobody waits for it.
    app.replace_keyring(ring([&sign, &Key::revoked("secret").unwrap()])).unwrap();
    let _running = harness.work(&app);
    let revoked = sender.client().send(ADD.call((4, 4))).await.unwrap();
    let end = revoked.wait(SOON).await;
    assert!(matches!(end, Err(ResultError::Failed { kind: FailureKind::Rejected, .. })), "{end:?}");
    assert_eq!(harness.dead("math", 2).await[1], "revoked-key");
    assert_eq!(harness.added(), 2);
}

#[tokio::test(start_paused = true)]
async fn keys_are_replaced_and_what_is_sent_again_stays_hidden() {
    let harness = Harness::new();
    let (sign, old, new) = (hmac("k"), cipher("old"), cipher("new"));
    let sender = harness.app(ring([&sign, &old])).await;
    let failed = sender.client().send(TELL_AND_FAIL.call((SECRET.to_owned(),))).await.unwrap();
    let app = harness.app(ring([&sign, &new, &reads(&old)])).await;
    let running = work(&harness, &app);
    assert!(app.result(failed.id().clone()).wait(SOON).await.is_err());
    harness.dead("math", 1).await;
    running.stop().await;

    // Whoever can read it encrypts it with the new key, or, having none that is active, with the old one.
    let operator = harness.app(ring([&sign, &reads(&old), &reads(&new)])).await;
    let again = operator.client().retry(failed.id()).await.unwrap();
    let message = harness.take("math").await;
    assert!(!message_says(&message, SECRET) && message.body[1..].starts_with(b"old"));
    harness.publish("math", message).await;
    let running = work(&harness, &app);
    let end = app.result(again.id().clone()).wait_record(SOON).await.unwrap();
    assert_eq!(end.error.unwrap().message(), SECRET);
    harness.dead("math", 2).await;
    running.stop().await;

    // A dead letter too; who has no key for it leaves it where it is.
    let letters = app.client().dead_letters(&DeadFilter::default(), 10).await.unwrap();
    let letter: Vec<_> = letters.into_iter().filter(|l| l.task.as_ref() == Some(again.id())).collect();
    let stranger = harness.app(ring([&sign])).await;
    for (who, replayed) in [(&stranger, false), (&app, true)] {
        let mut told = Vec::new();
        let tell = |_: &_, settlement| told.push(settlement);
        who.client().replay_dead_letters(&letter, Duration::ZERO, tell).await.unwrap();
        assert_eq!(matches!(told[..], [DeadLetterOutcome::Replayed(_)]), replayed, "{told:?}");
    }
    let message = harness.take("math").await;
    assert!(!message_says(&message, SECRET) && message.body[1..].starts_with(b"new"));
}

#[tokio::test(start_paused = true)]
async fn a_hidden_body_is_bound_to_its_task() {
    let harness = Harness::new();
    let (sign, hide) = (hmac("k"), cipher("secret"));
    let app = harness.app(ring([&sign, &hide])).await;
    let own = ring([&hmac("w"), &reads(&hide)]);
    let unsigned = harness.builder().keyring(own).allow_unsigned().build().await.unwrap();
    let victim = app.client().send(ADD.call((2, 3))).await.unwrap();
    let theirs = harness.take("math").await;
    let other = app.client().send(ADD.call((4, 4))).await.unwrap();
    let mut mixed = harness.take("math").await;
    // Somebody whom the worker believes without a signature gives one task the arguments of another.
    mixed.headers.remove("machinist-signature");
    mixed.body = theirs.body;
    harness.publish("math", mixed).await;
    let running = harness.work(&unsigned);
    let end = unsigned.result(other.id().clone()).wait_record(SOON).await.unwrap();
    assert_eq!(end.kind, Some(FailureKind::Malformed));
    assert_eq!((harness.added(), victim.state().await.unwrap()), (0, TaskState::Pending));
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_key_of_a_limit_is_hidden_and_shown_to_whoever_has_the_keys() {
    let harness = Harness::new();
    let app = harness.app(ring([&hmac("k"), &cipher("secret")])).await;
    let limit = Limit::new().max_running(1).key(LimitKey::template("{0}").unwrap());
    let builder = harness.worker(&app).task(TELL, tell).options("tell", TaskOptions::new().limit(limit));
    let running = Running::start(builder);
    let client = app.client();
    let told = client.send(TELL.call((SECRET.to_owned(),)).retries(1)).await.unwrap();
    harness.eventually(async || told.state().await.unwrap() == TaskState::Started).await;
    let target = LimitTarget::parse("task:tell").unwrap();
    assert_eq!(client.runs_under_limit(&target, Some(SECRET)).await.unwrap(), [told.id().clone()]);
    assert_eq!(client.limit(&target, Some(SECRET)).await.unwrap()[0].running, Some(1));
    assert!(client.runs_under_limit(&target, Some("another")).await.unwrap().is_empty());
    let plain = RecordId::new(RecordKind::Limit, &format!("run/task:tell:{SECRET}"));
    assert!(harness.backend.read(&[plain]).await.unwrap()[0].is_empty());
    told.wait(SOON).await.unwrap();
    running.stop().await;
}
