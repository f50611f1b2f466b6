//! State of a worker, as its session shows it to people, and the subscription that people want it to have.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::{Notify, watch};

use crate::{id::QueueName, record::PresenceState};

/// The state of a worker and what people want of it.
#[derive(Debug, Default)]
pub(super) struct Presence {
    state: watch::Sender<PresenceState>,
    wanted: watch::Sender<WantedSubscription>,
    /// Queues to which the worker is subscribed.
    subscribed: watch::Sender<BTreeSet<QueueName>>,
    broker_away: AtomicBool,
    /// Wakes the renewals.
    pub(super) woken: Arc<Notify>,
}

/// Subscription that people want a worker to have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct WantedSubscription {
    /// `true` if the worker has to sleep.
    sleep: bool,
    /// Queues of the worker.
    queues: BTreeSet<QueueName>,
    /// Queues that are paused for all workers.
    paused: BTreeSet<QueueName>,
}

impl WantedSubscription {
    /// Returns the queues to which the worker has to be subscribed.
    fn subscription(&self) -> BTreeSet<QueueName> {
        if self.sleep { BTreeSet::new() } else { self.queues.difference(&self.paused).cloned().collect() }
    }
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
        self.want(|wanted| wanted.sleep = sleep)
    }

    /// Sets the queues of the worker.
    pub(super) fn want_queues(&self, queues: impl IntoIterator<Item = QueueName>) {
        let queues = queues.into_iter().collect();
        self.want(|wanted| wanted.queues = queues);
    }

    /// Sets the queues that are paused for all workers.
    pub(super) fn want_paused(&self, paused: BTreeSet<QueueName>) {
        self.want(|wanted| wanted.paused = paused);
    }

    fn want(&self, change: impl FnOnce(&mut WantedSubscription)) -> bool {
        self.wanted.send_if_modified(|wanted| {
            let before = wanted.clone();
            change(wanted);
            *wanted != before
        })
    }

    /// Returns `true` if people want the worker to sleep.
    pub(super) fn must_sleep(&self) -> bool {
        self.wanted.borrow().sleep
    }

    /// Returns `true` if a task of this queue may start.
    pub(super) fn may_start_from(&self, queue: &QueueName) -> bool {
        let wanted = self.wanted.borrow();
        !wanted.sleep && !wanted.paused.contains(queue)
    }

    /// Returns the queues of the worker, paused or not.
    pub(super) fn queues(&self) -> Vec<QueueName> {
        self.wanted.borrow().queues.iter().cloned().collect()
    }

    /// Returns the queues to which the worker has to be subscribed.
    pub(super) fn subscription(&self) -> BTreeSet<QueueName> {
        self.wanted.borrow().subscription()
    }

    /// Completes when the worker has to be subscribed to other queues than these.
    pub(super) async fn wants_other_than(&self, queues: &BTreeSet<QueueName>) {
        // The sender lives in self, so waiting cannot fail.
        drop(self.wanted.subscribe().wait_for(|wanted| wanted.subscription() != *queues).await);
    }

    /// Notes the queues to which the worker is subscribed.
    pub(super) fn set_subscribed(&self, queues: BTreeSet<QueueName>) {
        let changed = self.subscribed.send_if_modified(|subscribed| {
            let changed = *subscribed != queues;
            *subscribed = queues;
            changed
        });
        if changed {
            self.woken.notify_one();
        }
    }

    /// Returns `true` if the worker is subscribed to what is wanted.
    pub(super) fn is_settled(&self) -> bool {
        let starting = self.state() == PresenceState::Starting;
        !starting && *self.subscribed.borrow() == self.wanted.borrow().subscription()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queues<const N: usize>(names: [&str; N]) -> BTreeSet<QueueName> {
        names.into_iter().map(|name| QueueName::parse(name).unwrap()).collect()
    }

    #[test]
    fn a_worker_subscribes_to_its_queues_that_are_not_paused_unless_it_sleeps() {
        let presence = Presence::default();
        presence.want_queues(queues(["a", "b"]));
        presence.want_paused(queues(["b", "c"]));
        assert_eq!(presence.subscription(), queues(["a"]));
        assert!(presence.want_sleep(true) && !presence.want_sleep(true));
        assert!(presence.subscription().is_empty());
        presence.want_sleep(false);
        presence.show(PresenceState::Awake);
        assert!(!presence.is_settled());
        presence.set_subscribed(queues(["a"]));
        assert!(presence.is_settled());
        let [a, b] = ["a", "b"].map(|name| QueueName::parse(name).unwrap());
        assert!(presence.may_start_from(&a) && !presence.may_start_from(&b));
    }
}
