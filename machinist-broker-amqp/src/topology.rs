//! What stands on the broker, as data: names, arguments and bindings, and the order in which they are made.
//!
//! `docs/topology.md` tells why each of them is there.

use machinist_core::{broker::Target, id::QueueName};

use crate::{
    ladder::{self, DelayRoute},
    options::{AmqpOptions, QueueType},
};

/// What a message that kills its consumers costs at most, before it is dead-lettered. High, because every
/// crash, lost connection and hand-back of an innocent neighbour counts too; what a task is allowed is decided
/// elsewhere, by real starts.
const DELIVERY_LIMIT: i64 = 1000;

/// No limit. Said in so many words, because the broker's default is 20 from 4.0 on, and a queue at its limit
/// without dead letters of its own drops the message silently.
const NO_DELIVERY_LIMIT: i64 = i32::MAX as i64;

/// The longest routing key of AMQP, less the ladder's digits and the `.dead` of a queue's dead letters.
const MAX_QUEUE_NAME_BYTES: usize = 255 - 2 * ladder::LADDER_LEVELS as usize - ".dead".len();

/// One thing to declare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Declaration {
    /// A durable exchange, with an alternate exchange for what it cannot route.
    Exchange { name: String, kind: ExchangeType, alternate: Option<String> },
    /// A durable queue.
    Queue { name: String, arguments: Vec<(&'static str, ArgumentValue)> },
    /// What `exchange` receives under `key` goes to `queue`.
    BindQueue { queue: String, exchange: String, key: String },
    /// What `exchange` receives under `key` goes on to `to`.
    BindExchange { to: String, exchange: String, key: String },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExchangeType {
    Direct,
    Topic,
    Fanout,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ArgumentValue {
    Text(String),
    Number(i64),
}

/// Where one message goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MessageRoute {
    pub(crate) exchange: String,
    pub(crate) key: String,
}

/// The names and declarations of one namespace.
#[derive(Debug, Clone)]
pub(crate) struct AmqpTopology {
    namespace: String,
    queue_type: QueueType,
}

impl AmqpTopology {
    pub(crate) fn new(options: &AmqpOptions) -> Self {
        Self { namespace: options.namespace.clone(), queue_type: options.queue_type }
    }

    /// What a task queue is called on the broker: NAME, and NAMESPACE:NAME outside the default namespace, so
    /// that two installations on one broker do not share a queue.
    ///
    /// # Errors
    /// Why the name cannot be a queue here.
    pub(crate) fn queue(&self, queue: &QueueName) -> Result<String, String> {
        let name = if self.namespace == "machinist" {
            queue.to_string()
        } else {
            format!("{}:{queue}", self.namespace)
        };
        if name.starts_with("machinist.") {
            return Err(format!(
                "queue {queue} begins with `machinist.`, which names our own queues; rename it"
            ));
        }
        if name.len() > MAX_QUEUE_NAME_BYTES {
            return Err(format!(
                "queue {queue} would be called {name}, longer than {MAX_QUEUE_NAME_BYTES} bytes; shorten it"
            ));
        }
        Ok(name)
    }

    /// What the dead letters of a task queue are called.
    pub(crate) fn dead_letters(&self, queue: &QueueName) -> Result<String, String> {
        Ok(dead_of(&self.queue(queue)?))
    }

    /// Where a message for a target goes, now or for a ride on the ladder. `queue` is what [`Self::queue`] made of the
    /// name of its task queue.
    pub(crate) fn route(&self, target: &Target, queue: &str, ride: Option<DelayRoute>) -> MessageRoute {
        let dead = matches!(target, Target::DeadLetters(_));
        match ride {
            Some(ride) if dead => {
                MessageRoute { exchange: self.level(ride.highest()), key: ride.key(&dead_of(queue)) }
            }
            Some(ride) => MessageRoute { exchange: self.level(ride.highest()), key: ride.key(queue) },
            None if dead => MessageRoute { exchange: self.dead(), key: queue.to_owned() },
            None => MessageRoute { exchange: self.exchange(), key: queue.to_owned() },
        }
    }

    /// The exchange that tasks are published to.
    pub(crate) fn exchange(&self) -> String {
        self.namespace.clone()
    }

    /// The exchange of dead letters.
    pub(crate) fn dead(&self) -> String {
        format!("{}.dead", self.namespace)
    }

    /// The exchange in which the ladder ends.
    pub(crate) fn due(&self) -> String {
        format!("{}.due", self.namespace)
    }

    /// The exchange and the queue of what came due for a queue that is gone.
    pub(crate) fn undelivered(&self) -> String {
        format!("{}.undelivered", self.namespace)
    }

    /// The queue for which a message left the ladder under this routing key; `None` where it is none of ours.
    pub(crate) fn due_for(&self, key: &str) -> Option<QueueName> {
        let queue = ladder::queue_of(key)?;
        let own = match self.namespace.as_str() {
            "machinist" => queue,
            namespace => queue.strip_prefix(namespace)?.strip_prefix(':')?,
        };
        QueueName::parse(own).ok()
    }

    /// The exchange of a level of the ladder.
    pub(crate) fn level(&self, level: u8) -> String {
        format!("{}.delay.{level}", self.namespace)
    }

    /// The queue of a level of the ladder that holds what has this digit there.
    pub(crate) fn rung(&self, level: u8, digit: u8) -> String {
        format!("{}.delay.{level}.{digit}", self.namespace)
    }

    /// The queues of a level of the ladder.
    pub(crate) fn rungs(&self, level: u8) -> impl Iterator<Item = String> {
        (1..=ladder::MAX_DIGIT).map(move |digit| self.rung(level, digit))
    }

    /// What every task queue stands on.
    pub(crate) fn base(&self) -> Vec<Declaration> {
        let exchange = |name, kind| Declaration::Exchange { name, kind, alternate: None };
        vec![
            exchange(self.exchange(), ExchangeType::Direct),
            exchange(self.dead(), ExchangeType::Direct),
            exchange(self.undelivered(), ExchangeType::Fanout),
            Declaration::Queue { name: self.undelivered(), arguments: quorum(NO_DELIVERY_LIMIT) },
            Declaration::BindQueue {
                queue: self.undelivered(),
                exchange: self.undelivered(),
                key: String::new(),
            },
            Declaration::Exchange {
                name: self.due(),
                kind: ExchangeType::Topic,
                alternate: Some(self.undelivered()),
            },
        ]
    }

    /// A task queue with its dead letters. `name` is what [`Self::queue`] made of its name.
    pub(crate) fn task_queue(&self, name: &str) -> Vec<Declaration> {
        let dead = dead_of(name);
        let bind = |queue: &str, exchange, key: String| Declaration::BindQueue {
            queue: queue.to_owned(),
            exchange,
            key,
        };
        let arguments = match self.queue_type {
            QueueType::Quorum => {
                let mut arguments = quorum(DELIVERY_LIMIT);
                arguments.extend(dead_lettered_to(self.dead()));
                arguments.push(("x-dead-letter-routing-key", ArgumentValue::Text(name.to_owned())));
                arguments
            }
            // No delivery limit exists here, and we never reject: nothing would ever be dead-lettered.
            QueueType::Classic => vec![("x-queue-type", ArgumentValue::Text("classic".to_owned()))],
        };
        vec![
            Declaration::Queue { name: dead.clone(), arguments: quorum(NO_DELIVERY_LIMIT) },
            bind(&dead, self.dead(), name.to_owned()),
            bind(&dead, self.due(), ladder::pattern_due(&dead)),
            Declaration::Queue { name: name.to_owned(), arguments },
            bind(name, self.due(), ladder::pattern_due(name)),
            // Last: who can be routed to through the exchange finds everything else in place.
            bind(name, self.exchange(), name.to_owned()),
        ]
    }

    /// The levels of the ladder from 0 up to and including `highest`.
    pub(crate) fn ladder(&self, highest: u8) -> Vec<Declaration> {
        // From below, so that no level exists before the one that it hands its messages to.
        (0..=highest).flat_map(|level| self.steps(level)).collect()
    }

    fn steps(&self, level: u8) -> Vec<Declaration> {
        let exchange = self.level(level);
        let below = level.checked_sub(1).map_or_else(|| self.due(), |below| self.level(below));
        let mut steps = vec![Declaration::Exchange {
            name: exchange.clone(),
            kind: ExchangeType::Topic,
            alternate: None,
        }];
        for digit in 1..=ladder::MAX_DIGIT {
            let queue = self.rung(level, digit);
            let mut arguments = quorum(NO_DELIVERY_LIMIT);
            arguments.push(("x-message-ttl", ArgumentValue::Number(ladder::hold_millis(level, digit))));
            arguments.extend(dead_lettered_to(below.clone()));
            steps.push(Declaration::Queue { name: queue.clone(), arguments });
            let key = ladder::pattern(level, digit);
            steps.push(Declaration::BindQueue { queue, exchange: exchange.clone(), key });
        }
        steps.push(Declaration::BindExchange { to: below, exchange, key: ladder::pattern(level, 0) });
        steps
    }
}

fn dead_of(queue: &str) -> String {
    format!("{queue}.dead")
}

fn quorum(delivery_limit: i64) -> Vec<(&'static str, ArgumentValue)> {
    vec![
        ("x-queue-type", ArgumentValue::Text("quorum".to_owned())),
        ("x-delivery-limit", ArgumentValue::Number(delivery_limit)),
    ]
}

/// Without `reject-publish` the broker silently dead-letters at most once, and loses messages when it crashes.
fn dead_lettered_to(exchange: String) -> [(&'static str, ArgumentValue); 3] {
    [
        ("x-dead-letter-exchange", ArgumentValue::Text(exchange)),
        ("x-dead-letter-strategy", ArgumentValue::Text("at-least-once".to_owned())),
        ("x-overflow", ArgumentValue::Text("reject-publish".to_owned())),
    ]
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn plan(namespace: &str) -> AmqpTopology {
        AmqpTopology::new(&AmqpOptions { namespace: namespace.to_owned(), ..AmqpOptions::default() })
    }

    fn name(text: &str) -> QueueName {
        QueueName::parse(text).unwrap()
    }

    #[test]
    fn what_has_left_the_ladder_tells_its_queue() {
        let ride = DelayRoute::for_delay(Duration::from_secs(1)).unwrap();
        for plan in [plan("machinist"), plan("other")] {
            let queue = plan.queue(&name("a.b")).unwrap();
            let route = plan.route(&Target::Queue(name("a.b")), &queue, Some(ride));
            assert_eq!(plan.due_for(&route.key), Some(name("a.b")));
            let dead = plan.route(&Target::DeadLetters(name("a.b")), &queue, Some(ride));
            assert_eq!(plan.due_for(&dead.key), None);
            assert_eq!(plan.due_for("a.b"), None);
        }
        let key = plan("other").route(&Target::Queue(name("a")), "other:a", Some(ride)).key;
        assert_eq!(plan("third").due_for(&key), None);
    }

    #[test]
    fn namespaces_do_not_share_queues() {
        assert_eq!(plan("machinist").queue(&name("mail")).unwrap(), "mail");
        assert_eq!(plan("staging").queue(&name("mail")).unwrap(), "staging:mail");
        assert_eq!(
            plan("staging").queue(&name("delay.3")).unwrap(),
            "staging:delay.3",
            "not our staging.delay.3"
        );
        assert!(plan("machinist").queue(&name("machinist.undelivered")).is_err());
    }

    #[test]
    fn names_that_the_ladder_cannot_carry_are_refused() {
        let plan = plan(&"n".repeat(40));
        assert!(plan.queue(&name(&"x".repeat(196))).is_err());
        let longest = name(&"x".repeat(195));
        let queue = plan.queue(&longest).unwrap();
        let ride = DelayRoute::for_delay(Duration::from_secs(1));
        let route = plan.route(&Target::DeadLetters(longest), &queue, ride);
        assert_eq!(route.key.len(), 255);
    }

    #[test]
    fn routes() {
        let plan = plan("machinist");
        let route = |target, delay| plan.route(&target, "mail", DelayRoute::for_delay(delay));
        let now = route(Target::Queue(name("mail")), Duration::ZERO);
        assert_eq!((now.exchange.as_str(), now.key.as_str()), ("machinist", "mail"));
        let dead = route(Target::DeadLetters(name("mail")), Duration::ZERO);
        assert_eq!((dead.exchange.as_str(), dead.key.as_str()), ("machinist.dead", "mail"));
        let later = route(Target::Queue(name("mail")), Duration::from_millis(16 * 0x2a7));
        assert_eq!(later.exchange, "machinist.delay.2");
        assert_eq!(later.key, "0.0.0.0.2.a.7.mail");
    }

    #[test]
    fn every_exchange_and_queue_is_made_before_it_is_named() {
        let plan = plan("x");
        let steps = [plan.base(), plan.task_queue("x:q"), plan.ladder(6)].concat();
        let mut made = std::collections::HashSet::new();
        for step in &steps {
            match step {
                Declaration::Exchange { name, alternate, .. } => {
                    assert!(alternate.as_ref().is_none_or(|other| made.contains(&('e', other.clone()))));
                    made.insert(('e', name.clone()));
                }
                Declaration::Queue { name, arguments } => {
                    for (key, value) in arguments {
                        if let ("x-dead-letter-exchange", ArgumentValue::Text(exchange)) = (*key, value) {
                            assert!(made.contains(&('e', exchange.clone())), "{name} before {exchange}");
                        }
                    }
                    made.insert(('q', name.clone()));
                }
                Declaration::BindQueue { queue, exchange, .. } => {
                    assert!(made.contains(&('q', queue.clone())) && made.contains(&('e', exchange.clone())));
                }
                Declaration::BindExchange { to, exchange, .. } => {
                    assert!(made.contains(&('e', to.clone())) && made.contains(&('e', exchange.clone())));
                }
            }
        }
        assert_eq!(made.len(), 4 + 1 + 2 + 7 * (1 + 15));
    }
}
