//! Signed dead letters on a real broker: what it adds to a message does not spoil the mark, and a letter behind more letters
//! than a scan holds is found.

use std::{sync::Arc, time::Duration};

use crate::support::{Harness, in_namespace};
use machinist_conformance::{eventually, within};
use machinist_core::{
    App, DeadFilter, DeadLetterOutcome, TaskDef, TaskError, Worker,
    broker::Broker,
    id::QueueName,
    sign::{Algorithm, Key},
};
use machinist_memory::MemoryBackend;

/// Maximum time of the test.
const TEST_TIMEOUT: Duration = Duration::from_secs(300);
/// More than a scan holds at once.
const LETTERS: u32 = 300;
const FAIL: TaskDef<(u32,), ()> = TaskDef::new("fail");

#[tokio::test]
async fn a_signed_letter_behind_many_is_found_and_the_others_stay() {
    in_namespace(async |harness| within(TEST_TIMEOUT, "many letters", behind_many(harness)).await).await;
}

async fn behind_many(harness: &Harness) {
    let broker: Arc<dyn Broker> = Arc::new(harness.broker(harness.options()).await);
    let key = Key::generate(Algorithm::Ed25519, "k").unwrap();
    let app = App::builder(Arc::clone(&broker), Arc::new(MemoryBackend::new())).keyring(key);
    let app = app.build().await.unwrap();
    let queue = QueueName::parse("many").unwrap();
    let client = app.client();
    let fail = async |n: u32| -> Result<(), TaskError> { Err(TaskError::permanent(format!("no {n}"))) };
    let worker = Worker::builder(&app).queue("many").task(FAIL, fail).build().unwrap();
    let running = tokio::spawn(worker.run_until(std::future::pending()));
    let signatures = (0..LETTERS).map(|n| FAIL.call((n,)).queue("many").untyped()).collect();
    for sent in client.send_all(signatures).await {
        sent.unwrap();
    }
    let letters = async || client.dead_letters(&DeadFilter::default(), usize::MAX).await.unwrap();
    let all_there = async || letters().await.len() == LETTERS as usize;
    assert!(eventually(TEST_TIMEOUT, all_there).await);
    running.abort();
    assert!(letters().await.iter().all(|letter| letter.reason == "failed"), "a worker signed all");

    let wanted = letters().await.into_iter().last().unwrap();
    let mut outcomes = Vec::new();
    let tell = |_: &_, outcome| outcomes.push(outcome);
    client.replay_dead_letters(std::slice::from_ref(&wanted), Duration::ZERO, tell).await.unwrap();
    assert!(matches!(outcomes[..], [DeadLetterOutcome::Replayed(_)]), "{outcomes:?}");
    let lying = async || broker.depth(std::slice::from_ref(&queue)).await.unwrap()[0].dead;
    assert!(eventually(TEST_TIMEOUT, async || lying().await == Some(u64::from(LETTERS) - 1)).await);
    assert_eq!(letters().await.len(), LETTERS as usize - 1);

    let rest = letters().await;
    let mut purged = 0;
    let tell = |_: &_, outcome| {
        assert_eq!(outcome, DeadLetterOutcome::Purged);
        purged += 1;
    };
    client.purge_dead_letters(&rest, Duration::ZERO, tell).await.unwrap();
    assert_eq!(purged, LETTERS - 1);
    assert!(eventually(TEST_TIMEOUT, async || lying().await == Some(0)).await);
    broker.close().await;
}
