//! `machinist retry`: sends a failed task or workflow again, under a new id.

use machinist::{Client, ControlError, TaskId, record::TaskState, settings::Settings};
use serde::Serialize;

use super::{
    bulk::{self, BulkChange},
    connect, workflow,
};
use crate::{
    args::RetryArgs,
    exit::{CliError, Code},
    input, output,
};

#[derive(Serialize)]
struct RetryOutput<'a> {
    id: &'a str,
    retry_of: &'a str,
}

/// Sends the call of a task with other arguments, as a new task.
async fn send_changed(client: &Client, id: &TaskId, changed: &[String]) -> Result<TaskId, CliError> {
    let wrong = |text: String| CliError::new(Code::Usage, text);
    let mut call = client.call_of(id).await?;
    for text in changed {
        let (which, value) = input::named(text).map_err(wrong)?;
        call = call.replace_arg(&which, value).map_err(wrong)?;
    }
    Ok(client.send(call).await?.id().clone())
}

/// Result for a task or a workflow that was sent again.
pub(super) enum Again {
    /// The id under which it was sent.
    Sent(TaskId),
    /// It waited for its next run.
    RunsNow,
}

/// Sentence about a task that waited for its next run.
pub(super) const RUNS_NOW: &str = "it waited for its next run, and runs as soon as a worker is free";

/// Sends a failed task or workflow again.
pub(super) async fn again(client: &Client, id: &TaskId) -> Result<Again, CliError> {
    if workflow::is_root(client, id).await? {
        let last = client.retry_workflow(id).await?;
        return Ok(Again::Sent(last.workflow_id().unwrap_or_else(|| last.id()).clone()));
    }
    match client.retry(id).await {
        Ok(again) => Ok(Again::Sent(again.id().clone())),
        Err(ControlError::State { state: TaskState::Retry, .. }) => {
            client.run_now(id).await?;
            Ok(Again::RunsNow)
        }
        Err(error) => Err(error.into()),
    }
}

pub(super) async fn run(args: &RetryArgs, settings: &Settings, json: bool) -> Result<Code, CliError> {
    let Some(id) = &args.id else {
        return bulk::run(BulkChange::Retry, &args.bulk, settings, json).await;
    };
    let app = connect(settings).await?;
    let client = app.client();
    let again = if args.changed.is_empty() {
        match again(&client, id).await? {
            Again::Sent(again) => again,
            Again::RunsNow => {
                output::note(&format!("machinist: {RUNS_NOW}"));
                id.clone()
            }
        }
    } else {
        send_changed(&client, id, &args.changed).await?
    };
    if json {
        output::json(&RetryOutput { id: again.as_str(), retry_of: id.as_str() })?;
    } else {
        output::line(again.as_str())?;
    }
    app.broker().close().await;
    Ok(Code::Success)
}
