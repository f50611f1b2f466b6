//! Hours in which a worker sleeps. The decision is pure: the time is an argument.

use std::{fmt, sync::Arc, time::Duration};

use jiff::{
    civil::{Date, Time},
    tz::TimeZone,
};
use tokio::sync::watch;

use super::WorkerContext;
use crate::clock::Timestamp;

/// Interval at which a worker looks at its timetable.
pub(super) const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Maximum number of periods that follow each other without a break. Hours that never end are shown with an end.
const MAX_PERIODS: usize = 32;
const WEEK: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

/// Hours in which a worker sleeps: on some days of the week, from one time to another, in a time zone.
///
/// They begin on each of the days, and end on the next day if the end is not after the beginning. A time that the clocks of
/// the zone skip counts as the time an hour later, and of a time that they show twice, the first counts.
///
/// # Examples
/// ```
/// use machinist_core::worker::SleepHours;
///
/// let nights = SleepHours::new("mon-fri", "22:00", "06:00", "Europe/Berlin")?;
/// assert!(SleepHours::new("mon-fry", "22:00", "06:00", "UTC").unwrap_err().to_string().contains("mon-fri"));
/// # Ok::<(), machinist_core::worker::SleepHoursError>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct SleepHours {
    /// Days on which they begin, from Monday.
    days: [bool; 7],
    from: Time,
    /// Midnight for the end of the day.
    to: Time,
    zone: TimeZone,
    /// Text for people.
    text: String,
}

/// Error of hours in which a worker was to sleep. The text names the value and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SleepHoursError {
    /// The days cannot be read.
    #[error("{0:?} names no days; write days like \"mon-fri\" or \"sat, sun\"")]
    Days(String),
    /// A time cannot be read.
    #[error("{0:?} is no time of a day; write one like \"22:00\", from \"00:00\" to \"24:00\"")]
    Time(String),
    /// The time zone is unknown.
    #[error(
        "time zone {0:?} is unknown; write a name of the IANA time zone database like \"Europe/Berlin\", or \"UTC\""
    )]
    TimeZone(String),
    /// They end when they begin.
    #[error("they begin and end at {0:?}; for a whole day, write from = \"00:00\" and to = \"24:00\"")]
    Empty(String),
}

impl SleepHours {
    /// Creates hours of these days (`mon-fri`, `sat, sun`), from one time to another (`22:00`, up to `24:00`), in a time zone
    /// (`Europe/Berlin`).
    ///
    /// # Errors
    /// [`SleepHoursError`] names what is wrong.
    pub fn new(days: &str, from: &str, to: &str, time_zone: &str) -> Result<Self, SleepHoursError> {
        let zone = TimeZone::get(time_zone)
            .map_err(|_| SleepHoursError::TimeZone(time_zone.chars().take(60).collect()))?;
        let text = format!("{days} {from}-{to} {time_zone}");
        let begins = time(from).filter(|_| from.trim() != END_OF_DAY);
        let begins = begins.ok_or_else(|| SleepHoursError::Time(from.chars().take(60).collect()))?;
        let ends = time(to).ok_or_else(|| SleepHoursError::Time(to.chars().take(60).collect()))?;
        if begins == ends && to.trim() != END_OF_DAY {
            return Err(SleepHoursError::Empty(from.to_owned()));
        }
        let days = week(days).ok_or_else(|| SleepHoursError::Days(days.chars().take(60).collect()))?;
        Ok(Self { days, from: begins, to: ends, zone, text })
    }

    /// Returns the end of these hours, if they hold at this instant.
    fn until(&self, now: Timestamp) -> Option<Timestamp> {
        let local = jiff::Timestamp::from_microsecond(now.as_micros()).ok()?.to_zoned(self.zone.clone());
        let today = local.date();
        [today.yesterday().ok(), Some(today)].into_iter().flatten().find_map(|day| {
            let (from, to) = self.period(day)?;
            (from <= now && now < to).then_some(to)
        })
    }

    /// Returns the hours that begin on this day.
    fn period(&self, day: Date) -> Option<(Timestamp, Timestamp)> {
        let weekday = usize::try_from(day.weekday().to_monday_zero_offset()).ok()?;
        if self.days.get(weekday) != Some(&true) {
            return None;
        }
        let last = if self.to <= self.from { day.tomorrow().ok()? } else { day };
        let at = |date: Date, time: Time| {
            let zoned = date.to_datetime(time).to_zoned(self.zone.clone()).ok()?;
            Some(Timestamp::from_micros(zoned.timestamp().as_microsecond()))
        };
        Some((at(day, self.from)?, at(last, self.to)?))
    }

    /// Returns an instant in the time zone, for people.
    fn show(&self, at: Timestamp) -> String {
        let zoned =
            jiff::Timestamp::from_microsecond(at.as_micros()).map(|at| at.to_zoned(self.zone.clone()));
        zoned.map_or_else(|_| at.to_string(), |zoned| zoned.strftime("%Y-%m-%d %H:%M %Q").to_string())
    }
}

/// Returns the reason to sleep at this instant, with the end of all hours that follow each other without a break.
pub(super) fn sleep_reason(hours: &[SleepHours], now: Timestamp) -> Option<String> {
    let mut at = now;
    let mut last = None;
    for _ in 0..MAX_PERIODS {
        let Some((of, until)) = hours.iter().find_map(|of| Some((of, of.until(at)?))) else { break };
        (at, last) = (until, Some(of.show(until)));
    }
    last.map(|until| format!("its timetable lets it sleep until {until}"))
}

/// Sleeps and wakes the worker by its timetable, which a reload may replace, until it drains.
pub(super) async fn follow(worker: Arc<WorkerContext>, mut hours: watch::Receiver<Vec<SleepHours>>) {
    let looks = async {
        loop {
            let is_empty = {
                let hours = hours.borrow_and_update();
                look(&worker, &hours);
                hours.is_empty()
            };
            tokio::select! {
                // Without hours, there is nothing to look at.
                () = tokio::time::sleep(LOOK_INTERVAL), if !is_empty => {}
                Ok(()) = hours.changed() => {}
                else => std::future::pending().await,
            }
        }
    };
    tokio::select! {
        () = looks => {}
        () = worker.stages.reached_drain() => {}
    }
}

/// Looks at the timetable once.
pub(super) fn look(worker: &WorkerContext, hours: &[SleepHours]) {
    worker.sessions.presence.want_by_timetable(sleep_reason(hours, worker.now()));
}

const END_OF_DAY: &str = "24:00";

/// Reads a time of a day. The end of the day is midnight.
fn time(text: &str) -> Option<Time> {
    let text = text.trim();
    if text == END_OF_DAY {
        return Some(Time::midnight());
    }
    let (hour, minute) = text.split_once(':')?;
    let is_two = |digits: &str| digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_digit());
    if !is_two(hour) || !is_two(minute) {
        return None;
    }
    Time::new(hour.parse().ok()?, minute.parse().ok()?, 0, 0).ok()
}

/// Reads days of the week: names and ranges, separated by commas.
fn week(text: &str) -> Option<[bool; 7]> {
    let day = |name: &str| WEEK.iter().position(|day| day.eq_ignore_ascii_case(name.trim()));
    let mut days = [false; 7];
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (mut at, last) = (day(first)?, day(last)?);
        days[at] = true;
        while at != last {
            at = (at + 1) % days.len();
            days[at] = true;
        }
    }
    Some(days)
}

impl fmt::Display for SleepHours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SleepHours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SleepHours({})", self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BERLIN: &str = "Europe/Berlin";

    fn at(text: &str) -> Timestamp {
        Timestamp::from_micros(text.parse::<jiff::Timestamp>().unwrap().as_microsecond())
    }

    fn asleep(hours: &[SleepHours], text: &str) -> bool {
        sleep_reason(hours, at(text)).is_some()
    }

    #[test]
    fn hours_go_over_midnight_and_begin_on_their_days_alone() {
        let nights = [SleepHours::new("mon-fri", "22:00", "06:00", BERLIN).unwrap()];
        // 2026-11-27 is a Friday, and Berlin is an hour ahead.
        assert!(asleep(&nights, "2026-11-27T21:00:00Z") && !asleep(&nights, "2026-11-27T20:59:59Z"));
        assert!(asleep(&nights, "2026-11-28T04:59:59Z"), "the night that has begun on Friday");
        assert!(!asleep(&nights, "2026-11-28T05:00:00Z") && !asleep(&nights, "2026-11-28T22:00:00Z"));
        assert!(!asleep(&nights, "2026-11-30T02:00:00Z"), "the night from Sunday to Monday");
        let reason = sleep_reason(&nights, at("2026-11-27T21:00:00Z")).unwrap();
        assert!(reason.contains("until 2026-11-28 06:00 Europe/Berlin"), "{reason}");
    }

    #[test]
    fn hours_follow_the_clocks_of_the_zone() {
        let nights = [SleepHours::new("mon-sun", "02:30", "06:00", BERLIN).unwrap()];
        // In spring, 02:30 does not exist: it counts as 03:30, which is 01:30 UTC.
        assert!(!asleep(&nights, "2026-03-29T01:29:59Z") && asleep(&nights, "2026-03-29T01:30:00Z"));
        assert!(asleep(&nights, "2026-03-29T03:59:59Z") && !asleep(&nights, "2026-03-29T04:00:00Z"));
        // In autumn, 02:30 comes twice: the first is 00:30 UTC.
        assert!(!asleep(&nights, "2026-10-25T00:29:59Z") && asleep(&nights, "2026-10-25T00:30:00Z"));
        assert!(asleep(&nights, "2026-10-25T04:59:59Z") && !asleep(&nights, "2026-10-25T05:00:00Z"));
    }

    #[test]
    fn hours_that_meet_are_one_sleep() {
        let hours = [
            SleepHours::new("sat, sun", "00:00", "24:00", "UTC").unwrap(),
            SleepHours::new("mon", "00:00", "06:30", "UTC").unwrap(),
        ];
        let reason = sleep_reason(&hours, at("2026-11-28T12:00:00Z")).unwrap();
        assert!(reason.contains("2026-11-30 06:30"), "{reason}");
        let always = [SleepHours::new("mon-sun", "00:00", "24:00", "UTC").unwrap()];
        assert!(asleep(&always, "2026-11-28T12:00:00Z"));
    }

    #[test]
    fn what_is_wrong_is_told_with_the_remedy() {
        let error = |days, from, to, zone| SleepHours::new(days, from, to, zone).unwrap_err().to_string();
        for (wrong, part) in [
            (error("mon-fry", "22:00", "06:00", "UTC"), "\"mon-fry\" names no days"),
            (error("", "22:00", "06:00", "UTC"), "names no days"),
            (error("mon", "22", "06:00", "UTC"), "\"22\" is no time of a day"),
            (error("mon", "24:00", "06:00", "UTC"), "is no time of a day"),
            (error("mon", "22:00", "25:00", "UTC"), "\"25:00\" is no time of a day"),
            (error("mon", "06:00", "06:00", "UTC"), "to = \"24:00\""),
            (error("mon", "22:00", "06:00", "Berlin"), "time zone \"Berlin\" is unknown"),
        ] {
            assert!(wrong.contains(part), "{wrong}");
        }
        assert_eq!(week("fri-mon"), Some([true, false, false, false, true, true, true]));
        assert_eq!(week("mon, wed").unwrap().iter().filter(|day| **day).count(), 2);
    }
}
