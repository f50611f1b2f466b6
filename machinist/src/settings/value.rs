//! Values of `machinist.toml`: from a TOML value to a typed one, or to a sentence that says what was expected.
//!
//! No sentence quotes a password; the place of the value is added by the caller.

use std::{collections::BTreeMap, ops::RangeInclusive, time::Duration};

use machinist_core::{QueuePattern, worker::Tag};
use toml::de::DeValue;

use super::text;
use crate::redact;

/// Weights that a queue may have.
const WEIGHTS: RangeInclusive<u32> = 1..=1000;

/// Reads text; `expected` is a noun phrase for the error.
pub(super) fn string<'v>(value: &'v DeValue<'_>, expected: &str) -> Result<&'v str, String> {
    value.as_str().ok_or_else(|| wrong_type(value, &format!("{expected} in quotes")))
}

/// Reads a list of texts; `expected` is a noun phrase for the error.
pub(super) fn strings(value: &DeValue<'_>, expected: &str) -> Result<Vec<String>, String> {
    let list = value.as_array().ok_or_else(|| wrong_type(value, expected))?;
    list.iter().map(|item| string(item.get_ref(), "text").map(str::to_owned)).collect()
}

/// Reads a URL, or a list of the URLs of one server.
pub(super) fn urls(value: &DeValue<'_>) -> Result<Vec<String>, String> {
    match value {
        DeValue::Array(_) => match strings(value, "a list of URLs")? {
            urls if urls.is_empty() => Err("names no URL".to_owned()),
            urls => Ok(urls),
        },
        value => Ok(vec![string(value, "a URL")?.to_owned()]),
    }
}

/// Reads a list of queue names that is not empty.
pub(super) fn queues(value: &DeValue<'_>) -> Result<Vec<QueuePattern>, String> {
    let expected =
        "a list of queue names, like [\"default\"], or their weights, like { default = 3, low = 1 }";
    let names = match value.as_table() {
        Some(table) => table.keys().map(|name| name.get_ref().to_string()).collect(),
        None => strings(value, expected)?,
    };
    if names.is_empty() {
        return Err("names no queue; leave it out for [\"default\"]".to_owned());
    }
    names.iter().map(|name| QueuePattern::parse(name).map_err(|e| e.to_string())).collect()
}

/// Reads the weights of queues; none from a list of their names.
pub(super) fn queue_weights(value: &DeValue<'_>) -> Result<BTreeMap<QueuePattern, u32>, String> {
    let Some(table) = value.as_table() else { return Ok(BTreeMap::new()) };
    let weight = |(name, value): (&toml::Spanned<_>, &toml::Spanned<DeValue<'_>>)| {
        let name: &std::borrow::Cow<'_, str> = name.get_ref();
        let queue = QueuePattern::parse(name).map_err(|error| error.to_string())?;
        let number = integer(value.get_ref(), "a weight").map_err(|why| format!("{name}: {why}"))?;
        let weight = u32::try_from(number).ok().filter(|weight| WEIGHTS.contains(weight));
        weight.map(|weight| (queue, weight)).ok_or_else(|| {
            format!("{name}: {number} is no weight; take {} to {}", WEIGHTS.start(), WEIGHTS.end())
        })
    };
    table.iter().map(weight).collect()
}

/// Reads a list of tags.
pub(super) fn tags(value: &DeValue<'_>) -> Result<Vec<Tag>, String> {
    let tags = strings(value, "a list of tags, like [\"gpu\"]")?;
    let tags: Result<_, _> = tags.iter().map(|tag| Tag::parse(tag)).collect();
    text::few_tags(tags.map_err(|error| error.to_string())?)
}

/// Reads a number of tasks to hold in addition to those that run.
pub(super) fn look_ahead(value: &DeValue<'_>) -> Result<usize, String> {
    let number = integer(value, "a number of tasks")?;
    let fits = usize::try_from(number).ok().filter(|n| text::LOOK_AHEAD.contains(n));
    fits.ok_or_else(|| text::wrong_look_ahead(&number))
}

/// Reads an exit code that is not that of a success.
pub(super) fn exit_code(value: &DeValue<'_>) -> Result<u8, String> {
    let number = integer(value, "an exit code")?;
    u8::try_from(number).ok().filter(|code| *code > 0).ok_or_else(|| text::wrong_exit_code(&number))
}

/// Reads `true` or `false`.
pub(super) fn boolean(value: &DeValue<'_>) -> Result<bool, String> {
    value.as_bool().ok_or_else(|| wrong_type(value, "true or false"))
}

/// Reads an RFC 3339 time, in quotes or as a TOML datetime.
pub(super) fn instant(value: &DeValue<'_>) -> Result<String, String> {
    let text = match value {
        DeValue::Datetime(instant) => instant.to_string(),
        DeValue::String(text) => text.as_ref().to_owned(),
        other => return Err(wrong_type(other, "a time like 2026-11-20T00:00:00Z")),
    };
    match text.parse::<jiff::Timestamp>() {
        Ok(_) => Ok(text),
        Err(_) => Err(format!("{text:?} is not a time with its offset; write one like 2026-11-20T00:00:00Z")),
    }
}

/// Reads a whole number; `expected` is a noun phrase for the error.
pub(super) fn integer(value: &DeValue<'_>, expected: &str) -> Result<i64, String> {
    let number = value.as_integer().ok_or_else(|| wrong_type(value, expected))?;
    i64::from_str_radix(number.as_str(), number.radix())
        .map_err(|_| format!("{} is too large", number.as_str()))
}

/// Text of a duration, which stands in quotes.
pub(super) fn duration_text<'v>(value: &'v DeValue<'_>) -> Result<&'v str, String> {
    string(value, "a duration like \"20s\",")
}

/// Reads a duration.
pub(super) fn duration(value: &DeValue<'_>) -> Result<Duration, String> {
    text::parse_duration(duration_text(value)?)
}

/// Reads a duration above zero: a timeout or a window.
pub(super) fn positive_duration(value: &DeValue<'_>) -> Result<Duration, String> {
    text::positive(duration(value)?)
}

/// Reads a number of tasks that run at once.
pub(super) fn concurrency(value: &DeValue<'_>) -> Result<usize, String> {
    let number = integer(value, "a number of tasks")?;
    let fits = usize::try_from(number).ok().filter(|n| text::CONCURRENCY.contains(n));
    fits.ok_or_else(|| text::wrong_concurrency(&number))
}

/// Reads a maximum size in bytes: `"64KiB"`, `"1MiB"` or a plain number.
pub(super) fn size(value: &DeValue<'_>) -> Result<usize, String> {
    let size = match value.as_str() {
        Some(text) => text::parse_size(text)?,
        None => unsigned(value, "a size like \"64KiB\" or a number of bytes")?,
    };
    text::allows_tasks(size)
}

/// Reads a maximum number of things.
pub(super) fn count(value: &DeValue<'_>) -> Result<usize, String> {
    text::allows_tasks(unsigned(value, "a number")?)
}

/// Reads a maximum depth of nesting.
pub(super) fn depth(value: &DeValue<'_>) -> Result<usize, String> {
    text::readable_depth(count(value)?)
}

fn unsigned(value: &DeValue<'_>, expected: &str) -> Result<usize, String> {
    usize::try_from(integer(value, expected)?).map_err(|_| format!("expected {expected}, 1 or more"))
}

/// Sentence for a value of the wrong type.
pub(super) fn wrong_type(value: &DeValue<'_>, expected: &str) -> String {
    let found = match value {
        DeValue::String(text) => format!("the text \"{}\"", redact::url(text)),
        DeValue::Integer(number) => format!("the number {}", number.as_str()),
        DeValue::Float(number) => format!("the number {}", number.as_str()),
        DeValue::Boolean(truth) => truth.to_string(),
        DeValue::Datetime(_) => "a date".to_owned(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    };
    format!("expected {expected}, found {found}")
}
