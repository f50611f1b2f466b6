//! `machinist retry`: sends a failed task again, as a new task.

use machinist::settings::Settings;
use serde::Serialize;

use super::connect;
use crate::{
    args::RetryArgs,
    exit::{CliError, Code},
    output,
};

#[derive(Serialize)]
struct RetryOutput<'a> {
    id: &'a str,
    retry_of: &'a str,
}

pub(super) async fn run(args: &RetryArgs, settings: &Settings, json: bool) -> Result<Code, CliError> {
    let app = connect(settings).await?;
    let client = app.client();
    let again = if client.workflow(&args.id).await?.is_some() {
        let last = client.retry_workflow(&args.id).await?;
        last.workflow_id().unwrap_or_else(|| last.id()).clone()
    } else {
        client.retry(&args.id).await?.id().clone()
    };
    if json {
        output::json(&RetryOutput { id: again.as_str(), retry_of: args.id.as_str() })?;
    } else {
        output::line(again.as_str())?;
    }
    app.broker().close().await;
    Ok(Code::Success)
}
