//! Treatment of what is missing on a broker.

/// Treatment of missing exchanges and queues of RabbitMQ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Topology {
    /// They are created.
    #[default]
    Declare,
    /// They are an error: for users without the permission to configure the broker.
    Verify,
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
