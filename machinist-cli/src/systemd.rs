//! What systemd is told, where it asks to be: that the worker is ready, that it stops, and that it is well.
//!
//! Outside of a unit with `Type=notify` none of the variables is set, and nothing is told. The socket may be full while
//! nobody reads it, so whoever writes there has a thread to wait on.

use std::{convert::Infallible, future::pending, time::Duration};

use machinist::worker::Health;
use sd_notify::NotifyState;
use tokio::task::{JoinHandle, spawn_blocking};

/// The variables by which it asks. They are meant for this process, and not for what it starts.
pub(crate) const VARIABLES: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// Tells it one thing, and how things are, in a sentence.
fn tell(what: Option<NotifyState<'static>>, status: String) -> JoinHandle<()> {
    spawn_blocking(move || {
        let mut states: Vec<NotifyState<'_>> = what.into_iter().collect();
        if !status.is_empty() {
            states.push(NotifyState::Status(&status));
        }
        // That it cannot be told is no reason not to work.
        if let Err(error) = sd_notify::notify(&states) {
            tracing::warn!(%error, "systemd cannot be told how the worker is");
        }
    })
}

/// The worker takes tasks.
pub(crate) fn ready(line: &str) {
    drop(tell(Some(NotifyState::Ready), line.to_owned()));
}

/// The worker drains.
pub(crate) fn stopping() {
    drop(tell(Some(NotifyState::Stopping), "draining".to_owned()));
}

/// Tells it twice in each of its intervals that the worker is well, while it is; for ever.
pub(crate) async fn watchdog(health: &Health) -> Infallible {
    let Some(interval) = sd_notify::watchdog_enabled() else { return pending().await };
    let mut tick = tokio::time::interval((interval / 2).max(Duration::from_millis(10)));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let wrong = health.troubles().await.join("; ");
        let told = match wrong.is_empty() {
            true => tell(Some(NotifyState::Watchdog), String::new()),
            false => tell(None, machinist::redact::text(&wrong).into_owned()),
        };
        if let Err(error) = told.await {
            tracing::warn!(%error, "systemd was not told how the worker is");
        }
    }
}
