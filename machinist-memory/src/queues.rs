//! State of the in-memory broker: queues, subscriptions and unsettled messages.
//!
//! Plain data under one lock; the instant is an argument. No background task moves messages: every reader of a queue
//! first makes ready the messages that have come due. A delivered message stays here until it is settled, so that a
//! lost receipt, a lost consumer and a lost connection are handled alike: the tag is removed and the message returns to
//! its old position.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use machinist_adapter::{
    broker::{HeldCounts, Message, Publish, QueueDepth, Settle, Settled, Target},
    id::QueueName,
};

/// Maximum delay that is applied: as good as forever. tokio's clock cannot represent much longer ones.
pub(super) const MAX_DELAY: Duration = Duration::from_secs(86400 * 365 * 30);

#[derive(Debug, Default)]
pub(super) struct MemoryQueues {
    by_name: HashMap<Target, Queue>,
    /// Open connections.
    connections: HashSet<u64>,
    subscriptions: HashMap<u64, MemorySubscription>,
    /// Delivered but unsettled messages, by the tag in their receipts.
    unsettled: HashMap<u64, UnsettledMessage>,
    last_number: u64,
    /// Number of times that all connections were lost.
    interruptions: u64,
}

/// A message that a queue holds.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct HeldMessage {
    /// The queue.
    pub queue: QueueName,
    /// The message.
    pub message: Message,
    /// Reason that it is still there.
    pub place: MessagePlace,
}

/// Reason that a message is still in its queue: it waits for this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum MessagePlace {
    /// A consumer.
    Ready,
    /// This instant.
    Delayed(Instant),
    /// The consumer that has it, to settle it.
    Unsettled,
}

/// Position of a message in its queue: by priority, then by arrival.
type ReadyKey = (Reverse<u8>, u64);

#[derive(Debug, Default)]
struct Queue {
    ready: BTreeMap<ReadyKey, QueuedMessage>,
    /// By due time, then by arrival.
    delayed: BTreeMap<(Instant, u64), Message>,
}

#[derive(Debug)]
struct QueuedMessage {
    message: Message,
    delivered_before: bool,
}

#[derive(Debug)]
struct MemorySubscription {
    connection: u64,
    targets: Vec<Target>,
    credit: u16,
    /// Number of unsettled deliveries that use credit.
    unsettled: u16,
    /// Number of pauses so far. Deliveries from before the last pause use no credit.
    pauses: u64,
    /// Position of the queue that is checked first, so that a full queue does not starve the others.
    next_target: usize,
    wake: Arc<Notify>,
}

#[derive(Debug)]
struct UnsettledMessage {
    connection: u64,
    subscription: u64,
    /// Number of pauses of the subscription at the time of the delivery.
    pauses: u64,
    queue: Target,
    position: ReadyKey,
    message: Message,
}

/// Result of asking for the next message of a subscription.
#[expect(
    clippy::large_enum_variant,
    reason = "it is taken apart where it is returned; a box would cost each delivery"
)]
pub(super) enum NextDelivery {
    Delivery {
        tag: u64,
        queue: QueueName,
        message: Message,
        redelivered: bool,
    },
    /// Nothing; the next delayed message comes due at this instant.
    Nothing(Option<Instant>),
    /// The subscription has ended.
    Ended,
}

impl MemoryQueues {
    fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    pub(super) fn open_connection(&mut self) -> u64 {
        let connection = self.next_number();
        self.connections.insert(connection);
        connection
    }

    pub(super) fn is_open(&self, connection: u64) -> bool {
        self.connections.contains(&connection)
    }

    /// Ends the subscriptions of a connection and hands back its unsettled messages.
    pub(super) fn close_connection(&mut self, connection: u64) {
        self.connections.remove(&connection);
        let ended = self.subscriptions.extract_if(|_, subscription| subscription.connection == connection);
        ended.for_each(|(_, subscription)| subscription.wake.notify_one());
        self.hand_back(|unsettled_message| unsettled_message.connection == connection);
    }

    /// Creates a subscription. Returns its number, and the signal that is notified when it may have something to do.
    pub(super) fn subscribe(
        &mut self,
        connection: u64,
        targets: Vec<Target>,
        prefetch: u16,
    ) -> (u64, Arc<Notify>) {
        for target in &targets {
            // A dead letter queue is only inspected: whether it exists must stay visible.
            if matches!(target, Target::Queue(_)) {
                self.by_name.entry(target.clone()).or_default();
            }
        }
        let number = self.next_number();
        let wake = Arc::new(Notify::new());
        let subscription = MemorySubscription {
            connection,
            targets,
            credit: prefetch,
            unsettled: 0,
            pauses: 0,
            next_target: 0,
            wake: Arc::clone(&wake),
        };
        self.subscriptions.insert(number, subscription);
        (number, wake)
    }

    pub(super) fn add_credit(&mut self, subscription: u64, credit: u16) {
        if let Some(subscription) = self.subscriptions.get_mut(&subscription) {
            subscription.credit = subscription.credit.saturating_add(credit);
            subscription.wake.notify_one();
        }
    }

    /// Takes the credit of a subscription away.
    pub(super) fn pause(&mut self, subscription: u64) {
        if let Some(subscription) = self.subscriptions.get_mut(&subscription) {
            subscription.pauses += 1;
            (subscription.credit, subscription.unsettled) = (0, 0);
        }
    }

    /// Ends a subscription. Deliveries that it returned can still be settled.
    pub(super) fn unsubscribe(&mut self, subscription: u64) {
        self.subscriptions.remove(&subscription);
    }

    pub(super) fn is_subscribed(&self, subscription: u64) -> bool {
        self.subscriptions.contains_key(&subscription)
    }

    /// Returns the number of task queues.
    pub(super) fn count(&self) -> usize {
        self.by_name.keys().filter(|target| matches!(target, Target::Queue(_))).count()
    }

    pub(super) fn dead_letters(&self, queue: &QueueName) -> Vec<Message> {
        let dead = self.by_name.get(&Target::DeadLetters(queue.clone()));
        dead.into_iter().flat_map(|dead| dead.ready.values()).map(|queued| queued.message.clone()).collect()
    }

    /// Returns the messages of all task queues.
    pub(super) fn held(&self) -> Vec<HeldMessage> {
        let held = |queue: &Target, message: &Message, place| HeldMessage {
            queue: queue.queue().clone(),
            message: message.clone(),
            place,
        };
        let mut all = Vec::new();
        for (target, queue) in self.by_name.iter().filter(|(target, _)| matches!(target, Target::Queue(_))) {
            all.extend(queue.ready.values().map(|queued| held(target, &queued.message, MessagePlace::Ready)));
            let delayed = queue.delayed.iter();
            all.extend(delayed.map(|((due, _), message)| held(target, message, MessagePlace::Delayed(*due))));
        }
        let unsettled = self.unsettled.values().filter(|one| matches!(one.queue, Target::Queue(_)));
        all.extend(unsettled.map(|one| held(&one.queue, &one.message, MessagePlace::Unsettled)));
        all
    }

    pub(super) fn publish(&mut self, publish: Publish, now: Instant) {
        let Publish { target, message, delay } = publish;
        let number = self.next_number();
        let queue = self.by_name.entry(target.clone()).or_default();
        match target {
            // No task runs from a dead letter queue, so a delay or a priority has nothing to affect.
            Target::DeadLetters(_) => {
                let queued = QueuedMessage { message, delivered_before: false };
                queue.ready.insert((Reverse(0), number), queued);
            }
            Target::Queue(_) if delay.is_zero() => queue.insert(number, message),
            Target::Queue(_) => drop(queue.delayed.insert((now + delay.min(MAX_DELAY), number), message)),
        }
        self.wake(&target);
    }

    fn wake(&self, target: &Target) {
        for subscription in self.subscriptions.values() {
            if subscription.targets.contains(target) {
                subscription.wake.notify_one();
            }
        }
    }

    /// Delivers the next message to a subscription.
    pub(super) fn take(&mut self, id: u64, now: Instant) -> NextDelivery {
        let tag = self.next_number();
        let Some(subscription) = self.subscriptions.get_mut(&id) else { return NextDelivery::Ended };
        if subscription.unsettled >= subscription.credit {
            return NextDelivery::Nothing(None);
        }
        let targets = &subscription.targets;
        let mut next_due: Option<Instant> = None;
        for step in 0..targets.len() {
            let at = (subscription.next_target + step) % targets.len();
            let Some(queue) = self.by_name.get_mut(&targets[at]) else { continue };
            queue.promote_due(now, &mut self.last_number);
            if let Some((position, queued)) = queue.ready.pop_first() {
                subscription.next_target = at + 1;
                subscription.unsettled += 1;
                let queue = targets[at].clone();
                let message = queued.message.clone();
                let connection = subscription.connection;
                let unsettled_message = UnsettledMessage {
                    connection,
                    subscription: id,
                    pauses: subscription.pauses,
                    queue: queue.clone(),
                    position,
                    message: queued.message,
                };
                self.unsettled.insert(tag, unsettled_message);
                let queue = queue.queue().clone();
                return NextDelivery::Delivery { tag, queue, message, redelivered: queued.delivered_before };
            }
            let due = queue.delayed.first_key_value().map(|((due, _), _)| *due);
            next_due = next_due.into_iter().chain(due).min();
        }
        NextDelivery::Nothing(next_due)
    }

    pub(super) fn settle(&mut self, tag: u64, how: Settle) -> Settled {
        let Some(unsettled_message) = self.unsettled.remove(&tag) else { return Settled::Lost };
        if let Some(subscription) = self.subscriptions.get_mut(&unsettled_message.subscription)
            && subscription.pauses == unsettled_message.pauses
        {
            subscription.unsettled -= 1;
            subscription.wake.notify_one();
        }
        if how == Settle::Requeue {
            let queued = QueuedMessage { message: unsettled_message.message, delivered_before: true };
            self.by_name
                .entry(unsettled_message.queue.clone())
                .or_default()
                .ready
                .insert(unsettled_message.position, queued);
            self.wake(&unsettled_message.queue);
        }
        Settled::Done
    }

    /// Removes all messages that are not due, and returns their number.
    pub(super) fn lose_delayed(&mut self) -> usize {
        self.by_name.values_mut().map(|queue| std::mem::take(&mut queue.delayed).len()).sum()
    }

    /// Has the effect of a lost connection on all connections.
    pub(super) fn interrupt(&mut self) {
        self.interruptions += 1;
        self.hand_back(|_| true);
    }

    /// Returns the number of interruptions.
    pub(super) fn interruptions(&self) -> u64 {
        self.interruptions
    }

    /// Puts the unsettled messages that match back into their queues.
    fn hand_back(&mut self, matches: impl Fn(&UnsettledMessage) -> bool) {
        let tags = self
            .unsettled
            .iter()
            .filter(|(_, unsettled_message)| matches(unsettled_message))
            .map(|(tag, _)| *tag);
        for tag in tags.collect::<Vec<_>>() {
            self.settle(tag, Settle::Requeue);
        }
    }

    pub(super) fn depth(&mut self, name: &QueueName, now: Instant) -> QueueDepth {
        let tasks = Target::Queue(name.clone());
        let dead_letters = Target::DeadLetters(name.clone());
        let ready = self.by_name.get_mut(&tasks).map(|queue| {
            queue.promote_due(now, &mut self.last_number);
            queue.ready.len() as u64
        });
        let consumers = self.subscriptions.values().filter(|s| s.targets.contains(&tasks)).count() as u64;
        let dead = self.by_name.get(&dead_letters).map(|dead| dead.ready.len() as u64);
        QueueDepth { queue: name.clone(), ready, consumers: Some(consumers), dead }
    }

    pub(super) fn held_counts(&mut self, name: &QueueName, now: Instant) -> HeldCounts {
        let tasks = Target::Queue(name.clone());
        let delayed = self.by_name.get_mut(&tasks).map_or(0, |queue| {
            queue.promote_due(now, &mut self.last_number);
            queue.delayed.len()
        });
        let unacked = self.unsettled.values().filter(|one| one.queue == tasks).count();
        HeldCounts { delayed: Some(delayed as u64), unacked: Some(unacked as u64) }
    }

    /// Returns the first messages of a task queue that wait for a consumer.
    pub(super) fn ready(&mut self, name: &QueueName, limit: usize, now: Instant) -> Vec<Message> {
        let Some(queue) = self.by_name.get_mut(&Target::Queue(name.clone())) else { return Vec::new() };
        queue.promote_due(now, &mut self.last_number);
        queue.ready.values().take(limit).map(|queued| queued.message.clone()).collect()
    }
}

impl Queue {
    fn insert(&mut self, number: u64, message: Message) {
        let priority = message.priority.unwrap_or(0);
        self.ready.insert((Reverse(priority), number), QueuedMessage { message, delivered_before: false });
    }

    /// Moves the messages that have come due to the ready ones, in the order in which they came due.
    fn promote_due(&mut self, now: Instant, last_number: &mut u64) {
        while let Some(entry) = self.delayed.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let message = entry.remove();
            *last_number += 1;
            self.insert(*last_number, message);
        }
    }
}
