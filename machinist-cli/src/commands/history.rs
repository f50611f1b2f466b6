//! `machinist history`: what happened to tasks and queues since a moment, in buckets of time.

use std::{collections::BTreeMap, time::Duration};

use machinist::{
    History, HistoryCount, HistorySelection, QueueGauges, TaskHistory,
    settings::{Settings, show_duration},
    view::HistoryView,
};

use super::connect_reader;
use crate::{
    args::HistoryArgs,
    exit::{CliError, Code},
    output,
    people::People,
};

/// Maximum number of rows for people. Buckets that follow each other share a row where there are more.
const MAX_ROWS: usize = 60;

pub(super) async fn run(args: HistoryArgs, settings: &Settings, json: bool) -> Result<Code, CliError> {
    let app = connect_reader(settings).await?;
    let mut selection = HistorySelection::new();
    (selection.queue, selection.task) = (args.queue, args.task);
    let since = app.clock().now().minus(args.since);
    let history = app.client().history(since, &selection).await?;
    if json {
        output::json(&HistoryView::from(&history))?;
    } else {
        print(&history, args.since)?;
    }
    if history.lost > 0 {
        output::note(&format!(
            "machinist: {} further events were counted and could not be stored",
            history.lost
        ));
    }
    app.broker().close().await;
    Ok(Code::Success)
}

/// Prints a row for each bucket, or for several that follow each other, and the marks between them.
fn print(history: &History, since: Duration) -> Result<(), CliError> {
    let people = People::at_output();
    let rows = u128::try_from(MAX_ROWS).unwrap_or(1);
    let width = history.step.width();
    let per_row = since.as_nanos().div_ceil(width.as_nanos() * rows).max(1);
    let span = i128::try_from(width.as_micros() * per_row).unwrap_or(i128::MAX);
    let mut joined: BTreeMap<i128, (String, TaskHistory, QueueGauges)> = BTreeMap::new();
    for point in &history.points {
        let row = i128::from(point.at.as_micros()).div_euclid(span);
        let (_, sum, gauges) = joined
            .entry(row)
            .or_insert_with(|| (point.at.to_string(), TaskHistory::default(), QueueGauges::default()));
        sum.merge(&point.sum());
        gauges.merge(&point.of_all_queues());
    }
    let mut rows: Vec<(String, Vec<String>)> = joined.into_values().map(|row| cells(&row, &people)).collect();
    for mark in &history.marks {
        let at = mark.at.to_string();
        let mut cells = vec![String::new(); HEAD.len()];
        cells[0] = people.time(&at);
        cells[HEAD.len() - 1].clone_from(&mark.text);
        rows.push((at, cells));
    }
    rows.sort_by(|a, b| a.0.cmp(&b.0));
    output::table(&HEAD, rows.into_iter().map(|(_, cells)| cells))?;
    let each = width * u32::try_from(per_row).unwrap_or(u32::MAX);
    output::note(&format!("machinist: each row is {} at most; --json has all buckets", show_duration(each)));
    Ok(())
}

const HEAD: [&str; 11] = [
    "at", "received", "success", "failure", "retry", "wait p95", "run p95", "ready", "oldest", "busy", "mark",
];

fn cells((at, sum, gauges): &(String, TaskHistory, QueueGauges), people: &People) -> (String, Vec<String>) {
    let time = |count: &HistoryCount| {
        let told = count.times.quantile(0.95);
        told.map_or_else(|| "-".to_owned(), |time| show_duration(rounded(time)))
    };
    let mut run = sum.succeeded.clone();
    run.merge(&sum.failed);
    run.merge(&sum.retried);
    let cells = vec![
        people.time(at),
        sum.received.count.to_string(),
        sum.succeeded.count.to_string(),
        sum.failed.count.to_string(),
        sum.retried.count.to_string(),
        time(&sum.received),
        time(&run),
        gauges.ready.to_string(),
        show_duration(Duration::from_secs(gauges.oldest_age().as_secs())),
        format!("{}/{}", gauges.busy, gauges.slots),
        String::new(),
    ];
    (at.clone(), cells)
}

/// Rounds to two digits: a sketch tells no more.
fn rounded(time: Duration) -> Duration {
    let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let unit = 10_u64.pow(millis.max(1).ilog10().saturating_sub(1));
    Duration::from_millis(millis.div_ceil(unit).saturating_mul(unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_two_digits() {
        for (millis, shown) in [(0, "0s"), (7, "7ms"), (118, "120ms"), (1345, "1s 400ms")] {
            assert_eq!(show_duration(rounded(Duration::from_millis(millis))), shown);
        }
    }
}
