//! Output for people: local times with their zone, and colours on a terminal that wants them. JSON has neither.

use std::{env, ffi::OsString, io::IsTerminal};

use jiff::tz::TimeZone;
use machinist::record::TaskState;

/// Way in which one person reads.
#[derive(Debug, Clone)]
pub(crate) struct People {
    zone: TimeZone,
    coloured: bool,
}

impl People {
    /// Returns how the person at standard output reads: the zone is that of the variable TZ, else the system's, else UTC.
    pub(crate) fn at_output() -> Self {
        let coloured = is_coloured(std::io::stdout().is_terminal(), |name| env::var_os(name));
        Self { zone: TimeZone::system(), coloured }
    }

    /// Returns how a test reads.
    #[cfg(test)]
    pub(crate) fn plain(zone: TimeZone) -> Self {
        Self { zone, coloured: false }
    }

    /// Returns an instant, given as RFC 3339, as local time to the millisecond. Other text stays as it is.
    pub(crate) fn time(&self, instant: &str) -> String {
        let parsed: Result<jiff::Timestamp, _> = instant.parse();
        parsed.map_or_else(
            |_| instant.to_owned(),
            |at| at.to_zoned(self.zone.clone()).strftime("%Y-%m-%d %H:%M:%S%.3f %Z").to_string(),
        )
    }

    /// Returns a text about a state, in the colour of the state.
    pub(crate) fn state(&self, state: TaskState, text: &str) -> String {
        let colour = match state {
            TaskState::Success => 32,
            TaskState::Failure => 31,
            TaskState::Retry => 33,
            TaskState::Started => 36,
            _ => return text.to_owned(),
        };
        if self.coloured { format!("\u{1b}[{colour}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}

/// Returns `true` if an output may get colours: a terminal that has them, or any output with `CLICOLOR_FORCE`. `NO_COLOR`
/// with any value forbids them, as on no-color.org, and so does `CLICOLOR=0`.
pub(crate) fn is_coloured(is_terminal: bool, variable: impl Fn(&str) -> Option<OsString>) -> bool {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    if set("NO_COLOR").is_some() {
        return false;
    }
    if set("CLICOLOR_FORCE").is_some_and(|value| value != "0") {
        return true;
    }
    is_terminal
        && set("CLICOLOR").is_none_or(|value| value != "0")
        && set("TERM").is_none_or(|term| term != "dumb")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_read_their_own_time_and_its_zone() {
        let berlin = People::plain(TimeZone::get("Europe/Berlin").unwrap());
        assert_eq!(berlin.time("2026-11-20T23:37:14.123456Z"), "2026-11-21 00:37:14.123 CET");
        assert_eq!(berlin.time("2026-07-20T23:37:14Z"), "2026-07-21 01:37:14.000 CEST");
        assert_eq!(People::plain(TimeZone::UTC).time("2026-11-20T23:37:14Z"), "2026-11-20 23:37:14.000 UTC");
        assert_eq!(berlin.time("-"), "-");
    }

    #[test]
    fn colours_are_for_terminals_that_want_them() {
        let coloured = |is_terminal, set: &[(&str, &str)]| {
            is_coloured(is_terminal, |name| {
                set.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into())
            })
        };
        assert!(coloured(true, &[]));
        assert!(coloured(true, &[("NO_COLOR", ""), ("TERM", "xterm"), ("CLICOLOR", "1")]));
        assert!(coloured(false, &[("CLICOLOR_FORCE", "1")]));
        assert!(!coloured(false, &[]));
        assert!(!coloured(true, &[("NO_COLOR", "1"), ("CLICOLOR_FORCE", "1")]));
        assert!(!coloured(true, &[("CLICOLOR", "0")]));
        assert!(!coloured(true, &[("TERM", "dumb")]));
        let red = People { coloured: true, ..People::plain(TimeZone::UTC) };
        assert_eq!(red.state(TaskState::Failure, "FAILURE"), "\u{1b}[31mFAILURE\u{1b}[0m");
        assert_eq!(red.state(TaskState::Pending, "PENDING"), "PENDING");
    }
}
