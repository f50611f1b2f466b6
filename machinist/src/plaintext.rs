//! Detection of passwords that would be sent over a network without TLS.

use std::borrow::Cow;

use machinist_core::url_list;

use crate::{
    redact,
    url::{Reach, ServerUrl},
};

/// Returns the first host to which this URL would send its password in plain text; `None` without a password, with TLS,
/// or without a network.
pub(crate) fn exposed_to(url: &ServerUrl) -> Option<String> {
    if !is_plain_login(url) {
        return None;
    }
    let parts = url_list::split(url.expose());
    let hosts = parts.iter().flat_map(|part| {
        let rest = part.split_once("://").map_or("", |(_, rest)| rest);
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        authority.rsplit_once('@').map_or(authority, |(_, hosts)| hosts).split(',').map(host)
    });
    hosts.into_iter().find(|host| !is_loopback(host)).map(str::to_owned)
}

/// Returns `true` if this URL sends a password over a network without TLS, be it that of this host.
pub(crate) fn is_plain_login(url: &ServerUrl) -> bool {
    let plain = matches!(url.scheme().reach(), Reach::Network { .. });
    // The redaction knows all passwords of a URL.
    plain && matches!(redact::url(url.expose()), Cow::Owned(_))
}

/// Removes the port of `[::1]:5672`, `mq:5672` or `mq`.
fn host(text: &str) -> &str {
    match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => text.rsplit_once(':').map_or(text, |(host, _)| host),
    }
}

fn is_loopback(host: &str) -> bool {
    match host.parse::<std::net::IpAddr>() {
        Ok(address) => address.to_canonical().is_loopback(),
        // Without a host every adapter connects to this one.
        Err(_) => host.is_empty() || host.eq_ignore_ascii_case("localhost"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::url::Role;

    fn exposed(text: &str) -> Option<String> {
        let role = if text.to_lowercase().starts_with("amqp") { Role::Broker } else { Role::Backend };
        exposed_to(&crate::Connectors::default().url(text, role).unwrap())
    }

    #[test]
    fn a_password_goes_to_other_hosts_by_tls_only() {
        for (url, host) in [
            ("amqp://app:pw@mq/%2f", "mq"),
            ("AMQP://app:pw@mq:5672", "mq"),
            ("amqp://app:pw@localhost/v,amqp://app:pw@mq/v", "mq"),
            ("amqp://app:pw@127.0.0.1.example.org/", "127.0.0.1.example.org"),
            ("amqp://app:p@w@10.0.0.7:5672/%2f", "10.0.0.7"),
            ("amqp://localhost:pw@mq", "mq"),
            ("amqp://app:pw@[2001:db8::1]:5672", "2001:db8::1"),
            ("redis://:pw@cache/0", "cache"),
            ("redis://cache/0?password=pw", "cache"),
            ("redis+sentinel://u:pw@127.0.0.1:1,b:2/main", "b"),
            ("redis+cluster://:pw@a:1,b:2", "a"),
        ] {
            assert_eq!(exposed(url).as_deref(), Some(host), "{url}");
        }
    }

    #[test]
    fn loopback_tls_sockets_and_urls_without_password_are_fine() {
        for url in [
            "amqp://guest:guest@localhost:5672/%2f",
            "amqp://guest:guest@LOCALHOST",
            "amqp://guest:guest@127.0.0.1:5672/%2f",
            "amqp://guest:guest@127.9.9.9",
            "amqp://guest:guest@[::1]:5672",
            "amqp://guest:guest@[::ffff:127.0.0.1]",
            "amqp://guest:guest@",
            "amqp://mq:5672/%2f",
            "amqp://app@mq",
            "amqps://app:pw@mq",
            "redis://cache:6379/0",
            "rediss://:pw@cache",
            "redis+unix:///run/redis.sock?pass=pw",
            "sqlite://a:b@c.db",
        ] {
            assert_eq!(exposed(url), None, "{url}");
        }
    }
}
