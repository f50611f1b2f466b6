//! `machinist queues peek`: shows the first tasks that wait in a queue, and leaves them there.

use machinist::{PeekError, QueueName, QueuePeek, record::Record, settings::Settings, view::TaskView};

use super::{connect_reader, queue_list::existing, verifies};
use crate::{
    exit::{CliError, Code},
    output,
    people::People,
};

pub(super) async fn run(
    name: &QueueName,
    limit: u16,
    settings: &Settings,
    json: bool,
) -> Result<Code, CliError> {
    let app = connect_reader(settings).await?;
    let verifies = verifies(settings)?;
    existing(&app, name, settings).await?;
    let QueuePeek { records, unnamed, .. } = app.client().peek_queue(name, limit).await?;
    let now = app.clock().now();
    if json {
        // Of a message without a record, nothing is proven but what its signature says.
        let view = |record: &Record| TaskView::from(record).verified(verifies).at(record, now);
        output::json(&records.iter().map(view).collect::<Vec<_>>())?;
    } else {
        let people = People::at_output();
        let text = |text: Option<&String>| text.map_or_else(|| "-".to_owned(), Clone::clone);
        let cells = |record: &Record| {
            vec![
                record.id.to_string(),
                record.state.to_string(),
                text(record.name.as_ref()),
                record.attempt.to_string(),
                record.sent_at.map_or_else(|| "-".to_owned(), |at| people.time(&at.to_string())),
                record.locked.clone().unwrap_or_default(),
            ]
        };
        output::table(&["id", "state", "name", "attempt", "sent", "remark"], records.iter().map(cells))?;
    }
    if unnamed > 0 {
        output::note(&format!(
            "machinist: {unnamed} messages name no task; workers make dead letters of them"
        ));
    }
    app.broker().close().await;
    Ok(Code::Success)
}

impl From<PeekError> for CliError {
    fn from(error: PeekError) -> Self {
        match error {
            PeekError::Broker(error) => error.into(),
            PeekError::Backend(error) => error.into(),
            PeekError::Busy(_) | PeekError::Timeout(_) => Self::from_error(Code::Unreachable, &error),
            PeekError::Spent { .. } => Self::from_error(Code::Usage, &error)
                .remedy("start a worker of the queue; `machinist why --queue NAME` says why it stands still"),
            error => Self::from_error(Code::Usage, &error),
        }
    }
}
