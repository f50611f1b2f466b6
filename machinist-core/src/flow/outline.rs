//! The outline of a workflow: its steps as they are shown.
//!
//! It is stored in the record of the root. Nothing is decided by it.

use serde::{Deserialize, Serialize};

use super::StepPlace;
use crate::id::TaskId;

/// A step as it is shown: kept in the record of the root.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct OutlineStep {
    pub(crate) name: String,
    pub(crate) task: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) after: Vec<String>,
    /// Number of members, if the step is a group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) members: Option<u32>,
    /// Names of the steps of a member between its first task and its last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) between: Vec<String>,
    /// Name of the last step of a member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) last: Option<String>,
    /// `true` if the step runs only when another has failed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) catches: bool,
    /// `true` for a step that machinist adds.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) internal: bool,
    /// `true` if nothing follows it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) is_last: bool,
}

/// The steps of a workflow as they are shown.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Outline {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    pub(crate) steps: Vec<OutlineStep>,
}

impl OutlineStep {
    /// Returns the ids of all its tasks, in a workflow whose root has this place.
    pub(crate) fn tasks(&self, root: &StepPlace) -> Vec<TaskId> {
        root.step(&self.name).tasks(self.members, &self.between.iter().chain(&self.last))
    }
}

impl Outline {
    /// Returns the name of the step whose end is that of the workflow, if it is one task.
    pub(crate) fn last(&self) -> Option<&str> {
        self.steps.iter().find(|step| step.is_last).map(|step| step.name.as_str())
    }
}
