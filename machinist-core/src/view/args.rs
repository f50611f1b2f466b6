//! Arguments of a task, or the reason that they are not shown.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::KnownArgs;

/// Arguments of a task: fields that other views contain.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ArgsView {
    /// Arguments in order; `None` if they are not shown.
    pub args: Option<Vec<Value>>,
    /// Arguments by name.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub named_args: Map<String, Value>,
    /// Reason that they are not shown.
    pub args_hidden: Option<String>,
}

impl ArgsView {
    /// Creates the view of arguments that are not shown, for this reason.
    pub fn hidden(why: impl Into<String>) -> Self {
        Self { args_hidden: Some(why.into()), ..Self::default() }
    }

    /// Creates the view of arguments that are shown.
    pub fn shown(args: Vec<Value>, named_args: Map<String, Value>) -> Self {
        Self { args: Some(args), named_args, args_hidden: None }
    }

    /// Creates the view of arguments, which a setting (`hide_args`) may hide.
    pub fn of(known: KnownArgs, is_hidden: bool) -> Self {
        match known {
            _ if is_hidden => Self::hidden("hide_args is set for this task"),
            KnownArgs::Shown { args, named } => Self::shown(args, named),
            KnownArgs::Hidden(why) => Self::hidden(why),
        }
    }
}
