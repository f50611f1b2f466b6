//! Messages that came due for a queue that is gone: strangers among them create nothing, and stop nothing.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::support::{Raw, in_namespace};
use lapin::BasicProperties;
use machinist_conformance::{eventually, within};
use machinist_core::{
    App, DeadFilter, TaskDef, TaskError, Worker,
    broker::{Broker as _, QueueDepth},
    id::QueueName,
    sign::{Algorithm, Key, Keyring},
};
use machinist_memory::MemoryBackend;
use tokio_util::sync::CancellationToken;

/// Maximum time of one step of a test.
const STEP_TIMEOUT: Duration = Duration::from_secs(120);
/// Number of messages of each kind of stranger: more than a worker holds at once.
const STRANGERS: usize = 20;
const IDLE: TaskDef<(), ()> = TaskDef::new("idle");

async fn idle() -> Result<(), TaskError> {
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_become_dead_letters_and_create_no_queue() {
    in_namespace(async |harness| {
        let queue = |name: &str| QueueName::parse(name).unwrap();
        let broker = Arc::new(harness.broker(harness.options()).await);
        let keyring = Keyring::new([Key::generate(Algorithm::HmacSha256, "own").unwrap()]).unwrap();
        let backend = Arc::new(MemoryBackend::new());
        let app = App::builder(broker.clone(), backend).keyring(keyring).build().await.unwrap();
        let client = app.client();

        // A task of ours comes due after the strangers, for a queue that is gone.
        let raw = Raw::connect(&harness.url).await;
        let name = harness.on_broker(&queue("gone"));
        let mut countdown = Duration::from_secs(2);
        let good = loop {
            let began = Instant::now();
            let sent = client.send(IDLE.call(()).queue("gone").countdown(countdown)).await.unwrap();
            raw.delete_queue(&name).await;
            if began.elapsed() < countdown {
                break sent;
            }
            // On a slow machine it was in the queue already, and went with it.
            countdown *= 2;
        };
        let undelivered = format!("{}.undelivered", harness.namespace);
        for number in 0..STRANGERS {
            let named = harness.on_broker(&queue(&format!("evil.{number}")));
            let key = format!("0.0.0.0.0.0.1.{named}");
            for key in [key.as_str(), "strange"] {
                // Equal messages would share one place in the index.
                let body = format!("{key} {number}");
                raw.publish(&undelivered, key, BasicProperties::default(), body.as_bytes()).await;
            }
        }

        let worker = Worker::builder(&app).queue("own").task(IDLE, idle).build().unwrap();
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        let test = async {
            let depth = async |name: &str| -> QueueDepth {
                within(STEP_TIMEOUT, "a depth", broker.depth(&[queue(name)])).await.unwrap().remove(0)
            };
            let moved = eventually(STEP_TIMEOUT, async || depth("gone").await.ready == Some(1));
            assert!(moved.await, "our task {} is not in its queue", good.id());
            let dead =
                eventually(STEP_TIMEOUT, async || depth("own").await.dead == Some(2 * STRANGERS as u64));
            assert!(dead.await, "{:?}", depth("own").await);
            for number in 0..STRANGERS {
                let evil = depth(&format!("evil.{number}")).await;
                assert_eq!((evil.ready, evil.dead), (None, None), "a stranger has created it");
            }
            let listed = eventually(STEP_TIMEOUT, async || {
                let letters = client.dead_letters(&DeadFilter::default(), usize::MAX).await.unwrap();
                letters.iter().any(|letter| letter.error.message().contains("strange"))
            });
            assert!(listed.await, "no letter says that a message named no queue");
            stop.cancel();
        };
        let (drained, ()) = tokio::join!(worker.run_until(stopped), test);
        drained.unwrap();
    })
    .await;
}
