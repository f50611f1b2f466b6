//! Changes of many tasks at once, for `machinist revoke` and `machinist retry`.
//!
//! There is no index of all tasks: a note says how far the command looked.

use std::time::{Duration, Instant};

use machinist::{
    App, Client, ControlError, Revoked, SendError, TaskFilter, TaskId, TaskList,
    record::{Record, TaskState},
    settings::{Settings, show_duration},
};
use serde::Serialize;

use super::{connect, connect_reader, question};
use crate::{
    args::{BulkArgs, BulkState},
    exit::{CliError, Code, chain},
    output, visible,
};

/// Maximum number of tasks that one command selects.
const MAX_SELECTED: usize = 100_000;

/// Change of each task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BulkChange {
    Revoke { terminate: bool },
    Retry,
}

/// One selected task.
#[derive(Serialize)]
pub(super) struct BulkRow<'a> {
    id: &'a str,
    name: Option<&'a str>,
    queue: Option<&'a str>,
    /// State before the change.
    state: TaskState,
    /// `revoked`, `asked`, `already`, `sent_again`, `runs_now`, `refused`; with --dry-run `selected`.
    pub(super) done: &'static str,
    /// Id of the new task.
    #[serde(skip_serializing_if = "Option::is_none")]
    as_task: Option<String>,
    /// Reason that it was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) why: Option<String>,
}

/// Tasks that a selection has found, and the number of tasks that it has looked at.
#[derive(Default)]
struct Selected {
    records: Vec<Record>,
    looked_at: usize,
    is_complete: bool,
}

impl BulkChange {
    fn verb(self) -> &'static str {
        match self {
            Self::Revoke { .. } => "revoke",
            Self::Retry => "retry",
        }
    }

    /// Returns the list that has the tasks, and what it lists.
    ///
    /// # Errors
    /// The change is not for tasks in this state.
    fn list(self, state: Option<BulkState>) -> Result<(TaskList, &'static str), CliError> {
        let scheduled = (TaskList::Scheduled, "tasks that wait for their time");
        let failed = (TaskList::DeadLetters, "failed tasks that are dead letters");
        match (self, state) {
            (Self::Revoke { .. }, Some(BulkState::Failure)) => {
                Err(CliError::new(Code::Usage, "--state failure: these tasks have ended already")
                    .remedy("revoke takes --state pending and --state retry"))
            }
            (Self::Revoke { .. }, _) | (Self::Retry, Some(BulkState::Retry)) => Ok(scheduled),
            (Self::Retry, None | Some(BulkState::Failure)) => Ok(failed),
            (Self::Retry, Some(BulkState::Pending)) => Err(CliError::new(
                Code::Usage,
                "--state pending: these tasks have not run yet",
            )
            .remedy(
                "retry takes --state failure and --state retry; `machinist scheduled --now ID` runs one now",
            )),
        }
    }
}

/// Way in which selected tasks are changed.
#[derive(Debug, Clone, Copy)]
pub(super) struct BulkWay {
    pub(super) dry_run: bool,
    pub(super) yes: bool,
    /// Maximum number per second.
    pub(super) rate: Option<u32>,
}

/// Selects tasks, asks, and changes each.
pub(super) async fn run(
    change: BulkChange,
    args: &BulkArgs,
    settings: &Settings,
    json: bool,
) -> Result<Code, CliError> {
    let (list, what) = change.list(args.state)?;
    // Looking needs no key.
    let app = if args.dry_run { connect_reader(settings).await? } else { connect(settings).await? };
    let Selected { records, looked_at, is_complete } = select(&app, list, args).await?;
    let bound =
        if is_complete { String::new() } else { format!(", and stopped at {} that match", records.len()) };
    let looked = format!(
        "machinist: it looked at {looked_at} {what}{bound}; tasks that wait in a queue are not listed"
    );
    let way = BulkWay { dry_run: args.dry_run, yes: args.yes, rate: args.rate };
    let code = change_each(&app, change, &records, way, &looked, json).await?;
    app.flush_events().await;
    app.broker().close().await;
    Ok(code)
}

/// Asks, changes each of these tasks, and prints what became of it. `looked` is a note about the selection.
pub(super) async fn change_each(
    app: &App,
    change: BulkChange,
    records: &[Record],
    way: BulkWay,
    looked: &str,
    json: bool,
) -> Result<Code, CliError> {
    let client = app.client();
    let count = records.len();
    let question = format!("{} {count} tasks?", change.verb());
    let mut code = Code::Success;
    if count > 0 && !way.dry_run && !way.yes && !question::confirmed(&question, json)? {
        output::note("machinist: nothing was changed");
        return Ok(code);
    }
    let mut rows = Vec::new();
    let pace = way.rate.map_or(Duration::ZERO, |rate| Duration::from_secs(1) / rate);
    let began = Instant::now();
    let mut changed = 0;
    let mut failed = Ok(());
    let mut next = tokio::time::Instant::now();
    for record in records {
        let row = if way.dry_run {
            row(record, "selected", None, None)
        } else {
            tokio::time::sleep_until(next).await;
            next = tokio::time::Instant::now() + pace;
            match apply(&client, change, record).await {
                Ok(row) => row,
                Err(error) => {
                    failed = Err(error);
                    break;
                }
            }
        };
        match row.done {
            "refused" => code = Code::Failed,
            "selected" | "already" => {}
            _ => changed += 1,
        }
        if json {
            rows.push(row);
        } else {
            output::line(&text(&row))?;
        }
    }
    if json {
        output::json(&rows)?;
    }
    if !way.dry_run && count > 0 {
        output::note(&format!("machinist: {}", summary(changed, count, began.elapsed())));
    }
    output::note(looked);
    failed.map_err(|error: CliError| error.context(format_args!("{changed} of {count} were changed")))?;
    Ok(code)
}

async fn select(app: &App, list: TaskList, args: &BulkArgs) -> Result<Selected, CliError> {
    let mut filter = TaskFilter::new();
    filter.queue = args.queue.as_ref().map(ToString::to_string);
    filter.name = args.name.as_ref().map(ToString::to_string);
    filter.state = args.state.map(TaskState::from);
    filter.error.clone_from(&args.error);
    filter.until = args.older_than.map(|age| app.clock().now().minus(age));
    let limit = args.count.map_or(MAX_SELECTED, |count| count as usize).min(MAX_SELECTED);
    let mut selected = Selected::default();
    let mut known = std::collections::BTreeSet::new();
    let mut after = None;
    loop {
        let page = app.client().list_tasks(list, after).await?;
        selected.looked_at += page.records.len();
        let fitting = page.records.into_iter().filter(|record| filter.fits(record));
        // A task can have several dead letters.
        selected.records.extend(fitting.filter(|record| known.insert(record.id.clone())));
        if selected.records.len() >= limit {
            selected.records.truncate(limit);
            return Ok(selected);
        }
        after = page.next;
        if after.is_none() {
            return Ok(Selected { is_complete: true, ..selected });
        }
    }
}

/// Changes one task.
///
/// # Errors
/// A server cannot be asked: the others would fail as well.
pub(super) async fn apply<'a>(
    client: &Client,
    change: BulkChange,
    record: &'a Record,
) -> Result<BulkRow<'a>, CliError> {
    let id = &record.id;
    let done = match change {
        BulkChange::Revoke { terminate } => {
            let answer = if terminate { client.terminate(id).await } else { client.revoke(id).await };
            answer.map(|answer| match answer {
                Revoked::Ended => ("revoked", None),
                Revoked::Asked => ("asked", None),
                Revoked::Already(_) => ("already", None),
            })
        }
        BulkChange::Retry if record.state == TaskState::Retry => {
            client.run_now(id).await.map(|()| ("runs_now", None))
        }
        BulkChange::Retry if record.retried_as.is_some() => {
            Ok(("already", record.retried_as.as_ref().map(TaskId::to_string)))
        }
        BulkChange::Retry => client.retry(id).await.map(|again| ("sent_again", Some(again.id().to_string()))),
    };
    match done {
        Ok((done, as_task)) => Ok(row(record, done, as_task, None)),
        Err(
            error @ (ControlError::Backend(_)
            | ControlError::Broker(_)
            | ControlError::Send(SendError::Publish { .. })),
        ) => Err(error.into()),
        Err(error) => Ok(row(record, "refused", None, Some(chain(&error)))),
    }
}

fn row<'a>(
    record: &'a Record,
    done: &'static str,
    as_task: Option<String>,
    why: Option<String>,
) -> BulkRow<'a> {
    BulkRow {
        id: record.id.as_str(),
        name: record.name.as_deref(),
        queue: record.queue.as_deref(),
        state: record.state,
        done,
        as_task,
        why,
    }
}

fn text(row: &BulkRow<'_>) -> String {
    let done = row.done.replace('_', " ");
    let mut text = format!("{}  {}  {done}", row.id, visible::one_line(row.name.unwrap_or("-")));
    for more in row.as_task.iter().chain(&row.why) {
        text = format!("{text}: {}", visible::one_line(more));
    }
    text
}

fn summary(changed: u32, count: usize, took: Duration) -> String {
    let rate = f64::from(changed) / took.as_secs_f64().max(0.001);
    let took = Duration::from_millis(u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
    format!("{changed} of {count} changed in {}, {rate:.0} a second", show_duration(took))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_refused_for_states_that_it_is_not_for() {
        let revoke = BulkChange::Revoke { terminate: false };
        assert_eq!(revoke.list(None).unwrap().0, TaskList::Scheduled);
        assert_eq!(BulkChange::Retry.list(None).unwrap().0, TaskList::DeadLetters);
        assert_eq!(BulkChange::Retry.list(Some(BulkState::Retry)).unwrap().0, TaskList::Scheduled);
        for refused in
            [revoke.list(Some(BulkState::Failure)), BulkChange::Retry.list(Some(BulkState::Pending))]
        {
            assert_eq!(refused.unwrap_err().code, Code::Usage);
        }
    }

    #[test]
    fn a_summary_has_count_and_rate() {
        assert_eq!(summary(50, 60, Duration::from_secs(2)), "50 of 60 changed in 2s, 25 a second");
    }
}
