//! The words, decisions, worker and client of machinist.
//!
//! This crate knows no network: brokers and backends are behind two seams, [`broker`] and [`backend`].

pub mod args;
pub mod backend;
pub mod broker;
pub mod clock;
mod codec;
mod context;
pub mod diagnose;
mod envelope;
pub mod error;
pub mod handler;
pub mod id;
pub mod memory;
pub mod record;
mod retry;
mod signature;

pub use args::{Arg, Results};
pub use codec::Codec;
pub use context::TaskContext;
pub use error::{ResultError, SendError, TaskError};
pub use id::{QueueName, TaskId, TaskName};
pub use retry::{Backoff, RetryPolicy};
pub use signature::Signature;
