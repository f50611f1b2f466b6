//! State of a worker, as its session shows it to people, and the state that people want it to be in.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::sync::{Notify, watch};

use crate::record::PresenceState;

/// The state of a worker and the state that people want.
#[derive(Debug, Default)]
pub(super) struct Presence {
    state: watch::Sender<PresenceState>,
    /// `true` if people want the worker to sleep.
    sleep: watch::Sender<bool>,
    broker_away: AtomicBool,
    /// Wakes the renewals.
    pub(super) woken: Arc<Notify>,
}

impl Presence {
    /// Returns the state.
    pub(super) fn state(&self) -> PresenceState {
        *self.state.borrow()
    }

    /// Sets the state, and lets the session show it soon.
    pub(super) fn show(&self, state: PresenceState) {
        let changed = self.state.send_if_modified(|shown| std::mem::replace(shown, state) != state);
        if changed {
            self.woken.notify_one();
        }
    }

    /// Returns `true` if the connection to the broker is lost.
    pub(super) fn broker_is_away(&self) -> bool {
        self.broker_away.load(Ordering::Relaxed)
    }

    /// Sets whether the connection to the broker is lost.
    pub(super) fn set_broker_away(&self, away: bool) {
        self.broker_away.store(away, Ordering::Relaxed);
    }

    /// Sets whether the worker has to sleep. Returns `true` if that is new.
    pub(super) fn want_sleep(&self, sleep: bool) -> bool {
        self.sleep.send_if_modified(|wanted| std::mem::replace(wanted, sleep) != sleep)
    }

    /// Returns `true` if nothing may start, because the worker has to sleep.
    pub(super) fn must_sleep(&self) -> bool {
        *self.sleep.borrow()
    }

    /// Completes when the worker has to sleep, or need not sleep any more.
    pub(super) async fn sleep_is(&self, sleep: bool) {
        // The sender lives in self, so waiting cannot fail.
        drop(self.sleep.subscribe().wait_for(|wanted| *wanted == sleep).await);
    }
}
