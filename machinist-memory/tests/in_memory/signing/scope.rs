//! A signature holds in one namespace and one realm.

use machinist_core::{AppBuilder, ResultError};

use super::support::{ADD, Harness, SOON, hmac};

/// Namespace and realm that the tasks of these tests are signed for.
const OWN: (&str, &str) = ("ab", "c");

fn within(builder: AppBuilder, (namespace, realm): (&str, &str)) -> AppBuilder {
    builder.namespace(namespace).realm(realm)
}

#[tokio::test(start_paused = true)]
async fn a_captured_message_runs_in_no_other_namespace_or_realm() {
    for other in [("", "c"), ("ab", ""), ("a", "bc"), ("abc", ""), ("c", "ab")] {
        let harness = Harness::new();
        let key = hmac("shared");
        let sender = within(harness.builder().keyring(key.clone()), OWN).build().await.unwrap();
        let sent = sender.client().send(ADD.call((1, 2))).await.unwrap();
        let captured = harness.take("math").await;

        let elsewhere = within(harness.builder().keyring(key.clone()), other).build().await.unwrap();
        let running = harness.work(&elsewhere);
        harness.publish("math", captured.clone()).await;
        assert_eq!(harness.dead("math", 1).await, ["bad-signature"], "{other:?}");
        let letter = harness.broker.dead_letters(&super::support::queue("math")).remove(0);
        let error = letter.headers["machinist-dead-error"].as_text().unwrap().to_owned();
        assert!(error.contains(&format!("another namespace than {:?}", other.0)), "{error}");
        running.stop().await;
        assert_eq!(harness.added(), 0);

        let here = within(harness.builder().keyring(key), OWN).build().await.unwrap();
        let _running = harness.work(&here);
        harness.publish("math", captured).await;
        assert_eq!(sent.wait(SOON).await.unwrap(), 3, "what makes it refused there is nothing else");
    }
}

#[tokio::test(start_paused = true)]
async fn a_result_is_believed_in_its_own_namespace_and_realm_alone() {
    let harness = Harness::new();
    let key = hmac("shared");
    let here = within(harness.builder().keyring(key.clone()), OWN).build().await.unwrap();
    let _running = harness.work(&here);
    let sent = here.client().send(ADD.call((1, 2))).await.unwrap();
    assert_eq!(sent.wait(SOON).await.unwrap(), 3);
    for other in [("a", "bc"), ("ab", "d")] {
        let elsewhere = within(harness.builder().keyring(key.clone()), other).build().await.unwrap();
        let refused = elsewhere.client().result(sent.id().clone()).wait(SOON).await;
        let Err(ResultError::Forged { reason, .. }) = refused else { panic!("{refused:?}") };
        assert!(reason.contains("another namespace"), "{reason}");
    }
}
