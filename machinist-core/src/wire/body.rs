//! The part of a message that its sender writes once, and every retry and guard forwards as the same bytes.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::sizes::{MaxSizes, Oversize};
use crate::{args::Arg, clock::Timestamp, flow::Flow, retry::RetryPolicy};

/// The part of a signature that its sender writes once.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Body {
    #[serde(default)]
    pub(crate) args: Vec<Arg>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) retry: Option<RetryPolicy>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) timeout_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) soft_timeout_ms: Option<u64>,
    /// Due time that the sender asked for. The header `machinist-eta` is about the next run.
    #[serde(default, rename = "eta", skip_serializing_if = "Option::is_none")]
    pub(crate) first_eta: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) headers: BTreeMap<String, String>,
    /// Steps that follow the task, if it belongs to a workflow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) flow: Option<Box<Flow>>,
    /// Key of the task's limits, if its sender has chosen it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) limit_key: Option<String>,
    /// Number of starts for which the task counts in its limits, if its sender has chosen it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) limit_cost: Option<u32>,
}

impl Body {
    pub(crate) fn timeout(&self) -> Option<Duration> {
        self.timeout_ms.map(Duration::from_millis)
    }

    pub(crate) fn soft_timeout(&self) -> Option<Duration> {
        self.soft_timeout_ms.map(Duration::from_millis)
    }

    /// Returns the part of the body that exceeds its maximum, if one does.
    pub(crate) fn exceeded(&self, sizes: &MaxSizes) -> Option<Oversize> {
        if self.args.len() > sizes.args {
            return Some(Oversize { part: "arguments", size: self.args.len(), max: sizes.args });
        }
        // The body, the list of arguments, the argument.
        let depth = self.args.iter().map(|arg| 3 + depth(&arg.value)).max().unwrap_or(1);
        (depth > sizes.depth).then_some(Oversize { part: "levels of nesting", size: depth, max: sizes.depth })
    }
}

/// Returns the nesting depth of lists and tables. It does not recurse: a sender's value has no bound.
fn depth(value: &Value) -> usize {
    // Most arguments are neither.
    if !value.is_array() && !value.is_object() {
        return 0;
    }
    let mut deepest = 0;
    let mut open = vec![(value, 0)];
    while let Some((value, above)) = open.pop() {
        match value {
            Value::Array(all) => open.extend(all.iter().map(|inner| (inner, above + 1))),
            Value::Object(all) => open.extend(all.values().map(|inner| (inner, above + 1))),
            _ => continue,
        }
        deepest = deepest.max(above + 1);
    }
    deepest
}
