//! Values of options and arguments: each is read by a function whose error names the value and the remedy. Pure.

use std::{net::SocketAddr, time::Duration};

use machinist::{QueueName, TaskId, clock::Timestamp, settings::parse_duration};

use super::task::ExpiryArg;

pub(super) fn queue(text: &str) -> Result<QueueName, String> {
    QueueName::parse(text).map_err(|e| e.to_string())
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
