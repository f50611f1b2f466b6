//! Tests of the program from outside: started in separate folders, and checked by its output and its exit code.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "these are tests, though not marked as such")]

mod bad_input;
mod command_tasks;
mod dead;
mod depth;
mod fairness;
mod fleet;
mod guides;
mod health;
mod keys;
mod limits;
mod locked_down;
mod logs;
mod long;
mod machinery;
mod main_job;
mod mixed;
#[path = "../../../machinist-broker-amqp/tests/shared/namespace.rs"]
mod namespace;
mod observe;
mod operator;
mod orders;
mod packaging;
mod periodic;
mod postgres;
mod priority;
mod programs;
mod rotation;
mod servers;
mod shutdown;
mod signing;
mod sizes;
mod support;
mod time;
mod top;
#[cfg(feature = "otel")]
mod traces;
mod undelivered;
mod visible;
#[cfg(feature = "web")]
mod web;
mod worker_settings;
mod workflows;
