//! Address of the broker, read from a URL.
//!
//! lapin reads URLs too, but mistakes an IPv6 address for `localhost`, names no option when it fails, and prints
//! the password with the rest. So the URL is read here, once, and lapin gets the parts.

use std::fmt;

use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo, SASLMechanism};
use machinist_adapter::broker::BrokerError;
use url::{Host, Url};

/// Interval of heartbeats, in seconds. At the broker's default, 60 s, a dead peer would be noticed after two minutes.
const HEARTBEAT_SECONDS: u16 = 10;

/// Address of a broker, with its credentials. It prints without the password.
#[derive(Clone)]
pub(crate) struct Address(AMQPUri);

impl Address {
    /// Reads `amqp[s]://USER:PASSWORD@HOST:PORT/VHOST`. Missing parts have the defaults of RabbitMQ: guest,
    /// guest, port 5672 or 5671, vhost `/`.
    pub(crate) fn parse(text: &str) -> Result<Self, BrokerError> {
        let wrong = |why: &str| {
            BrokerError::Configuration(format!(
                "broker {:?} {why}; give it as amqp://USER:PASSWORD@HOST:5672/VHOST (amqps:// with TLS), \
                 with %2F for a slash in VHOST",
                redact(text)
            ))
        };
        let url = Url::parse(text).map_err(|error| wrong(&format!("is not a URL ({error})")))?;
        let scheme = match url.scheme() {
            "amqp" => AMQPScheme::AMQP,
            "amqps" => AMQPScheme::AMQPS,
            _ => return Err(wrong("does not begin with amqp:// or amqps://")),
        };
        let host = match url.host() {
            Some(Host::Domain(name)) if !name.is_empty() => {
                decode(name).ok_or_else(|| wrong("has a host that is not UTF-8"))?
            }
            Some(Host::Ipv4(address)) => address.to_string(),
            Some(Host::Ipv6(address)) => address.to_string(),
            _ => return Err(wrong("names no host")),
        };
        let auth_mechanism = match url.query_pairs().collect::<Vec<_>>()[..] {
            [] => None,
            [(ref name, ref value)] if name == "auth_mechanism" => match value.as_ref() {
                "plain" => Some(SASLMechanism::Plain),
                "external" if scheme == AMQPScheme::AMQPS => Some(SASLMechanism::External),
                "external" => return Err(wrong("logs in by certificate, which only amqps:// can show")),
                _ => return Err(wrong("has an auth_mechanism that is neither plain nor external")),
            },
            [(ref name, _), ..] => {
                return Err(wrong(&format!(
                    "has a parameter {name:?}, and only auth_mechanism is understood here"
                )));
            }
        };
        let part = |text: &str, default: &str| match text {
            "" => Ok(default.to_owned()),
            text => decode(text).ok_or_else(|| wrong("is not UTF-8 where it is percent-encoded")),
        };
        let username = part(url.username(), "guest")?;
        let password = part(url.password().unwrap_or_default(), "guest")?;
        let vhost = part(url.path().strip_prefix('/').unwrap_or_default(), "/")?;
        if vhost.len() > 255 {
            return Err(wrong("has a vhost longer than 255 bytes"));
        }
        let port = url.port().unwrap_or_else(|| scheme.default_port());
        let heartbeat = Some(HEARTBEAT_SECONDS);
        let query = AMQPQueryString { heartbeat, auth_mechanism, ..AMQPQueryString::default() };
        let userinfo = AMQPUserInfo { username, password };
        Ok(Self(AMQPUri { scheme, authority: AMQPAuthority { userinfo, host, port }, vhost, query }))
    }

    /// The address as lapin takes it.
    pub(crate) fn uri(&self) -> AMQPUri {
        self.0.clone()
    }

    pub(crate) fn host(&self) -> &str {
        &self.0.authority.host
    }

    pub(crate) fn port(&self) -> u16 {
        self.0.authority.port
    }

    pub(crate) fn user(&self) -> &str {
        &self.0.authority.userinfo.username
    }

    pub(crate) fn vhost(&self) -> &str {
        &self.0.vhost
    }

    /// Returns `true` if the client logs in by its certificate and not by a password.
    pub(crate) fn external(&self) -> bool {
        self.0.query.auth_mechanism == Some(SASLMechanism::External)
    }

    pub(crate) fn tls(&self) -> bool {
        self.0.scheme == AMQPScheme::AMQPS
    }
}

/// Prints the address without the password.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AMQPUri { scheme, authority, vhost, .. } = &self.0;
        let v6 = authority.host.contains(':');
        let open = if v6 { "[" } else { "" };
        let close = if v6 { "]" } else { "" };
        let vhost = vhost.replace('%', "%25").replace('/', "%2F");
        write!(f, "{scheme}://")?;
        if !self.external() {
            write!(f, "{}@", authority.userinfo.username)?;
        }
        write!(f, "{open}{}{close}:{}/{vhost}", authority.host, authority.port)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Removes from an unreadable URL the part that may be its password: everything between the first colon after the
/// scheme and the last `@`.
fn redact(text: &str) -> String {
    let start = text.find("://").map_or(0, |at| at + 3);
    match text[start..].rfind('@') {
        Some(end) => {
            let user = text[start..start + end].split(':').next().unwrap_or_default();
            format!("{}{user}:***{}", &text[..start], &text[start + end..])
        }
        None => text.to_owned(),
    }
}

/// Decodes percent-encoded text; `None` if the result is not UTF-8.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex =
            (*first == b'%').then(|| tail.get(..2).and_then(|two| std::str::from_utf8(two).ok())).flatten();
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_and_their_defaults() {
        let short = Address::parse("amqp://localhost").unwrap();
        assert_eq!(
            (short.host(), short.port(), short.user(), short.vhost()),
            ("localhost", 5672, "guest", "/")
        );
        for default in ["amqp://localhost/", "amqp://localhost/%2f", "amqp://localhost/%2F"] {
            // The vhost is signed: each spelling of it must give the same name.
            assert_eq!(Address::parse(default).unwrap().vhost(), "/", "{default}");
        }
        let full = Address::parse("amqps://us%40er:s%3Acret%ff@[::1]:99/a%2Fb").unwrap_err().to_string();
        assert!(full.contains("not UTF-8"), "{full}");
        let full = Address::parse("amqps://us%40er:s%3Acret@[::1]/a%2Fb").unwrap();
        assert_eq!((full.host(), full.port(), full.user(), full.vhost()), ("::1", 5671, "us@er", "a/b"));
        assert_eq!(full.uri().authority.userinfo.password, "s:cret");
        assert!(full.tls());
    }

    #[test]
    fn a_certificate_can_be_the_login() {
        let address = Address::parse("amqps://mq/v?auth_mechanism=external").unwrap();
        assert!(address.external());
        assert_eq!(address.to_string(), "amqps://mq:5671/v");
    }

    #[test]
    fn the_password_is_never_printed() {
        let address = Address::parse("amqp://user:hunter2@host/v").unwrap();
        assert_eq!(format!("{address} {address:?}"), "amqp://user@host:5672/v amqp://user@host:5672/v");
        for broken in [
            "amqp://user:hunter2@host:99999/",
            "http://user:hunter2@host/",
            "user:hunter2@host",
            "amqp://user:hunter2@/v",
            "amqp://user:hunter2@host/?heartbeat=1",
            "amqp://user:hunter2@host/?auth_mechanism=external",
            "amqps://user:hunter2@host/?auth_mechanism=scram",
            "amqp://us@er:hunter2@host:x/",
        ] {
            let message = Address::parse(broken).unwrap_err().to_string();
            assert!(!message.contains("hunter2"), "{message}");
            assert!(message.starts_with("broker \"") && message.contains("give it as amqp://"), "{message}");
        }
    }
}
