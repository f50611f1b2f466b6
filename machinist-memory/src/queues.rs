//! What the broker in memory holds: queues, subscriptions, and what was handed out.
//!
//! Plain data under one lock; the instant is an argument. There is no task that moves messages about: whoever looks
//! at a queue first makes ready what has come due. A message that was handed out stays here until it is settled, so
//! that a lost receipt, a lost consumer and a lost connection are one thing: the tag is taken out and the message
//! goes back to its old place.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use machinist_adapter::{
    broker::{Message, Publish, QueueDepth, Settle, Settled, Target},
    id::QueueName,
};

/// A delay beyond the end of tokio's clock is as good as for ever.
const NO_DEADLINE: Duration = Duration::from_secs(86400 * 365 * 30);

#[derive(Debug, Default)]
pub(super) struct MemoryQueues {
    by_name: HashMap<Target, Queue>,
    /// Those that are open.
    connections: HashSet<u64>,
    subscriptions: HashMap<u64, MemorySubscription>,
    /// What was handed out and not settled, by the tag that its receipt holds.
    unsettled: HashMap<u64, UnsettledMessage>,
    last_number: u64,
    /// How often all connections were lost.
    interruptions: u64,
}

/// Where a message stands in its queue: by priority, then by arrival.
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
    handed_out_before: bool,
}

#[derive(Debug)]
struct MemorySubscription {
    connection: u64,
    targets: Vec<Target>,
    prefetch: u16,
    unsettled: u16,
    /// Which queue is looked at first, so that a full queue does not starve its neighbours.
    turn: usize,
    wake: Arc<Notify>,
}

#[derive(Debug)]
struct UnsettledMessage {
    connection: u64,
    subscription: u64,
    queue: Target,
    place: ReadyKey,
    message: Message,
}

/// What a consumer finds.
pub(super) enum PeekedDelivery {
    Delivery {
        tag: u64,
        queue: QueueName,
        message: Message,
        redelivered: bool,
    },
    /// Nothing; the next delayed message comes due then.
    Nothing(Option<Instant>),
    /// The subscription has ended.
    End,
}

impl MemoryQueues {
    fn number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    pub(super) fn open_connection(&mut self) -> u64 {
        let connection = self.number();
        self.connections.insert(connection);
        connection
    }

    pub(super) fn is_open(&self, connection: u64) -> bool {
        self.connections.contains(&connection)
    }

    /// Ends its subscriptions and hands back what it holds.
    pub(super) fn close_connection(&mut self, connection: u64) {
        self.connections.remove(&connection);
        let ended = self.subscriptions.extract_if(|_, subscription| subscription.connection == connection);
        ended.for_each(|(_, subscription)| subscription.wake.notify_one());
        self.hand_back(|unsettled_message| unsettled_message.connection == connection);
    }

    /// The number of a new subscription, and what is notified when it has something to do.
    pub(super) fn subscribe(
        &mut self,
        connection: u64,
        targets: Vec<Target>,
        prefetch: u16,
    ) -> (u64, Arc<Notify>) {
        for target in &targets {
            // Dead letters are looked at; that nobody made them yet is to be seen.
            if matches!(target, Target::Queue(_)) {
                self.by_name.entry(target.clone()).or_default();
            }
        }
        let (number, wake) = (self.number(), Arc::new(Notify::new()));
        let subscription = MemorySubscription {
            connection,
            targets,
            prefetch,
            unsettled: 0,
            turn: 0,
            wake: Arc::clone(&wake),
        };
        self.subscriptions.insert(number, subscription);
        (number, wake)
    }

    /// What was returned can still be settled.
    pub(super) fn unsubscribe(&mut self, subscription: u64) {
        self.subscriptions.remove(&subscription);
    }

    pub(super) fn is_subscribed(&self, subscription: u64) -> bool {
        self.subscriptions.contains_key(&subscription)
    }

    /// How many queues there are.
    pub(super) fn count(&self) -> usize {
        self.by_name.keys().filter(|target| matches!(target, Target::Queue(_))).count()
    }

    pub(super) fn dead_letters(&self, queue: &QueueName) -> Vec<Message> {
        let dead = self.by_name.get(&Target::DeadLetters(queue.clone()));
        dead.into_iter().flat_map(|dead| dead.ready.values()).map(|stored| stored.message.clone()).collect()
    }

    pub(super) fn publish(&mut self, publish: Publish, now: Instant) {
        let Publish { target, message, delay } = publish;
        let number = self.number();
        let queue = self.by_name.entry(target.clone()).or_default();
        match target {
            // No task is run from there, so there is nothing that a delay or a priority could put off.
            Target::DeadLetters(_) => {
                let stored = QueuedMessage { message, handed_out_before: false };
                queue.ready.insert((Reverse(0), number), stored);
            }
            Target::Queue(_) if delay.is_zero() => queue.insert(number, message),
            Target::Queue(_) => drop(queue.delayed.insert((now + delay.min(NO_DEADLINE), number), message)),
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

    /// Hands out the next message to a subscription.
    pub(super) fn take(&mut self, id: u64, now: Instant) -> PeekedDelivery {
        let tag = self.number();
        let Some(subscription) = self.subscriptions.get_mut(&id) else { return PeekedDelivery::End };
        if subscription.unsettled >= subscription.prefetch {
            return PeekedDelivery::Nothing(None);
        }
        let targets = &subscription.targets;
        let mut next_due: Option<Instant> = None;
        for step in 0..targets.len() {
            let at = (subscription.turn + step) % targets.len();
            let Some(queue) = self.by_name.get_mut(&targets[at]) else { continue };
            queue.ripen(now, &mut self.last_number);
            if let Some((place, stored)) = queue.ready.pop_first() {
                subscription.turn = at + 1;
                subscription.unsettled += 1;
                let (queue, message) = (targets[at].clone(), stored.message.clone());
                let connection = subscription.connection;
                let unsettled_message = UnsettledMessage {
                    connection,
                    subscription: id,
                    queue: queue.clone(),
                    place,
                    message: stored.message,
                };
                self.unsettled.insert(tag, unsettled_message);
                let queue = queue.queue().clone();
                return PeekedDelivery::Delivery {
                    tag,
                    queue,
                    message,
                    redelivered: stored.handed_out_before,
                };
            }
            let due = queue.delayed.first_key_value().map(|((due, _), _)| *due);
            next_due = next_due.into_iter().chain(due).min();
        }
        PeekedDelivery::Nothing(next_due)
    }

    pub(super) fn settle(&mut self, tag: u64, how: Settle) -> Settled {
        let Some(unsettled_message) = self.unsettled.remove(&tag) else { return Settled::Lost };
        if let Some(subscription) = self.subscriptions.get_mut(&unsettled_message.subscription) {
            subscription.unsettled -= 1;
            subscription.wake.notify_one();
        }
        if how == Settle::Requeue {
            let stored = QueuedMessage { message: unsettled_message.message, handed_out_before: true };
            self.by_name
                .entry(unsettled_message.queue.clone())
                .or_default()
                .ready
                .insert(unsettled_message.place, stored);
            self.wake(&unsettled_message.queue);
        }
        Settled::Done
    }

    /// Does what a lost connection does, to all of them.
    pub(super) fn interrupt(&mut self) {
        self.interruptions += 1;
        self.hand_back(|_| true);
    }

    /// How often that was done.
    pub(super) fn interruptions(&self) -> u64 {
        self.interruptions
    }

    /// Puts what is unsettled and meant back into its queues.
    fn hand_back(&mut self, meant: impl Fn(&UnsettledMessage) -> bool) {
        let tags = self
            .unsettled
            .iter()
            .filter(|(_, unsettled_message)| meant(unsettled_message))
            .map(|(tag, _)| *tag);
        for tag in tags.collect::<Vec<_>>() {
            self.settle(tag, Settle::Requeue);
        }
    }

    pub(super) fn depth(&mut self, name: &QueueName, now: Instant) -> QueueDepth {
        let (alive, dead) = (Target::Queue(name.clone()), Target::DeadLetters(name.clone()));
        let ready = self.by_name.get_mut(&alive).map(|queue| {
            queue.ripen(now, &mut self.last_number);
            queue.ready.len() as u64
        });
        let consumers = self.subscriptions.values().filter(|s| s.targets.contains(&alive)).count() as u64;
        let dead = self.by_name.get(&dead).map(|dead| dead.ready.len() as u64);
        QueueDepth { queue: name.clone(), ready, consumers: Some(consumers), dead }
    }
}

impl Queue {
    fn insert(&mut self, number: u64, message: Message) {
        let priority = message.priority.unwrap_or(0);
        self.ready.insert((Reverse(priority), number), QueuedMessage { message, handed_out_before: false });
    }

    /// Makes ready what has come due, in the order in which it came due.
    fn ripen(&mut self, now: Instant, last_number: &mut u64) {
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
