//! Syntax of single values: durations, sizes, back-offs, lists of queues.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

use jiff::{Span, SpanRelativeTo};
use machinist_core::{
    Backoff, QueuePattern,
    event_stream::PublishedEvents,
    show_duration,
    sign::{KeyConfig, KeyState, shown_path},
    worker::{MAX_TAGS, Tag},
};

use super::Topology;

/// Reads a duration: `20s`, `500ms`, `1h 30m`, `7d` (a day has 24 hours).
///
/// # Errors
/// A sentence that names the expected syntax.
///
/// # Examples
/// ```
/// use machinist::settings::parse_duration;
/// use std::time::Duration;
/// assert_eq!(parse_duration("1h 30m").unwrap(), Duration::from_secs(5400));
/// assert!(parse_duration("20").unwrap_err().contains("20s"));
/// ```
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let span = text.trim().parse::<Span>();
    let signed = span.and_then(|span| span.to_duration(SpanRelativeTo::days_are_24_hours()));
    match signed.map(Duration::try_from) {
        Ok(Ok(duration)) => Ok(duration),
        Ok(Err(_)) => Err(format!("{text:?} is in the past; a duration is 0s or longer")),
        Err(_) if !text.trim().is_empty() && text.trim().bytes().all(|b| b.is_ascii_digit() || b == b'.') => {
            let number = text.trim();
            Err(format!("{text:?} has no unit; write {number}s or {number}ms"))
        }
        Err(_) => Err(format!("{text:?} is not a duration; write one like 20s, 500ms or 1h 30m")),
    }
}

/// Reads a size in bytes: `4096`, `64KiB`, `1MiB`.
pub(super) fn parse_size(text: &str) -> Result<usize, String> {
    let wrong = || format!("{text:?} is not a size; write one like \"64KiB\", \"1MiB\" or a number of bytes");
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match text[digits.len()..].trim() {
        "" | "B" => 1,
        "KiB" => 1024,
        "MiB" => 1024 * 1024,
        _ => return Err(wrong()),
    };
    digits.parse::<usize>().ok().and_then(|number| number.checked_mul(unit)).ok_or_else(wrong)
}

/// Reads a number of things that are not bytes.
pub(super) fn parse_count(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| format!("{text:?} is not a number"))
}

/// Refuses a maximum that nothing can keep.
pub(super) fn allows_tasks(maximum: usize) -> Result<usize, String> {
    match maximum {
        0 => Err("0 would refuse every task; leave it out for the default".to_owned()),
        maximum => Ok(maximum),
    }
}

/// Refuses a maximum depth beyond the one that the decoder reads.
pub(super) fn readable_depth(levels: usize) -> Result<usize, String> {
    match levels {
        deep if deep > MAX_READABLE_DEPTH => {
            Err(format!("{deep} levels are more than the {MAX_READABLE_DEPTH} that are read"))
        }
        levels => Ok(levels),
    }
}

/// Maximum nesting that the decoder reads, whatever the settings allow.
const MAX_READABLE_DEPTH: usize = 100;

/// Refuses a time of zero for a timeout or a window.
pub(super) fn positive(duration: Duration) -> Result<Duration, String> {
    match duration {
        Duration::ZERO => Err("0s would refuse or end every run; leave it out for no limit".to_owned()),
        duration => Ok(duration),
    }
}

/// Writes a size as [`parse_size`] reads it.
pub(super) fn show_size(bytes: usize) -> String {
    const KIB: usize = 1024;
    match bytes {
        0 => "0".to_owned(),
        n if n % (KIB * KIB) == 0 => format!("{}MiB", n / (KIB * KIB)),
        n if n % KIB == 0 => format!("{}KiB", n / KIB),
        n => n.to_string(),
    }
}

/// Reads an address with its port.
pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    text.trim()
        .parse()
        .map_err(|_| format!("{text:?} is no address with a port; write one like 127.0.0.1:8780"))
}

/// Reads addresses that are separated by commas.
pub(super) fn ip_addresses(text: &str) -> Result<Vec<IpAddr>, String> {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    let read =
        |part: &str| part.parse().map_err(|_| format!("{part:?} is no IP address; write one like 10.0.0.1"));
    parts.map(read).collect()
}

/// Reads the role of a user of the dashboard.
pub(super) fn role(text: &str) -> Result<String, String> {
    match text {
        "viewer" | "operator" | "admin" => Ok(text.to_owned()),
        _ => Err(format!("{text:?} is no role; write viewer, operator or admin")),
    }
}

/// Reads a back-off: `fixed:200ms`, `exponential`, `fibonacci`; the latter two also with their first and their longest
/// wait, `exponential:1s:10m`.
///
/// # Errors
/// A sentence that names the expected syntax.
pub fn parse_backoff(text: &str) -> Result<Backoff, String> {
    let mut parts = text.split(':');
    let kind = parts.next().unwrap_or_default();
    let first = parts.next();
    let longest = parts.next();
    let wait = |text: Option<&str>, default: Duration| text.map_or(Ok(default), parse_duration);
    let second = Duration::from_secs(1);
    let cap = Duration::from_secs(600);
    match (kind, first, parts.next()) {
        ("fixed", Some(_), None) if longest.is_none() => Ok(Backoff::fixed(wait(first, second)?)),
        ("exponential", _, None) => Ok(Backoff::exponential(wait(first, second)?, wait(longest, cap)?)),
        ("fibonacci", _, None) => Ok(Backoff::fibonacci(wait(first, second)?, wait(longest, cap)?)),
        _ => Err(format!(
            "{text:?} is not a back-off; write fixed:200ms, exponential, fibonacci, or exponential:1s:10m"
        )),
    }
}

/// Writes a back-off as [`parse_backoff`] reads it.
pub(super) fn show_backoff(backoff: &Backoff) -> String {
    match backoff {
        Backoff::Exponential { base, cap } => {
            format!("exponential:{}:{}", show_duration(*base), show_duration(*cap))
        }
        Backoff::Fibonacci { unit, cap } => {
            format!("fibonacci:{}:{}", show_duration(*unit), show_duration(*cap))
        }
        Backoff::Fixed { wait } => format!("fixed:{}", show_duration(*wait)),
        other => format!("{other:?}"),
    }
}

/// Reads a namespace: characters that every server allows in a name.
pub(super) fn namespace(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
    if (1..=40).contains(&text.len()) && text.chars().all(allowed) {
        Ok(text.to_owned())
    } else {
        Err(format!("{text:?} cannot be a namespace; take 1 to 40 letters, digits, - or _"))
    }
}

/// Reads `all`, `failures` or `off`.
pub(super) fn events(text: &str) -> Result<PublishedEvents, String> {
    PublishedEvents::ALL
        .into_iter()
        .find(|which| which.as_str() == text.trim())
        .ok_or_else(|| format!("{text:?} is not a choice of events; write all, failures or off"))
}

/// Reads `declare` or `verify`.
pub(super) fn topology(text: &str) -> Result<Topology, String> {
    let known = [Topology::Declare, Topology::Verify].into_iter().find(|known| known.as_str() == text);
    known.ok_or_else(|| format!("{text:?} is neither declare nor verify"))
}

/// Reads a variable that is either on or off.
pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text.trim() {
        "true" | "1" | "yes" => Ok(true),
        "false" | "0" | "no" => Ok(false),
        other => Err(format!("{other:?} is neither true nor false")),
    }
}

/// Writes a key of the key ring, without its secret.
pub(super) fn show_key(key: &KeyConfig) -> String {
    let list = |what: &str, names: &Option<Vec<String>>| {
        names
            .as_ref()
            .map(|names| format!("{what} {}", if names.is_empty() { "none".into() } else { names.join(" ") }))
    };
    let state = key.state.map(|state| match state {
        KeyState::Revoked => "revoked",
        KeyState::Verify => "verify",
        _ => "active",
    });
    let parts = [
        key.alg.map(|alg| alg.to_string()),
        key.secret.as_ref().map(|_| "secret ***".to_owned()),
        key.public.as_ref().map(|_| "public half".to_owned()),
        key.file.as_ref().map(|file| format!("file {}", shown_path(file))),
        key.env.as_ref().map(|name| format!("variable {}", shown_path(Path::new(name)))),
        state.map(str::to_owned),
        key.not_before.as_ref().map(|instant| format!("from {instant}")),
        key.not_after.as_ref().map(|instant| format!("until {instant}")),
        list("tasks", &key.tasks),
        list("queues", &key.queues),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    match &key.id {
        Some(id) => format!("{id}: {}", parts.join(", ")),
        None => parts.join(", "),
    }
}

/// Reads queue names with commas between them.
pub(super) fn queues(text: &str) -> Result<Vec<QueuePattern>, String> {
    text.split(',').map(|name| QueuePattern::parse(name.trim()).map_err(|e| e.to_string())).collect()
}

/// Reads a number of tasks to run at once.
pub(super) fn concurrency(text: &str) -> Result<usize, String> {
    text.trim().parse().ok().filter(|n| CONCURRENCY.contains(n)).ok_or_else(|| wrong_concurrency(&text))
}

/// Reads the time for which the broker lets a worker hold a delivery.
pub(super) fn consumer_timeout(text: &str) -> Result<Duration, String> {
    let timeout = parse_duration(text)?;
    if timeout < Duration::from_secs(1) {
        return Err(format!(
            "{text} is too short to answer the broker in time; take the broker's value, at least 1s"
        ));
    }
    Ok(timeout)
}

/// Allowed numbers of tasks to run at once. The broker counts the deliveries of a worker in 16 bits.
pub(super) const CONCURRENCY: std::ops::RangeInclusive<usize> = 1..=10_000;

pub(super) fn wrong_concurrency(value: &dyn std::fmt::Display) -> String {
    format!("{value} is not a number of tasks to run at once; take one from 1 to 10000")
}

/// Reads the name of a worker, which is shown in lists and in logs.
pub(super) fn worker_name(text: &str) -> Result<String, String> {
    if (1..=100).contains(&text.len()) && !text.chars().any(char::is_control) {
        Ok(text.to_owned())
    } else {
        Err(format!("{text:?} cannot name a worker; take 1 to 100 bytes without control characters"))
    }
}

/// Reads tags with commas between them.
pub(super) fn tags(text: &str) -> Result<Vec<Tag>, String> {
    let tags: Result<_, _> = text.split(',').map(|tag| Tag::parse(tag.trim())).collect();
    few_tags(tags.map_err(|error| error.to_string())?)
}

/// Refuses more tags than a worker may have.
pub(super) fn few_tags(tags: Vec<Tag>) -> Result<Vec<Tag>, String> {
    match tags.len() {
        0..=MAX_TAGS => Ok(tags),
        count => Err(format!("{count} tags are more than the {MAX_TAGS} of a worker; leave some out")),
    }
}

/// Reads a number of tasks to hold in addition to those that run.
pub(super) fn look_ahead(text: &str) -> Result<usize, String> {
    text.trim().parse().ok().filter(|n| LOOK_AHEAD.contains(n)).ok_or_else(|| wrong_look_ahead(&text))
}

/// Allowed numbers of tasks to hold in addition to those that run.
pub(super) const LOOK_AHEAD: std::ops::RangeInclusive<usize> = 0..=10_000;

pub(super) fn wrong_look_ahead(value: &dyn std::fmt::Display) -> String {
    format!("{value} is not a number of tasks to hold; take one from 0 to 10000")
}

/// Reads an exit code that is not that of a success.
pub(super) fn exit_code(text: &str) -> Result<u8, String> {
    text.trim().parse().ok().filter(|code| *code > 0).ok_or_else(|| wrong_exit_code(&text))
}

pub(super) fn wrong_exit_code(value: &dyn std::fmt::Display) -> String {
    format!("{value} is not an exit code of a failure; take one from 1 to 255")
}

pub(super) fn join(names: &[impl ToString]) -> String {
    names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_shown() {
        for (text, millis) in
            [("20s", 20_000), ("500ms", 500), ("1h 30m", 5_400_000), ("7d", 604_800_000), ("0s", 0)]
        {
            let duration = parse_duration(text).unwrap();
            assert_eq!(duration, Duration::from_millis(millis));
            assert_eq!(show_duration(duration), text);
        }
        assert_eq!(parse_duration("2 minutes, 1 second").unwrap(), Duration::from_secs(121));
        assert_eq!(parse_duration("1.5s").unwrap(), Duration::from_millis(1500));
    }

    #[test]
    fn what_is_no_duration_is_reported() {
        assert_eq!(parse_duration("20").unwrap_err(), "\"20\" has no unit; write 20s or 20ms");
        assert!(parse_duration("-3s").unwrap_err().contains("past"));
        assert!(parse_duration("soon").unwrap_err().contains("is not a duration"));
        assert!(parse_duration("").unwrap_err().contains("is not a duration"));
        assert!(parse_duration("99999999999999999999s").is_err());
    }

    #[test]
    fn backoffs_are_read_and_shown() {
        for text in ["fixed:200ms", "exponential:1s:10m", "fibonacci:5s:1h"] {
            assert_eq!(show_backoff(&parse_backoff(text).unwrap()), text);
        }
        assert_eq!(parse_backoff("exponential").unwrap(), Backoff::default());
        for wrong in ["fixed", "fixed:1s:2s", "linear", "exponential:1s:2s:3s", "fixed:20"] {
            assert!(parse_backoff(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_worker_has_a_short_name_and_few_tags() {
        assert_eq!(worker_name("web 1").unwrap(), "web 1");
        for wrong in ["", "a\nb", &"x".repeat(101)] {
            assert!(worker_name(wrong).unwrap_err().contains("1 to 100 bytes"), "{wrong}");
        }
        assert_eq!(join(&tags("gpu, zone:eu").unwrap()), "gpu, zone:eu");
        assert!(tags("gpu,").unwrap_err().contains("is not a word like gpu"));
        assert!(tags(&["a"; 17].join(",")).unwrap_err().contains("17 tags are more than the 16"));
        assert_eq!(look_ahead("0"), Ok(0));
        assert_eq!(exit_code("75"), Ok(75));
        assert!(exit_code("0").is_err() && exit_code("256").unwrap_err().contains("1 to 255"));
        assert!(look_ahead("10001").unwrap_err().contains("0 to 10000"));
    }

    #[test]
    fn a_namespace_is_plain() {
        assert!(namespace("shop-1_eu").is_ok());
        for wrong in ["", "a b", "{x}", "amq.x", "ü", &"x".repeat(41)] {
            assert!(namespace(wrong).is_err(), "{wrong}");
        }
    }
}
