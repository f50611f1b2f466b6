//! Times that a task has spent waiting, pausing and running, as bars. Pure.
//!
//! A record keeps the times of the newest attempt. Of an earlier one it keeps the end, so its wait and its run are one bar.

use machinist::{clock::Timestamp, record::Record};
use maud::{Markup, html};

use super::fields::{grouped, short};

/// Maximum number of bars: the last ones.
const MAX_BARS: usize = 40;
/// Width of all bars together.
const WIDTH: f64 = 400.0;

/// Times of a task, as far as its record has them.
#[derive(Debug, Default)]
struct StageTimes {
    sent: Option<Timestamp>,
    eta: Option<Timestamp>,
    received: Option<Timestamp>,
    started: Option<Timestamp>,
    ended: Option<Timestamp>,
    /// Earlier attempts: number, end, and due time of the next one.
    past: Vec<(u32, Timestamp, Timestamp)>,
}

impl From<&Record> for StageTimes {
    fn from(record: &Record) -> Self {
        let past = record.history.iter().map(|attempt| (attempt.attempt, attempt.ended_at, attempt.next_run));
        Self {
            sent: record.sent_at,
            eta: record.eta,
            received: record.received_at,
            started: record.started_at,
            ended: record.ended_at,
            past: past.collect(),
        }
    }
}

/// A time that a task has spent in one way.
#[derive(Debug, PartialEq)]
struct TaskStage {
    label: String,
    /// Class in the style sheet.
    class: &'static str,
    from: Timestamp,
    until: Timestamp,
}

/// Returns the stages of a task up to its end, or up to now.
fn stages(times: &StageTimes, now: Timestamp) -> Vec<TaskStage> {
    let Some(mut at) = times.sent.or(times.received).or(times.started) else { return Vec::new() };
    let stop = times.ended.unwrap_or(now);
    // Until the newest attempt is received, the record has the times of the one before.
    let before = times.past.last().map(|(_, ended, _)| *ended);
    let newest = |time: Option<Timestamp>| time.filter(|time| before.is_none_or(|before| *time > before));
    let started = newest(times.started);
    // A second copy of the message may be received while the first one runs.
    let received = newest(times.received).filter(|time| started.is_none_or(|started| *time <= started));
    let taken = received.or(started);
    let mut stages = Vec::new();
    let mut add = |label: String, class, from: Timestamp, until: Timestamp| {
        if until > from {
            stages.push(TaskStage { label, class, from, until });
        }
    };
    if let Some(eta) = times.eta.filter(|_| times.past.is_empty()) {
        let due = eta.min(taken.unwrap_or(stop)).max(at);
        add("not due yet".to_owned(), "waits", at, due);
        at = due;
    }
    for (index, (number, ended, next)) in times.past.iter().enumerate() {
        add(format!("attempt {number}: wait and run"), "again", at, *ended);
        // Somebody may have let the next one run earlier.
        let next_known = times.past.get(index + 1).map(|(_, ended, _)| *ended).or(taken).unwrap_or(stop);
        at = (*next).min(next_known).max(*ended);
        add("pause before the next attempt".to_owned(), "waits", *ended, at);
    }
    add("wait in the queue".to_owned(), "waits", at, taken.unwrap_or(stop));
    if let Some(received) = received {
        add("wait in the worker".to_owned(), "waits", received, started.unwrap_or(stop));
    }
    if let Some(started) = started {
        add("run".to_owned(), "runs", started, stop);
    }
    stages
}

/// The stages of a task with their durations, each with its bar.
pub(super) fn bars(record: &Record, now: Timestamp) -> Markup {
    let stages = stages(&record.into(), now);
    let left_out = stages.len().saturating_sub(MAX_BARS);
    draw(&stages[left_out..], left_out)
}

fn draw(stages: &[TaskStage], left_out: usize) -> Markup {
    let (Some(first), Some(last)) = (stages.first(), stages.last()) else { return html! {} };
    let whole = last.until.since(first.from).as_secs_f64().max(1e-6);
    let x = |at: Timestamp| at.since(first.from).as_secs_f64() / whole * WIDTH;
    html! {
        @if left_out > 0 { p.hint { (grouped(left_out as u64)) " earlier stages are not shown." } }
        div.wide { table {
            thead { tr { th scope="col" { "Stage" } th scope="col" { "Time" } th scope="col" { span.unseen { "Bar" } } } }
            tbody { @for stage in stages {
                @let (from, until) = (x(stage.from), x(stage.until));
                tr {
                    th scope="row" { (stage.label) }
                    td.n { (short(stage.until.since(stage.from))) }
                    td {
                        svg.bar width="400" height="14" viewBox="0 0 400 14" aria-hidden="true" {
                            rect.(stage.class) x=(format!("{:.1}", from.min(WIDTH - 1.0))) y="1" height="12" width=(format!("{:.1}", (until - from).max(1.0))) {}
                        }
                    }
                }
            } }
        } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_micros(second * 1_000_000)
    }

    /// Returns the labels with their begins and ends, in seconds.
    fn told(times: &StageTimes, now: i64) -> Vec<(String, i64, i64)> {
        let seconds = |at: Timestamp| at.as_micros() / 1_000_000;
        let stages = stages(times, at(now)).into_iter();
        stages.map(|stage| (stage.label, seconds(stage.from), seconds(stage.until))).collect()
    }

    fn expected(stages: &[(&str, i64, i64)]) -> Vec<(String, i64, i64)> {
        stages.iter().map(|(label, from, until)| ((*label).to_owned(), *from, *until)).collect()
    }

    #[test]
    fn a_task_waits_and_runs() {
        let mut times = StageTimes { sent: Some(at(0)), ..StageTimes::default() };
        assert_eq!(told(&times, 5), expected(&[("wait in the queue", 0, 5)]));
        times.received = Some(at(10));
        times.started = Some(at(11));
        assert_eq!(
            told(&times, 15),
            expected(&[("wait in the queue", 0, 10), ("wait in the worker", 10, 11), ("run", 11, 15)])
        );
        times.ended = Some(at(12));
        times.eta = Some(at(8));
        assert_eq!(
            told(&times, 99),
            expected(&[
                ("not due yet", 0, 8),
                ("wait in the queue", 8, 10),
                ("wait in the worker", 10, 11),
                ("run", 11, 12)
            ])
        );
    }

    #[test]
    fn attempts_have_pauses_between_them() {
        // The times are those of the first attempt until the second one is received.
        let mut times = StageTimes {
            sent: Some(at(0)),
            received: Some(at(1)),
            started: Some(at(2)),
            eta: Some(at(60)),
            past: vec![(1, at(10), at(60))],
            ..StageTimes::default()
        };
        let first = [("attempt 1: wait and run", 0, 10), ("pause before the next attempt", 10, 30)];
        assert_eq!(told(&times, 30), expected(&first));
        times.received = Some(at(20));
        times.started = Some(at(20));
        assert_eq!(
            told(&times, 30),
            expected(&[
                ("attempt 1: wait and run", 0, 10),
                ("pause before the next attempt", 10, 20),
                ("run", 20, 30)
            ]),
            "it was let run before its time"
        );
    }

    #[test]
    fn what_never_started_and_what_is_not_known_is_no_run() {
        let expired = StageTimes { sent: Some(at(0)), ended: Some(at(9)), ..StageTimes::default() };
        assert_eq!(told(&expired, 99), expected(&[("wait in the queue", 0, 9)]));
        assert_eq!(told(&StageTimes::default(), 9), []);
        // A clock behind that of the sender, and a copy that is received during the run.
        let odd = StageTimes {
            sent: Some(at(5)),
            started: Some(at(6)),
            received: Some(at(7)),
            ..StageTimes::default()
        };
        assert_eq!(told(&odd, 4), expected(&[("wait in the queue", 5, 6)]));
    }

    #[test]
    fn bars_are_in_their_frame_and_have_their_times_in_words() {
        let times = StageTimes {
            sent: Some(at(0)),
            received: Some(at(30)),
            started: Some(at(30)),
            ended: Some(at(40)),
            ..StageTimes::default()
        };
        let drawn = draw(&stages(&times, at(99)), 3).into_string();
        for part in [
            "30s",
            "10s",
            "x=\"0.0\"",
            "width=\"300.0\"",
            "x=\"300.0\"",
            "width=\"100.0\"",
            "3 earlier stages",
        ] {
            assert!(drawn.contains(part), "{part}: {drawn}");
        }
        assert!(!drawn.contains("style="), "{drawn}");
        assert_eq!(draw(&[], 0).into_string(), "");
    }
}
