//! Tasks that every worker runs, so that workflows need no handler of their user.

/// Name of the task that begins a workflow, and the groups in it that wait for other steps. It returns its arguments; what
/// follows is in its message.
pub(crate) const WORKFLOW_TASK: &str = "machinist.workflow";
