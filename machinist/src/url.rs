//! URLs of brokers and backends.
//!
//! Only the scheme is read here. The adapter reads the rest, because only it knows the syntax of a Sentinel's host
//! list or a Redis socket.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use crate::redact;

/// Role of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Moves messages.
    Broker,
    /// Stores states and results.
    Backend,
}

impl Role {
    /// Returns `broker` or `backend`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Broker => "broker",
            Self::Backend => "backend",
        }
    }

    pub(crate) const fn other(self) -> Self {
        match self {
            Self::Broker => Self::Backend,
            Self::Backend => Self::Broker,
        }
    }
}

/// Distance between this process and a server, which decides what has to be protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reach {
    /// Inside this process: it is gone when the process ends.
    Process,
    /// File of this host, whose path is the rest of the URL. The key of a broker is next to it.
    File,
    /// Socket of this host.
    Socket,
    /// Network without TLS: a broker needs a key, and a password is sent to this host only.
    Network {
        /// Scheme of the same kind of server over TLS, if there is one.
        over_tls: Option<&'static str>,
    },
    /// Network over TLS, with the certificates of `[tls]`: a broker needs a key.
    Tls,
}

/// Scheme of a URL: the kind of server and of connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Scheme {
    name: &'static str,
    is_broker: bool,
    is_backend: bool,
    reach: Reach,
}

impl Scheme {
    /// Creates the scheme of a broker. The name is what is written before `://`, in lower case.
    pub const fn broker(name: &'static str, reach: Reach) -> Self {
        Self { name, is_broker: true, is_backend: false, reach }
    }

    /// Creates the scheme of a backend.
    pub const fn backend(name: &'static str, reach: Reach) -> Self {
        Self { name, is_broker: false, is_backend: true, reach }
    }

    /// Creates the scheme of a server that can be broker and backend.
    pub const fn both(name: &'static str, reach: Reach) -> Self {
        Self { name, is_broker: true, is_backend: true, reach }
    }

    /// Returns the scheme as it is written before `://`.
    pub const fn as_str(self) -> &'static str {
        self.name
    }

    /// Returns the distance to its servers.
    pub const fn reach(self) -> Reach {
        self.reach
    }

    /// Returns `true` if its servers can have this role.
    pub const fn fits(self, role: Role) -> bool {
        match role {
            Role::Broker => self.is_broker,
            Role::Backend => self.is_backend,
        }
    }

    /// Returns `true` if connections use TLS.
    pub const fn is_tls(self) -> bool {
        matches!(self.reach, Reach::Tls)
    }

    /// Returns `true` if its servers are reached over a network.
    pub const fn is_remote(self) -> bool {
        matches!(self.reach, Reach::Network { .. } | Reach::Tls)
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// URL of a broker or a backend, read by [`Connectors::url`](crate::Connectors::url). `Display` and `Debug` print it
/// without its password.
#[derive(Clone, PartialEq, Eq)]
pub struct ServerUrl {
    scheme: Scheme,
    text: String,
}

impl ServerUrl {
    /// Creates a URL with this scheme.
    pub(crate) fn new(scheme: Scheme, text: &str) -> Result<Self, String> {
        let url = Self { scheme, text: text.to_owned() };
        if scheme.reach() == Reach::File && url.rest().is_empty() {
            return Err(format!(
                "\"{scheme}://\" names no file; write {scheme}://machinist.db, or {scheme}:///var/lib/app/machinist.db"
            ));
        }
        Ok(url)
    }

    /// Sets the distance to the server, where options of the URL decide about it.
    pub(crate) fn reached_over(self, reach: Reach) -> Self {
        Self { scheme: Scheme { reach, ..self.scheme }, ..self }
    }

    /// Returns the scheme.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// Returns the whole URL with its password: for the adapter, never to be shown.
    pub fn expose(&self) -> &str {
        &self.text
    }

    /// Returns what follows `://`, with the password.
    pub(crate) fn rest(&self) -> &str {
        self.text.split_once("://").map_or("", |(_, rest)| rest)
    }

    /// Returns the file of a URL that names one: `sqlite://FILE`.
    pub fn file(&self) -> Option<PathBuf> {
        (self.scheme.reach() == Reach::File).then(|| PathBuf::from(self.rest()))
    }

    /// Joins the relative path of a file to a folder; other URLs stay as they are.
    #[must_use]
    pub(crate) fn relative_to(self, folder: &Path) -> Self {
        match self.file() {
            Some(file) if file.is_relative() => {
                let text = format!("{}://{}", self.scheme, folder.join(file).display());
                Self { text, ..self }
            }
            _ => self,
        }
    }

    /// Returns `true` if both name the same server, which can be broker and backend at once.
    pub(crate) fn is_same_server(&self, other: &Self) -> bool {
        let file = |url: &Self| url.file().and_then(|file| std::path::absolute(file).ok());
        self.scheme == other.scheme
            && match (file(self), file(other)) {
                (Some(one), Some(other)) => one == other,
                _ => self.text == other.text,
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

    fn url(text: &str) -> ServerUrl {
        crate::Connectors::default().url(text, Role::Broker).unwrap()
    }

    #[test]
    fn a_file_may_be_relative_to_a_folder() {
        let at = |text: &str| url(text).relative_to(Path::new("/etc/app"));
        assert_eq!(at("sqlite://m.db").file().unwrap(), Path::new("/etc/app/m.db"));
        assert_eq!(at("sqlite:///var/m.db").file().unwrap(), Path::new("/var/m.db"));
        assert_eq!(at("memory://").file(), None);
    }

    #[test]
    fn one_server_may_be_named_in_two_ways() {
        let here = std::env::current_dir().unwrap();
        assert!(url("sqlite://m.db").is_same_server(&url(&format!("SQLite://{}/m.db", here.display()))));
        assert!(!url("sqlite://m.db").is_same_server(&url("sqlite://n.db")));
        assert!(url("memory://").is_same_server(&url("memory://")));
        assert!(!url("memory://a").is_same_server(&url("memory://b")));
    }

    #[test]
    fn debug_hides_the_password() {
        let url = url("amqp://u:geheim@h");
        assert_eq!(format!("{url:?} {url}"), "amqp://u:***@h amqp://u:***@h");
    }
}
