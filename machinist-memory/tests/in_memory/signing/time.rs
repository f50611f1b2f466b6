//! Revoking, running at once and sending again, where keys are.

use machinist_core::{
    ControlError, ResultError, Revoked, SendError,
    backend::{Backend, Commit},
    record::FailureKind,
    sign::{Key, KeyState},
};

use super::support::{ADD, EVIL, HOUR, Harness, SOON, hmac};

fn reader(key: &Key) -> Key {
    key.clone().with_state(KeyState::Verify)
}

#[tokio::test(start_paused = true)]
async fn who_holds_a_key_revokes_and_is_believed() {
    let harness = Harness::new();
    let app = harness.app(hmac("k")).await;
    let task = app.client().send(ADD.call((1, 1)).countdown(HOUR)).await.unwrap();
    let cannot = harness.app(reader(&hmac("k"))).await.client().revoke(task.id()).await;
    assert!(matches!(cannot, Err(ControlError::Send(SendError::Key { .. }))), "{cannot:?}");
    assert_eq!(app.client().revoke(task.id()).await.unwrap(), Revoked::Ended);
    let ended = task.wait(SOON).await;
    assert!(matches!(ended, Err(ResultError::Failed { kind: FailureKind::Revoked, .. })), "{ended:?}");
}

#[tokio::test(start_paused = true)]
async fn what_is_sent_again_is_signed_anew() {
    let harness = Harness::new();
    let app = harness.app(hmac("k")).await;
    let client = app.client();
    let _running = harness.work(&app);
    let delayed = client.send(ADD.call((1, 2)).countdown(HOUR)).await.unwrap();
    client.run_now(delayed.id()).await.unwrap();
    assert_eq!(delayed.wait(SOON).await.unwrap(), 3);
    let failed = client.send(ADD.call((1, 2)).queue("math").named_arg("x", "too many")).await.unwrap();
    assert!(failed.wait(SOON).await.is_err());
    let again = client.retry(failed.id()).await.unwrap();
    let malformed = again.wait(SOON).await;
    assert!(
        matches!(malformed, Err(ResultError::Failed { kind: FailureKind::Malformed, .. })),
        "it was believed, and run: {malformed:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_message_that_was_slipped_into_a_record_is_not_sent() {
    let harness = Harness::new();
    let app = harness.app(hmac("k")).await;
    let client = app.client();
    let victim = client.send(ADD.call((1, 1)).countdown(HOUR)).await.unwrap();
    let other = client.send(EVIL.call(("rm".to_owned(),)).countdown(HOUR)).await.unwrap();
    let facts = harness.backend.read(&[victim.id().into(), other.id().into()]).await.unwrap();
    let message = |of: usize| String::from_utf8(facts[of].get("msg").unwrap().to_vec()).unwrap();
    let forged = message(0).replace(r#""kind":"add""#, r#""kind":"evil""#);
    for text in [message(1), forged] {
        let mut commit = Commit::new(victim.id().clone());
        commit.drop = vec!["msg".into()];
        commit.facts = vec![("msg".into(), text.into())];
        harness.backend.commit(vec![commit.into()]).await;
        let refused = client.run_now(victim.id()).await;
        assert!(matches!(refused, Err(ControlError::NoMessage { .. })), "{refused:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_revoked_task_is_kept_as_long_as_its_message_is_fresh() {
    let harness = Harness::new();
    let day = 24 * HOUR;
    let app = harness.builder().keyring(hmac("k")).freshness(20 * HOUR).build().await.unwrap();
    let late = app.client().send(ADD.call((1, 1)).countdown(3 * day)).await.unwrap();
    assert_eq!(app.client().revoke(late.id()).await.unwrap(), Revoked::Ended);
    // A copy of its message comes long after its due time, and is still fresh.
    let facts = harness.backend.read(&[late.id().into()]).await.unwrap().remove(0);
    assert!(!facts.is_empty());
    tokio::time::sleep(3 * day + 19 * HOUR).await;
    let ended = late.record().await.unwrap();
    assert_eq!(ended.kind, Some(FailureKind::Revoked));
}

#[tokio::test(start_paused = true)]
async fn nobody_sends_a_task_for_the_next_century() {
    let harness = Harness::new();
    let app = harness.app(hmac("k")).await;
    let refused = app.client().send(ADD.call((1, 1)).countdown(100 * 366 * 24 * HOUR)).await;
    assert!(
        matches!(&refused, Err(SendError::Invalid(why)) if why.contains("more than ten years away")),
        "{refused:?}"
    );
}
