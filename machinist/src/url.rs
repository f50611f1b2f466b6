//! URLs of brokers and backends.
//!
//! Only the scheme is read here. The adapter reads the rest, because only it knows the syntax of a Sentinel's host
//! list or a Redis socket.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use crate::redact;

/// Scheme of a URL: the kind of server and of connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Scheme {
    /// `amqp://`, a RabbitMQ: broker.
    Amqp,
    /// `amqps://`, a RabbitMQ over TLS: broker.
    Amqps,
    /// `redis://`: backend.
    Redis,
    /// `rediss://`, a Redis over TLS: backend.
    Rediss,
    /// `redis+sentinel://`, a Redis found through its Sentinels: backend.
    RedisSentinel,
    /// `rediss+sentinel://`, the same over TLS: backend.
    RedissSentinel,
    /// `redis+cluster://`, a Redis Cluster: backend.
    RedisCluster,
    /// `rediss+cluster://`, a Redis Cluster over TLS: backend.
    RedissCluster,
    /// `redis+unix://`, a Redis behind a Unix socket: backend.
    RedisUnix,
    /// `sqlite://FILE`: broker and backend, in one file.
    Sqlite,
    /// `memory://`: broker and backend of one process, for tests.
    Memory,
}

/// Role of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Moves messages.
    Broker,
    /// Stores states and results.
    Backend,
}

impl Role {
    /// Returns the schemes of the role, in the order in which they are listed.
    pub const fn schemes(self) -> &'static [Scheme] {
        match self {
            Self::Broker => &[Scheme::Amqp, Scheme::Amqps, Scheme::Sqlite, Scheme::Memory],
            Self::Backend => &[
                Scheme::Redis,
                Scheme::Rediss,
                Scheme::RedisSentinel,
                Scheme::RedissSentinel,
                Scheme::RedisCluster,
                Scheme::RedissCluster,
                Scheme::RedisUnix,
                Scheme::Sqlite,
                Scheme::Memory,
            ],
        }
    }

    /// Returns `broker` or `backend`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Broker => "broker",
            Self::Backend => "backend",
        }
    }
}

impl Scheme {
    /// Returns `true` if connections use TLS.
    pub const fn is_tls(self) -> bool {
        matches!(self, Self::Amqps | Self::Rediss | Self::RedissSentinel | Self::RedissCluster)
    }

    /// Returns the scheme as it is written before `://`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Amqp => "amqp",
            Self::Amqps => "amqps",
            Self::Redis => "redis",
            Self::Rediss => "rediss",
            Self::RedisSentinel => "redis+sentinel",
            Self::RedissSentinel => "rediss+sentinel",
            Self::RedisCluster => "redis+cluster",
            Self::RedissCluster => "rediss+cluster",
            Self::RedisUnix => "redis+unix",
            Self::Sqlite => "sqlite",
            Self::Memory => "memory",
        }
    }
}

/// URL of a broker or a backend. `Display` and `Debug` print it without its password.
#[derive(Clone, PartialEq, Eq)]
pub struct ServerUrl {
    scheme: Scheme,
    text: String,
}

impl ServerUrl {
    /// Reads a URL, whose scheme has to fit the role. The rest is not checked here.
    ///
    /// # Errors
    /// A sentence that names the schemes of the role, without the password.
    pub fn parse(text: &str, role: Role) -> Result<Self, String> {
        let shown = redact::url(text);
        let known = || {
            let list: Vec<String> = role.schemes().iter().map(|s| format!("{}://", s.as_str())).collect();
            list.join(", ")
        };
        let Some((word, rest)) = text.split_once("://") else {
            return Err(format!("\"{shown}\" is not a URL; a {} is one of {}", role.as_str(), known()));
        };
        let word = word.to_ascii_lowercase();
        let Some(scheme) = role.schemes().iter().copied().find(|s| s.as_str() == word) else {
            let other = match role {
                Role::Broker => Role::Backend,
                Role::Backend => Role::Broker,
            };
            let why = match other.schemes().iter().any(|s| s.as_str() == word) {
                true => format!("is a {}, not a {}", other.as_str(), role.as_str()),
                false => "has an unknown scheme".to_owned(),
            };
            return Err(format!("\"{shown}\" {why}; a {} is one of {}", role.as_str(), known()));
        };
        if scheme == Scheme::Sqlite && rest.is_empty() {
            return Err("\"sqlite://\" names no file; write sqlite://machinist.db, or sqlite:///var/lib/app/machinist.db".into());
        }
        Ok(Self { scheme, text: text.to_owned() })
    }

    /// Returns the URL of an SQLite file.
    pub(crate) fn sqlite(file: &Path) -> Self {
        Self { scheme: Scheme::Sqlite, text: format!("sqlite://{}", file.display()) }
    }

    /// Returns the scheme.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// Returns the whole URL with its password: for the adapter, never to be shown.
    pub fn expose(&self) -> &str {
        &self.text
    }

    /// Returns the file of a `sqlite://` URL.
    pub fn file(&self) -> Option<PathBuf> {
        let rest = self.text.split_once("://").map(|(_, rest)| rest)?;
        (self.scheme == Scheme::Sqlite).then(|| PathBuf::from(rest))
    }

    /// Joins the relative path of a `sqlite://` URL to a folder; other URLs stay as they are.
    #[must_use]
    pub(crate) fn relative_to(self, folder: &Path) -> Self {
        match self.file() {
            Some(file) if file.is_relative() => Self::sqlite(&folder.join(file)),
            _ => self,
        }
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&redact::url(&self.text))
    }
}

impl fmt::Debug for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scheme_of_a_role_is_known() {
        for role in [Role::Broker, Role::Backend] {
            for scheme in role.schemes() {
                let url = ServerUrl::parse(&format!("{}://x", scheme.as_str()), role).unwrap();
                assert_eq!(url.scheme(), *scheme);
            }
        }
        assert_eq!(ServerUrl::parse("AMQP://h", Role::Broker).unwrap().scheme(), Scheme::Amqp);
    }

    #[test]
    fn what_does_not_fit_is_reported_without_the_password() {
        let error = |text, role| ServerUrl::parse(text, role).unwrap_err();
        assert_eq!(
            error("kafka://u:geheim@h", Role::Broker),
            "\"kafka://u:***@h\" has an unknown scheme; a broker is one of amqp://, amqps://, sqlite://, memory://"
        );
        assert!(
            error("redis://:geheim@h", Role::Broker)
                .starts_with("\"redis://:***@h\" is a backend, not a broker;")
        );
        assert!(
            error("localhost", Role::Backend)
                .starts_with("\"localhost\" is not a URL; a backend is one of redis://,")
        );
        assert!(error("sqlite://", Role::Backend).contains("names no file"));
    }

    #[test]
    fn a_file_may_be_relative_to_a_folder() {
        let at =
            |text: &str| ServerUrl::parse(text, Role::Broker).unwrap().relative_to(Path::new("/etc/app"));
        assert_eq!(at("sqlite://m.db").file().unwrap(), Path::new("/etc/app/m.db"));
        assert_eq!(at("sqlite:///var/m.db").file().unwrap(), Path::new("/var/m.db"));
        assert_eq!(at("memory://").file(), None);
    }

    #[test]
    fn debug_hides_the_password() {
        let url = ServerUrl::parse("amqp://u:geheim@h", Role::Broker).unwrap();
        assert_eq!(format!("{url:?} {url}"), "amqp://u:***@h amqp://u:***@h");
    }
}
