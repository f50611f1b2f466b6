//! URLs of a PostgreSQL, parsed once where they enter.

use std::{net::IpAddr, str::FromStr as _, time::Duration};

use tokio_postgres::{
    Config,
    config::{Host, SslMode, TargetSessionAttrs},
};

use crate::error::PostgresError;

/// Maximum length of the name of a schema, in bytes: the name of the channel is longer, and PostgreSQL cuts names at 63.
const MAX_SCHEMA: usize = 48;
/// Maximum time to open a connection to one host.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Idle time after which a lost peer is looked for.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);

/// A server, the schema in it, and its name for people.
#[derive(Clone)]
pub(crate) struct ServerTarget {
    pub(crate) config: Config,
    pub(crate) schema: String,
    /// The URL without password.
    pub(crate) location: String,
    pub(crate) tls: bool,
}

/// Checks the syntax of a URL.
///
/// # Errors
/// A predicate to the URL with the remedy, without the password.
pub fn check_url(url: &str) -> Result<(), String> {
    parse(url, None).map(drop)
}

/// Returns `true` if connections to this URL use TLS: unless it has `sslmode=disable`, or names only this host and no `sslmode`.
pub fn is_over_tls(url: &str) -> bool {
    parse(url, None).is_ok_and(|target| target.tls)
}

impl ServerTarget {
    /// Reads a URL. No error repeats it, since it may hold a password.
    pub(crate) fn parse(url: &str, namespace: &str) -> Result<Self, PostgresError> {
        parse(url, Some(namespace)).map_err(|why| PostgresError::configuration(format!("the URL {why}")))
    }
}

fn parse(url: &str, namespace: Option<&str>) -> Result<ServerTarget, String> {
    let (address, query) = url.split_once('?').unwrap_or((url, ""));
    let (mut schema, mut ssl, mut rest) = (None, None, Vec::new());
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let Some((name, value)) = pair.split_once('=') else {
            return Err("has an option without a value; write ?name=value".to_owned());
        };
        match name {
            "schema" => schema = Some(decoded(value).ok_or("has a schema that is no text in UTF-8")?),
            "sslmode" => ssl = Some(value.to_owned()),
            "application_name" | "target_session_attrs" | "options" => rest.push(pair),
            other => {
                let shown: String = other.chars().take(30).collect();
                return Err(format!(
                    "has the option {shown:?}; known are schema, sslmode, application_name, target_session_attrs and options"
                ));
            }
        }
    }
    let text = if rest.is_empty() { address.to_owned() } else { format!("{address}?{}", rest.join("&")) };
    let mut config = Config::from_str(&text).map_err(|error| {
        let why = std::error::Error::source(&error).map(|why| format!(" ({why})")).unwrap_or_default();
        format!("cannot be read{why}; write it like postgres://user:password@host:5432/database")
    })?;
    if config.get_hosts().is_empty() {
        return Err("has no host; write it like postgres://user:password@host:5432/database".to_owned());
    }
    let is_here = config.get_hosts().iter().all(is_this_host);
    let tls = match ssl.as_deref() {
        None => !is_here,
        Some("disable") => false,
        Some("require" | "verify-ca" | "verify-full") => true,
        Some("allow" | "prefer") => {
            return Err(
                "has an sslmode that falls back to plain text; use sslmode=verify-full, or sslmode=disable"
                    .to_owned(),
            );
        }
        Some(other) => {
            let shown: String = other.chars().take(30).collect();
            return Err(format!("has the sslmode {shown:?}; known are disable and verify-full"));
        }
    };
    let schema = schema.unwrap_or_else(|| namespace.unwrap_or("machinist").to_owned());
    check_schema(&schema)?;
    if config.get_target_session_attrs() == TargetSessionAttrs::Any {
        // Of several hosts the one that takes writes, and never a standby.
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
    }
    if config.get_application_name().is_none() {
        config.application_name("machinist");
    }
    config
        .ssl_mode(if tls { SslMode::Require } else { SslMode::Disable })
        .connect_timeout(CONNECT_TIMEOUT)
        .keepalives_idle(KEEPALIVE_IDLE)
        .keepalives_interval(Duration::from_secs(5))
        .keepalives_retries(3);
    #[cfg(target_os = "linux")]
    config.tcp_user_timeout(Duration::from_secs(20));
    let location = location(&config);
    Ok(ServerTarget { config, schema, location, tls })
}

fn check_schema(schema: &str) -> Result<(), String> {
    let why = if schema.is_empty() {
        "is empty"
    } else if schema.len() > MAX_SCHEMA {
        "is longer than 48 bytes"
    } else if schema.contains(|c: char| c.is_control() || matches!(c, '\'' | '$' | '\\')) {
        "holds a quote, a dollar sign, a backslash or a control character"
    } else if schema.starts_with("pg_") || schema == "information_schema" {
        "belongs to PostgreSQL"
    } else {
        return Ok(());
    };
    let shown: String = schema.chars().take(60).collect();
    Err(format!("leads to the schema {shown:?}, whose name {why}; choose another namespace, or ?schema=NAME"))
}

/// Returns the URL without password and options.
fn location(config: &Config) -> String {
    let ports = config.get_ports();
    let hosts = config.get_hosts().iter().enumerate().map(|(at, host)| {
        let name = match host {
            Host::Tcp(name) if name.contains(':') => format!("[{name}]"),
            Host::Tcp(name) => name.clone(),
            #[cfg(unix)]
            Host::Unix(path) => path.display().to_string(),
        };
        match ports.get(at).or_else(|| ports.first().filter(|_| ports.len() == 1)) {
            Some(port) if *port != 5432 => format!("{name}:{port}"),
            _ => name,
        }
    });
    let hosts: Vec<String> = hosts.collect();
    let user = config.get_user().map(|user| format!("{user}@")).unwrap_or_default();
    let database = config.get_dbname().or_else(|| config.get_user()).unwrap_or_default();
    format!("postgres://{user}{}/{database}", hosts.join(","))
}

fn is_this_host(host: &Host) -> bool {
    match host {
        Host::Tcp(name) => match name.parse::<IpAddr>() {
            Ok(address) => address.to_canonical().is_loopback(),
            Err(_) => name.eq_ignore_ascii_case("localhost"),
        },
        #[cfg(unix)]
        Host::Unix(_) => true,
    }
}

/// Decodes `%41`.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(url: &str) -> ServerTarget {
        ServerTarget::parse(url, "shop").unwrap_or_else(|error| panic!("{url}: {error}"))
    }

    #[test]
    fn the_schema_is_the_namespace_unless_the_url_names_one() {
        assert_eq!(target("postgres://me@db/app").schema, "shop");
        assert_eq!(target("postgresql://me@db/app?schema=a%20b&sslmode=disable").schema, "a b");
    }

    #[test]
    fn a_location_never_shows_a_password() {
        for (url, shown) in [
            ("postgres://me:secret@db/app", "postgres://me@db/app"),
            ("postgres://me:secret@a:1,b:2/app?schema=x", "postgres://me@a:1,b:2/app"),
            ("postgres://me:secret@[::1]:7000", "postgres://me@[::1]:7000/me"),
        ] {
            assert_eq!(target(url).location, shown);
        }
    }

    #[test]
    fn other_hosts_are_reached_over_tls() {
        for (url, tls) in [
            ("postgres://me@localhost/app", false),
            ("postgres://me@127.0.0.1:7/app", false),
            ("postgres://me@[::1]/app", false),
            ("postgres://me@db/app", true),
            ("postgres://me@localhost,db/app", true),
            ("postgres://me@db/app?sslmode=disable", false),
            ("postgres://me@localhost/app?sslmode=require", true),
            ("postgres://me@localhost/app?sslmode=verify-full", true),
        ] {
            assert_eq!(is_over_tls(url), tls, "{url}");
        }
    }

    #[test]
    fn a_bad_url_is_told_without_repeating_it() {
        for (url, why) in [
            ("postgres://me:secret@", "host"),
            ("postgres://me:secret@db:port/app", "cannot be read"),
            ("postgres://me:secret@db/app?timeout=3", "option \"timeout\""),
            ("postgres://me:secret@db/app?schema", "without a value"),
            ("postgres://me:secret@db/app?schema=", "is empty"),
            ("postgres://me:secret@db/app?schema=pg_x", "belongs to PostgreSQL"),
            ("postgres://me:secret@db/app?schema=%ff", "UTF-8"),
            ("postgres://me:secret@db/app?sslmode=prefer", "falls back"),
            ("postgres://me:secret@db/app?sslmode=secret", "known are"),
        ] {
            let Err(error) = ServerTarget::parse(url, "machinist") else { panic!("{url} was taken") };
            let error = error.to_string();
            assert!(error.contains(why), "{url}: {error}");
            assert!(!error.contains("me:secret"), "{error}");
        }
        assert!(ServerTarget::parse("postgres://me@db/app", &"x".repeat(49)).is_err());
    }
}
