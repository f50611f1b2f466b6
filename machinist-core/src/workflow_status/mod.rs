//! Workflows that were sent: their state, their revocation, and sending them again.

mod again;
mod status;

pub use status::{MemberCounts, StepStatus, WorkflowProgress, WorkflowStatus};
