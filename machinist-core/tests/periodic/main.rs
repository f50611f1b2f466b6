//! Periodic tasks over the in-memory adapters and under paused time: ticks, orders, policies, and workers that die.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod arrows;
mod house;
mod orders;
mod policies;
mod trust;
