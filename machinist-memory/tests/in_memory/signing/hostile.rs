//! What somebody with access to the broker can try, and what comes of it: a dead letter with a reason. Ten thousand of
//! them against real servers are in the tests of the crate `machinist`.

use std::sync::atomic::Ordering;

use machinist_conformance::{header, without};
use machinist_core::broker::Message;

use super::support::{ADD, HOUR, Harness, SOON, hmac, queue};

#[tokio::test(start_paused = true)]
async fn a_replay_of_an_ended_task_does_nothing() {
    let harness = Harness::new();
    let app = harness.app(hmac("k")).await;
    let sum = app.client().send(ADD.call((2, 3))).await.unwrap();
    let message = harness.take("math").await;
    let _running = harness.work(&app);
    for _ in 0..20 {
        harness.publish("math", message.clone()).await;
    }
    assert_eq!(sum.wait(SOON).await.unwrap(), 5);
    for _ in 0..20 {
        harness.publish("math", message.clone()).await;
    }
    harness.settle().await;
    assert_eq!((harness.added(), harness.broker.dead_letters(&queue("math")).len()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn nothing_that_decides_can_be_changed_or_taken_away() {
    let harness = Harness::new();
    let app = harness.app(hmac("k")).await;
    let late = ADD.call((2, 3)).queue("stolen").countdown(HOUR).expires_in(24 * HOUR).priority(3);
    app.client().send(late).await.unwrap();
    let message = harness.take("stolen").await;
    let worker = harness.worker(&app).queue("stolen").queue("math");
    let _running = super::support::Running::start(worker);
    let seal = message.headers["machinist-signature"].as_text().unwrap();
    let [key, at, signature] = seal.split(' ').collect::<Vec<_>>()[..] else { panic!("{seal}") };
    let at: i64 = at.parse().unwrap();
    let hostile = [
        without(message.clone(), "machinist-eta"),
        header(message.clone(), "machinist-eta", 1),
        without(message.clone(), "machinist-expires"),
        header(message.clone(), "machinist-attempt", 2),
        header(message.clone(), "machinist-generation", 1),
        header(message.clone(), "machinist-retries", 1),
        header(message.clone(), "machinist-postponements", 1),
        header(message.clone(), "machinist-token", 1),
        header(message.clone(), "machinist-unknown-since", 1),
        header(message.clone(), "machinist-issued", 1),
        header(message.clone(), "machinist-signature", format!("{key} {} {signature}", at + 1)),
        header(message.clone(), "machinist-first-key", "other"),
        header(message.clone(), "machinist-signature", format!("{key} {signature}")),
        header(message.clone(), "machinist-signature", format!("{key} soon {signature}")),
        header(message.clone(), "machinist-signature", format!(" {at} {signature}")),
        header(message.clone(), "machinist-signature", format!("{seal} ")),
        header(message.clone(), "machinist-signature", signature),
        header(message.clone(), "machinist-signature", ""),
        without(message.clone(), "traceparent"),
        Message { kind: Some("evil".to_owned()), ..message.clone() },
        Message { id: Some("another".to_owned()), ..message.clone() },
        Message { priority: None, ..message.clone() },
        Message { content_type: Some("application/json".to_owned()), ..message.clone() },
        Message { body: message.body.slice(1..), ..message.clone() },
    ];
    let count = hostile.len();
    for hostile in hostile {
        harness.publish("stolen", hostile).await;
    }
    assert_eq!(harness.dead("stolen", count).await, vec!["bad-signature"; count]);
    // Signed, but for another queue; and with that changed too.
    harness.publish("math", message.clone()).await;
    harness.publish("math", header(message.clone(), "machinist-queue", "math")).await;
    assert_eq!(harness.dead("math", 2).await, ["wrong-queue", "bad-signature"]);
    assert_eq!((harness.added(), harness.ran.evil.load(Ordering::SeqCst)), (0, 0));
    // The message itself is untouched by all of that.
    harness.publish("stolen", message.clone()).await;
    let id = message.id.clone().unwrap();
    let sum = app.result(id.try_into().unwrap()).typed::<i64>();
    assert_eq!(sum.wait(2 * HOUR).await.unwrap(), 5);
}
