//! What it takes for a Rust value to travel: a type name, and the two ways between it and a wire value.

use std::fmt::{self, Write as _};

use serde_json::Value;

/// How much of a value, or of what a library says about it, an error repeats.
const SHOWN: usize = 80;

/// A value that can be an argument or a result of a task.
///
/// Implemented for `bool`, the integers, the floats, `String`, [`serde_json::Value`], `Vec`s and `Option`s of
/// these, and for [`Json<T>`](crate::Json), which makes any serde type travel.
///
/// # Examples
/// A type of your own travels as what it is made of:
/// ```
/// use machinist_core::args::{Misfit, WireArg};
/// use machinist_core::TaskDef;
/// use serde_json::Value;
///
/// struct UserId(i64);
///
/// impl WireArg for UserId {
///     const TYPE: &'static str = i64::TYPE;
///
///     fn into_wire(self) -> Result<Value, Misfit> {
///         self.0.into_wire()
///     }
///
///     fn from_wire(value: Value) -> Result<Self, Misfit> {
///         i64::from_wire(value).map(Self)
///     }
/// }
///
/// const GREET: TaskDef<UserId, String> = TaskDef::new("greet");
/// let signature = GREET.call(UserId(7));
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot travel as a task argument: wrap it in `Json<{Self}>`",
    label = "not a type that travels",
    note = "`bool`, integers, floats, `String`, `Vec` and `Option` of these, and `Json<T>` for any serde type travel"
)]
pub trait WireArg: Sized + Send + 'static {
    /// The name of the type on the wire, in machinery's words: `int64`, `string`, `[]float64`.
    const TYPE: &'static str;

    /// The name of a list of these. `json` where machinery has no word for it.
    const LIST_TYPE: &'static str = "json";

    /// Makes it a wire value.
    ///
    /// # Errors
    /// When the value has no form on the wire: a float that is not a number, a map whose keys are not text.
    fn into_wire(self) -> Result<Value, Misfit>;

    /// Reads it from a wire value, liberally: whatever fits without loss is taken.
    ///
    /// # Errors
    /// When the value does not fit.
    fn from_wire(value: Value) -> Result<Self, Misfit>;

    /// What to read where the sender left it out at the end. `None`: it must be there. An `Option` reads as
    /// `None`, so that a task can be given one more argument while older signatures still wait.
    fn absent() -> Option<Self> {
        None
    }

    /// Makes a list of these a wire value. Bytes do this in a way of their own.
    ///
    /// # Errors
    /// When one of the values has no form on the wire.
    fn list_into_wire(list: Vec<Self>) -> Result<Value, Misfit> {
        let values = list.into_iter().enumerate().map(|(n, item)| item.into_wire().map_err(|e| e.in_item(n)));
        values.collect::<Result<Vec<_>, _>>().map(Value::Array)
    }

    /// Reads a list of these. `null` is an empty list, because Go writes an empty one so.
    ///
    /// # Errors
    /// When the value is not a list, or one of its items does not fit.
    fn list_from_wire(value: Value) -> Result<Vec<Self>, Misfit> {
        match value {
            Value::Null => Ok(Vec::new()),
            Value::Array(values) => {
                let items = values.into_iter().enumerate();
                items.map(|(n, value)| Self::from_wire(value).map_err(|e| e.in_item(n))).collect()
            }
            other => Err(Misfit::expected(&format!("a list ({})", Self::LIST_TYPE), &other)),
        }
    }
}

/// Why a value does not fit its Rust type, or has no form on the wire.
///
/// Its text repeats at most 80 characters of the value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misfit(String);

impl Misfit {
    /// Says what is wrong, in words of your own.
    pub fn new(text: impl fmt::Display) -> Self {
        Self(bounded(2 * SHOWN, |out| write!(out, "{text}")))
    }

    /// Says what was expected and what came instead.
    pub fn expected(what: &str, came: &Value) -> Self {
        let came = bounded(SHOWN, |out| write!(out, "{came}"));
        Self(format!("expected {what}, got {came}"))
    }

    fn in_item(self, index: usize) -> Self {
        Self(format!("item {}: {}", index + 1, self.0))
    }

    pub(crate) fn within(self, place: impl fmt::Display) -> Self {
        Self(format!("{place}: {}", self.0))
    }
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Misfit {}

/// The beginning of a text. Writing stops at the limit: a value of megabytes is never written out for an error.
fn bounded(limit: usize, write: impl FnOnce(&mut Bounded) -> fmt::Result) -> String {
    let mut out = Bounded { text: String::new(), left: limit };
    if write(&mut out).is_err() {
        out.text.push('…');
    }
    out.text
}

struct Bounded {
    text: String,
    left: usize,
}

impl fmt::Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            self.left = self.left.checked_sub(1).ok_or(fmt::Error)?;
            self.text.push(c);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_repeats_only_the_beginning() {
        let text = Misfit::expected("int64", &Value::from("ü".repeat(1_000_000))).to_string();
        assert_eq!(text, format!("expected int64, got \"{}…", "ü".repeat(79)));
        let text = Misfit::new("x".repeat(1_000)).to_string();
        assert_eq!(text.chars().count(), 161);
        assert_eq!(Misfit::expected("int64", &Value::Null).to_string(), "expected int64, got null");
    }
}
