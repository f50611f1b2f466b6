//! Broker and result backend of machinist in one PostgreSQL.
//!
//! One URL serves both roles, and either works alone. A task that is sent in a transaction of the application is sent if, and
//! only if, that transaction is committed: see [`PostgresBroker::write_in`].
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use machinist_postgres::{PostgresOptions, PostgresStore};
//!
//! let store = PostgresStore::connect("postgres://app@localhost/app", PostgresOptions::default()).await?;
//! let broker = store.broker();
//! let backend = store.backend();
//! # Ok(())
//! # }
//! ```
//!
//! # How it works
//! Everything is in one schema. A published message is a row, and `Ok` means that its transaction is committed. A process
//! that consumes is a *holder*: a row with a lease. A claim writes the holder into rows that it takes with `FOR UPDATE SKIP
//! LOCKED`; no transaction stays open while a task runs. Callers share statements: what arrives while one is under way
//! goes together in the next.
//!
//! A record is one row. A commit is decided in this process and written if the row still has the version that was read.
//!
//! # Wake-ups
//! A process that waits listens on one connection. A process that publishes tells the others with `NOTIFY` in a separate
//! transaction, at most once in [`NOTIFY_INTERVAL`] for all that has happened, because the server makes commits with a
//! notification wait for each other. Behind it every consumer looks into its queues twice a second.
//!
//! # Death of a process
//! Its lease ends 15 s after its last renewal, and its messages come back. A process that closes its broker hands them back at
//! once. A server that restarts, or a connection that is lost, ends no lease: a process that is back in time keeps what it
//! holds.
//!
//! # Threads
//! A store has one thread with a runtime for all its connections. So it can be used from several runtimes, and handlers that
//! block their runtime do not cost it its lease.

mod backend;
mod broker;
mod claim_request;
mod claims;
mod commits;
mod connect;
mod consumer;
mod diagnose;
mod error;
mod holders;
mod link;
mod listener;
mod messages;
mod migrate;
mod notifier;
mod options;
mod postgres_store;
mod publisher;
mod records;
mod runtime;
mod settlements;
mod store;
mod subscription;
mod target;
mod text;
mod wake_up;
mod watches;
mod write_in;

pub use backend::PostgresBackend;
pub use broker::PostgresBroker;
pub use error::PostgresError;
pub use migrate::{Migration, MigrationState, Migrations};
pub use notifier::NOTIFY_INTERVAL;
pub use options::{PostgresOptions, SchemaMode};
pub use postgres_store::PostgresStore;
pub use target::{check_url, is_over_tls};
pub use tokio_postgres;
pub use write_in::WriteInError;
