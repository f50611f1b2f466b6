//! State of a worker, as its session shows it to people, and the subscription that people want it to have.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::{Notify, watch};

use crate::{
    affinity::with_base,
    id::{QueueName, QueuePattern},
    record::PresenceState,
    tag::Tag,
};

/// The state of a worker and what people want of it.
#[derive(Debug, Default)]
pub(super) struct Presence {
    state: watch::Sender<PresenceState>,
    wanted: watch::Sender<WantedSubscription>,
    /// Queues to which the worker is subscribed.
    subscribed: watch::Sender<BTreeSet<QueueName>>,
    broker_away: AtomicBool,
    /// `true` while the worker waits for the broker to confirm a subscription.
    subscribing: AtomicBool,
    /// Wakes the renewals.
    pub(super) woken: Arc<Notify>,
}

/// Reason that a worker is asleep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SleepReason {
    /// The reason, for people.
    pub(super) reason: String,
    /// `true` if the worker wakes up without people.
    pub(super) wakes: bool,
}

/// Subscription that people want a worker to have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct WantedSubscription {
    /// `true` if people have paused the worker.
    paused_worker: bool,
    /// Reason for which the worker sleeps by its timetable.
    timetable: Option<String>,
    /// Reason for which its gate is closed.
    gate: Option<String>,
    /// Queues of the worker, and patterns of queues.
    own: BTreeSet<QueuePattern>,
    /// Tags of the worker, sorted.
    tags: Vec<Tag>,
    /// Queues that its patterns and tags add.
    followed: BTreeSet<QueueName>,
    /// Queues that are paused for all workers.
    paused: BTreeSet<QueueName>,
}

impl WantedSubscription {
    /// Returns the queues to which the worker has to be subscribed.
    fn subscription(&self) -> BTreeSet<QueueName> {
        if self.sleeps() {
            return BTreeSet::new();
        }
        let mut queues = self.queues();
        queues.retain(|queue| !self.is_paused(queue));
        queues
    }

    fn sleeps(&self) -> bool {
        self.paused_worker || self.timetable.is_some() || self.gate.is_some()
    }

    /// Returns the reason to be subscribed to nothing.
    fn sleep_reason(&self) -> Option<SleepReason> {
        let (reason, wakes) = if self.paused_worker {
            ("it was paused, and `machinist workers resume` wakes it".to_owned(), false)
        } else if let Some(reason) = self.timetable.as_ref().or(self.gate.as_ref()) {
            (reason.clone(), true)
        } else if !self.subscription().is_empty() {
            return None;
        } else if self.queues().is_empty() {
            ("no queue fits its patterns yet".to_owned(), true)
        } else {
            ("all its queues are paused, and `machinist queues resume` resumes one".to_owned(), false)
        };
        Some(SleepReason { reason, wakes })
    }

    fn queues(&self) -> BTreeSet<QueueName> {
        self.own.iter().filter_map(QueuePattern::queue).chain(self.followed.iter().cloned()).collect()
    }

    /// Returns `true` if the queue is paused, or the queue to which its tasks were sent before their tags made another of it.
    fn is_paused(&self, queue: &QueueName) -> bool {
        !self.paused.is_empty() && with_base(queue).any(|queue| self.paused.contains(&*queue))
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

    /// Sets whether the worker waits for the broker to confirm a subscription.
    pub(super) fn set_subscribing(&self, subscribing: bool) {
        self.subscribing.store(subscribing, Ordering::Relaxed);
    }

    /// Sets whether people have paused the worker.
    pub(super) fn want_sleep(&self, sleep: bool) {
        self.want(|wanted| wanted.paused_worker = sleep);
    }

    /// Sets the reason for which the worker sleeps by its timetable.
    pub(super) fn want_by_timetable(&self, reason: Option<String>) {
        if self.want(|wanted| wanted.timetable = reason) {
            self.woken.notify_one();
        }
    }

    /// Sets the queues of the worker, and its patterns.
    pub(super) fn want_queues(&self, own: BTreeSet<QueuePattern>) {
        self.want(|wanted| wanted.own = own);
    }

    /// Sets the tags of the worker.
    pub(super) fn want_tags(&self, tags: Vec<Tag>) {
        self.want(|wanted| wanted.tags = tags);
    }

    /// Sets the queues that its patterns and tags add.
    pub(super) fn want_followed(&self, followed: BTreeSet<QueueName>) {
        self.want(|wanted| wanted.followed = followed);
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

    /// Sets the reason for which the gate of the worker is closed.
    pub(super) fn want_by_gate(&self, reason: Option<String>) {
        if self.want(|wanted| wanted.gate = reason) {
            self.woken.notify_one();
        }
    }

    /// Returns the reason that the worker is asleep, if it is.
    pub(super) fn sleep_reason(&self) -> Option<SleepReason> {
        let away = || {
            let reason = match self.subscribing.load(Ordering::Relaxed) {
                true => "the broker has not confirmed its subscription yet",
                false => "the backend was away for a long time",
            };
            SleepReason { reason: reason.to_owned(), wakes: true }
        };
        (self.state() == PresenceState::Asleep)
            .then(|| self.wanted.borrow().sleep_reason().unwrap_or_else(away))
    }

    /// Returns `true` if a task of this queue may start.
    pub(super) fn may_start_from(&self, queue: &QueueName) -> bool {
        let wanted = self.wanted.borrow();
        !wanted.sleeps() && !wanted.is_paused(queue)
    }

    /// Returns the queues of the worker, paused or not.
    pub(super) fn queues(&self) -> Vec<QueueName> {
        self.wanted.borrow().queues().into_iter().collect()
    }

    /// Returns the queues and patterns that the worker was given.
    pub(super) fn own_queues(&self) -> BTreeSet<QueuePattern> {
        self.wanted.borrow().own.clone()
    }

    /// Returns the tags of the worker, sorted.
    pub(super) fn tags(&self) -> Vec<Tag> {
        self.wanted.borrow().tags.clone()
    }

    /// Returns the queues that its patterns and tags have added.
    pub(super) fn followed(&self) -> BTreeSet<QueueName> {
        self.wanted.borrow().followed.clone()
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
        presence.want_queues(queues(["a", "b"]).into_iter().map(QueuePattern::from).collect());
        presence.want_paused(queues(["b", "c"]));
        assert_eq!(presence.subscription(), queues(["a"]));
        presence.want_sleep(true);
        assert!(presence.subscription().is_empty());
        presence.want_sleep(false);
        presence.show(PresenceState::Awake);
        assert!(!presence.is_settled());
        presence.set_subscribed(queues(["a"]));
        assert!(presence.is_settled());
        let [a, b] = ["a", "b"].map(|name| QueueName::parse(name).unwrap());
        assert!(presence.may_start_from(&a) && !presence.may_start_from(&b));
    }

    #[test]
    fn a_worker_that_sleeps_says_why() {
        let presence = Presence::default();
        presence.want_queues(["t-*"].map(|name| QueuePattern::parse(name).unwrap()).into());
        presence.show(PresenceState::Asleep);
        let said = |part: &str, wakes: bool| {
            let reason = presence.sleep_reason().unwrap();
            assert!(reason.reason.contains(part) && reason.wakes == wakes, "{reason:?}");
        };
        said("no queue fits", true);
        presence.want_followed(queues(["t-1"]));
        said("the backend", true);
        presence.set_subscribing(true);
        said("the broker", true);
        presence.want_paused(queues(["t-1"]));
        said("queues resume", false);
        presence.want_by_gate(Some("no licence".to_owned()));
        said("no licence", true);
        presence.want_by_timetable(Some("until six".to_owned()));
        said("until six", true);
        presence.want_sleep(true);
        said("workers resume", false);
        presence.show(PresenceState::Awake);
        assert_eq!(presence.sleep_reason(), None);
    }

    #[test]
    fn what_is_followed_is_subscribed_to_and_paused_with_the_queue_of_its_tasks() {
        let presence = Presence::default();
        presence.want_queues(["b", "t-*"].map(|name| QueuePattern::parse(name).unwrap()).into());
        assert_eq!(presence.subscription(), queues(["b"]));
        presence.want_followed(queues(["t-1", "b+gpu"]));
        assert_eq!(presence.subscription(), queues(["b", "b+gpu", "t-1"]));
        presence.want_paused(queues(["b"]));
        assert_eq!(presence.subscription(), queues(["t-1"]));
    }
}
