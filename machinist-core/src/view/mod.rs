//! JSON shapes of tasks, workflows, queues, workers, periodic tasks, failures, dead letters and the history.
//!
//! The commands of the program and the API of the dashboard print the same fields, because both serialize these views. The
//! instants in them are RFC 3339 in UTC. A view is made from what the [client](crate::Client) returns, and decides nothing.
//! A program that shows a view as text takes its fields.

mod args;
mod dead_letter;
mod failure;
mod history;
mod log;
mod order;
mod periodic;
mod queue;
mod task;
mod worker;
mod workflow;

pub use args::ArgsView;
pub use dead_letter::{DeadLetterView, SettledView};
pub use failure::FailureGroupView;
pub use history::{
    HistoryCountView, HistoryMarkView, HistoryPointView, HistoryView, QueueGaugesView, TaskHistoryView,
};
pub use log::{LogLineView, TaskLogView};
pub use order::OrderView;
pub use periodic::{PeriodicDetailsView, PeriodicView, TickView};
pub use queue::QueueView;
pub use task::{AttemptView, ErrorView, ParkedView, ProgressView, TaskView};
pub use worker::{WorkerRunView, WorkerView};
pub use workflow::{LastResults, MemberView, StepView, WorkflowView, one_value};
