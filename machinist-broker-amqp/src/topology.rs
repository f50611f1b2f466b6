//! The exchanges, queues and bindings of a namespace, as data: names, arguments, and the order of their declaration.
//!
//! `docs/topology.md` explains why each of them exists.

use std::{collections::HashMap, sync::Arc};

use machinist_adapter::{broker::Target, id::QueueName};

use crate::{
    ladder::{self, DelayRoute},
    options::{AmqpOptions, ExistingQueue, QueueType},
};

/// Maximum number of returns of a message that kills its consumers, before the broker dead-letters it. High, because
/// every crash, lost connection and hand-back of an innocent neighbour counts too. The number of attempts of a task is
/// limited elsewhere, by real starts.
const DELIVERY_LIMIT: i64 = 1000;

/// Value that stands for no delivery limit. It is declared explicitly, because the broker's default is 20 from 4.0 on,
/// and a queue without a dead-letter exchange silently drops a message at the limit.
const NO_DELIVERY_LIMIT: i64 = i32::MAX as i64;

/// Maximum length of a task queue's name on the broker, in bytes: that of a routing key of AMQP, less the ladder's digits
/// and the `.dead` of a queue's dead letters.
const MAX_QUEUE_NAME_BYTES: usize = 255 - 2 * ladder::LADDER_LEVELS as usize - ".dead".len();

/// One object to declare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Declaration {
    /// A durable exchange, with an alternate exchange for messages that it cannot route.
    Exchange { name: String, kind: ExchangeType, alternate: Option<String> },
    /// A durable queue.
    Queue { name: String, arguments: Vec<(&'static str, ArgumentValue)> },
    /// A queue of another program: only its existence is checked.
    ExistingQueue { name: String },
    /// An exchange of another program: only its existence is checked.
    ExistingExchange { name: String },
    /// A binding: messages that `exchange` receives under `key` go to `queue`.
    BindQueue { queue: String, exchange: String, key: String },
    /// A binding: messages that `exchange` receives under `key` go on to exchange `to`.
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

/// Exchange and routing key of one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MessageRoute {
    pub(crate) exchange: String,
    pub(crate) key: String,
}

/// Names and declarations of one namespace.
#[derive(Debug, Clone)]
pub(crate) struct AmqpTopology {
    namespace: String,
    queue_type: QueueType,
    existing: Arc<HashMap<QueueName, ExistingQueue>>,
}

impl AmqpTopology {
    pub(crate) fn new(options: &AmqpOptions) -> Self {
        Self {
            namespace: options.namespace.clone(),
            queue_type: options.queue_type,
            existing: Arc::new(options.existing_queues.clone()),
        }
    }

    /// Name of a task queue on the broker: NAME in the default namespace and NAMESPACE:NAME in any other, so that two
    /// installations on one broker do not share a queue.
    ///
    /// # Errors
    /// The reason that the name cannot be that of a queue here.
    pub(crate) fn queue_name(&self, queue: &QueueName) -> Result<String, String> {
        let name = if let Some(existing) = self.existing.get(queue) {
            existing.name.clone()
        } else if self.namespace == "machinist" {
            queue.to_string()
        } else {
            format!("{}:{queue}", self.namespace)
        };
        if name.starts_with("machinist.") {
            return Err(format!(
                "queue {queue} begins with `machinist.`, which is reserved for internal queues; rename it"
            ));
        }
        if name.len() > MAX_QUEUE_NAME_BYTES {
            return Err(format!(
                "queue {queue} has the name {name} on the broker, which is longer than \
                 {MAX_QUEUE_NAME_BYTES} bytes; shorten it"
            ));
        }
        Ok(name)
    }

    /// Name of the queue with the dead letters of a task queue.
    pub(crate) fn dead_letter_queue_name(&self, queue: &QueueName) -> Result<String, String> {
        Ok(dead_letter_queue_of(&self.queue_name(queue)?))
    }

    /// Exchange and routing key for a message to a target, at once or by a delay route. `queue` is the
    /// [name](Self::queue_name) of the task queue on the broker.
    pub(crate) fn route(&self, target: &Target, queue: &str, delay: Option<DelayRoute>) -> MessageRoute {
        let is_dead_letter = matches!(target, Target::DeadLetters(_));
        let Some(delay) = delay else {
            if let Target::Queue(queue) = target
                && let Some(ExistingQueue { exchange, routing_key, .. }) = self.existing.get(queue)
            {
                return MessageRoute { exchange: exchange.clone(), key: routing_key.clone() };
            }
            let exchange = if is_dead_letter { self.dead_letter_exchange() } else { self.task_exchange() };
            return MessageRoute { exchange, key: queue.to_owned() };
        };
        let key = if is_dead_letter {
            delay.routing_key(&dead_letter_queue_of(queue))
        } else {
            delay.routing_key(queue)
        };
        MessageRoute { exchange: self.level_exchange(delay.top_level()), key }
    }

    /// Returns `true` if a queue of this name, and with this dead-letter exchange, belongs to this namespace.
    pub(crate) fn is_own_queue(&self, name: &str, dead_letter_exchange: Option<&str>) -> bool {
        let prefixed = name
            .strip_prefix(&self.namespace)
            .is_some_and(|rest| rest.starts_with('.') || rest.starts_with(':'));
        // Task queues of the default namespace have no prefix, and dead letters no argument.
        let is_existing = |name: &str| self.existing.values().any(|existing| existing.name == name);
        prefixed
            || dead_letter_exchange == Some(self.dead_letter_exchange().as_str())
            || is_existing(name.strip_suffix(".dead").unwrap_or(name))
    }

    /// Name of the exchange that tasks are published to.
    pub(crate) fn task_exchange(&self) -> String {
        self.namespace.clone()
    }

    /// Returns `true` if a queue belongs to another program.
    pub(crate) fn is_existing(&self, queue: &QueueName) -> bool {
        self.existing.contains_key(queue)
    }

    /// Name of the exchange of dead letters.
    pub(crate) fn dead_letter_exchange(&self) -> String {
        format!("{}.dead", self.namespace)
    }

    /// Name of the exchange at the end of the ladder.
    pub(crate) fn due_exchange(&self) -> String {
        format!("{}.due", self.namespace)
    }

    /// Name of the exchange, and of the queue, for messages that came due for a queue that is gone.
    pub(crate) fn undelivered(&self) -> String {
        format!("{}.undelivered", self.namespace)
    }

    /// Queue for which a message left the ladder under this routing key; `None` for a queue of another namespace, or for
    /// another kind of key.
    pub(crate) fn queue_of_due_message(&self, key: &str) -> Option<QueueName> {
        let queue = ladder::queue_of(key)?;
        if let Some((name, _)) = self.existing.iter().find(|(_, existing)| existing.name == queue) {
            return Some(name.clone());
        }
        let own = match self.namespace.as_str() {
            "machinist" => queue,
            namespace => queue.strip_prefix(namespace)?.strip_prefix(':')?,
        };
        QueueName::parse(own).ok()
    }

    /// Name of the exchange of a level of the ladder.
    pub(crate) fn level_exchange(&self, level: u8) -> String {
        format!("{}.delay.{level}", self.namespace)
    }

    /// Name of the queue of a level of the ladder that holds messages with this digit.
    pub(crate) fn level_queue(&self, level: u8, digit: u8) -> String {
        format!("{}.delay.{level}.{digit}", self.namespace)
    }

    /// Names of the queues of a level of the ladder.
    pub(crate) fn level_queues(&self, level: u8) -> impl Iterator<Item = String> {
        (1..=ladder::MAX_DIGIT).map(move |digit| self.level_queue(level, digit))
    }

    /// Declarations that all task queues share.
    pub(crate) fn shared(&self) -> Vec<Declaration> {
        let exchange = |name, kind| Declaration::Exchange { name, kind, alternate: None };
        vec![
            exchange(self.task_exchange(), ExchangeType::Direct),
            exchange(self.dead_letter_exchange(), ExchangeType::Direct),
            exchange(self.undelivered(), ExchangeType::Fanout),
            Declaration::Queue { name: self.undelivered(), arguments: quorum(NO_DELIVERY_LIMIT) },
            Declaration::BindQueue {
                queue: self.undelivered(),
                exchange: self.undelivered(),
                key: String::new(),
            },
            Declaration::Exchange {
                name: self.due_exchange(),
                kind: ExchangeType::Topic,
                alternate: Some(self.undelivered()),
            },
        ]
    }

    /// Declarations of a task queue with its dead letters. `name` is its [name](Self::queue_name) on the broker.
    pub(crate) fn task_queue(&self, name: &str) -> Vec<Declaration> {
        let dead = dead_letter_queue_of(name);
        let bind = |queue: &str, exchange, key: String| Declaration::BindQueue {
            queue: queue.to_owned(),
            exchange,
            key,
        };
        if let Some(existing) = self.existing.values().find(|existing| existing.name == name) {
            let exchange = &existing.exchange;
            let checked_exchange = Declaration::ExistingExchange { name: exchange.clone() };
            return [
                Declaration::Queue { name: dead.clone(), arguments: quorum(NO_DELIVERY_LIMIT) },
                bind(&dead, self.dead_letter_exchange(), name.to_owned()),
                bind(&dead, self.due_exchange(), ladder::pattern_due(&dead)),
                Declaration::ExistingQueue { name: name.to_owned() },
                bind(name, self.due_exchange(), ladder::pattern_due(name)),
            ]
            .into_iter()
            .chain((!exchange.is_empty()).then_some(checked_exchange))
            .collect();
        }
        let arguments = match self.queue_type {
            QueueType::Quorum => {
                let mut arguments = quorum(DELIVERY_LIMIT);
                arguments.extend(dead_lettered_to(self.dead_letter_exchange()));
                arguments.push(("x-dead-letter-routing-key", ArgumentValue::Text(name.to_owned())));
                arguments
            }
            // A classic queue has no delivery limit, and we never reject: nothing would ever be dead-lettered.
            QueueType::Classic => vec![("x-queue-type", ArgumentValue::Text("classic".to_owned()))],
        };
        vec![
            Declaration::Queue { name: dead.clone(), arguments: quorum(NO_DELIVERY_LIMIT) },
            bind(&dead, self.dead_letter_exchange(), name.to_owned()),
            bind(&dead, self.due_exchange(), ladder::pattern_due(&dead)),
            Declaration::Queue { name: name.to_owned(), arguments },
            bind(name, self.due_exchange(), ladder::pattern_due(name)),
            // Last: once the exchange routes messages to the queue, everything else is in place.
            bind(name, self.task_exchange(), name.to_owned()),
        ]
    }

    /// Delivery limit with which task queues are declared; `None` if they are classic queues, which have none.
    pub(crate) fn delivery_limit(&self) -> Option<u64> {
        (self.queue_type == QueueType::Quorum).then_some(DELIVERY_LIMIT.unsigned_abs())
    }

    /// Declarations of the levels of the ladder from 0 up to and including `top_level`.
    pub(crate) fn ladder(&self, top_level: u8) -> Vec<Declaration> {
        // From the lowest up, so that no level exists before the one that it hands its messages to.
        (0..=top_level).flat_map(|level| self.level(level)).collect()
    }

    fn level(&self, level: u8) -> Vec<Declaration> {
        let exchange = self.level_exchange(level);
        let below =
            level.checked_sub(1).map_or_else(|| self.due_exchange(), |below| self.level_exchange(below));
        let mut declarations = vec![Declaration::Exchange {
            name: exchange.clone(),
            kind: ExchangeType::Topic,
            alternate: None,
        }];
        for digit in 1..=ladder::MAX_DIGIT {
            let queue = self.level_queue(level, digit);
            let mut arguments = quorum(NO_DELIVERY_LIMIT);
            arguments.push(("x-message-ttl", ArgumentValue::Number(ladder::hold_millis(level, digit))));
            arguments.extend(dead_lettered_to(below.clone()));
            declarations.push(Declaration::Queue { name: queue.clone(), arguments });
            let key = ladder::pattern(level, digit);
            declarations.push(Declaration::BindQueue { queue, exchange: exchange.clone(), key });
        }
        declarations.push(Declaration::BindExchange { to: below, exchange, key: ladder::pattern(level, 0) });
        declarations
    }
}

fn dead_letter_queue_of(queue: &str) -> String {
    format!("{queue}.dead")
}

fn quorum(delivery_limit: i64) -> Vec<(&'static str, ArgumentValue)> {
    vec![
        ("x-queue-type", ArgumentValue::Text("quorum".to_owned())),
        ("x-delivery-limit", ArgumentValue::Number(delivery_limit)),
    ]
}

/// Arguments of a queue that dead-letters at least once. Without `reject-publish` the broker silently dead-letters at most
/// once, and loses messages when it crashes.
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

    fn topology(namespace: &str) -> AmqpTopology {
        AmqpTopology::new(&AmqpOptions { namespace: namespace.to_owned(), ..AmqpOptions::default() })
    }

    fn name(text: &str) -> QueueName {
        QueueName::parse(text).unwrap()
    }

    #[test]
    fn the_routing_key_of_a_due_message_tells_its_queue() {
        let delay = DelayRoute::for_delay(Duration::from_secs(1)).unwrap();
        for topology in [topology("machinist"), topology("other")] {
            let queue = topology.queue_name(&name("a.b")).unwrap();
            let route = topology.route(&Target::Queue(name("a.b")), &queue, Some(delay));
            assert_eq!(topology.queue_of_due_message(&route.key), Some(name("a.b")));
            let dead = topology.route(&Target::DeadLetters(name("a.b")), &queue, Some(delay));
            assert_eq!(topology.queue_of_due_message(&dead.key), None);
            assert_eq!(topology.queue_of_due_message("a.b"), None);
        }
        let key = topology("other").route(&Target::Queue(name("a")), "other:a", Some(delay)).key;
        assert_eq!(topology("third").queue_of_due_message(&key), None);
    }

    #[test]
    fn own_queues_are_recognized() {
        let own = |namespace: &str, name: &str, exchange| topology(namespace).is_own_queue(name, exchange);
        assert!(own("x", "x:mail", None) && own("x", "x.delay.1.3", None) && own("x", "x:mail.dead", None));
        assert!(!own("x", "xy:mail", None) && !own("x", "mail", None) && !own("x", "mail", Some("y.dead")));
        assert!(own("machinist", "mail", Some("machinist.dead")) && !own("machinist", "mail", None));
    }

    #[test]
    fn namespaces_do_not_share_queues() {
        assert_eq!(topology("machinist").queue_name(&name("mail")).unwrap(), "mail");
        assert_eq!(topology("staging").queue_name(&name("mail")).unwrap(), "staging:mail");
        assert_eq!(
            topology("staging").queue_name(&name("delay.3")).unwrap(),
            "staging:delay.3",
            "not our staging.delay.3"
        );
        assert!(topology("machinist").queue_name(&name("machinist.undelivered")).is_err());
    }

    #[test]
    fn names_that_the_ladder_cannot_carry_are_refused() {
        let topology = topology(&"n".repeat(40));
        assert!(topology.queue_name(&name(&"x".repeat(196))).is_err());
        let longest = name(&"x".repeat(195));
        let queue = topology.queue_name(&longest).unwrap();
        let delay = DelayRoute::for_delay(Duration::from_secs(1));
        let route = topology.route(&Target::DeadLetters(longest), &queue, delay);
        assert_eq!(route.key.len(), 255);
    }

    #[test]
    fn a_queue_of_another_program_keeps_its_name_and_is_never_declared() {
        let tasks = ExistingQueue::new("machinery_tasks").through("machinery_exchange", "tasks");
        let existing_queues = HashMap::from([(name("go"), tasks)]);
        let options = AmqpOptions { namespace: "x".to_owned(), existing_queues, ..AmqpOptions::default() };
        let topology = AmqpTopology::new(&options);
        let queue = topology.queue_name(&name("go")).unwrap();
        assert_eq!(queue, "machinery_tasks");
        let route = |target, delay| topology.route(&target, &queue, DelayRoute::for_delay(delay));
        let now = route(Target::Queue(name("go")), Duration::ZERO);
        assert_eq!((now.exchange.as_str(), now.key.as_str()), ("machinery_exchange", "tasks"));
        let dead = route(Target::DeadLetters(name("go")), Duration::ZERO);
        assert_eq!((dead.exchange.as_str(), dead.key.as_str()), ("x.dead", "machinery_tasks"));
        let later = route(Target::Queue(name("go")), Duration::from_secs(1));
        assert_eq!(topology.queue_of_due_message(&later.key), Some(name("go")));
        let declared: Vec<_> = topology.task_queue(&queue);
        let declares = |wanted: &str| {
            declared.iter().any(|d| matches!(d, Declaration::Queue { name, .. } if name == wanted))
        };
        assert!(declares("machinery_tasks.dead") && !declares("machinery_tasks"), "{declared:?}");
    }

    #[test]
    fn routes() {
        let topology = topology("machinist");
        let route = |target, delay| topology.route(&target, "mail", DelayRoute::for_delay(delay));
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
        let topology = topology("x");
        let declarations = [topology.shared(), topology.task_queue("x:q"), topology.ladder(6)].concat();
        let mut made = std::collections::HashSet::new();
        for declaration in &declarations {
            match declaration {
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
                Declaration::ExistingQueue { name } | Declaration::ExistingExchange { name } => {
                    panic!("{name} is ours")
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
