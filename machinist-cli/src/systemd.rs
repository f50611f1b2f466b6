//! Notifications of systemd: the worker is ready, stops, and is healthy.
//!
//! Outside of a unit with `Type=notify` none of the variables is set, and nothing is sent. The socket may be full, so
//! each notification is written on a thread that may block.

use std::{convert::Infallible, future::pending, time::Duration};

use machinist::worker::Health;
use sd_notify::NotifyState;
use tokio::task::{JoinHandle, spawn_blocking};

/// Variables by which systemd asks for notifications. They are for this process, not for the processes that it starts.
pub(crate) const VARIABLES: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// Sends a notification, and the worker's status as a sentence.
fn notify(state: Option<NotifyState<'static>>, status: String) -> JoinHandle<()> {
    spawn_blocking(move || {
        let mut states: Vec<NotifyState<'_>> = state.into_iter().collect();
        if !status.is_empty() {
            states.push(NotifyState::Status(&status));
        }
        // The worker works without notifications too.
        if let Err(error) = sd_notify::notify(&states) {
            tracing::warn!(%error, "systemd cannot be notified of the worker's state");
        }
    })
}

/// Reports that the worker takes tasks.
pub(crate) fn ready(line: &str) {
    drop(notify(Some(NotifyState::Ready), line.to_owned()));
}

/// Reports that the worker drains.
pub(crate) fn stopping() {
    drop(notify(Some(NotifyState::Stopping), "draining".to_owned()));
}

/// Sends a watchdog notification twice per interval, as long as the worker is healthy. Runs forever.
pub(crate) async fn watchdog(health: &Health) -> Infallible {
    let Some(interval) = sd_notify::watchdog_enabled() else { return pending().await };
    let mut tick = tokio::time::interval((interval / 2).max(Duration::from_millis(10)));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let wrong = health.troubles().await.join("; ");
        let notified = match wrong.is_empty() {
            true => notify(Some(NotifyState::Watchdog), String::new()),
            false => notify(None, machinist::redact::text(&wrong).into_owned()),
        };
        if let Err(error) = notified.await {
            tracing::warn!(%error, "systemd was not notified of the worker's state");
        }
    }
}
