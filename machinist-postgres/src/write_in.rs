//! Sends in a transaction of the application.
//!
//! The row is the message: it is there for consumers once the transaction is committed, and never if it is rolled back. No
//! notification is sent in it, because the server would make its commit wait for others; consumers find the row by themselves.

use std::error::Error;

use machinist_adapter::{
    backend::{Commit, Expiry, IndexUpdate},
    broker::{Publish, PublishError},
    facts::Facts,
};
use tokio_postgres::{
    Transaction,
    types::{ToSql, Type},
};

use crate::{
    PostgresBackend, PostgresBroker,
    error::PostgresError,
    messages::{INSERT, MessageColumns},
    text::escape,
};
use machinist_adapter::columns::encode_facts;

/// Types of the values of [`INSERT`].
const TYPES: [Type; 13] = [
    Type::TEXT_ARRAY,
    Type::BOOL_ARRAY,
    Type::INT2_ARRAY,
    Type::INT8_ARRAY,
    Type::TEXT_ARRAY,
    Type::TEXT_ARRAY,
    Type::TEXT_ARRAY,
    Type::TEXT_ARRAY,
    Type::INT8_ARRAY,
    Type::INT2_ARRAY,
    Type::BYTEA_ARRAY,
    Type::BYTEA_ARRAY,
    Type::TEXT,
];

/// Error of a send in a transaction. The transaction should be rolled back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteInError {
    /// The message cannot be sent, whatever the transaction is.
    #[error(transparent)]
    Publish(PublishError),
    /// The queue could not be declared before the transaction writes to it.
    #[error("the queue could not be declared")]
    Declare(#[source] PostgresError),
    /// The transaction is in another database than the broker.
    #[error("the transaction is in another database than the broker at {location}; begin it there")]
    OtherDatabase {
        /// Location of the broker, without password.
        location: String,
    },
    /// The server has refused a statement of the transaction, or is away.
    #[error("the message could not be written in the transaction")]
    Statement(#[source] Box<dyn Error + Send + Sync>),
}

impl PostgresBroker {
    /// Writes a message in a transaction of the application: it is sent if, and only if, the transaction is committed.
    ///
    /// # Errors
    /// [`WriteInError`].
    ///
    /// # Cancel safety
    /// A dropped future leaves the message written in the transaction or not: roll it back.
    pub async fn write_in(
        &self,
        transaction: &Transaction<'_>,
        publish: &Publish,
    ) -> Result<(), WriteInError> {
        publish.message.check_depth().map_err(WriteInError::Publish)?;
        // On another connection: a row that others wait for must not stay uncommitted for as long as the transaction lives.
        self.store.declare(vec![publish.target.clone()]).await.map_err(WriteInError::Declare)?;
        let columns = MessageColumns::new(std::slice::from_ref(publish)).only_in(self.store.identity.clone());
        let bodies = columns.bodies();
        let values: Vec<_> = columns.params(&bodies).into_iter().zip(TYPES).collect();
        let sql = INSERT.replace("{s}", &self.store.schema);
        match transaction.execute_typed(&sql, &values).await {
            Ok(0) => Err(self.other_database()),
            Ok(_) => Ok(()),
            // The tables are not there.
            Err(error)
                if error.code().is_some_and(|code| matches!(code.code(), "42P01" | "3F000" | "42883")) =>
            {
                Err(self.other_database())
            }
            Err(error) => Err(WriteInError::Statement(error.into())),
        }
    }

    fn other_database(&self) -> WriteInError {
        WriteInError::OtherDatabase { location: self.store.location.clone() }
    }
}

impl PostgresBackend {
    /// Writes a new record in a transaction of the application. A record that exists stays as it is.
    ///
    /// # Errors
    /// [`WriteInError`].
    ///
    /// # Cancel safety
    /// A dropped future leaves the record written in the transaction or not: roll it back.
    pub async fn write_in(&self, transaction: &Transaction<'_>, commit: &Commit) -> Result<(), WriteInError> {
        let mut facts = Facts::new();
        if !commit.apply(&mut facts) || facts.is_empty() {
            return Ok(());
        }
        let lifetime = match commit.expiry {
            Expiry::After(lifetime) | Expiry::AfterUnlessSet(lifetime) => {
                Some(i64::try_from(lifetime.as_micros()).unwrap_or(i64::MAX / 2))
            }
            Expiry::Keep => None,
        };
        let sql =
            "INSERT INTO {s}.records (kind, name, facts, expires) SELECT $1, $2, $3, {s}.now_micros() + $4 \
                   FROM {s}.meta WHERE identity = $5 ON CONFLICT DO NOTHING"
                .replace("{s}", &self.store.schema);
        let (kind, name) = (commit.id.kind().as_str(), escape(commit.id.id()));
        let facts = encode_facts(&facts);
        let values: [(&(dyn ToSql + Sync), Type); 5] = [
            (&kind, Type::TEXT),
            (&name, Type::TEXT),
            (&facts, Type::BYTEA),
            (&lifetime, Type::INT8),
            (&self.store.identity, Type::TEXT),
        ];
        let written = transaction.execute_typed(&sql, &values).await;
        written.map(drop).map_err(|error| WriteInError::Statement(error.into()))
    }

    /// Changes an index in a transaction of the application.
    ///
    /// # Errors
    /// [`WriteInError`].
    ///
    /// # Cancel safety
    /// A dropped future leaves the index changed in the transaction or not: roll it back.
    pub async fn note_in(
        &self,
        transaction: &Transaction<'_>,
        update: &IndexUpdate,
    ) -> Result<(), WriteInError> {
        let (index, member, at) = match update {
            IndexUpdate::Put { index, at, member } => (index, member, Some(at.as_micros())),
            IndexUpdate::Remove { index, member } => (index, member, None),
        };
        let sql = match at {
            Some(_) => {
                "INSERT INTO {s}.notes (list, member, at) VALUES ($1, $2, $3) \
                 ON CONFLICT (list, member) DO UPDATE SET at = excluded.at"
            }
            None => "DELETE FROM {s}.notes WHERE list = $1 AND member = $2 AND $3::bigint IS NULL",
        };
        let (list, member) = (escape(&index.name()).into_owned(), escape(member));
        let values: [(&(dyn ToSql + Sync), Type); 3] =
            [(&list, Type::TEXT), (&member, Type::TEXT), (&at, Type::INT8)];
        let written = transaction.execute_typed(&sql.replace("{s}", &self.store.schema), &values).await;
        written.map(drop).map_err(|error| WriteInError::Statement(error.into()))
    }

    /// Returns `true` if this backend and a broker are in the same schema, so that one transaction writes to both.
    pub fn is_beside(&self, broker: &PostgresBroker) -> bool {
        self.store.identity == broker.store.identity
    }
}
