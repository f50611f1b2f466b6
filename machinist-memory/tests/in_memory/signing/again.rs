//! What is sent again: with every check of a delivery, under the key that sent it first.

use std::{sync::atomic::Ordering, time::Duration};

use machinist_core::{
    App, ControlError, DeadFilter, DeadLetterOutcome, ResultError, TaskId,
    backend::{Backend, Commit},
    record::FailureKind,
    sign::{Key, KeyState, Keyring},
};

use super::support::{ADD, EVIL, HOUR, Harness, SOON, hmac, queue};

fn verify(key: &Key) -> Key {
    key.clone().with_state(KeyState::Verify)
}

/// Replays all dead letters.
async fn replay(app: &App) -> Vec<DeadLetterOutcome> {
    let letters = app.client().dead_letters(&DeadFilter::default(), 9).await.unwrap();
    let mut told = Vec::new();
    let tell = |_: &_, outcome| told.push(outcome);
    app.client().replay_dead_letters(&letters, Duration::ZERO, tell).await.unwrap();
    told
}

fn replayed(outcomes: &[DeadLetterOutcome]) -> TaskId {
    match outcomes {
        [DeadLetterOutcome::Replayed(id)] => id.clone(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn what_an_allow_list_refused_stays_refused() {
    let harness = Harness::new();
    let (mailer, own, operator) = (hmac("mailer"), hmac("own"), hmac("operator"));
    let keys = [verify(&own), verify(&operator)];
    let sender = harness.app(Keyring::new(keys.into_iter().chain([mailer.clone()])).unwrap()).await;
    let limited = verify(&mailer).for_tasks(["add"]).unwrap();
    let ring = Keyring::new([own.clone(), verify(&operator), limited.clone()]).unwrap();
    let app = harness.app(ring).await;
    let evil = sender.client().send(EVIL.call((String::new(),))).await.unwrap();
    let late = sender.client().send(EVIL.call((String::new(),)).countdown(HOUR)).await.unwrap();
    let _running = harness.work(&app);
    assert!(matches!(evil.wait(SOON).await, Err(ResultError::Failed { kind: FailureKind::Rejected, .. })));
    harness.dead("math", 1).await;

    // Who knows the list refuses.
    let strict = harness.app(Keyring::new([operator.clone(), verify(&own), limited]).unwrap()).await;
    for refused in
        [strict.client().retry(evil.id()).await.map(drop), strict.client().run_now(late.id()).await]
    {
        let Err(ControlError::NoMessage { why, .. }) = refused else { panic!("{refused:?}") };
        assert!(why.starts_with("not-allowed: key mailer is not for the task"), "{why}");
    }
    let outcomes = replay(&strict).await;
    assert!(
        matches!(&outcomes[..], [DeadLetterOutcome::Refused(why)] if why.contains("mailer")),
        "{outcomes:?}"
    );

    // Who does not know it sends again, and the first signer stays: the worker refuses.
    let lax = harness.app(Keyring::new([operator, verify(&own), verify(&mailer)]).unwrap()).await;
    let again = lax.client().retry(evil.id()).await.unwrap();
    assert!(matches!(again.wait(SOON).await, Err(ResultError::Failed { kind: FailureKind::Rejected, .. })));
    assert_eq!(replayed(&replay(&lax).await[..1]), *again.id(), "one task");
    lax.client().run_now(late.id()).await.unwrap();
    assert!(late.wait(SOON).await.is_err());
    assert_eq!(harness.ran.evil.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn a_stale_message_stays_stale_and_a_fresh_one_does_not_become_it() {
    let harness = Harness::new();
    let key = hmac("k");
    let app = harness.builder().keyring(key).freshness(Duration::from_secs(600)).build().await.unwrap();
    let old = app.client().send(ADD.call((1, 1))).await.unwrap();
    tokio::time::sleep(HOUR).await;
    let running = harness.work(&app);
    assert_eq!(harness.dead("math", 1).await, ["stale"]);
    let outcomes = replay(&app).await;
    assert!(
        matches!(&outcomes[..], [DeadLetterOutcome::Refused(why)] if why.starts_with("stale")),
        "{outcomes:?}"
    );
    for again in
        [app.client().retry(old.id()).await.map(drop), app.client().call_of(old.id()).await.map(drop)]
    {
        assert!(
            matches!(&again, Err(ControlError::NoMessage { why, .. }) if why.starts_with("stale")),
            "{again:?}"
        );
    }
    running.stop().await;

    let malformed = machinist_core::Signature::new("add").arg("no number");
    let failed = app.client().send(malformed).await.unwrap();
    let running = harness.work(&app);
    assert!(failed.wait(SOON).await.is_err());
    harness.dead("math", 2).await;
    running.stop().await;
    tokio::time::sleep(HOUR).await;
    let again = app.client().retry(failed.id()).await.unwrap();
    let letters = app.client().dead_letters(&DeadFilter::default(), 9).await.unwrap();
    assert_eq!(letters.len(), 2);
    let outcomes = replay(&app).await;
    assert_eq!(outcomes[1], DeadLetterOutcome::Replayed(again.id().clone()), "{outcomes:?}");
    assert_eq!(harness.added(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_end_that_no_worker_signed_is_no_reason_to_send_again() {
    let harness = Harness::new();
    let app = harness.app(hmac("k")).await;
    let late = app.client().send(ADD.call((1, 1)).countdown(HOUR)).await.unwrap();
    let mut commit = Commit::new(late.id().clone());
    let end = r#"{"at":5,"state":"FAILURE","kind":"error","error":["made up"]}"#;
    commit.facts = vec![("end".into(), end.into())];
    harness.backend.commit(vec![commit.into()]).await.pop().unwrap().unwrap();
    for refused in
        [app.client().retry(late.id()).await.map(drop), app.client().call_of(late.id()).await.map(drop)]
    {
        assert!(
            matches!(&refused, Err(ControlError::NoMessage { why, .. }) if why.contains("no signature")),
            "{refused:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_that_may_not_send_it_does_not_vouch_for_a_letter() {
    let harness = Harness::new();
    let (web, own) = (hmac("web"), hmac("own"));
    let limited = verify(&web).for_tasks(["other"]).unwrap();
    let app = harness.app(Keyring::new([own, limited]).unwrap()).await;
    // Another installation's worker with the key of a sender here buries what it likes.
    let elsewhere = harness.app(web).await;
    let malformed = machinist_core::Signature::new("add").arg("no number");
    let failed = elsewhere.client().send(malformed).await.unwrap();
    let running = harness.work(&elsewhere);
    assert!(failed.wait(SOON).await.is_err());
    assert_eq!(harness.dead("math", 1).await, ["malformed"]);
    running.stop().await;
    let letters = app.client().dead_letters(&DeadFilter::default(), 9).await.unwrap();
    assert_eq!(letters[0].reason, "unverified");
    assert!(letters[0].error.message().contains("key web is not for the task"), "{letters:?}");
    assert!(matches!(replay(&app).await[..], [DeadLetterOutcome::Refused(_)]));
    assert_eq!(letters[0].queue, queue("math"));
}

#[tokio::test(start_paused = true)]
async fn what_a_key_sent_in_its_time_can_be_sent_again_after_it() {
    let harness = Harness::new();
    let (web, own) = (hmac("web"), hmac("own"));
    let sender = harness.app(web.clone()).await;
    let until = sender.clock().now().plus(HOUR);
    let app = harness.app(Keyring::new([own.clone(), verify(&web).not_after(until)]).unwrap()).await;
    let running = harness.work(&app);
    let failed = sender.client().send(machinist_core::Signature::new("add").arg("no number")).await.unwrap();
    assert!(app.result(failed.id().clone()).wait(SOON).await.is_err());
    harness.dead("math", 1).await;
    tokio::time::sleep(2 * HOUR).await;
    let again = app.client().retry(failed.id()).await.unwrap();
    let end = again.wait_record(SOON).await.unwrap();
    assert_eq!(end.kind, Some(FailureKind::Malformed), "it ran: {end:?}");
    let before = app.result(failed.id().clone()).record().await.unwrap();
    assert!(end.sent_at > before.ended_at, "the new task was sent now");
    // Once more, from the letter of the second.
    harness.dead("math", 2).await;
    let third = app.client().retry(again.id()).await.unwrap();
    assert_eq!(third.wait_record(SOON).await.unwrap().kind, Some(FailureKind::Malformed));
    running.stop().await;
    let revoked = harness.app(Keyring::new([own, Key::revoked("web").unwrap()]).unwrap()).await;
    let refused = revoked.client().retry(third.id()).await;
    assert!(
        matches!(&refused, Err(ControlError::NoMessage { why, .. }) if why.contains("revoked")),
        "{refused:?}"
    );
}
