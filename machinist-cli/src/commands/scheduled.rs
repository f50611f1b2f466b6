//! `machinist scheduled`: lists the tasks that wait for their ETA or a retry; `--now` runs one of them.

use std::time::Duration;

use machinist::{
    record::{FailureKind, Record, TaskState},
    settings::{Settings, show_duration},
};
use serde::Serialize;

use super::{connect, connect_reader};
use crate::{
    args::ScheduledArgs,
    exit::{CliError, Code},
    output,
    people::People,
};

#[derive(Serialize)]
struct ScheduledRow {
    id: String,
    name: Option<String>,
    queue: Option<String>,
    due: String,
    /// PENDING: it waits for its ETA; RETRY: for its next run.
    state: TaskState,
    /// Number of the next attempt.
    attempt: u32,
    /// Kind of the last run's failure.
    kind: Option<FailureKind>,
    error: Option<String>,
    sent_at: Option<String>,
    expires_at: Option<String>,
}

pub(super) async fn run(args: ScheduledArgs, settings: &Settings, json: bool) -> Result<Code, CliError> {
    // Running a task now signs it; the list needs no key.
    let app = match args.now {
        Some(_) => connect(settings).await?,
        None => connect_reader(settings).await?,
    };
    let client = app.client();
    if let Some(id) = args.now {
        client.run_now(&id).await?;
        if json {
            output::json(&serde_json::json!({ "id": id.as_str() }))?;
        } else {
            output::line("it runs as soon as a worker is free")?;
        }
    } else {
        let now = app.clock().now();
        let waiting = client.scheduled(args.limit as usize).await?;
        if json {
            let instant = |at: Option<machinist::clock::Timestamp>| at.map(|at| at.to_string());
            let row = |task: machinist::Scheduled| ScheduledRow {
                id: task.record.id.to_string(),
                name: task.record.name.clone(),
                queue: task.record.queue.clone(),
                due: task.due.to_string(),
                state: task.record.state,
                attempt: next_attempt(&task.record),
                kind: task.record.history.last().map(|attempt| attempt.kind),
                error: task.record.error.as_ref().map(|error| error.message().to_owned()),
                sent_at: instant(task.record.sent_at),
                expires_at: instant(task.record.expires_at),
            };
            output::json(&waiting.into_iter().map(row).collect::<Vec<_>>())?;
        } else {
            let people = People::at_output();
            let row = |task: machinist::Scheduled| {
                let text = |name: Option<String>| name.unwrap_or_else(|| "-".to_owned());
                let left = Duration::from_secs(task.due.since(now).as_secs());
                let why = why(&task.record);
                vec![
                    task.record.id.to_string(),
                    text(task.record.name),
                    text(task.record.queue),
                    people.time(&task.due.to_string()),
                    show_duration(left),
                    why,
                ]
            };
            output::table(&["id", "name", "queue", "due", "in", "why"], waiting.into_iter().map(row))?;
        }
    }
    app.broker().close().await;
    Ok(Code::Success)
}

/// Returns the number of the next attempt of a waiting task.
fn next_attempt(record: &Record) -> u32 {
    if record.state == TaskState::Retry { record.attempt.saturating_add(1) } else { record.attempt }
}

/// Returns the reason that a task waits, with the error of its last run, in one line.
fn why(record: &Record) -> String {
    let failed = record.history.last().filter(|_| record.state == TaskState::Retry);
    failed.map_or_else(
        || "sent for later".to_owned(),
        |attempt| {
            let first_line = attempt.error.message().lines().next().unwrap_or_default();
            format!("attempt {} after {}: {first_line}", next_attempt(record), attempt.kind)
        },
    )
}
