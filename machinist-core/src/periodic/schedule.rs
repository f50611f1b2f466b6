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
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(text: &str) -> Timestamp {
        Timestamp::from_micros(text.parse::<jiff::Timestamp>().unwrap().as_microsecond())
    }

    /// Returns the next instants after `from`, as UTC text without fractions.
    fn ticks(schedule: &Schedule, from: &str, number: usize) -> Vec<String> {
        let next = |last: &Timestamp| schedule.after(*last);
        let all = std::iter::successors(schedule.after(at(from)), next);
        let text =
            |instant: Timestamp| jiff::Timestamp::from_microsecond(instant.as_micros()).unwrap().to_string();
        all.take(number).map(text).collect()
    }

    fn berlin(cron: &str) -> Schedule {
        Schedule::cron(cron).unwrap().time_zone("Europe/Berlin").unwrap()
    }

    #[test]
    fn expressions_of_five_and_six_fields_and_names_are_read() {
        let next = |cron: &str| ticks(&Schedule::cron(cron).unwrap(), "2026-11-28T21:07:30Z", 1).remove(0);
        assert_eq!(next("0 3 * * *"), "2026-11-29T03:00:00Z");
        assert_eq!(next("*/20 * * * * *"), "2026-11-28T21:07:40Z");
        assert_eq!(next(" @daily "), "2026-11-29T00:00:00Z");
        assert_eq!(next("@midnight"), next("@daily"));
        assert_eq!(next("@hourly"), "2026-11-28T22:00:00Z");
        assert_eq!(next("@weekly"), "2026-11-29T00:00:00Z");
        assert_eq!(next("@monthly"), "2026-12-01T00:00:00Z");
        assert_eq!(next("@yearly"), "2027-01-01T00:00:00Z");
        assert_eq!(next("30 6 * * MON-FRI"), "2026-11-30T06:30:00Z");
        assert_eq!(next("0 0 * * 7"), "2026-11-29T00:00:00Z");
        assert_eq!(next("0 0 29 2 *"), "2028-02-29T00:00:00Z");
    }

    #[test]
    fn what_cannot_be_read_or_never_comes_is_reported_with_a_remedy() {
        for text in ["", "* * *", "61 * * * *", "@reboot", "* * * * * * 2027", "a b c d e", "0 3 * * * * * *"]
        {
            let error = Schedule::cron(text).unwrap_err().to_string();
            assert!(error.contains("cannot be read") && error.contains("0 3 * * *"), "{error}");
        }
        for text in ["0 0 31 2 *", "0 0 30 2 *", "0 0 31 4,6,9,11 *", "0 0 0 31 2 *"] {
            let error = Schedule::cron(text).unwrap_err().to_string();
            assert!(error.contains(text) && error.contains("never comes"), "{error}");
        }
        let long = Schedule::cron(&"*,".repeat(1000)).unwrap_err().to_string();
        assert!(long.contains("longer than 256 bytes") && long.len() < 500, "{long}");
        let error = Schedule::cron("0 3 * * *").unwrap().time_zone("Mars/Base").unwrap_err().to_string();
        assert!(error.contains("\"Mars/Base\" is unknown") && error.contains("Europe/Berlin"), "{error}");
        assert!(matches!(Schedule::every(Duration::from_millis(999)), Err(ScheduleError::Interval(_))));
        let every = Schedule::every(Duration::from_secs(90)).unwrap();
        assert!(every.time_zone("UTC").unwrap_err().to_string().contains("leave it out"));
    }

    /// In Berlin, 2026-03-29 has no time from 02:00 to 03:00.
    #[test]
    fn a_fixed_time_that_the_clock_leaves_out_comes_at_the_end_of_the_gap() {
        let days = ["2026-03-28T01:30:00Z", "2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"];
        assert_eq!(ticks(&berlin("30 2 * * *"), "2026-03-28T00:00:00Z", 3), days);
        // Intervals go on; those within the gap do not exist.
        let half_hours =
            ["2026-03-29T00:30:00Z", "2026-03-29T01:00:00Z", "2026-03-29T01:30:00Z", "2026-03-29T02:00:00Z"];
        assert_eq!(ticks(&berlin("*/30 * * * *"), "2026-03-29T00:00:00Z", 4), half_hours);
    }

    /// In Berlin, 2026-10-25 has the time from 02:00 to 03:00 twice.
    #[test]
    fn a_fixed_time_that_the_clock_repeats_comes_once_and_intervals_go_on() {
        let days = ["2026-10-24T00:30:00Z", "2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"];
        assert_eq!(ticks(&berlin("30 2 * * *"), "2026-10-24T00:00:00Z", 3), days);
        let half_hours = [
            "2026-10-25T00:00:00Z",
            "2026-10-25T00:30:00Z",
            "2026-10-25T01:00:00Z",
            "2026-10-25T01:30:00Z",
            "2026-10-25T02:00:00Z",
        ];
        assert_eq!(ticks(&berlin("*/30 * * * *"), "2026-10-24T23:45:00Z", 5), half_hours);
    }

    #[test]
    fn a_day_of_the_change_has_23_or_25_hourly_ticks() {
        let count = |from: &str, to: &str| {
            let schedule = berlin("0 * * * *");
            let next = |last: &Timestamp| schedule.after(*last);
            let all = std::iter::successors(schedule.after(at(from).minus(Duration::from_micros(1))), next);
            all.take_while(|tick| *tick < at(to)).count()
        };
        assert_eq!(count("2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z"), 23);
        assert_eq!(count("2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z"), 25);
    }

    #[test]
    fn intervals_are_counted_from_their_origin() {
        let every = Schedule::every(Duration::from_secs(90)).unwrap();
        assert_eq!(
            ticks(&every, "1970-01-01T00:00:00Z", 2),
            ["1970-01-01T00:01:30Z", "1970-01-01T00:03:00Z"]
        );
        let later = every.counted_from(at("2026-11-28T21:00:10Z"));
        assert_eq!(
            ticks(&later, "2026-11-28T21:00:10Z", 2),
            ["2026-11-28T21:01:40Z", "2026-11-28T21:03:10Z"]
        );
        assert_eq!(ticks(&later, "2026-11-28T21:00:00Z", 1), ["2026-11-28T21:00:10Z"]);
        assert_eq!(later.after(Timestamp::from_micros(i64::MAX)), None);
    }

    #[test]
    fn a_schedule_is_read_as_it_was_stored() {
        let origin = at("2026-11-28T21:00:10Z");
        let every = Schedule::every(Duration::from_millis(1500)).unwrap().counted_from(origin);
        for schedule in [berlin("30 2 * * *"), Schedule::cron("@daily").unwrap(), every] {
            let text = serde_json::to_string(&schedule.stored()).unwrap();
            let read = serde_json::from_str::<StoredSchedule>(&text).unwrap().read().unwrap();
            assert!(read == schedule, "{text}");
        }
        assert!(StoredSchedule::default().read().is_err());
    }

    const ZONES: [&str; 6] = [
        "UTC",
        "Europe/Berlin",
        "America/New_York",
        "Australia/Lord_Howe",
        "America/Sao_Paulo",
        "Africa/Casablanca",
    ];
    const CRONS: [&str; 8] = [
        "* * * * *",
        "*/7 * * * * *",
        "30 2 * * *",
        "0 0 * * *",
        "15 1-3 * * *",
        "0 */2 * * *",
        "59 23 31 * *",
        "0 2 * 3,10 SUN",
    ];

    proptest! {
        /// The next tick does not depend on where the search begins: so no tick is lost, and none comes twice, wherever a
        /// cursor stands.
        #[test]
        fn the_next_tick_is_the_same_from_everywhere_before_it(
            zone in 0..ZONES.len(),
            cron in 0..CRONS.len(),
            // Hours around the changes of 2026 and 2027, in any of these zones.
            from in 1_767_225_600i64..1_830_297_600,
            part in 0.0f64..1.0,
        ) {
            let schedule = Schedule::cron(CRONS[cron]).unwrap().time_zone(ZONES[zone]).unwrap();
            let from = Timestamp::from_micros(from * 1_000_000);
            let next = schedule.after(from).unwrap();
            prop_assert!(next > from);
            let between = from.plus(next.since(from).mul_f64(part)).min(next.minus(Duration::from_micros(1)));
            prop_assert_eq!(schedule.after(between), Some(next), "from {}", between);
        }

        /// The same within an hour of each change of the clock in Berlin.
        #[test]
        fn the_next_tick_is_the_same_around_a_change_of_the_clock(
            cron in 0..CRONS.len(),
            change in 0usize..2,
            seconds in -7200i64..7200,
            part in 0.0f64..1.0,
        ) {
            let schedule = berlin(CRONS[cron]);
            let change = at(["2026-03-29T01:00:00Z", "2026-10-25T01:00:00Z"][change]);
            let from = Timestamp::from_micros(change.as_micros() + seconds * 1_000_000);
            let next = schedule.after(from).unwrap();
            prop_assert!(next > from);
            let between = from.plus(next.since(from).mul_f64(part)).min(next.minus(Duration::from_micros(1)));
            prop_assert_eq!(schedule.after(between), Some(next), "from {}", between);
        }
    }
}
