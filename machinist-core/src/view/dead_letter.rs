//! A dead letter, and what became of it.

use serde::Serialize;

use super::ArgsView;
use crate::{DeadLetter, DeadLetterOutcome, TaskId};

/// Dead letter, as `dead list` and `dead show` print it.
#[derive(Debug, Serialize)]
#[non_exhaustive]
pub struct DeadLetterView<'a> {
    /// Id of the letter.
    pub dead_id: &'a str,
    /// Task queue of the message.
    pub queue: &'a str,
    /// Reason.
    pub reason: &'a str,
    /// Task.
    pub task: Option<&'a str>,
    /// Name of the task.
    pub name: Option<&'a str>,
    /// Attempt of the message.
    pub attempt: Option<u32>,
    /// Error and its causes, outermost first.
    pub error: &'a [String],
    /// Time at which it became a dead letter.
    pub at: String,
    /// Root of the workflow that the task belongs to.
    pub workflow: Option<&'a str>,
    /// Size of headers and body, in bytes.
    pub size: usize,
    /// Arguments of the task, if they were read.
    #[serde(flatten)]
    pub args: Option<ArgsView>,
    /// Outcome, if something was to be done with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<SettledView>,
}

impl<'a> DeadLetterView<'a> {
    /// Creates the view of a letter whose task belongs to this workflow.
    pub fn new(letter: &'a DeadLetter, root: Option<&'a TaskId>) -> Self {
        Self {
            dead_id: &letter.dead_id,
            queue: letter.queue.as_str(),
            reason: &letter.reason,
            task: letter.task.as_ref().map(|id| id.as_str()),
            name: letter.name.as_ref().map(|name| name.as_str()),
            attempt: letter.attempt,
            error: &letter.error.chain,
            at: letter.at.to_string(),
            workflow: root.map(TaskId::as_str),
            size: letter.size,
            args: None,
            outcome: None,
        }
    }

    /// Adds the arguments of the task.
    #[must_use]
    pub fn with_args(self, args: Option<ArgsView>) -> Self {
        Self { args, ..self }
    }

    /// Adds its outcome.
    #[must_use]
    pub fn settled(self, outcome: SettledView) -> Self {
        Self { outcome: Some(outcome), ..self }
    }
}

/// Outcome of a dead letter that was to be replayed or purged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SettledView {
    /// `replayed`, `purged`, `refused`, `missing`; with --dry-run `would be replayed`, `would be purged`.
    pub done: &'static str,
    /// Id of the new task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub as_task: Option<String>,
    /// Reason that the dead letter was not replayed or purged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

impl SettledView {
    /// Creates the view of an outcome that needs no more words.
    pub fn done(done: &'static str) -> Self {
        Self { done, as_task: None, why: None }
    }
}

impl From<&DeadLetterOutcome> for SettledView {
    fn from(outcome: &DeadLetterOutcome) -> Self {
        let (done, as_task, why) = match outcome {
            DeadLetterOutcome::Replayed(id) => ("replayed", Some(id.to_string()), None),
            DeadLetterOutcome::Purged => ("purged", None, None),
            DeadLetterOutcome::Refused(why) => ("refused", None, Some(why.clone())),
            DeadLetterOutcome::Missing => ("missing", None, Some("it was not found in its queue".to_owned())),
        };
        Self { done, as_task, why }
    }
}
