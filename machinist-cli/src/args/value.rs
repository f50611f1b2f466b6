//! Values of options and arguments: each is read by a function whose error names the value and the remedy. Pure.

use std::{net::SocketAddr, time::Duration};

use machinist::{
    DeadLetter, QueueName, QueuePattern, TaskId, clock::Timestamp, nearest, record::TaskState,
    settings::parse_duration,
};

/// Time after which a task is not started any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExpiryArg {
    At(Timestamp),
    In(Duration),
}

pub(super) fn queue(text: &str) -> Result<QueueName, String> {
    QueueName::parse(text).map_err(|e| e.to_string())
}

pub(super) fn queues(text: &str) -> Result<QueuePattern, String> {
    QueuePattern::parse(text).map_err(|e| e.to_string())
}

/// Reads the address of the health checks. A bare port is refused: it would not say who may ask.
pub(super) fn health_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| match text.trim_start_matches(':').parse::<u16>() {
        Ok(port) => format!(
            "{text:?} has no address; write 127.0.0.1:{port}, or [::]:{port} to answer other hosts too"
        ),
        Err(_) => format!("{text:?} is not an address with its port; write one like 127.0.0.1:8080"),
    })
}

/// Reads a number that has to be between two others.
fn number(text: &str, least: u16, most: u16, example: u16) -> Result<u16, String> {
    let number = text.trim().parse().ok().filter(|number| (least..=most).contains(number));
    number.ok_or_else(|| format!("{text:?} is not a number from {least} to {most}; write one like {example}"))
}

/// Reads a number that is not 0.
pub(super) fn positive(text: &str) -> Result<u32, String> {
    let number = text.trim().parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| format!("{text:?} is not a number from 1; write one like 10"))
}

pub(super) fn concurrency(text: &str) -> Result<u16, String> {
    number(text, 1, 10_000, 16)
}

pub(super) fn look_ahead(text: &str) -> Result<u16, String> {
    number(text, 0, 10_000, 16)
}

/// Reads the state of a task.
pub(crate) fn task_state(text: &str) -> Result<TaskState, String> {
    let known = [
        TaskState::Pending,
        TaskState::Received,
        TaskState::Started,
        TaskState::Retry,
        TaskState::Success,
        TaskState::Failure,
    ];
    let state = known.into_iter().find(|state| state.as_str().eq_ignore_ascii_case(text));
    state.ok_or_else(|| {
        format!("{text:?} is no state; write pending, received, started, retry, success or failure")
    })
}

/// Reads the place after which a list of tasks goes on: an instant, and perhaps an id.
pub(super) fn task_cursor(text: &str) -> Result<(Timestamp, String), String> {
    let wrong =
        || format!("{text:?} is no place in a list of tasks; write what the note of the last page says");
    let (at, id) = text.split_once('/').ok_or_else(wrong)?;
    let at: jiff::Timestamp = at.parse().map_err(|_| wrong())?;
    Ok((Timestamp::from_micros(at.as_microsecond()), id.to_owned()))
}

/// Reads the reason of a dead letter.
pub(super) fn reason(text: &str) -> Result<String, String> {
    let known: Vec<_> = DeadLetter::reasons().collect();
    if known.contains(&text) {
        return Ok(text.to_owned());
    }
    let remedy = match nearest(text, known.iter().copied()) {
        Some(meant) => format!("did you mean {meant}?"),
        None => format!("write one of {}", known.join(", ")),
    };
    Err(format!("{text:?} is no reason of a dead letter; {remedy}"))
}

pub(super) fn id(text: &str) -> Result<TaskId, String> {
    TaskId::parse(text).map_err(|e| e.to_string())
}

pub(super) fn timeout(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        Duration::ZERO => Err("0s would end every run at once; leave it out for no timeout".to_owned()),
        timeout => Ok(timeout),
    }
}

pub(super) fn instant(text: &str) -> Result<Timestamp, String> {
    let parsed: Result<jiff::Timestamp, _> = text.trim().parse();
    let parsed = parsed.map_err(|_| {
        format!("{text:?} is not an instant with its offset; write one like 2026-11-20T23:37:14Z or 2026-11-20T23:37:14+01:00")
    })?;
    Ok(Timestamp::from_micros(parsed.as_microsecond()))
}

pub(super) fn expiry(text: &str) -> Result<ExpiryArg, String> {
    match (instant(text), parse_duration(text)) {
        (Ok(at), _) => Ok(ExpiryArg::At(at)),
        (_, Ok(in_)) => Ok(ExpiryArg::In(in_)),
        _ => Err(format!("{text:?} is neither an instant like 2026-11-20T23:37:14Z nor a duration like 20s")),
    }
}
