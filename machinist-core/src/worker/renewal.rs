//! Keeps a worker's session alive, and checks the sessions of other workers, for as long as the worker runs.
//!
//! If other processes share the backend, this happens on a separate thread: a handler that blocks its runtime (a
//! blocking call in an `async fn`) must not cost the worker its session, or all its tasks would run once more
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
use crate::{
    backend::Watch,
    id::{RecordId, SessionId},
    record::{control_record, name_record},
};

/// Time that a worker waits after a wake-up before it renews, so that several wake-ups are answered together.
const WAKE_UP_DELAY: Duration = Duration::from_millis(50);
/// Interval at which the worker's runtime shows that it runs.
const TICK_INTERVAL: Duration = Duration::from_millis(500);

/// The renewals of a worker's session. They end when this value is dropped.
pub(super) struct Renewals {
    stop: CancellationToken,
    ended: CancellationToken,
    runtime_tasks: [JoinHandle<()>; 2],
}

impl Renewals {
    /// Starts the renewals: on this runtime if the backend is in this process, otherwise on a separate thread.
    ///
    /// # Errors
    /// An I/O error if the system cannot start the thread.
    pub(super) fn begin(worker: &Arc<WorkerContext>) -> std::io::Result<Self> {
        let stop = CancellationToken::new();
        let ended = CancellationToken::new();
        let woken = Arc::clone(&worker.sessions.presence.woken);
        let probe = RuntimeProbe::new();
        let renewing = {
            let worker = Arc::clone(worker);
            let woken = Arc::clone(&woken);
            let probe = Arc::clone(&probe);
            let stop = stop.clone();
            let ended_on_drop = ended.clone().drop_guard();
            async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = renew_until_stopped(&worker, &woken, &probe) => {}
                }
                drop(ended_on_drop);
            }
        };
        if worker.app.backend().capabilities().shared {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            std::thread::Builder::new().name("machinist-session".to_owned()).spawn(move || {
                runtime.block_on(renewing);
                // Does not wait for what an adapter left on its blocking pool.
                runtime.shutdown_background();
            })?;
        } else {
            tokio::spawn(renewing);
        }
        let sessions = Arc::clone(&worker.sessions);
        let runtime_tasks = [
            tokio::spawn(forward_wake_ups(sessions, woken)),
            tokio::spawn(async move { probe.tick().await }),
        ];
        Ok(Self { stop, ended, runtime_tasks })
    }

    /// Ends the renewals, and waits until the last has ended: a renewal that finds the session closed would open
    /// another.
    pub(super) async fn end(self) {
        self.stop.cancel();
        self.ended.cancelled().await;
    }
}

impl Drop for Renewals {
    fn drop(&mut self) {
        self.stop.cancel();
        self.runtime_tasks.iter().for_each(JoinHandle::abort);
    }
}

/// Renews the session and checks other sessions. Never completes.
async fn renew_until_stopped(worker: &WorkerContext, woken: &Notify, probe: &RuntimeProbe) {
    let sessions = &worker.sessions;
    let lease = sessions.lease();
    let renewing = async {
        let mut silent = false;
        loop {
            tokio::select! {
                () = tokio::time::sleep(lease.renewal()) => {}
                // Several wake-ups at once are answered together.
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
            if let Err(error) = worker.obey_orders().await {
                tracing::debug!(%error, "an order was not answered; the next renewal tries again");
            }
            if let Some(why) = worker.recycling.due(worker.events.tally.counts().processed)
                && !worker.stages.is_draining()
            {
                tracing::info!(why, "this worker ends, to be started again");
                worker.orders.memory().restarts = true;
                worker.stages.drain();
            }
        }
    };
    let checking = async {
        loop {
            tokio::time::sleep(lease.check_interval()).await;
            if let Err(error) = sessions.peers.check(sessions.backend()).await {
                tracing::debug!(%error, "could not check other sessions");
            }
        }
    };
    tokio::join!(renewing, checking);
}

/// Detects that the runtime of the handlers is blocked.
#[derive(Debug)]
struct RuntimeProbe {
    started: Instant,
    /// Time of the last tick, in milliseconds since `started`.
    last_tick: AtomicU64,
}

impl RuntimeProbe {
    fn new() -> Arc<Self> {
        Arc::new(Self { started: Instant::now(), last_tick: AtomicU64::new(0) })
    }

    fn millis(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    async fn tick(&self) {
        loop {
            self.last_tick.store(self.millis(), Ordering::Relaxed);
            tokio::time::sleep(TICK_INTERVAL).await;
        }
    }

    /// Logs if the runtime has not ticked for longer than `limit`, and logs when it ticks again.
    fn report(&self, limit: Duration, silent: &mut bool) {
        let last_tick = self.last_tick.load(Ordering::Relaxed);
        let since = Duration::from_millis(self.millis().saturating_sub(last_tick));
        let was = std::mem::replace(silent, since > limit + TICK_INTERVAL);
        if *silent {
            tracing::error!(
                ?since,
                "this worker's runtime is blocked: a handler makes a blocking call or a long computation in an async \
                 fn. Register it as a blocking task. The session is kept alive; everything else in the worker stands \
                 still"
            );
        } else if was {
            tracing::warn!("this worker's runtime runs again");
        }
    }
}

/// Forwards wake-ups to the renewals. Nothing depends on it: within a lease the renewals read all records anyway.
async fn forward_wake_ups(sessions: Arc<Sessions>, woken: Arc<Notify>) {
    let watch = async |record: &RecordId| match sessions.backend().watch(record).await {
        Ok(watch) => Some(watch),
        Err(error) => {
            tracing::debug!(%record, %error, "a change of this record will only be noticed at the next renewal");
            None
        }
    };
    let mut watched: Option<(SessionId, Watch)> = None;
    let mut named: Option<(Arc<str>, Watch)> = None;
    let mut control: Option<Watch> = None;
    loop {
        let session = sessions.current();
        if watched.as_ref().is_none_or(|(watched, _)| *watched != session) {
            watched = watch(&RecordId::from(&session)).await.map(|watch| (session, watch));
            // What was told before, or is told while nobody listens.
            sessions.look_at_all();
        }
        let name = sessions.held_name();
        if named.as_ref().is_none_or(|(watched, _)| watched != name) {
            named = watch(&name_record(name)).await.map(|watch| (Arc::clone(name), watch));
        }
        if control.is_none() {
            control = watch(&control_record()).await;
        }
        let changed = async |watch: Option<&mut Watch>| match watch {
            Some(watch) => watch.changed().await,
            None => std::future::pending().await,
        };
        tokio::select! {
            // A task was revoked, and nobody says which.
            () = changed(watched.as_mut().map(|(_, watch)| watch)) => {
                sessions.look_at_all();
                woken.notify_one();
            }
            () = changed(named.as_mut().map(|(_, watch)| watch)) => woken.notify_one(),
            () = changed(control.as_mut()) => woken.notify_one(),
            () = tokio::time::sleep(sessions.lease().renewal()) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_runtime_that_does_not_run_is_noticed_and_so_is_its_return() {
        let probe = RuntimeProbe::new();
        let limit = Duration::from_secs(5);
        let mut silent = false;
        tokio::time::advance(limit).await;
        probe.report(limit, &mut silent);
        assert!(!silent);
        tokio::time::advance(Duration::from_secs(1)).await;
        probe.report(limit, &mut silent);
        assert!(silent);
        let ticks = tokio::time::timeout(TICK_INTERVAL / 2, probe.tick()).await;
        assert!(ticks.is_err());
        probe.report(limit, &mut silent);
        assert!(!silent);
    }
}
