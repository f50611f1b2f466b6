//! The protocol's decisions: what a record says, what a delivery may do, what follows from an outcome.
//!
//! Everything here is pure: no clock, no server, no random number. The worker asks, then acts.

mod facts;
mod kind;

pub use facts::{FactName, Facts};
pub use kind::FailureKind;
