//! Arguments and results on the wire: a name, a type name and a value each.
//!
//! The type names are those of Go machinery (`int64`, `string`, `[]float64`, …), so that a reader in another language
//! knows the types. Writing is strict: the type name is derived from the Rust type. Reading is liberal: every value
//! that fits the parameter is accepted.

mod list;
mod results;
mod values;
mod wire;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use list::{ArgList, IntoArg, IntoArgs, LastArg, Rest};
pub use results::{FromResults, IntoResults};
pub use values::Json;
pub use wire::{Misfit, WireArg};

/// Value on the wire, which derived implementations name. An alias, not a re-export: the compiler would no longer write
/// `String` for a string if the variants of the enum had a path in this crate.
#[doc(hidden)]
pub type WireValue = Value;

/// One argument, or one result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Arg {
    /// Name, for display and for command tasks; empty if the argument only has a position.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Name of the type, as in machinery: `int64`, `string`, `[]float64`, `json`, …
    #[serde(rename = "type", default)]
    pub kind: String,
    /// The value.
    pub value: Value,
}

/// Arguments and results of a task, as far as its worker knows them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TaskShape {
    /// `None` for any arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) args: Option<Vec<ArgInfo>>,
    /// Names of the types of the results.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) results: Option<Vec<String>>,
}

/// An argument that a task takes, as far as its worker knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ArgInfo {
    /// Name, if it has one.
    #[serde(default)]
    pub name: Option<String>,
    /// Name of the type, as in machinery; `...int64` for any number of them. `None` for any value.
    #[serde(rename = "type", default)]
    pub kind: Option<String>,
}

impl ArgInfo {
    /// Creates an argument of any type with this name.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: Some(name.into()), kind: None }
    }

    pub(crate) fn of_type(kind: String) -> Self {
        Self { name: None, kind: Some(kind) }
    }
}

impl Arg {
    /// Creates an argument from a value whose Rust type is unknown: its type name is derived from the value (`int64`,
    /// `uint64`, `float64`, `string`, `bool`, otherwise `json`).
    pub fn from_value(value: impl Into<Value>) -> Self {
        let value = value.into();
        Self { name: String::new(), kind: type_name(&value).to_owned(), value }
    }
}

/// Returns machinery's type name for a value that came without one.
fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Bool(_) => "bool",
        Value::Number(n) if n.is_i64() => "int64",
        Value::Number(n) if n.is_u64() => "uint64",
        Value::Number(_) => "float64",
        Value::String(_) => "string",
        Value::Null | Value::Array(_) | Value::Object(_) => "json",
    }
}

/// Results of a task: several values, one, or none.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Results(pub Vec<Arg>);

impl Arg {
    /// Creates a value that has only a position, no name.
    pub(crate) fn of<T: WireArg>(value: T) -> Result<Self, Misfit> {
        Ok(Self { name: String::new(), kind: T::TYPE.to_owned(), value: value.into_wire()? })
    }
}

#[cfg(test)]
mod tests;
