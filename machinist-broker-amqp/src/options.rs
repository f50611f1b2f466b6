//! What can be set about the adapter.

use std::time::Duration;

use machinist_core::{broker::BrokerError, tls::Tls};

/// How an [`AmqpBroker`](crate::AmqpBroker) uses its broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AmqpOptions {
    /// The name of the exchange, and what every other name on the broker begins with: 1 to 40 letters, digits,
    /// `-` or `_`. Installations that share a broker differ in it. Default: `machinist`.
    pub namespace: String,
    /// What task queues are made of. Default: [`QueueType::Quorum`].
    pub queue_type: QueueType,
    /// Whether this process makes the queues it names. Default: [`TopologyMode::Declare`].
    pub topology: TopologyMode,
    /// How long a publish is tried before its caller is told that it failed. Default: 30 s.
    pub publish_deadline: Duration,
    /// The largest message body, in bytes: `max_message_size` of the broker, whose default is 16 MiB from
    /// RabbitMQ 4.0 on and 128 MiB before. Default: 16 MiB.
    pub max_message_size: usize,
    /// What the broker shows as the name of our connections. Default: the program's file name.
    pub connection_name: String,
    /// Whose certificates are trusted on `amqps://`, and which one we show. Default: the system's, and none.
    pub tls: Tls,
}

impl Default for AmqpOptions {
    fn default() -> Self {
        let program = std::env::current_exe().ok();
        let name = program.as_deref().and_then(|path| path.file_name()).and_then(|name| name.to_str());
        Self {
            namespace: "machinist".to_owned(),
            queue_type: QueueType::default(),
            topology: TopologyMode::default(),
            publish_deadline: Duration::from_secs(30),
            max_message_size: 16 * 1024 * 1024,
            connection_name: name.unwrap_or("machinist").to_owned(),
            tls: Tls::default(),
        }
    }
}

/// What task queues are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum QueueType {
    /// Replicated, and bounded in how often it delivers a message that kills its consumers.
    #[default]
    Quorum,
    /// Neither. For brokers without quorum queues, and for queues that already exist as classic ones.
    Classic,
}

/// Whether this process makes the exchanges and queues that it names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TopologyMode {
    /// It does, and a queue that somebody deleted is made again.
    #[default]
    Declare,
    /// It only checks that they are there: for users without the permission to configure.
    Verify,
}

impl AmqpOptions {
    /// Checks what the types cannot.
    pub(crate) fn check(&self) -> Result<(), BrokerError> {
        let word = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if !(1..=40).contains(&self.namespace.len()) || !self.namespace.chars().all(word) {
            return Err(BrokerError::Configuration(format!(
                "namespace {:?} cannot name an exchange; use 1 to 40 letters, digits, - or _",
                self.namespace
            )));
        }
        if self.namespace == "amq" {
            return Err(BrokerError::Configuration(
                "namespace \"amq\" belongs to the broker; choose another name".to_owned(),
            ));
        }
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
