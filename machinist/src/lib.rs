//! Distributed task queue over RabbitMQ and Redis, or one SQLite file: nothing lost, typed end to end.
//!
//! ```
//! use machinist::prelude::*;
//! use std::time::Duration;
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let app = machinist::App::builder(
//! #     std::sync::Arc::new(machinist::memory::MemoryBroker::new()),
//! #     std::sync::Arc::new(machinist::memory::MemoryBackend::new()),
//! # ).build().await?;
//! # let running = Worker::builder(&app).task_dyn("add", add).build()?;
//! # async fn add(_: TaskContext, args: Vec<machinist::Arg>) -> Result<Results, TaskError> {
//! #     let sum: i64 = args.iter().filter_map(|arg| arg.value.as_i64()).sum();
//! #     Ok(Results(vec![machinist::Arg::from_value(sum)]))
//! # }
//! # let worker = tokio::spawn(running.run_until(std::future::pending()));
//! // In a program: let app = App::from_env().await?;
//! let sum = app.client().send(Signature::new("add").arg(2).arg(3)).await?;
//! let five = sum.wait(Duration::from_secs(30)).await?;
//! assert_eq!(five.0[0].value, 5);
//! # worker.abort();
//! # Ok(())
//! # }
//! ```
//!
//! Everything of [`machinist_core`] is here under the same names. What this crate adds are the adapters, by
//! cargo feature (`amqp`, `redis`, `sqlite`, all on by default), and [`App::from_env`](AppExt::from_env), which
//! finds them by what is configured: see [`settings`].
//!
//! Programs that receive over AMQP should raise the stack of their threads: see [`amqp`].

pub mod connect;
pub mod redact;
pub mod settings;
pub mod url;

#[doc(inline)]
pub use machinist_core::*;

pub use connect::{AppExt, ConnectError, Servers};

/// The broker over AMQP 0.9.1 (RabbitMQ).
///
/// A small message with deeply nested headers overflows the stack of the AMQP library's thread and ends the
/// process. Start programs that receive with `RUST_MIN_STACK=67108864` in their environment, which survives the
/// deepest nesting that fits into a frame; the `machinist` program and `machinist_cli::run` do so by themselves.
#[cfg(feature = "amqp")]
pub mod amqp {
    pub use machinist_broker_amqp::*;
}

/// The result backend over Redis.
#[cfg(feature = "redis")]
pub mod redis {
    pub use machinist_backend_redis::*;
}

/// Broker and result backend in one SQLite file: the embedded default.
#[cfg(feature = "sqlite")]
pub mod sqlite {
    pub use machinist_sqlite::*;
}

/// What most programs need: `use machinist::prelude::*`.
pub mod prelude {
    pub use crate::AppExt;
    pub use machinist_core::{App, AsyncResult, Client, Results, Signature, TaskContext, TaskError, Worker};
}
