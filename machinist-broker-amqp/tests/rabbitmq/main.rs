//! The adapter against a real RabbitMQ.
//!
//! One program, because each one is linked with the client of the protocol and all of the core.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod amqp;
mod channels;
mod conformance;
mod dead_letters;
mod delivery_limit;
mod dropped;
mod nacks;
#[path = "../shared/namespace.rs"]
mod namespace;
mod nodes;
mod peek;
mod support;
mod undelivered;
mod upkeep;
