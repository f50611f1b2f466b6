//! Keys come, go and are limited, while tasks are under way.

use std::time::Duration;

use machinist_core::{
    ResultError, SendError,
    record::{FailureKind, TaskState},
    sign::{Algorithm, Key, KeyState, Keyring},
    worker::BuildError,
};

use super::support::{ADD, EVIL, FLAKY, HOUR, Harness, SOON, hmac};

fn verify(key: &Key) -> Key {
    key.clone().with_state(KeyState::Verify)
}

#[tokio::test(start_paused = true)]
async fn both_algorithms_sign_send_retry_and_result() {
    for algorithm in [Algorithm::HmacSha256, Algorithm::Ed25519] {
        let harness = Harness::new();
        let app = harness.app(Key::generate(algorithm, "k").unwrap()).await;
        let _running = harness.work(&app);
        let sum = app.client().send(ADD.call((2, 3))).await.unwrap();
        assert_eq!(sum.wait(SOON).await.unwrap(), 5);
        let second = app.client().send(FLAKY.call(()).retries(3)).await.unwrap();
        assert_eq!(second.wait(SOON).await.unwrap(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn ed25519_senders_and_workers_need_only_each_others_public_halves() {
    let (sender, worker) =
        (Key::generate(Algorithm::Ed25519, "web").unwrap(), Key::generate(Algorithm::Ed25519, "w").unwrap());
    let harness = Harness::new();
    let web = harness.app(Keyring::new([sender.clone(), worker.public().unwrap()]).unwrap()).await;
    let app = harness.app(Keyring::new([worker, sender.public().unwrap()]).unwrap()).await;
    let _running = harness.work(&app);
    let second = web.client().send(FLAKY.call(()).retries(3)).await.unwrap();
    assert_eq!(second.wait(SOON).await.unwrap(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_key_is_replaced_while_its_tasks_are_under_way() {
    let harness = Harness::new();
    let (old, new) = (hmac("old"), hmac("new"));
    let sender = harness.app(old.clone()).await;
    let app = harness.app(old.clone()).await;
    let _running = harness.work(&app);
    let late = sender.client().send(ADD.call((1, 1)).countdown(HOUR)).await.unwrap();
    let flaky = FLAKY.call(()).retries(3).countdown(HOUR);
    let flaky = sender.client().send(flaky).await.unwrap();
    // First everybody learns the new key, then it signs, then the old one only verifies.
    app.replace_keyring(Keyring::new([old.clone(), verify(&new)]).unwrap()).unwrap();
    sender.replace_keyring(Keyring::new([new.clone(), verify(&old)]).unwrap()).unwrap();
    app.replace_keyring(Keyring::new([new.clone(), verify(&old)]).unwrap()).unwrap();
    let soon = sender.client().send(ADD.call((2, 2))).await.unwrap();
    assert_eq!(soon.wait(SOON).await.unwrap(), 4);
    assert_eq!(late.wait(2 * HOUR).await.unwrap(), 2);
    assert_eq!(flaky.wait(2 * HOUR).await.unwrap(), 2);
    assert!(matches!(app.replace_keyring(verify(&new)), Err(machinist_core::sign::KeyError::NoneActive)));
}

#[tokio::test(start_paused = true)]
async fn a_revoked_keys_tasks_stay_revoked_when_they_return_as_retries() {
    let harness = Harness::new();
    let (stolen, own) = (hmac("stolen"), hmac("own"));
    let sender = harness.app(stolen.clone()).await;
    let app = harness.app(Keyring::new([own.clone(), verify(&stolen)]).unwrap()).await;
    let _running = harness.work(&app);
    let backoff = machinist_core::Backoff::fixed(HOUR);
    let flaky = sender.client().send(FLAKY.call(()).retries(3).backoff(backoff)).await.unwrap();
    let delayed = sender.client().send(ADD.call((1, 1)).countdown(HOUR)).await.unwrap();
    harness.eventually(async || flaky.state().await.unwrap() == TaskState::Retry).await;
    app.replace_keyring(Keyring::new([own, stolen.with_state(KeyState::Revoked)]).unwrap()).unwrap();
    assert_eq!(harness.dead("math", 2).await, ["revoked-key", "revoked-key"]);
    assert_eq!(harness.added(), 0);
    // Nothing is written under the ids that such messages claim.
    assert_eq!(flaky.state().await.unwrap(), TaskState::Retry);
    assert_eq!(delayed.state().await.unwrap(), TaskState::Pending);
}

#[tokio::test(start_paused = true)]
async fn a_message_of_an_unknown_key_waits_for_the_key() {
    let harness = Harness::new();
    let (own, new) = (hmac("own"), hmac("new"));
    let sender = harness.app(Keyring::new([new.clone(), verify(&own)]).unwrap()).await;
    let app = harness.app(own.clone()).await;
    let _running = harness.work(&app);
    let sum = sender.client().send(ADD.call((2, 3))).await.unwrap();
    tokio::time::sleep(HOUR / 2).await;
    assert_eq!((harness.added(), sum.state().await.unwrap()), (0, TaskState::Pending));
    app.replace_keyring(Keyring::new([own, verify(&new)]).unwrap()).unwrap();
    assert_eq!(sum.wait(2 * SOON).await.unwrap(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_message_of_a_key_that_never_comes_is_buried_after_an_hour() {
    let harness = Harness::new();
    let sender = harness.app(hmac("new")).await;
    let app = harness.app(hmac("own")).await;
    let _running = harness.work(&app);
    let sum = sender.client().send(ADD.call((2, 3))).await.unwrap();
    let began = tokio::time::Instant::now();
    assert_eq!(harness.dead("math", 1).await, ["unknown-key"]);
    assert!(began.elapsed() >= HOUR);
    assert_eq!((harness.added(), sum.state().await.unwrap()), (0, TaskState::Pending));
}

#[tokio::test(start_paused = true)]
async fn a_key_signs_only_what_it_is_for() {
    let harness = Harness::new();
    let (mailer, own) = (hmac("mailer"), hmac("own"));
    // The sender's ring does not limit it; the worker's does.
    let sender = harness.app(Keyring::new([mailer.clone(), verify(&own)]).unwrap()).await;
    let limited = verify(&mailer).for_tasks(["ad*"]).unwrap().for_queues(["math"]).unwrap();
    let app = harness.app(Keyring::new([own, limited]).unwrap()).await;
    let _running = harness.work(&app);
    let sum = sender.client().send(ADD.call((2, 3))).await.unwrap();
    assert_eq!(sum.wait(SOON).await.unwrap(), 5);
    let evil = sender.client().send(EVIL.call((String::new(),))).await.unwrap();
    let Err(ResultError::Failed { kind, message, chain, .. }) = evil.wait(SOON).await else {
        panic!("it fails")
    };
    assert_eq!((kind, message.as_str()), (FailureKind::Rejected, "not-allowed"));
    assert_eq!(chain[1], "key mailer is not for the task \"evil\"");
    assert_eq!(harness.dead("math", 1).await, ["not-allowed"]);
    assert_eq!(harness.ran.evil.load(std::sync::atomic::Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_signed_is_an_error_to_its_sender() {
    let harness = Harness::new();
    let reader = harness.app(verify(&hmac("k"))).await;
    let Err(SendError::Key { why, .. }) = reader.client().send(ADD.call((1, 1))).await else {
        panic!("no key signs")
    };
    assert!(why.contains("state = \"active\""), "{why}");
    assert!(matches!(harness.worker(&reader).build(), Err(BuildError::Key { .. })));
    let limited = harness.app(hmac("k").for_tasks(["mail.*"]).unwrap()).await;
    let refused = limited.client().send(ADD.call((1, 1))).await.unwrap_err().to_string();
    assert!(refused.ends_with("cannot be signed: key k is not for the task \"add\""), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn old_messages_are_stale_where_freshness_is_asked_for() {
    let harness = Harness::new();
    let key = hmac("k");
    let app = harness.builder().keyring(key).freshness(Duration::from_secs(600)).build().await.unwrap();
    let old = app.client().send(ADD.call((1, 1))).await.unwrap();
    let due = app.client().send(ADD.call((2, 2)).countdown(HOUR)).await.unwrap();
    tokio::time::sleep(HOUR).await;
    let _running = harness.work(&app);
    assert_eq!(due.wait(SOON).await.unwrap(), 4, "the later of signed and due counts");
    let Err(ResultError::Failed { kind, message, .. }) = old.wait(SOON).await else { panic!("it fails") };
    assert_eq!((kind, message.as_str()), (FailureKind::Rejected, "stale"));
    assert_eq!(harness.dead("math", 1).await, ["stale"]);
    assert_eq!(harness.added(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_key_is_believed_within_its_time_only() {
    let harness = Harness::new();
    let key = hmac("k");
    let sender = harness.app(key.clone()).await;
    let now = sender.clock().now();
    let over = verify(&key).not_after(now.plus(Duration::from_secs(60)));
    let app = harness.app(Keyring::new([hmac("own"), over]).unwrap()).await;
    let _running = harness.work(&app);
    let in_time = sender.client().send(ADD.call((1, 1)).countdown(HOUR)).await.unwrap();
    tokio::time::sleep(2 * SOON).await;
    sender.client().send(ADD.call((2, 2))).await.unwrap();
    assert_eq!(harness.dead("math", 1).await, ["revoked-key"]);
    assert!(harness.app_fails_with(key.clone().not_before(now.plus(10 * HOUR))).await.contains("not valid"));
    harness.eventually(async || harness.added() == 1).await;
    drop(in_time);
}

#[tokio::test(start_paused = true)]
async fn what_a_worker_signs_after_its_keys_time_is_not_believed() {
    let harness = Harness::new();
    let (web, own) = (hmac("web"), hmac("own"));
    let sender = harness.app(web.clone()).await;
    let soon = sender.clock().now().plus(SOON);
    let app = harness.app(Keyring::new([own.not_after(soon), verify(&web)]).unwrap()).await;
    let _running = harness.work(&app);
    let flaky = sender.client().send(FLAKY.call(()).retries(3).countdown(HOUR)).await.unwrap();
    assert_eq!(harness.dead("math", 1).await, ["revoked-key"]);
    assert_eq!(flaky.state().await.unwrap(), TaskState::Retry);
}

#[tokio::test(start_paused = true)]
async fn the_first_senders_limits_hold_for_retries_too() {
    let harness = Harness::new();
    let (web, own) = (hmac("web"), hmac("own"));
    let sender = harness.app(Keyring::new([web.clone(), verify(&own)]).unwrap()).await;
    let app = harness.app(Keyring::new([own.clone(), verify(&web)]).unwrap()).await;
    let _running = harness.work(&app);
    let backoff = machinist_core::Backoff::fixed(HOUR);
    let flaky = sender.client().send(FLAKY.call(()).retries(3).backoff(backoff)).await.unwrap();
    harness.eventually(async || flaky.state().await.unwrap() == TaskState::Retry).await;
    let limited = verify(&web).for_tasks(["mail.*"]).unwrap();
    app.replace_keyring(Keyring::new([own, limited]).unwrap()).unwrap();
    let Err(ResultError::Failed { kind, .. }) = flaky.wait(2 * HOUR).await else { panic!("it fails") };
    assert_eq!(kind, FailureKind::Rejected);
    assert_eq!(harness.dead("math", 1).await, ["not-allowed"]);
}

#[tokio::test(start_paused = true)]
async fn nobody_extends_the_patience_with_what_cannot_be_verified() {
    let harness = Harness::new();
    let sender = harness.app(hmac("new")).await;
    sender.client().send(ADD.call((2, 3))).await.unwrap();
    let mut message = harness.take("math").await;
    message.headers.insert("machinist-unread-since".into(), i64::MAX.into());
    harness.publish("math", message).await;
    let app = harness.app(hmac("own")).await;
    let _running = harness.work(&app);
    assert_eq!(harness.dead("math", 1).await, ["unknown-key"]);
}

impl Harness {
    async fn app_fails_with(&self, key: Key) -> String {
        self.builder().keyring(key).build().await.unwrap_err().to_string()
    }
}
