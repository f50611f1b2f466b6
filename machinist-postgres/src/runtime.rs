//! The thread of a store, with a runtime for all its connections.
//!
//! The half of a connection that reads and writes is a task of the runtime that opened it. Callers come from several runtimes,
//! and one of them may be blocked by a handler, or gone.

use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};

use crate::error::PostgresError;

/// Time that messages have to be handed back when the last user of a store has dropped it.
const FAREWELL: Duration = Duration::from_secs(1);

/// The runtime of a store.
#[derive(Debug)]
pub(crate) struct StoreRuntime(Option<Runtime>);

impl StoreRuntime {
    pub(crate) fn start() -> Result<Self, PostgresError> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(4)
            .thread_name("machinist-postgres")
            .enable_all()
            .build();
        let refused =
            |error| PostgresError::refused(format!("cannot start the thread of the store: {error}"));
        Ok(Self(Some(runtime.map_err(refused)?)))
    }

    /// Returns a handle that starts tasks on the thread.
    pub(crate) fn handle(&self) -> Result<&Handle, PostgresError> {
        self.0.as_ref().map(Runtime::handle).ok_or_else(PostgresError::closed)
    }

    /// Runs a request on the thread. It goes on if the caller stops waiting.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        request: impl Future<Output = Result<T, PostgresError>> + Send + 'static,
    ) -> Result<T, PostgresError> {
        let task = self.handle()?.spawn(request);
        task.await.unwrap_or_else(|_| Err(PostgresError::closed()))
    }

    /// Ends the thread in the background, after `farewell` or a short time.
    pub(crate) fn end_after(&mut self, farewell: impl Future<Output = ()> + Send + 'static) {
        let Some(runtime) = self.0.take() else { return };
        // A runtime must not be awaited inside another one.
        let end = move || {
            if runtime.block_on(async { tokio::time::timeout(FAREWELL, farewell).await }).is_err() {
                tracing::debug!(
                    "the server did not answer in time at the end of a store; its lease ends by itself"
                );
            }
            runtime.shutdown_timeout(FAREWELL);
        };
        let thread = std::thread::Builder::new().name("machinist-postgres-end".to_owned());
        if let Err(error) = thread.spawn(end) {
            tracing::warn!(%error, "no thread for the end of a store; messages come back with its lease");
        }
    }
}

impl Drop for StoreRuntime {
    fn drop(&mut self) {
        self.end_after(async {});
    }
}
