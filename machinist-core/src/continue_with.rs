//! The outcome of a handler that may hand its place to a workflow.

/// A value, or the place of the task for a workflow: what a handler returns that calls
/// [`TaskContext::continue_with`](crate::TaskContext::continue_with).
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "a handler returns it"]
pub struct Continue<R> {
    value: Option<R>,
}

impl<R> Continue<R> {
    /// Ends the task with a value.
    pub fn value(value: R) -> Self {
        Self { value: Some(value) }
    }

    /// Ends the task in favor of the workflow that its context has noted.
    pub(crate) fn replaced() -> Self {
        Self { value: None }
    }

    pub(crate) fn into_value(self) -> Option<R> {
        self.value
    }
}
