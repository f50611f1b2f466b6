//! Workers and clients over the in-memory adapters, most of them under paused time.
//!
//! One program, because each one is linked with everything that the core depends on.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod admission;
mod away;
mod batch;
mod circuit;
mod continue_with;
mod dead;
mod definition;
mod delays;
mod described;
mod event_stream;
mod events;
mod fair_queues;
mod fleet;
mod flow;
mod history;
mod limits;
mod look_ahead;
mod orders;
mod overdue;
mod periodic;
mod priority_queues;
mod profile;
mod queue_order;
mod send_buffered;
mod send_within;
mod signing;
mod spoilt;
mod support;
mod task_log;
mod time;
mod unique;
mod why;
mod workflow_faults;
mod workflow_keys;
mod workflows;
