//! Schedules: the instants at which a periodic task ticks. Pure, except that a time zone is looked up by its name.
//!
//! [`croner`] reads the cron expressions and searches for their instants. It follows Vixie cron at changes of the clock,
//! which `docs/periodic.md` states as the rule of this library.

use std::{fmt, time::Duration};

use croner::{
    Cron,
    parser::{CronParser, Seconds, Year},
};
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;

/// Minimum time between two ticks of [`Schedule::every`].
const MIN_PERIOD: Duration = Duration::from_secs(1);
/// Maximum length of a cron expression, in bytes.
const MAX_CRON_BYTES: usize = 256;
/// Instant from which an expression is searched for a first tick, to find out whether one exists: 2000-01-01.
const SOME_TIME: Timestamp = Timestamp::from_micros(946_684_800_000_000);
/// Time zone of a cron expression that names none.
const UTC: &str = "UTC";

/// Error of a schedule. The text names the value and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ScheduleError {
    /// The cron expression cannot be read.
    #[error(
        "cron expression {text:?} cannot be read: {why}; write five fields (minute, hour, day, month, weekday) like \
         \"0 3 * * *\", six with the second before them, or @hourly, @daily, @weekly, @monthly, @yearly"
    )]
    Cron {
        /// The expression.
        text: String,
        /// The problem.
        why: String,
    },
    /// No date fits the cron expression.
    #[error("cron expression {0:?} never comes: no date fits its day and month; correct one of them")]
    Never(String),
    /// The time zone is unknown.
    #[error(
        "time zone {0:?} is unknown; write a name of the IANA time zone database like \"Europe/Berlin\", or \"UTC\""
    )]
    TimeZone(String),
    /// A time zone was given for a schedule that has none.
    #[error(
        "time zone {0:?} has no meaning for a schedule that ticks at equal intervals; leave it out, or use a cron \
         expression"
    )]
    NoTimeZone(String),
    /// The interval is too short.
    #[error("an interval of {0:?} is too short; the shortest is 1s")]
    Interval(Duration),
}

/// Instants at which a periodic task ticks.
///
/// # Examples
/// ```
/// use machinist_core::periodic::Schedule;
/// use std::time::Duration;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let nightly = Schedule::cron("0 3 * * *")?.time_zone("Europe/Berlin")?;
/// let often = Schedule::every(Duration::from_secs(90))?;
/// assert!(Schedule::cron("0 0 31 2 *").unwrap_err().to_string().contains("never comes"));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, PartialEq)]
pub struct Schedule(Kind);

#[derive(Clone, PartialEq)]
enum Kind {
    Cron { text: String, cron: Box<Cron>, zone: TimeZone, zone_name: String },
    Every { period: Duration, origin: Timestamp },
}

/// A schedule as it is stored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct StoredSchedule {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cron: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    time_zone: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    every_us: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    origin: Option<Timestamp>,
}

impl Schedule {
    /// Creates a schedule of a cron expression: five fields (minute, hour, day, month, weekday), six with the second
    /// before them, or `@hourly`, `@daily`, `@midnight`, `@weekly`, `@monthly`, `@yearly`, `@annually`. Its time zone is
    /// UTC unless [`time_zone`](Self::time_zone) sets another.
    ///
    /// # Errors
    /// [`ScheduleError`] for an expression that cannot be read, or that never comes.
    pub fn cron(expression: &str) -> Result<Self, ScheduleError> {
        let text = expression.trim().to_owned();
        let problem = |why: String| ScheduleError::Cron { text: text.chars().take(80).collect(), why };
        if text.len() > MAX_CRON_BYTES {
            return Err(problem(format!("it is longer than {MAX_CRON_BYTES} bytes")));
        }
        let standard = if text.eq_ignore_ascii_case("@midnight") { "@daily" } else { &text };
        let parser = CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).build();
        let cron = parser.parse(standard).map_err(|error| problem(error.to_string()))?;
        let schedule =
            Self(Kind::Cron { text, cron: Box::new(cron), zone: TimeZone::UTC, zone_name: UTC.to_owned() });
        match schedule.after(SOME_TIME) {
            Some(_) => Ok(schedule),
            None => Err(ScheduleError::Never(schedule.cron_text().unwrap_or_default().to_owned())),
        }
    }

    /// Sets the time zone of a cron expression, by its name in the IANA time zone database.
    ///
    /// # Errors
    /// [`ScheduleError::TimeZone`] for an unknown name, [`ScheduleError::NoTimeZone`] for a schedule of
    /// [`every`](Self::every).
    pub fn time_zone(self, name: &str) -> Result<Self, ScheduleError> {
        let shown = || name.chars().take(80).collect::<String>();
        match self.0 {
            Kind::Every { .. } => Err(ScheduleError::NoTimeZone(shown())),
            Kind::Cron { text, cron, .. } => {
                let zone = jiff::tz::db().get(name).map_err(|_| ScheduleError::TimeZone(shown()))?;
                let zone_name = zone.iana_name().unwrap_or(name).to_owned();
                Ok(Self(Kind::Cron { text, cron, zone, zone_name }))
            }
        }
    }

    /// Creates a schedule of equal intervals, counted from the Unix epoch. One that is added to the backend is counted
    /// from its start instead.
    ///
    /// # Errors
    /// [`ScheduleError::Interval`] for an interval below a second.
    pub fn every(interval: Duration) -> Result<Self, ScheduleError> {
        if interval < MIN_PERIOD || i64::try_from(interval.as_micros()).is_err() {
            return Err(ScheduleError::Interval(interval));
        }
        // Instants have whole microseconds.
        let period = Duration::from_micros(u64::try_from(interval.as_micros()).unwrap_or(u64::MAX));
        Ok(Self(Kind::Every { period, origin: Timestamp::from_micros(0) }))
    }

    /// Returns the first instant after this one; `None` if there is none before the year 5000.
    pub fn after(&self, instant: Timestamp) -> Option<Timestamp> {
        match &self.0 {
            Kind::Cron { cron, zone, .. } => {
                let after = jiff::Timestamp::from_microsecond(instant.as_micros()).ok()?;
                let next = cron.find_next_occurrence(&after.to_zoned(zone.clone()), false).ok()?;
                Some(Timestamp::from_micros(next.timestamp().as_microsecond()))
            }
            Kind::Every { period, origin } => {
                let period = i64::try_from(period.as_micros()).ok()?;
                let passed = instant.as_micros().checked_sub(origin.as_micros())?.div_euclid(period);
                let next = passed.checked_add(1)?.checked_mul(period)?;
                origin.as_micros().checked_add(next).map(Timestamp::from_micros)
            }
        }
    }

    /// Returns the cron expression; `None` for a schedule of [`every`](Self::every).
    pub fn cron_text(&self) -> Option<&str> {
        match &self.0 {
            Kind::Cron { text, .. } => Some(text),
            Kind::Every { .. } => None,
        }
    }

    /// Returns the interval; `None` for a schedule of a cron expression.
    pub fn interval(&self) -> Option<Duration> {
        match &self.0 {
            Kind::Cron { .. } => None,
            Kind::Every { period, .. } => Some(*period),
        }
    }

    /// Returns the name of the time zone; `None` for a schedule of [`every`](Self::every).
    pub fn time_zone_name(&self) -> Option<&str> {
        match &self.0 {
            Kind::Cron { zone_name, .. } => Some(zone_name),
            Kind::Every { .. } => None,
        }
    }

    /// Counts intervals from this instant.
    pub(crate) fn counted_from(self, origin: Timestamp) -> Self {
        match self.0 {
            Kind::Every { period, .. } => Self(Kind::Every { period, origin }),
            cron @ Kind::Cron { .. } => Self(cron),
        }
    }

    /// Returns the schedule as it is stored.
    pub(crate) fn stored(&self) -> StoredSchedule {
        match &self.0 {
            Kind::Cron { text, zone_name, .. } => StoredSchedule {
                cron: Some(text.clone()),
                time_zone: Some(zone_name.clone()),
                ..StoredSchedule::default()
            },
            Kind::Every { period, origin } => StoredSchedule {
                every_us: u64::try_from(period.as_micros()).ok(),
                origin: Some(*origin),
                ..StoredSchedule::default()
            },
        }
    }
}

impl StoredSchedule {
    /// Reads a schedule.
    ///
    /// # Errors
    /// [`ScheduleError`] for one that this program cannot follow.
    pub(crate) fn read(&self) -> Result<Schedule, ScheduleError> {
        match (&self.cron, self.every_us) {
            (Some(cron), _) => Schedule::cron(cron)?.time_zone(self.time_zone.as_deref().unwrap_or(UTC)),
            (None, period) => {
                let every = Schedule::every(Duration::from_micros(period.unwrap_or(0)))?;
                Ok(every.counted_from(self.origin.unwrap_or(Timestamp::from_micros(0))))
            }
        }
    }
}

/// Shows the schedule as it was written: `0 3 * * * (Europe/Berlin)`, `every 90s`.
impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Cron { text, zone_name, .. } => write!(f, "{text} ({zone_name})"),
            Kind::Every { period, .. } => write!(f, "every {period:?}"),
        }
    }
}

impl fmt::Debug for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Schedule({self})")
    }
}

#[cfg(test)]
mod tests;
