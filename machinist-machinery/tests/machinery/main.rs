//! Go machinery: its samples, and mixed fleets with a model of its worker and its client.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "these are tests, though not marked as such")]

mod again;
mod arrows;
mod client;
mod debts;
mod fleet;
mod go;
mod golden;
#[path = "../../../machinist-broker-amqp/tests/shared/namespace.rs"]
mod namespace;
mod periodic;
mod states;
