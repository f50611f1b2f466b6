//! A worker under way, shared by the tests over the in-memory adapters.

use std::time::Duration;

use machinist_core::{WorkerBuilder, worker::Drained};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

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
