//! Broker and result backend of machinist in one SQLite file: the embedded default.
//!
//! For one host, and for any number of processes on it: a worker, a sender and somebody who asks for a task's state
//! may all have the file open. Nothing has to be installed or started; what was sent is in the file when `send`
//! returns, and stays there through `kill -9` and, with [`Synchronous::Full`], through a power cut.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use machinist_sqlite::{SqliteOptions, SqliteStore};
//!
//! let store = SqliteStore::open("machinist.db", SqliteOptions::default()).await?;
//! let (broker, backend) = (store.broker(), store.backend());
//! # Ok(())
//! # }
//! ```
//!
//! # How it works
//! A thread writes, a thread reads, a thread watches the file for what other processes did. Changes of many callers
//! share one transaction, and nobody is answered before it is committed. Consumers are given messages in the same
//! transactions, up to their prefetch.
//!
//! # When a process dies
//! What it had claimed comes back. Each consuming process holds an operating-system lock on a file of its own in
//! `FILE-owners/`, which the system frees when the process ends in whatever way; the other consumers look every two
//! seconds, and a new one at once. A process that is alive and stopped loses its messages after 12 to 14 seconds,
//! because the number that it raises every two seconds stands still.
//!
//! # Limits
//! The file must be on a local disk: SQLite's write-ahead log does not work over network file systems. One process
//! writes at a time, so many writing processes share the speed of one; and one that is stopped (by a debugger, say) in
//! the very moment of a write holds up the others until it goes on or is killed: they answer *unavailable* after 20 s.

mod backend;
mod broker;
mod clock;
mod codec;
mod diagnose;
mod error;
mod file_reader;
mod file_watcher;
mod file_writer;
mod indexes;
mod local_consumer;
mod messages;
mod open;
mod options;
mod owners;
mod peer_writers;
mod records;
mod sessions;
mod store;
mod store_handle;
mod subscription;
mod wake_up;
mod watch_registry;
mod write_request;

pub use backend::SqliteBackend;
pub use broker::SqliteBroker;
pub use open::OpenError;
pub use options::{SqliteOptions, Synchronous};
pub use store::SqliteStore;
