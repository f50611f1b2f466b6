//! Slots that live processes share: the one slot of a leader, and the shards of a set.
//!
//! This module holds the definition and the pure part (`decide`): who holds which slot, and who takes or hands back which.
//! All that processes know of each other is one record for each set; they change it by compare-and-swap.

mod decide;
mod error;
#[cfg(test)]
mod search;

use serde::{Deserialize, Serialize};

pub use error::RoleError;

pub(crate) use decide::{Candidate, SlotDecision, SlotStep, decide, leave, view};

use crate::{
    clock::Timestamp,
    id::{RecordId, RecordKind},
    rfc3339,
};

/// Maximum number of slots of a set.
pub const MAX_SLOTS: u32 = 1024;
/// Maximum length of the name of a leader or a set, in bytes.
const MAX_NAME: usize = 100;
/// Maximum length of all parameters of a set together, in bytes.
const MAX_PARAMETERS: usize = 16 * 1024;

/// Kind of a role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum RoleKind {
    /// The leader of a name.
    Leader,
    /// The shards of a set.
    Shards,
}

/// Name of a role.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct RoleName {
    pub(crate) kind: RoleKind,
    pub(crate) name: String,
}

/// Slots of a set, and their parameters. Processes of one set agree about it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Layout {
    pub(crate) slots: u32,
    /// One for each slot, or none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) parameters: Vec<String>,
}

/// A slot of a set, and who holds it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[non_exhaustive]
pub struct SlotInfo {
    /// Number of the slot, from 0.
    pub slot: u32,
    /// Parameter of the slot, if the set has parameters.
    pub parameter: Option<String>,
    /// Name of the worker that holds it. `None` while it is free.
    pub worker: Option<String>,
    /// Id of the session that holds it: the incarnation of the worker.
    #[serde(skip)]
    pub incarnation: Option<String>,
    /// Epoch of the last holder; 0 if nobody has held it.
    pub epoch: u64,
    /// Time since which it is held.
    #[serde(serialize_with = "rfc3339::if_known")]
    pub since: Option<Timestamp>,
}

impl RoleName {
    /// Checks a name.
    ///
    /// # Errors
    /// [`RoleError::Name`].
    pub(crate) fn checked(kind: RoleKind, name: String) -> Result<Self, RoleError> {
        if name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control) {
            return Err(RoleError::Name(name));
        }
        Ok(Self { kind, name })
    }

    /// Reads `leader/NAME` or `shards/SET`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (kind, name) = text.split_once('/')?;
        let kind = match kind {
            "leader" => RoleKind::Leader,
            "shards" => RoleKind::Shards,
            _ => return None,
        };
        Self::checked(kind, name.to_owned()).ok()
    }

    /// Returns the record of the role.
    pub(crate) fn record(&self) -> RecordId {
        RecordId::new(RecordKind::Lock, &self.to_string())
    }
}

impl std::fmt::Display for RoleName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.kind {
            RoleKind::Leader => write!(f, "leader/{}", self.name),
            RoleKind::Shards => write!(f, "shards/{}", self.name),
        }
    }
}

impl Layout {
    /// Checks the number of slots and their parameters.
    ///
    /// # Errors
    /// [`RoleError`].
    pub(crate) fn checked(slots: u32, parameters: Vec<String>) -> Result<Self, RoleError> {
        if !(1..=MAX_SLOTS).contains(&slots) {
            return Err(RoleError::Slots(slots));
        }
        let (number, bytes) = (parameters.len(), parameters.iter().map(String::len).sum());
        if number != 0 && u32::try_from(number) != Ok(slots) {
            return Err(RoleError::Parameters { slots, parameters: number });
        }
        if bytes > MAX_PARAMETERS {
            return Err(RoleError::ParametersTooLong(bytes));
        }
        Ok(Self { slots, parameters })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_layouts_are_checked() {
        let name = |name: &str| RoleName::checked(RoleKind::Leader, name.to_owned());
        assert_eq!(RoleName::parse("leader/a/b"), name("a/b").ok());
        assert_eq!(RoleName::parse(&name("x").unwrap().to_string()), name("x").ok());
        assert!(name("").is_err() && name("a\n").is_err() && name(&"x".repeat(101)).is_err());
        assert_eq!(RoleName::parse("overdue"), None);
        assert!(Layout::checked(0, vec![]).is_err() && Layout::checked(1025, vec![]).is_err());
        let wrong = Layout::checked(2, vec!["eu".into()]).unwrap_err().to_string();
        assert!(wrong.contains('2') && wrong.contains('1'), "{wrong}");
        assert!(Layout::checked(1, vec!["x".repeat(20_000)]).is_err());
        assert!(Layout::checked(2, vec!["eu".into(), "us".into()]).is_ok());
    }
}
