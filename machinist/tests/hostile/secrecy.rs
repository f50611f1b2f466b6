//! Encrypted values are found nowhere in the contents of RabbitMQ and Redis.

use std::time::Duration;

use machinist::{
    TaskContext, TaskDef, TaskError, Worker, record,
    sign::{Algorithm, Key, KeyState, Keyring},
};
use machinist_conformance::{eventually, says, within};
use tokio_util::sync::CancellationToken;

use crate::{
    WAIT_TIMEOUT, app, queue,
    servers::{Servers, network},
};

/// Writes its argument to the log, the progress and the result, and fails if it is told to.
const TELL: TaskDef<(String, bool), String> = TaskDef::new("tell");
const SECRET: &str = "the-plain-text-that-nobody-is-to-find";

async fn tell(cx: TaskContext, what: String, fail: bool) -> Result<String, TaskError> {
    cx.progress(1, 2, what.clone());
    cx.log(&what);
    // Long enough that the progress is written separately.
    tokio::time::sleep(Duration::from_secs(1)).await;
    match (cx.attempt(), fail) {
        (1, _) => Err(TaskError::new(what)),
        (_, true) => Err(TaskError::permanent(what)),
        (_, false) => Ok(what),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_encrypted_is_found_nowhere() {
    // Without encryption it is found in all these places, so that the search works.
    for hidden in [false, true] {
        let Some(servers) = network().await else { return };
        let Servers::Network(network) = &servers else { return };
        let sign = Key::generate(Algorithm::HmacSha256, "sign").unwrap();
        let hide = Key::generate(Algorithm::XChaCha20Poly1305, "hide").unwrap();
        let mut of_sender = vec![sign.clone()];
        if hidden {
            of_sender.push(hide.clone());
        }
        let sender = app(&servers, Keyring::new(of_sender).unwrap()).await;
        let reads = hide.with_state(KeyState::Verify);
        let working = app(&servers, Keyring::new([sign.clone(), reads]).unwrap()).await;
        let call = |fail| TELL.call((SECRET.to_owned(), fail)).retries(1);
        let good = sender.client().send(call(false)).await.unwrap();
        let bad = sender.client().send(call(true)).await.unwrap();
        // The backend holds its message too, until it is due.
        let later = call(false).countdown(Duration::from_secs(3600));
        let later = sender.client().send(later).await.unwrap();

        let lying = network.bytes_of_queue("math").await;
        assert!(lying.contains(good.id().as_str()) && lying.contains(bad.id().as_str()));
        assert_eq!(says(&lying, SECRET), !hidden);
        let kept = network.bytes_of_backend().await;
        assert!(kept.contains(later.id().as_str()));
        assert_eq!(says(&kept, SECRET), !hidden);

        let worker = Worker::builder(&working).queue(queue()).task(TELL, tell).build().unwrap();
        let (ready, stop) = (worker.ready(), CancellationToken::new());
        let running = tokio::spawn(worker.run_until(stop.clone().cancelled_owned()));
        within(WAIT_TIMEOUT, "the worker", ready.cancelled()).await;
        let mut seen = None;
        loop {
            let record = good.changed(seen.as_ref(), WAIT_TIMEOUT).await.unwrap();
            assert!(!hidden || !says(&network.bytes_of_backend().await, SECRET), "{record:?}");
            if record.state == record::TaskState::Success {
                assert_eq!(record.history[0].error.message(), SECRET);
                assert_eq!(record.progress.unwrap().note, SECRET);
                break;
            }
            seen = Some(record);
        }
        assert_eq!(good.wait(WAIT_TIMEOUT).await.unwrap(), SECRET);
        let failed = bad.wait_record(WAIT_TIMEOUT).await.unwrap();
        assert_eq!((failed.state, failed.error.unwrap().message()), (record::TaskState::Failure, SECRET));

        let dead = async || network.bytes_of_queue("math.dead").await.contains(bad.id().as_str());
        assert!(eventually(WAIT_TIMEOUT, dead).await, "it is a dead letter");
        stop.cancel();
        within(WAIT_TIMEOUT, "the end of the worker", running).await.unwrap().unwrap();
        let letter = network.bytes_of_queue("math.dead").await;
        assert_eq!(says(&letter, SECRET), !hidden, "{letter}");
        assert_eq!(says(&network.bytes_of_backend().await, SECRET), !hidden);

        // Without the key there is an error.
        if hidden {
            let stranger = app(&servers, Keyring::new([sign]).unwrap()).await;
            let locked = stranger.result(good.id().clone()).wait(WAIT_TIMEOUT).await.unwrap_err().to_string();
            assert!(locked.contains("encrypted with key hide, which is not in the ring here"), "{locked}");
        }
        servers.clean_up().await;
    }
}
