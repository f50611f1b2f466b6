//! Keeps a worker's session alive, and looks at those of others, for as long as the worker runs.
//!
//! Where other processes share the backend, this is done on a thread of its own: a handler that blocks its runtime (a
//! blocking call in an `async fn`) must not cost the worker its session, or everything it runs would be run once more
//! elsewhere.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Notify, task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{WorkerContext, server_calls::jittered, session::Sessions};
use crate::{backend::Watch, id::SessionId, session_channel::session_channel};

/// How long a worker that was rung for waits before it looks.
const WAKE_UP_DELAY: Duration = Duration::from_millis(50);
/// How often the worker's runtime shows that it runs.
const TICK_INTERVAL: Duration = Duration::from_millis(500);

/// The renewals of a worker's session. Dropped, they end.
pub(super) struct Renewals {
    stop: CancellationToken,
    ended: CancellationToken,
    beside: [JoinHandle<()>; 2],
}

impl Renewals {
    /// Begins them: on this runtime if the backend is in this process, else on a thread.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub(super) fn begin(worker: &Arc<WorkerContext>) -> std::io::Result<Self> {
        let (stop, ended) = (CancellationToken::new(), CancellationToken::new());
        let (woken, probe) = (Arc::new(Notify::new()), RuntimeProbe::new());
        let renewing = {
            let (worker, woken, probe) = (Arc::clone(worker), Arc::clone(&woken), Arc::clone(&probe));
            let (stop, told) = (stop.clone(), ended.clone().drop_guard());
            async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = renew_until_stopped(&worker, &woken, &probe) => {}
                }
                drop(told);
            }
        };
        if worker.app.backend().capabilities().shared {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            std::thread::Builder::new().name("machinist-session".to_owned()).spawn(move || {
                runtime.block_on(renewing);
                // Not for what an adapter left on its blocking pool.
                runtime.shutdown_background();
            })?;
        } else {
            tokio::spawn(renewing);
        }
        let sessions = Arc::clone(&worker.sessions);
        let beside = [
            tokio::spawn(forward_wake_ups(sessions, woken)),
            tokio::spawn(async move { probe.tick().await }),
        ];
        Ok(Self { stop, ended, beside })
    }

    /// Ends them, and waits until the last has ended: one that finds the session closed would open another.
    pub(super) async fn end(self) {
        self.stop.cancel();
        self.ended.cancelled().await;
    }
}

impl Drop for Renewals {
    fn drop(&mut self) {
        self.stop.cancel();
        self.beside.iter().for_each(JoinHandle::abort);
    }
}

/// Renews and looks for ever.
async fn renew_until_stopped(worker: &WorkerContext, woken: &Notify, probe: &RuntimeProbe) {
    let (sessions, lease) = (&worker.sessions, worker.sessions.lease());
    let renewing = async {
        let mut silent = false;
        loop {
            tokio::select! {
                () = tokio::time::sleep(lease.renewal()) => {}
                // Many who ring at once are answered together.
                () = woken.notified() => tokio::time::sleep(WAKE_UP_DELAY).await,
            }
            probe.report(lease.renewal(), &mut silent);
            while let Err(error) = sessions.renew(&worker.calls).await {
                worker.calls.answered(false);
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "the session was not renewed; trying again"
                );
                tokio::time::sleep(jittered(lease.renewal() / 5)).await;
            }
            worker.calls.answered(true);
        }
    };
    let looking = async {
        loop {
            tokio::time::sleep(lease.check_interval()).await;
            if let Err(error) = sessions.check_interval().await {
                tracing::debug!(%error, "could not look at other sessions");
            }
        }
    };
    tokio::join!(renewing, looking);
}

/// Whether the runtime that runs the handlers runs at all.
#[derive(Debug)]
struct RuntimeProbe {
    begun: Instant,
    /// When it last beat, in milliseconds since it began.
    last: AtomicU64,
}

impl RuntimeProbe {
    fn new() -> Arc<Self> {
        Arc::new(Self { begun: Instant::now(), last: AtomicU64::new(0) })
    }

    fn millis(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    async fn tick(&self) {
        loop {
            self.last.store(self.millis(), Ordering::Relaxed);
            tokio::time::sleep(TICK_INTERVAL).await;
        }
    }

    /// Says so if it has been silent for longer than this, and when it beats again.
    fn report(&self, patience: Duration, silent: &mut bool) {
        let since = Duration::from_millis(self.millis().saturating_sub(self.last.load(Ordering::Relaxed)));
        let was = std::mem::replace(silent, since > patience + TICK_INTERVAL);
        if *silent {
            tracing::error!(
                ?since,
                "this worker's runtime is blocked: a handler makes a blocking call, or computes for long, in an async \
                 fn. Register it as a blocking task. Its session is kept alive; nothing else goes on meanwhile"
            );
        } else if was {
            tracing::warn!("this worker's runtime runs again");
        }
    }
}

/// Tells of those who ring. Nothing depends on it: at its next renewal the worker looks anyway.
async fn forward_wake_ups(sessions: Arc<Sessions>, woken: Arc<Notify>) {
    let mut watched: Option<(SessionId, Watch)> = None;
    loop {
        let session = sessions.current();
        if watched.as_ref().is_none_or(|(watched, _)| *watched != session) {
            // INVARIANT: our own session's name is a UUID.
            let channel = session_channel(&session).expect("a short text");
            watched = match sessions.backend().watch(&channel).await {
                Ok(watch) => Some((session, watch)),
                Err(error) => {
                    tracing::debug!(%error, "a revoked task will be noticed at a renewal only");
                    None
                }
            };
        }
        let wake_up = async {
            match &mut watched {
                Some((_, watch)) => watch.changed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = wake_up => woken.notify_one(),
            () = tokio::time::sleep(sessions.lease().renewal()) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_runtime_that_does_not_run_is_noticed_and_so_is_its_return() {
        let (probe, patience, mut silent) = (RuntimeProbe::new(), Duration::from_secs(5), false);
        tokio::time::advance(patience).await;
        probe.report(patience, &mut silent);
        assert!(!silent);
        tokio::time::advance(Duration::from_secs(1)).await;
        probe.report(patience, &mut silent);
        assert!(silent);
        let beats = tokio::time::timeout(TICK_INTERVAL / 2, probe.tick()).await;
        assert!(beats.is_err());
        probe.report(patience, &mut silent);
        assert!(!silent);
    }
}
