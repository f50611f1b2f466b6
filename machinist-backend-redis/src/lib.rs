//! The result backend of machinist over Redis (7.0 and later, or Valkey 7.2 and later).
//!
//! A task's record is one hash whose fields are its facts, so `redis-cli HGETALL 'machinist:task:{ID}'` shows all that
//! is known about a task. One script, `commit.lua`, makes every change: a guard and a write, which hold no rule of the
//! delivery protocol. Standalone servers, Sentinel, Cluster, TLS, unix sockets and ACL users are told apart by the URL
//! alone, see [`RedisBackend::connect`].
//!
//! # What Redis promises
//! Redis confirms a write before it is on disk or on a replica. The protocol survives the loss of the last
//! writes, so nothing is lost with them but time; [`diagnose`](machinist_adapter::diagnose::Diagnose::diagnose) tells
//! what this server would lose.

mod additions;
mod backend;
mod batch;
mod batcher;
mod channel_watches;
mod command;
mod commit;
mod connect;
mod doctor;
mod error;
mod keys;
mod link;
mod resolver;
mod sentinel;
mod target;
mod values;

pub use backend::{RedisBackend, RedisOptions};
pub use values::RedisValues;
