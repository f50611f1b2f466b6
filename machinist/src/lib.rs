//! Distributed task queue over RabbitMQ and Redis, or one SQLite file: nothing lost, typed end to end.
//!
//! ```
//! use machinist::prelude::*;
//! use std::time::Duration;
//!
//! // Shared by senders and workers: no handler, no connection.
//! const ADD: TaskDef<(i64, i64), i64> = TaskDef::new("add");
//!
//! async fn add(a: i64, b: i64) -> Result<i64, TaskError> {
//!     Ok(a + b)
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # std::env::set_current_dir(&folder)?;
//! // From MACHINIST_* variables and machinist.toml; by default over the file machinist.db.
//! let app = App::from_env().await?;
//!
//! // A worker, usually a separate process:
//! let worker = Worker::builder(&app).task(ADD, add).build()?;
//! let working = tokio::spawn(worker.run_until(async { tokio::signal::ctrl_c().await.unwrap_or(()) }));
//!
//! // A sender:
//! let sum = app.client().send(ADD.call((2, 3)).retries(5)).await?;
//! assert_eq!(sum.wait(Duration::from_secs(30)).await?, 5);
//! # working.abort();
//! # Ok(())
//! # }
//! ```
//!
//! This crate re-exports [`machinist_core`] under the same names. It adds the adapters, the macros, and
//! [`App::from_env`](AppExt::from_env), which chooses the adapters by the settings: see [`settings`]. Adapters from
//! elsewhere are added as [`connector`]s.
//!
//! # Features
//!
//! | feature | default | adds |
//! |---|---|---|
//! | `amqp` | yes | the broker over RabbitMQ, module `amqp` |
//! | `redis` | yes | the backend over Redis, module `redis` |
//! | `sqlite` | yes | broker and backend in one file, module `sqlite`; compiles SQLite, which is C |
//! | `postgres` | no | broker and backend in one PostgreSQL, and sends in transactions, module `postgres` |
//! | `macros` | yes | `#[machinist::task]`, `WireArg` and `TaskFailure` |
//! | `machinery` | no | the format of queues of Go machinery, module `machinery` |
//! | `chrono` | no | `chrono::DateTime` for ETA and expiry |
//! | `otel` | no | spans of tasks join the trace of their sender |
//! | `task-log` | no | `TaskLogLayer`, which puts the `tracing` events of handlers into the logs of their tasks |
//! | `tls` | no | certificates of `[tls]`, for connectors of other crates; `amqp` and `redis` include it |
//!
//! The default runs without a server, and on servers without a change. An application over RabbitMQ and Redis that does not
//! want SQLite takes `default-features = false, features = ["amqp", "redis", "macros"]`.
//!
//! # Keys
//!
//! Tasks and results are signed. An SQLite file gets a key file next to it; over RabbitMQ a key has to be configured:
//! see [`keys`].

#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod connect;
pub mod connector;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
pub mod keys;
mod lazy;
mod plaintext;
mod profiles;
pub mod redact;
pub mod settings;
pub mod spelling;
mod topology;
pub mod url;
pub mod visible;

#[doc(inline)]
pub use machinist_core::*;
/// Broker and backend inside one process.
pub use machinist_memory as memory;

#[cfg(feature = "macros")]
pub use machinist_macros::{TaskFailure, WireArg, task};

pub use connect::{AppExt, ConnectError, Servers};
pub use connector::{Connector, Connectors};
pub use lazy::{LazyApp, LazySendError, NotConnected};

/// Broker over AMQP 0.9.1 (RabbitMQ).
#[cfg(feature = "amqp")]
pub mod amqp {
    pub use machinist_broker_amqp::*;
}

/// Result backend over Redis.
#[cfg(feature = "redis")]
pub mod redis {
    pub use machinist_backend_redis::*;
}

/// Broker and result backend in one PostgreSQL, and sends in a transaction of the application.
#[cfg(feature = "postgres")]
pub mod postgres;

/// Broker and result backend in one SQLite file: the embedded default.
#[cfg(feature = "sqlite")]
pub mod sqlite {
    pub use machinist_sqlite::*;
}

/// Tasks of Go machinery: one queue, two languages.
#[cfg(feature = "machinery")]
pub mod machinery {
    pub use machinist_machinery::*;
}

/// Names that most programs need: `use machinist::prelude::*`.
pub mod prelude {
    pub use crate::AppExt;
    #[cfg(feature = "macros")]
    pub use crate::WireArg;
    pub use machinist_core::{
        App, AsyncResult, Client, Json, Rest, Results, Signature, State, TaskContext, TaskDef, TaskError,
        Worker,
    };
}

/// The README's code compiles.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;

/// The example of `#[machinist::task]` is compiled and run.
#[cfg(doctest)]
#[cfg(feature = "macros")]
#[doc = include_str!("../../machinist-macros/src/task.md")]
struct ExampleOfTask;

/// The example of the derive of `WireArg` is compiled and run.
#[cfg(doctest)]
#[cfg(feature = "macros")]
#[doc = include_str!("../../machinist-macros/src/wire_arg.md")]
struct ExampleOfWireArg;

/// The example of the derive of `TaskFailure` is compiled and run.
#[cfg(doctest)]
#[cfg(feature = "macros")]
#[doc = include_str!("../../machinist-macros/src/task_failure.md")]
struct ExampleOfTaskFailure;

/// The example of `docs/choosing.md` is compiled.
#[cfg(doctest)]
#[cfg(feature = "postgres")]
#[doc = include_str!("../../docs/choosing.md")]
struct DocsOfChoosing;
