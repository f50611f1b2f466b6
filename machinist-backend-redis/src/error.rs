//! Classification of Redis failures: try again, or tell a person.
//!
//! *Unavailable* is everything that another try may cure without anybody touching a setting of this program: a
//! lost connection, a server that loads, fails over or is full. It is also every failure after which the command
//! may have been executed. *Refused* is what only a person can cure, so it names the remedy.

use std::net::SocketAddr;

use machinist_adapter::backend::BackendError;
use redis::{ErrorKind, RedisError, Value};

/// A failure in the server's words, with a remedy if there is one.
#[derive(Debug, thiserror::Error)]
#[error("{said}{}{remedy}", if remedy.is_empty() { "" } else { "; " })]
struct RedisFailure {
    said: String,
    remedy: &'static str,
}

/// Returns the backend error for this failure.
pub(crate) fn backend_error(error: &RedisError) -> BackendError {
    let refused = |remedy: &str| BackendError::Refused { reason: format!("{}; {remedy}", said(error)) };
    match code(error) {
        "NOAUTH" | "WRONGPASS" => refused("check user and password in the backend URL"),
        "NOPERM" => refused(PERMISSION),
        "WRONGTYPE" | "TOOLARGE" => key_error(error, ""),
        "MOVED" | "CROSSSLOT" => refused("this server belongs to a cluster: use a redis+cluster:// URL"),
        NOT_LOOPBACK => refused(
            "use rediss://, rediss+sentinel:// or rediss+cluster://, or, on a trusted network, insecure_plaintext = true",
        ),
        "OOM" => unavailable(error, "free memory or raise maxmemory on the server"),
        "MISCONF" => unavailable(error, "the server cannot write to its disk: see its log"),
        "READONLY" => unavailable(error, "this is a replica: the backend URL must lead to the master"),
        "NOREPLICAS" => unavailable(error, "too few replicas are connected (min-replicas-to-write)"),
        NOT_REPLICATED => {
            unavailable(error, "look at the replicas (INFO replication), or lower wait_replicas in the URL")
        }
        "LOADING" | "MASTERDOWN" | "CLUSTERDOWN" | "TRYAGAIN" | "BUSY" | "NOSCRIPT" | "ASK"
        | "UNKILLABLE" => unavailable(error, ""),
        _ if said(error).contains("executing the script can't") => refused(PERMISSION),
        _ if said(error).contains("max number of clients reached") => {
            unavailable(error, "raise maxclients on the server")
        }
        _ => match error.kind() {
            ErrorKind::AuthenticationFailed => refused("check user and password in the backend URL"),
            ErrorKind::RESP3NotSupported => refused("machinist needs Redis 7.0 or Valkey 7.2, or later"),
            ErrorKind::InvalidClientConfig => BackendError::Configuration(said(error)),
            ErrorKind::Server(_) | ErrorKind::Extension => {
                refused("`machinist doctor` tells what this server and this user lack")
            }
            _ => unavailable(error, ""),
        },
    }
}

/// Returns the backend error for this failure of a command about one key.
pub(crate) fn key_error(error: &RedisError, key: &str) -> BackendError {
    let named = if key.is_empty() { String::new() } else { format!("{key}: ") };
    match code(error) {
        "WRONGTYPE" => BackendError::Record {
            reason: format!(
                "{named}{}; another program wrote a key of this name: delete that key, or choose another namespace, or \
                 another database in the URL",
                said(error)
            ),
        },
        "TOOLARGE" => BackendError::Record { reason: format!("{named}{}", said(error)) },
        _ => backend_error(error),
    }
}

/// The remedy for a missing permission, with the ACL of `docs/production.md`, which a test uses.
const PERMISSION: &str = "this user lacks a permission: give it (ACL SETUSER) `~NAMESPACE:* &NAMESPACE:* +evalsha \
                          +script|load +hmget +hgetall +hset +hsetnx +hdel +pexpire +set +get +exists +del +zadd +zrem \
                          +zrange +zrangebyscore +zremrangebyscore +time +ssubscribe +sunsubscribe +spublish +ping +hello`; \
                          states of Go machinery have keys outside of the namespace (docs/from-machinery.md)";

/// An answer of a shape that no supported server gives.
pub(crate) fn unexpected(wanted: &str, got: &Value) -> BackendError {
    let said = match got {
        Value::ServerError(error) => return backend_error(&error.clone().into()),
        Value::Nil => "nothing",
        Value::Int(_) => "a number",
        Value::BulkString(_) | Value::SimpleString(_) | Value::Okay => "a text",
        Value::Array(_) | Value::Set(_) | Value::Map(_) => "a list",
        _ => "something else",
    };
    let said = format!("the server answered {said} where {wanted} was expected");
    BackendError::Unavailable(Box::new(RedisFailure { said, remedy: "" }))
}

/// Returns `true` if a connection that answered this must not be used again: it is broken, or its server is no
/// longer the master.
pub(crate) fn spoils_connection(error: &RedisError) -> bool {
    matches!(code(error), "READONLY" | "NOREPLICAS" | "MASTERDOWN" | "NOAUTH")
        || (error.is_unrecoverable_error() && !error.is_timeout())
}

/// Returns `true` if the script has to be loaded again.
pub(crate) fn script_is_unknown(error: &RedisError) -> bool {
    code(error) == "NOSCRIPT"
}

/// Returns `true` if only one of many keys is at fault.
pub(crate) fn is_of_one_key(error: &RedisError) -> bool {
    code(error) == "WRONGTYPE"
}

/// Returns `true` if the user lacks a right, perhaps to one of many keys.
pub(crate) fn is_missing_right(error: &RedisError) -> bool {
    code(error) == "NOPERM"
}

/// Code of [`not_replicated`].
const NOT_REPLICATED: &str = "NOTREPLICATED";

/// The failure of a commit that the server has made, and that too few replicas have confirmed.
pub(crate) fn not_replicated(confirmed: i64, wanted: u32) -> RedisError {
    let detail = format!("{confirmed} replicas have confirmed in time, and wait_replicas is {wanted}");
    redis::make_extension_error(NOT_REPLICATED.to_owned(), Some(detail))
}

/// Code of [`not_loopback`].
const NOT_LOOPBACK: &str = "PLAINTEXT";

/// The failure of a connection that would send a password to another host without TLS.
pub(crate) fn not_loopback(host: &str, address: SocketAddr) -> RedisError {
    let detail = format!("the password would go to {host} ({address}) without TLS");
    redis::make_extension_error(NOT_LOOPBACK.to_owned(), Some(detail))
}

/// A failure that needs words of ours.
pub(crate) fn no_answer(said: impl Into<String>) -> BackendError {
    BackendError::Unavailable(Box::new(RedisFailure { said: said.into(), remedy: "" }))
}

fn unavailable(error: &RedisError, remedy: &'static str) -> BackendError {
    BackendError::Unavailable(Box::new(RedisFailure { said: said(error), remedy }))
}

fn code(error: &RedisError) -> &str {
    error.code().unwrap_or_default()
}

/// The server's words with their code, as its documentation has them.
fn said(error: &RedisError) -> String {
    match (error.code(), error.detail()) {
        (Some(code), Some(detail)) => format!("{code} {detail}"),
        (Some(code), None) => code.to_owned(),
        _ if error.is_timeout() => "no answer in time".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use redis::ServerErrorKind;

    use super::*;

    fn server(kind: ServerErrorKind) -> RedisError {
        RedisError::from((ErrorKind::Server(kind), "said", "as it says".to_owned()))
    }

    #[test]
    fn what_passes_by_itself_is_unavailable_and_the_rest_names_a_remedy() {
        use ServerErrorKind as Kind;
        let passing =
            [Kind::BusyLoading, Kind::MasterDown, Kind::ClusterDown, Kind::ReadOnly, Kind::TryAgain];
        for kind in passing {
            let meant = backend_error(&server(kind));
            assert!(matches!(meant, BackendError::Unavailable(_)), "{kind:?}: {meant:?}");
        }
        for (kind, remedy) in [(Kind::NoPerm, "ACL SETUSER"), (Kind::CrossSlot, "redis+cluster://")] {
            match backend_error(&server(kind)) {
                BackendError::Refused { reason } => assert!(reason.contains(remedy), "{reason}"),
                other => panic!("{kind:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_demoted_master_spoils_its_connections() {
        assert!(spoils_connection(&server(ServerErrorKind::ReadOnly)));
        assert!(!spoils_connection(&server(ServerErrorKind::NoPerm)));
        let broken = RedisError::from(std::io::Error::from(std::io::ErrorKind::BrokenPipe));
        assert!(spoils_connection(&broken));
        let slow = RedisError::from(std::io::Error::from(std::io::ErrorKind::TimedOut));
        assert!(!spoils_connection(&slow), "one timeout may be a slow server");
    }
}
