//! Parts that many pages have: times, states, numbers, buttons, and panels that did not answer. Pure.

use std::time::Duration;

use machinist::{record::TaskState, show_duration, view::ArgsView, visible};
use maud::{Markup, html};
use serde::Serialize;

use crate::{Right, link, panel::PanelView, visit::Visit};

/// Maximum size of a payload that a page shows, in bytes. The API has the rest.
const MAX_PAYLOAD: usize = 4096;
/// Maximum length of a text in a row of a list, in characters.
const MAX_CELL: usize = 160;

/// A time in UTC, which the script shows in the zone of the reader.
pub(super) fn time(at: Option<&str>) -> Markup {
    html! {
        @match at {
            Some(at) => time datetime=(at) { (people(at)) },
            None => { "–" },
        }
    }
}

/// Returns an instant without fractions of a second.
fn people(at: &str) -> String {
    let (date, time) = at.split_once('T').unwrap_or((at, ""));
    format!("{date} {} UTC", time.get(..8).unwrap_or(time))
}

/// Returns the class and the shape of a state.
pub(super) fn state_form(state: TaskState) -> (&'static str, &'static str) {
    match state {
        TaskState::Pending => ("waits", "○"),
        TaskState::Received => ("waits", "◔"),
        TaskState::Started => ("runs", "▶"),
        TaskState::Retry => ("again", "↻"),
        TaskState::Success => ("good", "✓"),
        TaskState::Failure => ("bad", "✕"),
    }
}

/// A state, in a word and a shape: colour alone is not enough.
pub(super) fn state(state: TaskState) -> Markup {
    let (class, shape) = state_form(state);
    html! { span.state.(class) { span aria-hidden="true" { (shape) " " } (state.as_str()) } }
}

/// A number that may be unknown.
pub(super) fn number(number: Option<u64>) -> String {
    number.map_or_else(|| "–".to_owned(), grouped)
}

/// Returns a number with groups of three digits.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A rate in messages per second.
pub(super) fn rate(rate: Option<f64>) -> String {
    rate.map_or_else(|| "–".to_owned(), |rate| format!("{rate:.1}"))
}

/// A duration in seconds.
pub(super) fn seconds(seconds: Option<f64>) -> String {
    let duration = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    duration.map_or_else(|| "–".to_owned(), short)
}

/// Returns a duration in its two largest units at most.
pub(super) fn short(duration: Duration) -> String {
    let rounded = match duration.as_secs() {
        0 => Duration::from_micros(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)),
        seconds => Duration::from_secs(seconds),
    };
    show_duration(rounded).split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// A text of one line in a list, with hidden characters made visible.
pub(super) fn cell(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    let mut end = line.char_indices().skip(MAX_CELL).map(|(at, _)| at);
    match end.next() {
        Some(end) => format!("{}…", visible::one_line(&line[..end])),
        None => visible::one_line(line),
    }
}

/// A payload: the first 4 KiB, with a link to the rest.
pub(super) fn payload(text: &str, rest: &str) -> Markup {
    let mut end = MAX_PAYLOAD.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    html! {
        pre { (visible::lines(&text[..end])) }
        @if end < text.len() {
            p.hint { "These are the first 4 KiB of " (grouped(text.len() as u64)) " bytes. " a href=(rest) { "Show all as JSON" } }
        }
    }
}

/// Arguments as JSON, folded.
pub(super) fn args(args: &ArgsView, rest: &str) -> Markup {
    html! {
        @match (&args.args, &args.args_hidden) {
            (Some(all), _) => details {
                summary { (all.len() + args.named_args.len()) " arguments" }
                (payload(&pretty(all), rest))
                @if !args.named_args.is_empty() { (payload(&pretty(&args.named_args), rest)) }
            },
            (None, Some(why)) => p.hint { "Not shown: " (visible::one_line(why)) "." },
            (None, None) => p.hint { "Not read." },
        }
    }
}

/// JSON that people can read.
pub(super) fn pretty(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default()
}

/// A button that does something and returns to this page. Nothing if the reader has no right to it.
pub(super) fn button(visit: &Visit, right: Right, action: &str, label: &str) -> Markup {
    html! {
        @if visit.actor.may(right) {
            form.inline method="post" action={ (visit.root) "api/" (action) } {
                input type="hidden" name="back" value=(visit.here);
                button { (label) }
            }
        }
    }
}

/// A link to a task.
pub(super) fn task_link(visit: &Visit, id: &str) -> Markup {
    html! { a.id href={ (visit.root) (link::task(id)) } { (visible::one_line(id)) } }
}

/// A link to a queue.
pub(super) fn queue_link(root: &str, name: &str) -> Markup {
    html! { a href={ (root) (link::queue(name)) } { (visible::one_line(name)) } }
}

/// Says what did not answer, and how old the shown value is.
pub(super) fn late<T>(seen: &PanelView<T>) -> Markup {
    html! {
        @if let Some(problem) = &seen.problem {
            p.late role="status" {
                (visible::one_line(problem)) ". "
                @match seen.age {
                    Some(age) => { "The values are " (short(age)) " old." },
                    None => { "There is no value yet." },
                }
            }
        }
    }
}

/// A field of a filter.
pub(super) fn field(visit: &Visit, name: &str, label: &str) -> Markup {
    html! { label { (label) input name=(name) value=(visit.query.text(name)); } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_times_are_for_people() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(1234), "1,234");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(people("2026-11-29T17:00:01.123456Z"), "2026-11-29 17:00:01 UTC");
        assert_eq!(short(Duration::from_millis(90_061_500)), "1d 1h");
        assert_eq!(short(Duration::from_micros(1500)), "1ms 500us");
        assert_eq!(seconds(None), "–");
    }

    #[test]
    fn texts_of_others_are_bounded_and_visible() {
        assert_eq!(cell("a\u{202e}b\nc"), "a\\u{202e}b");
        assert_eq!(cell(&"ä".repeat(500)).chars().count(), MAX_CELL + 1);
        let long = payload(&"ä".repeat(MAX_PAYLOAD), "../api/x").into_string();
        assert!(long.contains("first 4 KiB of 8,192 bytes") && long.contains("href=\"../api/x\""), "{long}");
        assert!(!payload("<b>", "x").into_string().contains("<b>"));
    }
}
