//! A connection that is kept, with the statements that were prepared on it, and when it is thrown away.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, timeout};
use tokio_postgres::{Client, Row, Statement, types::ToSql};

use crate::{
    connect::ServerConnector,
    error::{ErrorKind, PostgresError},
    text::quoted,
};

/// Maximum time for which a request is waited for. It may have been carried out after that.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Time after a failed attempt to connect in which the others who wait share its error.
const SHARED_FAILURE: Duration = Duration::from_millis(100);

/// Values of a statement.
pub(crate) type Params<'a> = &'a [&'a (dyn ToSql + Sync)];

/// One connection, opened at its first use and again after it was lost. Requests of several callers share it.
pub(crate) struct Link {
    connector: Arc<ServerConnector>,
    schema: String,
    session: tokio::sync::Mutex<LinkState>,
}

#[derive(Default)]
struct LinkState {
    session: Option<Arc<Session>>,
    failure: Option<(Instant, PostgresError)>,
}

/// An open connection.
struct Session {
    client: Client,
    statements: Mutex<HashMap<&'static str, Statement>>,
}

impl Link {
    pub(crate) fn new(connector: Arc<ServerConnector>) -> Self {
        let schema = quoted(&connector.target.schema);
        Self { connector, schema, session: tokio::sync::Mutex::default() }
    }

    /// Runs a statement that may be run twice: once more if the connection was lost meanwhile, which is only seen by using it.
    pub(crate) async fn query_again(
        &self,
        sql: &'static str,
        params: Params<'_>,
    ) -> Result<Vec<Row>, PostgresError> {
        match self.query(sql, params).await {
            Err(error) if error.kind() == ErrorKind::Lost => self.query(sql, params).await,
            // A server that ends, or a network that is cut, often ends a connection that is being opened.
            Err(error) if error.kind() == ErrorKind::Away => {
                tokio::time::sleep(2 * SHARED_FAILURE).await;
                self.query(sql, params).await
            }
            answer => answer,
        }
    }

    /// Runs one statement in a separate transaction and returns its rows. `{s}` in the text stands for the schema.
    pub(crate) async fn query(
        &self,
        sql: &'static str,
        params: Params<'_>,
    ) -> Result<Vec<Row>, PostgresError> {
        let session = self.session().await?;
        let answer = timeout(REQUEST_TIMEOUT, async {
            let statement = session.prepared(sql, &self.schema).await?;
            session.client.query(&statement, params).await
        });
        match answer.await {
            Ok(Ok(rows)) => Ok(rows),
            Ok(Err(error)) => {
                if session.client.is_closed() || PostgresError::spoils_connection(&error) {
                    self.forget(&session).await;
                }
                Err(PostgresError::of(&error))
            }
            Err(_) => {
                self.forget(&session).await;
                Err(PostgresError::lost(format!("no answer within {REQUEST_TIMEOUT:?}")))
            }
        }
    }

    async fn session(&self) -> Result<Arc<Session>, PostgresError> {
        let mut state = self.session.lock().await;
        if let Some(session) = state.session.as_ref().filter(|session| !session.client.is_closed()) {
            return Ok(Arc::clone(session));
        }
        state.session = None;
        if let Some((at, error)) = &state.failure
            && at.elapsed() < SHARED_FAILURE
        {
            return Err(error.clone());
        }
        match self.connector.open(Box::new(|_| ())).await {
            Ok(client) => {
                let session = Arc::new(Session { client, statements: Mutex::default() });
                state.failure = None;
                state.session = Some(Arc::clone(&session));
                Ok(session)
            }
            Err(error) => {
                let error = error.before_sending();
                state.failure = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    /// Throws a connection away, unless it is replaced already.
    async fn forget(&self, session: &Arc<Session>) {
        let mut state = self.session.lock().await;
        if state.session.as_ref().is_some_and(|current| Arc::ptr_eq(current, session)) {
            state.session = None;
        }
    }
}

impl Session {
    async fn prepared(&self, sql: &'static str, schema: &str) -> Result<Statement, tokio_postgres::Error> {
        let known = || self.statements.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(statement) = known().get(sql) {
            return Ok(statement.clone());
        }
        let statement = self.client.prepare(&sql.replace("{s}", schema)).await?;
        known().insert(sql, statement.clone());
        Ok(statement)
    }
}
