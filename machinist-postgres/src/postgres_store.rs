//! The entry point of the crate: a connected server, which provides a broker and a backend.

use std::sync::Arc;

use crate::{
    PostgresBackend, PostgresBroker,
    connect::ServerConnector,
    error::PostgresError,
    migrate,
    options::{PostgresOptions, SchemaMode},
    runtime::StoreRuntime,
    store::Store,
    target::ServerTarget,
    text::quoted,
};

/// One PostgreSQL as broker and result backend.
///
/// Any number of processes may use a schema at once. Within a process, connect once and share the store. It has up to five
/// connections, each opened at its first use: for publishes, for commits, for questions, and in a process that consumes or
/// waits for results for claims and for wake-ups.
#[derive(Debug, Clone)]
pub struct PostgresStore {
    store: Arc<Store>,
}

impl PostgresStore {
    /// Connects, and checks the schema; creates it if that is allowed.
    ///
    /// The URL is `postgres://[USER[:PASSWORD]@]HOST[:PORT][,HOST[:PORT]…]/DATABASE`. Of several hosts the one that takes writes is
    /// used. `?schema=NAME` names the schema; otherwise it is the namespace. Connections to other hosts use TLS unless the URL has
    /// `sslmode=disable`; certificates are checked against the host's name.
    ///
    /// # Errors
    /// [`PostgresError`]: the server cannot be reached or refuses, or the schema cannot be used.
    ///
    /// # Cancel safety
    /// Safe: a schema that was being created is created or not.
    pub async fn connect(url: &str, options: PostgresOptions) -> Result<Self, PostgresError> {
        let target = ServerTarget::parse(url, &options.namespace)?;
        let connector = Arc::new(ServerConnector::new(target, options.tls)?);
        let runtime = StoreRuntime::start()?;
        let (opening, namespace) = (Arc::clone(&connector), options.namespace);
        let may_create = options.schema_mode == SchemaMode::Declare;
        let identity = runtime
            .run(async move {
                let mut client = opening.open(Box::new(|_| ())).await?;
                let schema = &opening.target.schema;
                migrate::ensure(&mut client, schema, &namespace, may_create).await?;
                let sql = format!("SELECT identity FROM {}.meta", quoted(schema));
                let row = client.query_one(&sql, &[]).await.map_err(|error| PostgresError::of(&error))?;
                row.try_get::<_, String>(0).map_err(|error| PostgresError::of(&error))
            })
            .await?;
        Ok(Self { store: Arc::new(Store::start(&connector, runtime, identity)?) })
    }

    /// Returns a broker over the connected server.
    pub fn broker(&self) -> PostgresBroker {
        PostgresBroker::new(Arc::clone(&self.store))
    }

    /// Returns a backend over the connected server.
    pub fn backend(&self) -> PostgresBackend {
        PostgresBackend::new(Arc::clone(&self.store))
    }
}
