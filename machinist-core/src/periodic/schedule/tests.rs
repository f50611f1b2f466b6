//! Tests of schedules: syntax, changes of the clock, and that a search finds the same tick from everywhere.

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
    assert_eq!(next("0 0 L * *"), "2026-11-30T00:00:00Z");
    assert_eq!(next("0 0 13W * *"), "2026-12-14T00:00:00Z");
    assert_eq!(next("0 0 * * FRI#2"), "2026-12-11T00:00:00Z");
    assert_eq!(next("0 0 1 * +MON"), "2027-02-01T00:00:00Z");
    assert_eq!(next("0 0 13 * MON"), "2026-11-30T00:00:00Z", "either is enough");
}

#[test]
fn what_cannot_be_read_or_never_comes_is_reported_with_a_remedy() {
    for text in ["", "* * *", "61 * * * *", "@reboot", "* * * * * * 2027", "a b c d e", "0 3 * * * * * *"] {
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
    assert_eq!(ticks(&every, "1970-01-01T00:00:00Z", 2), ["1970-01-01T00:01:30Z", "1970-01-01T00:03:00Z"]);
    let later = every.counted_from(at("2026-11-28T21:00:10Z"));
    assert_eq!(ticks(&later, "2026-11-28T21:00:10Z", 2), ["2026-11-28T21:01:40Z", "2026-11-28T21:03:10Z"]);
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
