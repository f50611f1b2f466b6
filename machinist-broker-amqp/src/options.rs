//! Options of the adapter.

use std::{collections::HashMap, time::Duration};

use machinist_adapter::{broker::BrokerError, id::QueueName, tls::Tls};

/// Options of an [`AmqpBroker`](crate::AmqpBroker).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AmqpOptions {
    /// Name of the exchange, and prefix of every other name on the broker: 1 to 40 letters, digits, `-` or `_`.
    /// Installations that share a broker need different namespaces. Default: `machinist`.
    pub namespace: String,
    /// Type of task queues. Default: [`QueueType::Quorum`].
    pub queue_type: QueueType,
    /// Handling of exchanges and queues that do not exist. Default: [`TopologyMode::Declare`].
    pub topology: TopologyMode,
    /// Queues that other programs declare, by the names under which tasks are sent to them. Default: none.
    pub existing_queues: HashMap<QueueName, ExistingQueue>,
    /// Maximum time for which a publish is tried before its caller gets an error. Default: 30 s.
    pub publish_deadline: Duration,
    /// Maximum size of a message body, in bytes: `max_message_size` of the broker, whose default is 16 MiB from
    /// RabbitMQ 4.0 on and 128 MiB before. Default: 16 MiB.
    pub max_message_size: usize,
    /// Port of the management API on the broker's host, which alone tells the policies of queues. It is asked with the
    /// login of the broker, and only without TLS. `None` asks nobody. Default: 15672.
    pub management_port: Option<u16>,
    /// Name of the connections that the broker shows. Default: the program's file name.
    pub connection_name: String,
    /// Trusted certificates and own certificate on `amqps://`. Default: the system's, and none.
    pub tls: Tls,
    /// `true` if only addresses of this host are dialled, whatever a name leads to: for a login that must not leave this
    /// host without TLS. Default: `false`.
    pub loopback_only: bool,
}

impl Default for AmqpOptions {
    fn default() -> Self {
        let program = std::env::current_exe().ok();
        let name = program.as_deref().and_then(|path| path.file_name()).and_then(|name| name.to_str());
        Self {
            namespace: "machinist".to_owned(),
            queue_type: QueueType::default(),
            topology: TopologyMode::default(),
            existing_queues: HashMap::new(),
            publish_deadline: Duration::from_secs(30),
            max_message_size: 16 * 1024 * 1024,
            management_port: Some(15672),
            connection_name: name.unwrap_or("machinist").to_owned(),
            tls: Tls::default(),
            loopback_only: false,
        }
    }
}

/// Type of task queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum QueueType {
    /// Replicated, with a limit on the deliveries of a message that kills its consumers.
    #[default]
    Quorum,
    /// Not replicated, without that limit. For brokers without quorum queues, and for queues that already exist as
    /// classic ones.
    Classic,
}

/// Handling of exchanges and queues that this process names and that do not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TopologyMode {
    /// The process declares them, and declares a queue again that somebody deleted.
    #[default]
    Declare,
    /// The process only checks that they exist: for users without the permission to configure.
    Verify,
}

/// Queue that another program declares. It is taken as it stands: it is never declared, whatever its type and arguments.
///
/// A binding brings it the delayed messages of this namespace, and its dead letters are kept in `NAME.dead`, which is
/// declared as for any other queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExistingQueue {
    /// Name of the queue on the broker. The namespace is no part of it.
    pub name: String,
    /// Exchange to which messages for the queue are published; the empty text is the default exchange.
    pub exchange: String,
    /// Routing key under which the exchange sends messages to the queue.
    pub routing_key: String,
}

impl ExistingQueue {
    /// Names a queue that is reached by the default exchange.
    pub fn new(name: impl Into<String>) -> Self {
        let name = name.into();
        Self { exchange: String::new(), routing_key: name.clone(), name }
    }

    /// Publishes messages for the queue to this exchange, under this routing key.
    #[must_use]
    pub fn through(mut self, exchange: impl Into<String>, routing_key: impl Into<String>) -> Self {
        self.exchange = exchange.into();
        self.routing_key = routing_key.into();
        self
    }

    fn check(&self) -> Result<(), BrokerError> {
        QueueName::parse(&self.name).map_err(|error| BrokerError::Configuration(error.to_string()))?;
        if self.exchange.len().max(self.routing_key.len()) > 255 {
            return Err(BrokerError::Configuration(format!(
                "queue {}: its exchange or its routing key is longer than 255 bytes, the maximum of AMQP",
                self.name
            )));
        }
        Ok(())
    }
}

impl AmqpOptions {
    /// Checks the values that the types allow and the broker does not.
    pub(crate) fn check(&self) -> Result<(), BrokerError> {
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if !(1..=40).contains(&self.namespace.len()) || !self.namespace.chars().all(is_allowed) {
            return Err(BrokerError::Configuration(format!(
                "namespace {:?} cannot name an exchange; use 1 to 40 letters, digits, - or _",
                self.namespace
            )));
        }
        if self.namespace == "amq" {
            return Err(BrokerError::Configuration(
                "namespace \"amq\" is reserved for the broker; choose another name".to_owned(),
            ));
        }
        self.existing_queues.values().try_for_each(ExistingQueue::check)?;
        if self.publish_deadline.is_zero() {
            return Err(BrokerError::Configuration(
                "publish_deadline 0 would give up before it begins; use at least a second".to_owned(),
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_option_is_named_with_its_value_and_the_remedy() {
        assert!(AmqpOptions::default().check().is_ok());
        for namespace in ["", "a.b", "a b", "amq", "ü", &"x".repeat(41)] {
            let options = AmqpOptions { namespace: namespace.to_owned(), ..AmqpOptions::default() };
            let message = options.check().unwrap_err().to_string();
            assert!(message.starts_with(&format!("namespace {namespace:?}")), "{message}");
        }
        let options = AmqpOptions { publish_deadline: Duration::ZERO, ..AmqpOptions::default() };
        assert!(options.check().unwrap_err().to_string().contains("publish_deadline"));
    }
}
