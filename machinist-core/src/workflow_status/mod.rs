//! Workflows that were sent: their state, their revocation, and sending them again.

mod again;
mod status;

pub use again::SentAgain;
pub use status::{MemberCounts, StepStatus, TaskPlace, WorkflowProgress, WorkflowStatus};
