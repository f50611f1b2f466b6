//! `machinist mark`: marks this moment in the history.

use machinist::{HistoryMark, MarkError, settings::Settings, view::HistoryMarkView};

use super::connect_reader;
use crate::{
    exit::{CliError, Code},
    output,
};

pub(super) async fn run(text: &str, settings: &Settings, json: bool) -> Result<Code, CliError> {
    let app = connect_reader(settings).await?;
    let mark: HistoryMark = app.client().mark(text).await?;
    if json {
        output::json(&HistoryMarkView::from(&mark))?;
    } else {
        output::line("marked")?;
    }
    app.broker().close().await;
    Ok(Code::Success)
}

impl From<MarkError> for CliError {
    fn from(error: MarkError) -> Self {
        match error {
            MarkError::Backend(error) => error.into(),
            error => Self::from_error(Code::Usage, &error),
        }
    }
}
