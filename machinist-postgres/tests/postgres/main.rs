//! The adapter against a real PostgreSQL.
//!
//! One program, because each one is linked with all of the core.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod arrows;
mod conformance;
mod faults;
mod foreign;
mod migrations;
mod send_in;
mod support;
