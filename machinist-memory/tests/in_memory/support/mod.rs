//! A worker under way, and a backend in which another program has written, shared by the tests over the in-memory
//! adapters.

#![allow(dead_code, reason = "each test uses a part of it")]

mod spoilt_backend;

use std::time::Duration;

use machinist_core::{WorkerBuilder, worker::Drained};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) use spoilt_backend::SpoiltBackend;

/// Sends short tasks one after the other, so that the only worker knows its runs to be short, and holds more deliveries than
/// it has slots.
pub(crate) async fn warm_up<R: machinist_core::args::FromResults>(
    client: &machinist_core::Client,
    short: impl Fn() -> machinist_core::Signature<R>,
) {
    for _ in 0..8 {
        client.send(short()).await.unwrap().wait(Duration::from_secs(60)).await.unwrap();
    }
    // Changes are gathered for a moment.
    tokio::time::sleep(Duration::from_secs(1)).await;
}

/// Waits until a condition holds, at most two minutes.
pub(crate) async fn until(holds: impl AsyncFnMut() -> bool) {
    let within = Duration::from_secs(120);
    assert!(
        machinist_conformance::eventually(within, holds).await,
        "it does not come about within {within:?}"
    );
}

/// Worker that runs in a separate task.
pub(crate) struct Running {
    pub(crate) stop: CancellationToken,
    pub(crate) worker: JoinHandle<Drained>,
}

impl Running {
    /// Builds the worker and starts it.
    pub(crate) fn start(builder: WorkerBuilder) -> Self {
        let (stop, worker) = (CancellationToken::new(), builder.build().unwrap());
        let until = stop.clone().cancelled_owned();
        Self { stop, worker: tokio::spawn(async move { worker.run_until(until).await.unwrap() }) }
    }

    /// Tells the worker to stop, and waits for its end: at most 28 s by its own stages.
    pub(crate) async fn stop(self) -> Drained {
        self.stop.cancel();
        tokio::time::timeout(Duration::from_secs(30), self.worker)
            .await
            .expect("it ends within 28 s")
            .unwrap()
    }
}
