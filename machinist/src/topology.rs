//! Objects of a broker: the treatment of missing ones, and the addresses of queues of other programs.

/// Treatment of missing exchanges and queues of RabbitMQ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Topology {
    /// They are created.
    #[default]
    Declare,
    /// They are an error: for users without the permission to configure the broker.
    Verify,
}

/// Exchange and routing key of a queue that another program declares. It is taken as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueAddress {
    /// Exchange to which its messages are published; the empty text is the default exchange.
    pub exchange: String,
    /// Routing key under which the exchange sends them to the queue.
    pub routing_key: String,
}

impl Topology {
    /// Word for it in settings.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Declare => "declare",
            Self::Verify => "verify",
        }
    }
}
