//! Schemes of this crate, which are known even if their connectors are not compiled in.

use crate::url::{Reach, Scheme};

/// Schemes of the feature `amqp`.
pub(super) const AMQP: [Scheme; 2] =
    [Scheme::broker("amqp", Reach::Network { over_tls: Some("amqps") }), Scheme::broker("amqps", Reach::Tls)];

/// Schemes of the feature `redis`.
pub(super) const REDIS: [Scheme; 7] = [
    Scheme::backend("redis", Reach::Network { over_tls: Some("rediss") }),
    Scheme::backend("rediss", Reach::Tls),
    Scheme::backend("redis+sentinel", Reach::Network { over_tls: Some("rediss+sentinel") }),
    Scheme::backend("rediss+sentinel", Reach::Tls),
    Scheme::backend("redis+cluster", Reach::Network { over_tls: Some("rediss+cluster") }),
    Scheme::backend("rediss+cluster", Reach::Tls),
    Scheme::backend("redis+unix", Reach::Socket),
];

/// Schemes of the feature `postgres`. Whether connections use TLS is an option of the URL.
pub(super) const POSTGRES: [Scheme; 2] = [
    Scheme::both("postgres", Reach::Network { over_tls: Some("postgres") }),
    Scheme::both("postgresql", Reach::Network { over_tls: Some("postgresql") }),
];

/// Schemes of the feature `sqlite`.
pub(super) const SQLITE: [Scheme; 1] = [Scheme::both("sqlite", Reach::File)];
