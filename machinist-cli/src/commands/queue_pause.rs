//! `machinist queues pause|resume`: stops and starts the intake from a queue, for all workers.

use machinist::{OrderResult, settings::Settings};

use super::{
    connect,
    workers::{answered, cannot_order},
};
use crate::{
    args::QueuesCommand,
    exit::{CliError, Code},
    output,
};

pub(super) async fn run(command: QueuesCommand, settings: &Settings, json: bool) -> Result<Code, CliError> {
    let app = connect(settings).await?;
    let client = app.client();
    let (word, name, answer) = match &command {
        QueuesCommand::Pause { name } => ("pause", name, client.pause_queue(name).await),
        QueuesCommand::Resume { name } => ("resume", name, client.resume_queue(name).await),
    };
    let (id, results): (String, Vec<OrderResult>) = answer.map_err(cannot_order)?;
    if results.is_empty() {
        output::note(&format!(
            "machinist: no live worker takes tasks from queue {name}; those that start obey"
        ));
    }
    answered(&app, word, &id, &results, json).await
}
