//! PostgreSQL: broker, result backend, migrations, and sends in a transaction of the application.

use std::collections::BTreeMap;

use async_trait::async_trait;
use machinist_core::{AsyncResult, Client, error::SendError, workflow::Sendable};
use tokio_postgres::Transaction;

use crate::{
    ConnectError,
    connect::{connector_error, request},
    connector::postgres_options,
    settings::Settings,
    url::Role,
};

pub use machinist_postgres::*;

/// Error of a send in a transaction of the application. The transaction should be rolled back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SendInError {
    /// The signature cannot be sent.
    #[error(transparent)]
    Send(#[from] SendError),
    /// The broker of the client is another kind of server, whose messages no transaction can hold.
    #[error(
        "the broker at {location} is no PostgreSQL, so it cannot take part in a transaction; send after the commit"
    )]
    OtherBroker {
        /// Location of the broker, without password.
        location: String,
    },
    /// The message could not be written.
    #[error(transparent)]
    Write(#[from] WriteInError),
}

/// Sends in a transaction of the application.
#[async_trait]
pub trait SendIn {
    /// Sends a signature or a workflow in a transaction: it is sent if, and only if, the transaction is committed. The broker of
    /// the client is the database of the transaction.
    ///
    /// A worker that waits finds the task within half a second of the commit: no notification is part of the transaction, because
    /// the server would make its commit wait for those of others. With another backend than the broker's schema the state of the
    /// task is unknown until a worker takes it. No event tells of the send. A unique task cannot be sent like this, nor one
    /// that requires a live worker.
    ///
    /// ```no_run
    /// # use machinist::{Client, TaskDef, postgres::{SendIn, tokio_postgres}};
    /// # const WELCOME: TaskDef<(String,), ()> = TaskDef::new("welcome");
    /// # async fn example(client: Client, db: &mut tokio_postgres::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut tx = db.transaction().await?;
    /// tx.execute("INSERT INTO users (name) VALUES ($1)", &[&"Ada"]).await?;
    /// client.send_in(&mut tx, WELCOME.call(("Ada".to_owned(),))).await?;
    /// tx.commit().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`SendInError`]. The transaction should be rolled back.
    ///
    /// # Cancel safety
    /// A dropped future leaves the task written in the transaction or not: roll it back.
    async fn send_in<S>(
        &self,
        transaction: &mut Transaction<'_>,
        what: S,
    ) -> Result<AsyncResult<S::ResultType>, SendInError>
    where
        S: Sendable + Send,
        S::ResultType: Send;
}

#[async_trait]
impl SendIn for Client {
    async fn send_in<S>(
        &self,
        transaction: &mut Transaction<'_>,
        what: S,
    ) -> Result<AsyncResult<S::ResultType>, SendInError>
    where
        S: Sendable + Send,
        S::ResultType: Send,
    {
        let broker = self.app().broker();
        let adapter = broker.adapter().and_then(|adapter| adapter.downcast_ref::<PostgresBroker>());
        let Some(broker) = adapter else {
            return Err(SendInError::OtherBroker { location: broker.location() });
        };
        let prepared = self.prepare_send(what).await?;
        broker.write_in(transaction, &prepared.publish).await?;
        let backend =
            self.app().backend().adapter().and_then(|adapter| adapter.downcast_ref::<PostgresBackend>());
        if let Some(backend) = backend.filter(|backend| backend.is_beside(broker)) {
            backend.write_in(transaction, &prepared.record).await?;
            if let Some(scheduled) = &prepared.scheduled {
                backend.note_in(transaction, scheduled).await?;
            }
        }
        Ok(prepared.result)
    }
}

/// Returns the migrations of the schemas that the settings name: none, one, or two.
///
/// # Errors
/// [`ConnectError`] of a setting that cannot be used.
pub fn migrations(settings: &Settings) -> Result<Vec<Migrations>, ConnectError> {
    let mut all = Vec::new();
    let existing = BTreeMap::new();
    let same = settings.broker.value.is_same_server(&settings.backend.value);
    for (role, setting) in [(Role::Broker, &settings.broker), (Role::Backend, &settings.backend)] {
        let is_postgres = setting.value.scheme().as_str().starts_with("postgres");
        if !is_postgres || (same && role == Role::Backend) {
            continue;
        }
        let request = request(setting, settings, &existing)?;
        let failed = |error| connector_error(error, role, &setting.value);
        let migrations = Migrations::new(setting.value.expose(), postgres_options(&request).map_err(failed)?);
        all.push(migrations.map_err(|error| match role {
            Role::Broker => failed(crate::connector::ConnectorError::Broker(error.into())),
            Role::Backend => failed(crate::connector::ConnectorError::Backend(error.into())),
        })?);
    }
    Ok(all)
}
