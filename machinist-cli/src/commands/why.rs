//! `machinist why`: says why a task does not run, and what to do.

use machinist::{TaskId, WhyReason, settings::Settings};

use super::connect_reader;
use crate::{
    exit::{CliError, Code},
    output,
};

pub(super) async fn run(id: &TaskId, settings: &Settings, json: bool) -> Result<Code, CliError> {
    let app = connect_reader(settings).await?;
    let why = app.client().why(id).await?;
    if json {
        output::json(&why)?;
    } else {
        output::line(&why.sentence)?;
        output::line(&format!("  {}", why.advice))?;
    }
    app.broker().close().await;
    Ok(if why.reason == WhyReason::UnknownId { Code::UnknownId } else { Code::Success })
}
