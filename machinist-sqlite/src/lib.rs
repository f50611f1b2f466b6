//! Broker and result backend of machinist in one SQLite file: the embedded default.
//!
//! It serves one host and any number of processes on it: workers, senders and clients that query the state of tasks may
//! all have the file open. No server has to be installed or started. A sent task is in the file when `send` returns. It
//! survives `kill -9` and, with [`Synchronous::Full`], a power cut.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use machinist_sqlite::{SqliteOptions, SqliteStore};
//!
//! let store = SqliteStore::open("machinist.db", SqliteOptions::default()).await?;
//! let broker = store.broker();
//! let backend = store.backend();
//! # Ok(())
//! # }
//! ```
//!
//! # How it works
//! One thread writes, one reads, and one watches the file for the changes of other processes. Changes of many callers
//! share one transaction, and callers are answered after its commit. The same transactions claim messages for
//! consumers, up to their prefetch.
//!
//! # Death of a process
//! The messages that it had claimed come back. Each consuming process holds an operating-system lock on its file in
//! `FILE-owners/`. The system releases the lock when the process ends, however it ends. The other consumers check the
//! locks every two seconds, and a new consumer checks them at once. A process that is alive but stopped loses its
//! messages after 12 to 14 seconds, because it no longer raises its heartbeat, a number, every two seconds. A lock that is
//! released also ends the worker's session: its tasks need not wait until the lease has expired.
//!
//! # Time
//! The time of the file is that of the host's clock, and every process on the host sees the same. It never goes back: after
//! the clock was set back, it runs at half speed until the clock has caught up. After the clock was set forward by more
//! than five seconds, it follows a minute later, if the clock still shows that time.
//!
//! # Copies
//! While no process uses the file, it is one file that can be copied, unless the last process was killed: then its newest
//! data is in `FILE-wal` until a process opens and closes the file. [`back_up`] copies a file in any state.
//!
//! # Limits
//! The file must be on a local disk, because the write-ahead log of SQLite does not work over network file systems. One
//! process writes at a time, so many writing processes share the throughput of one. A process that is stopped in the
//! middle of a write, by a debugger for example, blocks the others until it continues or is killed. Their operations
//! fail as *unavailable* after 20 s.

mod back_up;
mod backend;
mod broker;
mod clock;
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
mod own_sessions;
mod owners;
mod peer_writers;
mod records;
mod store;
mod store_handle;
mod subscription;
mod wake_up;
mod watch_registry;
mod write_context;
mod write_request;

pub use back_up::{BackUpError, back_up};
pub use backend::SqliteBackend;
pub use broker::SqliteBroker;
pub use open::OpenError;
pub use options::{SqliteOptions, Synchronous};
pub use store::SqliteStore;
