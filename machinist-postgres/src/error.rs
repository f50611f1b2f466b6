//! Errors of the server, split by what helps: another try, a person, or another record.

use std::sync::Arc;

use machinist_adapter::{
    backend::BackendError,
    broker::{BrokerError, PublishError},
};
use tokio_postgres::{Error, error::SqlState};

/// Remedy of an error, in kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ErrorKind {
    /// Another try: no connection, or no answer, so that the request may have been carried out.
    Lost,
    /// Another try: there is no connection, and nothing was sent.
    Away,
    /// Another try: the server has refused this one, and nothing was done.
    Busy,
    /// A person.
    Refused,
    /// Nothing but another record or message: what is stored, or was to be stored, cannot be used.
    Record,
    /// Another setting.
    Configuration,
}

/// Error of a PostgreSQL, with the remedy. Its text holds no password.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{text}")]
pub struct PostgresError {
    kind: ErrorKind,
    text: Arc<str>,
}

impl From<Error> for PostgresError {
    fn from(error: Error) -> Self {
        Self::of(&error)
    }
}

impl PostgresError {
    pub(crate) fn new(kind: ErrorKind, text: impl Into<Arc<str>>) -> Self {
        Self { kind, text: text.into() }
    }

    pub(crate) fn configuration(text: impl Into<Arc<str>>) -> Self {
        Self::new(ErrorKind::Configuration, text)
    }

    pub(crate) fn refused(text: impl Into<Arc<str>>) -> Self {
        Self::new(ErrorKind::Refused, text)
    }

    /// Tells that nothing was sent, for an error of opening a connection.
    pub(crate) fn before_sending(self) -> Self {
        if self.kind == ErrorKind::Lost { Self { kind: ErrorKind::Away, ..self } } else { self }
    }

    pub(crate) fn lost(text: impl Into<Arc<str>>) -> Self {
        Self::new(ErrorKind::Lost, text)
    }

    /// The store was closed.
    pub(crate) fn closed() -> Self {
        Self::lost("the store was closed")
    }

    /// Explains an error of the client library.
    pub(crate) fn of(error: &Error) -> Self {
        let Some(answer) = error.as_db_error() else {
            // Its own text says only `error communicating with the server`.
            let why = std::error::Error::source(error).map(|why| format!(": {why}")).unwrap_or_default();
            return Self::lost(format!("{error}{why}"));
        };
        let code = answer.code();
        let (kind, remedy) = classify(code);
        let said = format!("{} ({})", answer.message(), code.code());
        let separator = if remedy.is_empty() { "" } else { "; " };
        Self::new(kind, format!("{said}{separator}{remedy}"))
    }

    /// Returns `true` if another try may succeed although nobody changes anything.
    pub fn may_pass(&self) -> bool {
        matches!(self.kind, ErrorKind::Lost | ErrorKind::Away | ErrorKind::Busy)
    }

    pub(crate) fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Returns `true` if a connection that answered this must not be used again: it is broken, or its server is no longer the
    /// one that takes writes, or what was prepared on it no longer fits the tables.
    pub(crate) fn spoils_connection(error: &Error) -> bool {
        let stale = [
            &SqlState::READ_ONLY_SQL_TRANSACTION,
            &SqlState::ADMIN_SHUTDOWN,
            &SqlState::CRASH_SHUTDOWN,
            &SqlState::CANNOT_CONNECT_NOW,
            &SqlState::FEATURE_NOT_SUPPORTED,
            &SqlState::INVALID_SQL_STATEMENT_NAME,
            &SqlState::UNDEFINED_FUNCTION,
            &SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
        ];
        error.code().is_none_or(|code| stale.contains(&code))
    }

    /// Returns the error of a publish.
    pub(crate) fn into_publish(self) -> PublishError {
        match self.kind {
            ErrorKind::Lost => PublishError::Unknown(Box::new(self)),
            ErrorKind::Away => PublishError::Unavailable(Box::new(self)),
            ErrorKind::Busy => PublishError::Nacked { reason: self.text.to_string() },
            ErrorKind::Refused | ErrorKind::Record | ErrorKind::Configuration => {
                PublishError::Rejected { reason: self.text.to_string() }
            }
        }
    }
}

/// Returns what helps after the answer of a server, and how.
fn classify(code: &SqlState) -> (ErrorKind, &'static str) {
    use ErrorKind::{Busy, Lost, Record, Refused};
    match code.code() {
        "28P01" | "28000" => (Refused, "check user and password in the URL, and pg_hba.conf on the server"),
        "3D000" => (Refused, "create the database, or name another one in the URL"),
        "42501" => (
            Refused,
            "this user lacks a right: `machinist migrate --print` prints what it needs, to be run by the owner of the database",
        ),
        "3F000" | "42P01" | "42883" | "42703" => (
            Refused,
            "the schema is missing or incomplete: run `machinist migrate`, and `machinist doctor` to see what it finds",
        ),
        "25006" => (Busy, "this server is a standby, or read only: name all servers in the URL"),
        "53300" => (Busy, "raise max_connections on the server, or put a pooler before it"),
        "53100" => (Busy, "free disk space on the server"),
        "53200" => (Busy, "the server is out of memory"),
        "57014" => {
            (Busy, "statement_timeout of this user is too short, or somebody has cancelled the statement")
        }
        "57P01" | "57P02" => (Lost, ""),
        code if code.starts_with("08") => (Lost, ""),
        code if code.starts_with("22") || code.starts_with("54") || code.starts_with("23") => (Record, ""),
        code if ["40", "53", "55", "57", "25"].iter().any(|class| code.starts_with(class)) => (Busy, ""),
        code if code.starts_with("58") || code.starts_with("XX") => (Busy, "see the log of the server"),
        _ => (Refused, "see the log of the server"),
    }
}

impl From<PostgresError> for BackendError {
    fn from(error: PostgresError) -> Self {
        match error.kind {
            ErrorKind::Lost | ErrorKind::Away | ErrorKind::Busy => Self::Unavailable(Box::new(error)),
            ErrorKind::Refused => Self::Refused { reason: error.text.to_string() },
            ErrorKind::Record => Self::Record { reason: error.text.to_string() },
            ErrorKind::Configuration => Self::Configuration(error.text.to_string()),
        }
    }
}

impl From<PostgresError> for BrokerError {
    fn from(error: PostgresError) -> Self {
        match error.kind {
            ErrorKind::Lost | ErrorKind::Away | ErrorKind::Busy => Self::Unavailable(Box::new(error)),
            ErrorKind::Refused | ErrorKind::Record => Self::Refused { reason: error.text.to_string() },
            ErrorKind::Configuration => Self::Configuration(error.text.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_split_by_what_helps() {
        for (code, kind) in [
            ("57P01", ErrorKind::Lost),
            ("40P01", ErrorKind::Busy),
            ("53100", ErrorKind::Busy),
            ("53300", ErrorKind::Busy),
            ("25006", ErrorKind::Busy),
            ("57014", ErrorKind::Busy),
            ("42501", ErrorKind::Refused),
            ("42P01", ErrorKind::Refused),
            ("28P01", ErrorKind::Refused),
            ("22021", ErrorKind::Record),
            ("54000", ErrorKind::Record),
        ] {
            assert_eq!(classify(&SqlState::from_code(code)).0, kind, "{code}");
        }
    }

    #[test]
    fn only_what_no_other_try_cures_ends_a_publish() {
        let publish = |kind| PostgresError::new(kind, "x").into_publish();
        assert!(publish(ErrorKind::Refused).is_certain() && publish(ErrorKind::Record).is_certain());
        assert!(matches!(publish(ErrorKind::Away), PublishError::Unavailable(_)));
        assert!(!publish(ErrorKind::Lost).is_certain() && !publish(ErrorKind::Busy).is_certain());
    }
}
