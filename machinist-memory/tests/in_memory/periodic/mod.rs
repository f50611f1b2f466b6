//! Periodic tasks over the in-memory adapters and under paused time: ticks, orders, policies, and workers that die.

mod arrows;
mod house;
mod orders;
mod policies;
mod trust;
mod workflows;
