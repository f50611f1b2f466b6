//! `machinist queues pause|resume`: stops and starts the intake from a queue, for all workers.

use machinist::{QueueName, settings::Settings};

use super::{
    connect,
    workers::{answered, cannot_order},
};
use crate::{
    exit::{CliError, Code},
    output,
};

/// Pauses the queue, or resumes it.
pub(super) async fn run(
    queue: &QueueName,
    pause: bool,
    settings: &Settings,
    json: bool,
) -> Result<Code, CliError> {
    let app = connect(settings).await?;
    let client = app.client();
    let (word, answer) = match pause {
        true => ("pause", client.pause_queue(queue).await),
        false => ("resume", client.resume_queue(queue).await),
    };
    let (id, results) = answer.map_err(cannot_order)?;
    if results.is_empty() {
        output::note(&format!(
            "machinist: no live worker takes tasks from queue {queue}; those that start obey"
        ));
    }
    answered(&app, word, &id, &results, json).await
}
