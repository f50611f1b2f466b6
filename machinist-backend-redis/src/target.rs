//! Backend URLs, parsed once where they enter.
//!
//! | URL | leads to |
//! |---|---|
//! | `redis://[USER[:PASSWORD]@]HOST[:PORT][/DB]`, `rediss://…` | one server, plain or TLS |
//! | `unix:///PATH[?db=N&user=…&pass=…]`, `redis+unix://…` | one server on this host |
//! | `redis+sentinel://[USER:PASSWORD@]HOST[:PORT],…/MASTER[/DB][?sentinel_user=…&sentinel_password=…]` | whatever server the sentinels call master |
//! | `redis+cluster://[USER:PASSWORD@]HOST[:PORT],…` | a cluster, found through any of these nodes |
//!
//! All but a cluster take `wait_replicas=N`. `rediss+sentinel` and `rediss+cluster` speak TLS to everybody.

use std::time::Duration;

use machinist_adapter::backend::BackendError;
use redis::{
    ConnectionInfo, IntoConnectionInfo, ProtocolVersion, RedisConnectionInfo,
    io::tcp::{TcpSettings, socket2::TcpKeepalive},
};
use url::Url;

use crate::sentinel::Sentinels;

/// Idle time after which keepalive probes begin.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);

/// A server, or the servers that know it.
#[derive(Clone)]
pub(crate) enum RedisTarget {
    Single(Box<ConnectionInfo>),
    Sentinel(Box<Sentinels>),
    Cluster(Vec<ConnectionInfo>),
}

/// A target, and its name for people: the URL without password.
pub(crate) struct ParsedUrl {
    pub(crate) target: RedisTarget,
    pub(crate) location: String,
    pub(crate) tls: bool,
    /// Number of replicas that confirm a commit before it is answered.
    pub(crate) wait_replicas: u32,
}

impl RedisTarget {
    /// Reads a URL. No error repeats it, since it may hold a password.
    pub(crate) fn parse(url: &str, patience: Duration) -> Result<ParsedUrl, BackendError> {
        let (url, wait_replicas) = take_wait_replicas(url)?;
        let (scheme, rest) = url.split_once("://").ok_or_else(|| wrong("has no scheme"))?;
        let parsed = match scheme {
            "redis" | "rediss" => single(&url, patience)?,
            "unix" | "redis+unix" => unix(&url, patience)?,
            "redis+sentinel" | "rediss+sentinel" => sentinel(scheme, rest, patience)?,
            "redis+cluster" | "rediss+cluster" if wait_replicas > 0 => {
                return Err(wrong(
                    "has wait_replicas, which is not possible with a cluster; remove the option",
                ));
            }
            "redis+cluster" | "rediss+cluster" => cluster(scheme, rest, patience)?,
            other => {
                let shown: String = other.chars().take(30).collect();
                return Err(wrong(&format!("has the scheme {shown:?}, which is none of Redis")));
            }
        };
        Ok(ParsedUrl { wait_replicas, ..parsed })
    }
}

/// Takes the option that every URL may have out of its text, because the parsers of the client library do not know it.
fn take_wait_replicas(url: &str) -> Result<(String, u32), BackendError> {
    const NAME: &str = "wait_replicas";
    let Some((before, query)) = url.split_once('?') else { return Ok((url.to_owned(), 0)) };
    let value = |pair: &str| {
        pair.split_once('=').filter(|(name, _)| *name == NAME).map(|(_, value)| value.to_owned())
    };
    let (own, rest): (Vec<&str>, Vec<&str>) = query.split('&').partition(|pair| value(pair).is_some());
    let Some(text) = own.last().and_then(|pair| value(pair)) else { return Ok((url.to_owned(), 0)) };
    let replicas = text.parse().ok().filter(|replicas| (1..=100).contains(replicas));
    let replicas = replicas.ok_or_else(|| wrong("has a wait_replicas that is no number from 1 to 100"))?;
    let rest = rest.join("&");
    Ok((if rest.is_empty() { before.to_owned() } else { format!("{before}?{rest}") }, replicas))
}

/// Returns the TCP settings of every connection: small messages leave at once, and a lost peer is noticed even while
/// nothing is asked of it.
pub(crate) fn tcp(patience: Duration) -> TcpSettings {
    let probes =
        TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(Duration::from_secs(5)).with_retries(3);
    let settings = TcpSettings::default().set_nodelay(true).set_keepalive(probes);
    #[cfg(any(target_os = "android", target_os = "fuchsia", target_os = "linux"))]
    let settings = settings.set_user_timeout(patience);
    settings
}

fn single(url: &str, patience: Duration) -> Result<ParsedUrl, BackendError> {
    let parsed = parse(url)?;
    known_options(&parsed, &[])?;
    let tls = parsed.scheme() == "rediss";
    let location = location(&parsed, &authority(&parsed));
    let target = RedisTarget::Single(Box::new(connection(parsed, patience)?));
    Ok(ParsedUrl { target, location, tls, wait_replicas: 0 })
}

fn unix(url: &str, patience: Duration) -> Result<ParsedUrl, BackendError> {
    let parsed = parse(url)?;
    known_options(&parsed, &["db", "user", "pass"])?;
    let location = location(&parsed, "");
    Ok(ParsedUrl {
        target: RedisTarget::Single(Box::new(connection(parsed, patience)?)),
        location,
        tls: false,
        wait_replicas: 0,
    })
}

fn sentinel(scheme: &str, rest: &str, patience: Duration) -> Result<ParsedUrl, BackendError> {
    let several = MultiNodeUrl::split(scheme, rest, 26379)?;
    known_options(&several.first, &["sentinel_user", "sentinel_password"])?;
    let mut path = several.first.path().trim_matches('/').splitn(2, '/');
    let master = path.next().filter(|name| !name.is_empty());
    let master = master.ok_or_else(|| wrong("must name the master after the hosts: …HOST:26379/mymaster"))?;
    let db = match path.next() {
        Some(db) => db.parse().map_err(|_| wrong("ends in a database that is no number"))?,
        None => 0,
    };
    let option =
        |name: &str| several.first.query_pairs().find(|(n, _)| n == name).map(|(_, v)| v.into_owned());
    let mut watchman = RedisConnectionInfo::default();
    if let Some(user) = option("sentinel_user") {
        watchman = watchman.set_username(user);
    }
    if let Some(password) = option("sentinel_password") {
        watchman = watchman.set_password(password);
    }
    let nodes = several.nodes(patience)?;
    // INVARIANT: splitting gives at least one host.
    let login = nodes.first().ok_or_else(|| wrong("has no host"))?.redis_settings().clone().set_db(db);
    let sentinels = nodes.into_iter().map(|node| node.set_redis_settings(watchman.clone())).collect();
    let sentinels = Sentinels { sentinels, master: master.to_owned(), login, tcp: tcp(patience) };
    let target = RedisTarget::Sentinel(Box::new(sentinels));
    Ok(ParsedUrl { target, location: several.location(scheme), tls: several.tls, wait_replicas: 0 })
}

fn cluster(scheme: &str, rest: &str, patience: Duration) -> Result<ParsedUrl, BackendError> {
    let several = MultiNodeUrl::split(scheme, rest, 6379)?;
    known_options(&several.first, &[])?;
    if !matches!(several.first.path(), "" | "/" | "/0") {
        return Err(wrong("names a database, but a cluster has only database 0"));
    }
    let nodes = several.nodes(patience)?;
    Ok(ParsedUrl {
        target: RedisTarget::Cluster(nodes),
        location: several.location(scheme),
        tls: several.tls,
        wait_replicas: 0,
    })
}

/// A URL with several hosts, which no URL parser takes: one URL for each, with the same login.
struct MultiNodeUrl {
    /// The first with path and options.
    first: Url,
    nodes: Vec<Url>,
    tls: bool,
}

impl MultiNodeUrl {
    fn split(scheme: &str, rest: &str, port: u16) -> Result<Self, BackendError> {
        let tls = scheme.starts_with("rediss");
        let plain = if tls { "rediss" } else { "redis" };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, tail) = rest.split_at(end);
        let (login, hosts) = authority.rsplit_once('@').map_or(("", authority), |(l, h)| (l, h));
        let at = if login.is_empty() { "" } else { "@" };
        let nodes = hosts
            .split(',')
            .map(|host| {
                let mut node = parse(&format!("{plain}://{login}{at}{host}"))?;
                if node.port().is_none() {
                    // INVARIANT: it has a host, or it would not have parsed.
                    let _ = node.set_port(Some(port));
                }
                Ok(node)
            })
            .collect::<Result<Vec<_>, BackendError>>()?;
        let host = hosts.split(',').next().unwrap_or_default();
        let first = parse(&format!("{plain}://{login}{at}{host}{tail}"))?;
        Ok(Self { first, nodes, tls })
    }

    fn nodes(&self, patience: Duration) -> Result<Vec<ConnectionInfo>, BackendError> {
        self.nodes.iter().map(|node| connection(node.clone(), patience)).collect()
    }

    fn location(&self, scheme: &str) -> String {
        let hosts: Vec<String> = self.nodes.iter().map(host_and_port).collect();
        let user = user(&self.first);
        format!("{scheme}://{user}{}{}", hosts.join(","), self.first.path())
    }
}

fn parse(url: &str) -> Result<Url, BackendError> {
    if url.contains('#') {
        return Err(wrong("has a `#`; in a password write it as %23"));
    }
    let parsed = Url::parse(url).map_err(|e| wrong(&format!("cannot be read ({e})")))?;
    if !parsed.scheme().ends_with("unix") && parsed.host_str().is_none_or(str::is_empty) {
        return Err(wrong("has no host"));
    }
    Ok(parsed)
}

fn connection(url: Url, patience: Duration) -> Result<ConnectionInfo, BackendError> {
    let info = url.into_connection_info().map_err(|e| wrong(&format!("cannot be used ({e})")))?;
    // RESP3 tells when a connection is lost, and carries wake-ups.
    let login = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
    let login = login.set_lib_name("machinist", env!("CARGO_PKG_VERSION"));
    Ok(info.set_redis_settings(login).set_tcp_settings(tcp(patience)))
}

fn known_options(url: &Url, known: &[&str]) -> Result<(), BackendError> {
    match url.query_pairs().find(|(name, _)| !known.contains(&name.as_ref())) {
        None => Ok(()),
        Some((name, _)) => {
            let shown: String = name.chars().take(30).collect();
            let list = [known, &["wait_replicas"]].concat().join(", ");
            Err(wrong(&format!("has the option {shown:?}; known for this scheme: {list}")))
        }
    }
}

fn authority(url: &Url) -> String {
    format!("{}{}", user(url), host_and_port(url))
}

fn user(url: &Url) -> String {
    if url.username().is_empty() { String::new() } else { format!("{}@", url.username()) }
}

fn host_and_port(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

fn location(url: &Url, authority: &str) -> String {
    format!("{}://{authority}{}", url.scheme(), url.path())
}

fn wrong(why: &str) -> BackendError {
    BackendError::Configuration(format!(
        "the backend URL {why}; write it like redis://user:password@host:6379/0 (also rediss://, unix://, \
         redis+sentinel://host:26379,host:26379/master, redis+cluster://host:6379,host:6379)"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(5);

    fn location_of(url: &str) -> String {
        RedisTarget::parse(url, TIMEOUT).unwrap_or_else(|e| panic!("{url}: {e}")).location
    }

    #[test]
    fn a_location_never_shows_a_password() {
        for (url, shown) in [
            ("redis://127.0.0.1:21379/0", "redis://127.0.0.1:21379/0"),
            ("rediss://me:secret@db.example/3", "rediss://me@db.example/3"),
            ("redis://:secret@[::1]:7000", "redis://[::1]:7000"),
            ("unix:///run/redis.sock?db=2&user=me&pass=secret", "unix:///run/redis.sock"),
            (
                "redis+sentinel://me:secret@a,b:7/main/2?sentinel_user=x&sentinel_password=secret",
                "redis+sentinel://me@a:26379,b:7/main/2",
            ),
            ("rediss+cluster://me:secret@a:1,b", "rediss+cluster://me@a:1,b:6379"),
        ] {
            assert_eq!(location_of(url), shown);
        }
    }

    #[test]
    fn a_bad_url_is_told_without_repeating_it() {
        for (url, why) in [
            ("secret", "no scheme"),
            ("http://me:secret@a", "scheme \"http\""),
            ("redis://", "host"),
            ("redis://me:secret@a:99999", "port"),
            ("redis://me:secret@a/x", "database"),
            ("redis://me:secret@a?timeout=3", "option \"timeout\""),
            ("redis://me:sec#secret@a", "%23"),
            ("redis+sentinel://me:secret@a:1,b:2", "name the master"),
            ("redis+sentinel://a/main/x", "no number"),
            ("redis+cluster://me:secret@a/3", "only database 0"),
            ("redis+cluster://me:secret@a,,b", "host"),
            ("redis://me:secret@a?wait_replicas=0", "from 1 to 100"),
            ("redis://me:secret@a?wait_replicas=secret", "from 1 to 100"),
            ("redis+cluster://me:secret@a?wait_replicas=1", "not possible with a cluster"),
        ] {
            let error = match RedisTarget::parse(url, TIMEOUT) {
                Ok(parsed) => panic!("{url} was taken for {}", parsed.location),
                Err(error) => error.to_string(),
            };
            assert!(error.contains(why), "{url}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn any_url_but_that_of_a_cluster_may_wait_for_replicas() {
        for (url, replicas) in [
            ("redis://a", 0),
            ("redis://a:7/0?wait_replicas=2", 2),
            ("unix:///run/redis.sock?db=2&wait_replicas=1&user=me&pass=secret", 1),
            ("redis+sentinel://a,b/main?sentinel_user=x&wait_replicas=3", 3),
        ] {
            let parsed = RedisTarget::parse(url, TIMEOUT).unwrap_or_else(|e| panic!("{url}: {e}"));
            assert_eq!(parsed.wait_replicas, replicas, "{url}");
            assert!(!parsed.location.contains("wait_replicas"));
        }
    }

    #[test]
    fn every_host_of_a_list_gets_the_login() {
        let parsed = RedisTarget::parse("redis+cluster://me:p%40ss@a:1,b", TIMEOUT).unwrap();
        let RedisTarget::Cluster(nodes) = parsed.target else { panic!("not a cluster") };
        let logins: Vec<_> =
            nodes.iter().map(|n| (n.addr().to_string(), n.redis_settings().password())).collect();
        assert_eq!(logins, [("a:1".to_owned(), Some("p@ss")), ("b:6379".to_owned(), Some("p@ss"))]);
    }
}
