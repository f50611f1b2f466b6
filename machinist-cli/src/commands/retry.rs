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
    let again = app.client().retry(&args.id).await?;
    if json {
        output::json(&RetryOutput { id: again.id().as_str(), retry_of: args.id.as_str() })?;
    } else {
        output::line(again.id().as_str())?;
    }
    app.broker().close().await;
    Ok(Code::Success)
}
