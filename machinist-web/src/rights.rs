//! Single rights of a user, and roles that are sets of them. Pure.

use std::{collections::BTreeSet, fmt, str::FromStr};

use serde::Serialize;

use crate::sight::Sight;

/// Right to change something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Right {
    /// Send a failed task or workflow again.
    Retry,
    /// Send the task of a dead letter again.
    Replay,
    /// Delete dead letters.
    Purge,
    /// Revoke a task or a workflow.
    Revoke,
    /// Pause and resume queues and workers, let workers drain, and silence failures.
    Control,
    /// Send a new task.
    Send,
    /// Pause, resume and trigger periodic tasks.
    Periodic,
}

impl Right {
    /// Every right.
    pub const ALL: [Self; 7] =
        [Self::Retry, Self::Replay, Self::Purge, Self::Revoke, Self::Control, Self::Send, Self::Periodic];

    /// Returns the right as a word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Replay => "replay",
            Self::Purge => "purge",
            Self::Revoke => "revoke",
            Self::Control => "control",
            Self::Send => "send",
            Self::Periodic => "periodic",
        }
    }
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Set of rights with a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum UserRole {
    /// Sees everything, changes nothing.
    #[default]
    Viewer,
    /// Does what can be undone: retry, replay, revoke, control, periodic.
    Operator,
    /// Does everything.
    Admin,
}

impl UserRole {
    /// Every role.
    pub const ALL: [Self; 3] = [Self::Viewer, Self::Operator, Self::Admin];

    /// Returns the role as a word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }

    /// Returns `true` if the role has the right.
    pub const fn has(self, right: Right) -> bool {
        match self {
            Self::Viewer => false,
            Self::Operator => !matches!(right, Right::Purge | Right::Send),
            Self::Admin => true,
        }
    }
}

impl fmt::Display for UserRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for UserRole {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let role = Self::ALL.into_iter().find(|role| role.as_str() == text);
        role.ok_or_else(|| format!("{text:?} is no role; write viewer, operator or admin"))
    }
}

/// Person or program that uses the dashboard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    name: String,
    rights: BTreeSet<Right>,
    sight: Sight,
}

impl User {
    /// Creates a user with the rights of a role.
    pub fn new(name: impl Into<String>, role: UserRole) -> Self {
        Self::with_rights(name, Right::ALL.into_iter().filter(|right| role.has(*right)))
    }

    /// Creates a user with these rights.
    pub fn with_rights(name: impl Into<String>, rights: impl IntoIterator<Item = Right>) -> Self {
        Self { name: name.into(), rights: rights.into_iter().collect(), sight: Sight::default() }
    }

    /// Lets the user see and change nothing but these queues and their tasks. A `*` at the end of a pattern stands for any
    /// rest. Workflows, and the charts of all queues together, are for those who see everything.
    #[must_use]
    pub fn only_queues<P: Into<String>>(mut self, patterns: impl IntoIterator<Item = P>) -> Self {
        self.sight.queues = Some(patterns.into_iter().map(Into::into).collect());
        self
    }

    /// Lets the user see and change nothing but the tasks of these names. A `*` at the end of a pattern stands for any rest.
    /// Numbers of queues count all tasks. Workflows, and the charts of all queues together, are for those who see everything.
    #[must_use]
    pub fn only_tasks<P: Into<String>>(mut self, patterns: impl IntoIterator<Item = P>) -> Self {
        self.sight.tasks = Some(patterns.into_iter().map(Into::into).collect());
        self
    }

    /// Returns what the user sees.
    pub(crate) fn sight(&self) -> &Sight {
        &self.sight
    }

    /// Returns the name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns `true` if the user has the right.
    pub fn has(&self, right: Right) -> bool {
        self.rights.contains(&right)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_are_sets_of_rights() {
        let has =
            |role: UserRole| Right::ALL.into_iter().filter(|right| role.has(*right)).collect::<Vec<_>>();
        assert_eq!(has(UserRole::Viewer), []);
        assert_eq!(
            has(UserRole::Operator),
            [Right::Retry, Right::Replay, Right::Revoke, Right::Control, Right::Periodic]
        );
        assert_eq!(has(UserRole::Admin), Right::ALL);
        assert_eq!("operator".parse(), Ok(UserRole::Operator));
        assert!("root".parse::<UserRole>().unwrap_err().contains("viewer, operator or admin"));
        let user = User::with_rights("ada", [Right::Retry]);
        assert!(user.has(Right::Retry) && !user.has(Right::Purge));
    }
}
