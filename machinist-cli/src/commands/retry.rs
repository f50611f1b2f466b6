//! `machinist retry`: sends a failed task or workflow again, under a new id.

use machinist::{Client, TaskId, settings::Settings, workflow_status::SentAgain};
use serde::Serialize;

use super::{
    bulk::{self, BulkChange},
    connect,
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

/// Sentence about a task that waited for its next run.
pub(super) const RUNS_NOW: &str = "it waited for its next run, and runs as soon as a worker is free";

pub(super) async fn run(args: &RetryArgs, settings: &Settings, json: bool) -> Result<Code, CliError> {
    let Some(id) = &args.id else {
        return bulk::run(BulkChange::Retry, &args.bulk, settings, json).await;
    };
    let app = connect(settings).await?;
    let client = app.client();
    let again = if args.changed.is_empty() {
        match client.send_again(id).await? {
            SentAgain::As(again) => again,
            SentAgain::RunsNow => {
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
