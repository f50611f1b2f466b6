//! Wire form of a Rust value: a type name, and the conversions to and from a wire value.

use std::fmt::{self, Write as _};

use serde_json::Value;

/// Maximum number of characters that an error repeats of a value, or of a library's message about it.
const MAX_SHOWN_CHARS: usize = 80;

/// A value that can be an argument or a result of a task.
///
/// Implemented for `bool`, the integers, the floats, `String`, [`serde_json::Value`], `Vec`s and `Option`s of these,
/// and for [`Json<T>`](crate::Json), which wraps any serde type.
///
/// # Examples
/// Your own type can use the wire form of its content:
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
    message = "`{Self}` cannot be a task argument: wrap it in `Json<{Self}>`, or derive `WireArg` for it",
    label = "not an argument type",
    note = "argument types are `bool`, integers, floats, `String`, `Vec` and `Option` of these, and `Json<T>` for any serde type"
)]
pub trait WireArg: Sized + Send + 'static {
    /// Name of the type on the wire, as in machinery: `int64`, `string`, `[]float64`.
    const TYPE: &'static str;

    /// Name of a list of these; `json` if machinery has no name for it.
    const LIST_TYPE: &'static str = "json";

    /// Converts it to a wire value.
    ///
    /// # Errors
    /// The value has no form on the wire: a float that is not a number, a map whose keys are not text.
    fn into_wire(self) -> Result<Value, Misfit>;

    /// Reads it from a wire value, liberally: every value that fits without loss is accepted.
    ///
    /// # Errors
    /// The value does not fit.
    fn from_wire(value: Value) -> Result<Self, Misfit>;

    /// Returns the value to use if the sender left the argument out at the end; `None` if the argument is required. An
    /// `Option` becomes `None`, so that a task can get one more argument while older signatures still wait.
    fn absent() -> Option<Self> {
        None
    }

    /// Converts a list of these to a wire value. Bytes override this.
    ///
    /// # Errors
    /// One of the values has no form on the wire.
    fn list_into_wire(list: Vec<Self>) -> Result<Value, Misfit> {
        let values =
            list.into_iter().enumerate().map(|(index, item)| item.into_wire().map_err(|e| e.in_item(index)));
        values.collect::<Result<Vec<_>, _>>().map(Value::Array)
    }

    /// Reads a list of these. `null` is an empty list, because Go writes an empty list that way.
    ///
    /// # Errors
    /// The value is not a list, or one of its items does not fit.
    fn list_from_wire(value: Value) -> Result<Vec<Self>, Misfit> {
        match value {
            Value::Null => Ok(Vec::new()),
            Value::Array(values) => {
                let items = values.into_iter().enumerate();
                items.map(|(index, value)| Self::from_wire(value).map_err(|e| e.in_item(index))).collect()
            }
            other => Err(Misfit::expected(&format!("a list ({})", Self::LIST_TYPE), &other)),
        }
    }
}

/// Error of a value that does not fit its Rust type, or has no form on the wire.
///
/// Its text repeats at most 80 characters of the value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misfit(String);

impl Misfit {
    /// Creates an error with your own text.
    pub fn new(text: impl fmt::Display) -> Self {
        Self(bounded(2 * MAX_SHOWN_CHARS, |out| write!(out, "{text}")))
    }

    /// Creates an error from the expected type and the value that came instead.
    pub fn expected(what: &str, found: &Value) -> Self {
        let found = bounded(MAX_SHOWN_CHARS, |out| write!(out, "{found}"));
        Self(format!("expected {what}, got {found}"))
    }

    fn in_item(self, index: usize) -> Self {
        Self(format!("item {}: {}", index + 1, self.0))
    }

    pub(crate) fn within(self, location: impl fmt::Display) -> Self {
        Self(format!("{location}: {}", self.0))
    }
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Misfit {}

/// Returns the beginning of a text. Writing stops at the maximum: a value of megabytes is never written out for an
/// error.
fn bounded(max_chars: usize, write: impl FnOnce(&mut BoundedText) -> fmt::Result) -> String {
    let mut out = BoundedText { text: String::new(), chars_left: max_chars };
    if write(&mut out).is_err() {
        out.text.push('…');
    }
    out.text
}

struct BoundedText {
    text: String,
    chars_left: usize,
}

impl fmt::Write for BoundedText {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            self.chars_left = self.chars_left.checked_sub(1).ok_or(fmt::Error)?;
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
