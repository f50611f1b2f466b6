//! Go machinery: its samples, and mixed fleets with a model of its worker and its client.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod arrows;
mod client;
mod fleet;
mod go;
mod golden;
mod periodic;
