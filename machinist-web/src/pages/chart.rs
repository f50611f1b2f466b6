//! Charts of a day as SVG, and the table that has the same numbers. Pure.
//!
//! A chart needs no script and no styles in the page: the style sheet has its colours. Lines differ in their form too,
//! and a table beside the charts has what they show, for those who do not see them.

use std::time::Duration;

use machinist::{HistoryMark, clock::Timestamp, visible};
use maud::{Markup, html};

use super::fields::{grouped, late, seconds, short, time};
use crate::{
    day::{DAY, DayHistory, DaySlot, hours},
    panel::PanelView,
    sight::Sight,
};

/// Size of a chart, and of the part with the lines.
const SIZE: (f64, f64) = (400.0, 150.0);
const LEFT: f64 = 46.0;
const TOP: f64 = 18.0;
const WIDTH: f64 = SIZE.0 - LEFT - 8.0;
const HEIGHT: f64 = SIZE.1 - TOP - 20.0;
/// Time between two labels of the time.
const LABEL_MICROS: i64 = 6 * 3600 * 1_000_000;
/// Maximum number of marks: the last ones.
const MAX_MARKS: usize = 20;
/// Maximum values of axes that are durations, in seconds. Shorter ones are numbers.
const LONG_AXES: [f64; 13] = [
    60.0,
    120.0,
    300.0,
    600.0,
    1800.0,
    3600.0,
    7200.0,
    21_600.0,
    43_200.0,
    86_400.0,
    172_800.0,
    604_800.0,
    2_592_000.0,
];

/// Line of a chart.
struct ChartLine {
    label: &'static str,
    /// Class in the style sheet, which gives it a colour and a form.
    class: &'static str,
    value: fn(&DaySlot) -> Option<f64>,
}

/// Unit of the numbers of a chart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AxisUnit {
    Number,
    Seconds,
}

/// A chart of one day.
struct DayChart {
    title: &'static str,
    unit: AxisUnit,
    lines: &'static [ChartLine],
}

fn per_minute(slot: &DaySlot, number: Option<f64>) -> Option<f64> {
    number.map(|number| number / slot.minutes)
}

static CHARTS: [DayChart; 4] = [
    DayChart {
        title: "Messages per minute",
        unit: AxisUnit::Number,
        lines: &[
            ChartLine { label: "in", class: "in", value: |slot| per_minute(slot, slot.into) },
            ChartLine { label: "out", class: "out", value: |slot| per_minute(slot, slot.out) },
            ChartLine { label: "failed", class: "failed", value: |slot| per_minute(slot, slot.failed) },
        ],
    },
    DayChart {
        title: "Messages that wait",
        unit: AxisUnit::Number,
        lines: &[ChartLine { label: "ready", class: "one", value: |slot| slot.ready }],
    },
    DayChart {
        title: "Age of the oldest message",
        unit: AxisUnit::Seconds,
        lines: &[ChartLine { label: "oldest", class: "one", value: |slot| slot.oldest_age }],
    },
    DayChart {
        title: "Wait of 95 % of the messages",
        unit: AxisUnit::Seconds,
        lines: &[ChartLine { label: "wait p95", class: "one", value: |slot| slot.wait_p95 }],
    },
];

/// The charts of a queue that is seen, or of all queues together, with their marks and their table.
pub(super) fn day(seen: &PanelView<DayHistory>, queue: Option<&str>, sight: &Sight) -> Markup {
    if queue.is_none() && !sight.is_whole() {
        return html! {};
    }
    let slots = seen.value.as_deref().map(|day| day.slots(queue)).unwrap_or_default();
    html! {
        section aria-labelledby="day" {
            h2 #day { "The last 24 hours" }
            (late(seen))
            @if let Some(day) = &seen.value {
                @if slots.is_empty() {
                    p.hint { "Nothing is recorded. Workers record the history, unless " code { "events = \"off\"" } " is set." }
                } @else {
                    @let (first, marks) = shown_marks(&day.marks, day.now);
                    div.charts { @for chart in &CHARTS { (figure(chart, &slots, &marks, first, day.now)) } }
                    p.hint { "The hours below the charts are UTC." }
                    (mark_list(&marks, first))
                    (table(&slots))
                }
            }
        }
    }
}

/// Returns the marks of the day that are shown, and the number of the first one.
fn shown_marks(marks: &[HistoryMark], now: Timestamp) -> (usize, Vec<&HistoryMark>) {
    let of_day: Vec<&HistoryMark> = marks.iter().filter(|mark| now.since(mark.at) <= DAY).collect();
    let left_out = of_day.len().saturating_sub(MAX_MARKS);
    (left_out + 1, of_day[left_out..].to_vec())
}

fn figure(
    chart: &DayChart,
    slots: &[DaySlot],
    marks: &[&HistoryMark],
    first: usize,
    now: Timestamp,
) -> Markup {
    let largest = slots.iter().flat_map(|slot| chart.lines.iter().filter_map(|line| (line.value)(slot)));
    let top = axis_end(chart.unit, largest.fold(0.0, f64::max));
    let label = format!("{} of the last 24 hours. The table below has the numbers.", chart.title);
    let bottom = TOP + HEIGHT;
    html! {
        figure.chart {
            figcaption {
                (chart.title)
                @if chart.lines.len() > 1 { @for line in chart.lines {
                    " " span.key {
                        svg.sample viewBox="0 0 28 8" aria-hidden="true" { path.line.(line.class) d="M2 4H26" {} }
                        " " (line.label)
                    }
                } }
            }
            svg viewBox={ "0 0 " (SIZE.0) " " (SIZE.1) } role="img" aria-label=(label) {
                @for part in [TOP, TOP + HEIGHT / 2.0, bottom] {
                    path.grid d={ "M" (LEFT) " " (part) "h" (WIDTH) } {}
                }
                text x=(LEFT - 5.0) y=(TOP + 4.0) text-anchor="end" { (axis_label(chart.unit, top)) }
                text x=(LEFT - 5.0) y=(bottom + 4.0) text-anchor="end" { "0" }
                @for (x, label) in time_labels(now) {
                    text x=(x) y=(bottom + 15.0) text-anchor="middle" { (label) }
                }
                @for (number, mark) in (first..).zip(marks) {
                    @let x = place(x_of(mark.at, now));
                    g.moment {
                        title { (visible::one_line(&mark.text)) }
                        path d={ "M" (x) " " (TOP) "V" (bottom) } {}
                        text x=(x) y=(TOP - 5.0) text-anchor="middle" { (number) }
                    }
                }
                @for line in chart.lines { path.line.(line.class) d=(way(slots, line.value, top, now)) {} }
            }
        }
    }
}

/// The marks in words, with the numbers that they have in the charts.
fn mark_list(marks: &[&HistoryMark], first: usize) -> Markup {
    html! {
        @if !marks.is_empty() {
            p { "Marks" @if first > 1 { ", without " (grouped(first as u64 - 1)) " earlier ones" } ":" }
            ol.marks start=(first) { @for mark in marks {
                @let at = mark.at.to_string();
                li { (time(Some(&at))) " " (visible::one_line(&mark.text)) }
            } }
        }
    }
}

fn table(slots: &[DaySlot]) -> Markup {
    html! {
        details {
            summary { "The same as a table, by hour" }
            p.hint { "Numbers of messages and tasks, and the largest number, age and wait of each hour. In: what workers took, and "
                "what the queues have grown by." }
            div.wide { table {
                thead { tr {
                    th scope="col" { "Hour" } th scope="col" { "In" } th scope="col" { "Out" } th scope="col" { "Failed" }
                    th scope="col" { "Ready" } th scope="col" { "Oldest" } th scope="col" { "Wait p95" }
                } }
                tbody { @for hour in hours(slots) {
                    @let at = hour.at.to_string();
                    tr {
                        th scope="row" { (time(Some(&at))) }
                        td.n { (whole(hour.into)) } td.n { (whole(hour.out)) } td.n { (whole(hour.failed)) }
                        td.n { (whole(hour.ready)) } td.n { (seconds(hour.oldest_age)) } td.n { (seconds(hour.wait_p95)) }
                    }
                } }
            } }
        }
    }
}

fn whole(number: Option<f64>) -> String {
    // A cast keeps what is below zero, or too large, at the bounds.
    number.map_or_else(|| "–".to_owned(), |number| grouped(number.round() as u64))
}

/// Returns the horizontal place of an instant.
fn x_of(at: Timestamp, now: Timestamp) -> f64 {
    let ago = now.since(at).as_secs_f64() / DAY.as_secs_f64();
    LEFT + WIDTH * (1.0 - ago.min(1.0))
}

/// Writes a place with one decimal.
fn place(place: f64) -> String {
    let text = format!("{place:.1}");
    text.strip_suffix(".0").map(str::to_owned).unwrap_or(text)
}

/// Returns the path of a line. What is not known is a gap, and a lone value a dot.
fn way(slots: &[DaySlot], value: fn(&DaySlot) -> Option<f64>, top: f64, now: Timestamp) -> String {
    let mut way = String::new();
    // Number of the values since the last gap.
    let mut drawn = 0;
    for slot in slots {
        let Some(value) = value(slot) else {
            if drawn == 1 {
                way.push_str("h0");
            }
            drawn = 0;
            continue;
        };
        let y = TOP + HEIGHT * (1.0 - (value / top).clamp(0.0, 1.0));
        let command = if drawn == 0 { 'M' } else { 'L' };
        way.push(command);
        way.push_str(&format!("{} {}", place(x_of(slot.at, now)), place(y)));
        drawn += 1;
    }
    if drawn == 1 {
        way.push_str("h0");
    }
    way
}

/// Returns the end of an axis on which a number has room: 1, 2 or 5 and zeros, or a round duration.
fn axis_end(unit: AxisUnit, largest: f64) -> f64 {
    let least = match unit {
        AxisUnit::Number => 1.0,
        AxisUnit::Seconds => 0.01,
    };
    let largest = largest.max(least);
    if unit == AxisUnit::Seconds && largest > 50.0 {
        return LONG_AXES.into_iter().find(|end| largest <= *end).unwrap_or(largest);
    }
    let power = 10_f64.powf(largest.log10().floor());
    let ends = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power);
    ends.into_iter().find(|end| largest <= *end).unwrap_or(largest)
}

fn axis_label(unit: AxisUnit, end: f64) -> String {
    match unit {
        AxisUnit::Number => whole(Some(end)),
        AxisUnit::Seconds => {
            short(Duration::try_from_secs_f64((end * 1e3).round() / 1e3).unwrap_or_default())
        }
    }
}

/// Returns the full hours that have a label, with their places.
fn time_labels(now: Timestamp) -> Vec<(String, String)> {
    let last = now.as_micros().div_euclid(LABEL_MICROS) * LABEL_MICROS;
    let instants = (0..4).rev().map(|number| Timestamp::from_micros(last - number * LABEL_MICROS));
    let hour = |at: Timestamp| at.to_string().get(11..16).unwrap_or_default().to_owned();
    instants.map(|at| (place(x_of(at, now)), hour(at))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(at: i64, ready: Option<f64>) -> DaySlot {
        DaySlot {
            at: Timestamp::from_micros(at * 3600 * 1_000_000),
            minutes: 10.0,
            into: None,
            out: Some(20.0),
            failed: Some(0.0),
            ready,
            oldest_age: ready,
            wait_p95: None,
        }
    }

    #[test]
    fn a_line_has_gaps_and_dots_and_stays_in_its_frame() {
        let now = Timestamp::from_micros(24 * 3600 * 1_000_000);
        let slots = [slot(0, Some(0.0)), slot(12, Some(5.0)), slot(18, None), slot(24, Some(20.0))];
        assert_eq!(way(&slots, |slot| slot.ready, 10.0, now), "M46 130L219 74M392 18h0");
        assert_eq!(way(&slots, |slot| slot.wait_p95, 10.0, now), "");
        // An instant before the day, as the first bucket may have, is at its begin.
        assert_eq!(way(&[slot(-1, Some(0.0))], |slot| slot.ready, 10.0, now), "M46 130h0");
    }

    #[test]
    fn axes_end_at_round_numbers() {
        for (largest, end) in [(0.0, 1.0), (1.0, 1.0), (3.0, 5.0), (51.0, 100.0), (1234.0, 2000.0)] {
            assert_eq!(axis_end(AxisUnit::Number, largest).round(), end, "{largest}");
        }
        for (largest, label) in
            [(0.0, "10ms"), (0.3, "500ms"), (4.0, "5s"), (55.0, "1m"), (4000.0, "2h"), (1e5, "2d")]
        {
            assert_eq!(axis_label(AxisUnit::Seconds, axis_end(AxisUnit::Seconds, largest)), label);
        }
    }

    #[test]
    fn labels_of_the_time_are_full_hours() {
        let now = Timestamp::from_micros((20 * 3600 + 1800) * 1_000_000);
        let labels = time_labels(now);
        assert_eq!(
            labels.iter().map(|(_, label)| label.as_str()).collect::<Vec<_>>(),
            ["00:00", "06:00", "12:00", "18:00"]
        );
    }

    #[test]
    fn every_chart_is_named_and_small() {
        let now = Timestamp::from_micros(24 * 3600 * 1_000_000);
        let slots: Vec<DaySlot> = (0..145)
            .map(|n| DaySlot { at: Timestamp::from_micros(n * 600 * 1_000_000), ..slot(0, Some(n as f64)) })
            .collect();
        let all: String =
            CHARTS.iter().map(|chart| figure(chart, &slots, &[], 1, now).into_string()).collect();
        assert_eq!(all.matches("role=\"img\" aria-label=\"").count(), CHARTS.len());
        assert!(!all.contains("style=") && !all.contains("<script"), "{all}");
        let table = table(&slots).into_string();
        assert!(all.len() + table.len() < 30_000, "{} and {} bytes", all.len(), table.len());
    }
}
