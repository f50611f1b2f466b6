//! Performance of the actions. Each is what a command of the program does, with the same words.

use machinist::{
    App, Client, OrderResult, QueueName, TaskId, WorkerAction, WorkerFilter, workflow_status::SentAgain,
};

use super::action::{MAX_RETRIED, TopAction, TopOrder};
use crate::{
    commands::{
        bulk::{self, BulkChange},
        retry::RUNS_NOW,
        revoke,
        workers::cannot_order,
    },
    exit::{CliError, Code, chain},
};

/// Time for which a group of failures is silenced.
const SILENCE: std::time::Duration = std::time::Duration::from_secs(3600);

/// Performs an action, tells `progress` how far it is, and returns what was done.
///
/// # Errors
/// The reason that it was not done, or only in part.
pub(super) async fn perform(
    app: &App,
    action: &TopAction,
    progress: impl Fn(String),
) -> Result<String, String> {
    let done = match action {
        TopAction::PauseQueue(queue) => switch_queue(&app.client(), queue, true).await,
        TopAction::ResumeQueue(queue) => switch_queue(&app.client(), queue, false).await,
        TopAction::Worker { name, session, order } => {
            order_worker(&app.client(), name, session, *order).await
        }
        TopAction::Revoke { id, .. } => revoke_task(&app.client(), id).await,
        TopAction::Retry { id, .. } => retry_task(&app.client(), id).await,
        TopAction::RetryGroup { fingerprint, .. } => retry_group(&app.client(), fingerprint, progress).await,
        TopAction::Silence { fingerprint, .. } => silence(&app.client(), fingerprint).await,
    };
    done.map_err(|CliError { text, remedy, .. }| match remedy {
        Some(remedy) => format!("not done: {}: {text}; {remedy}", action.words()),
        None => format!("not done: {}: {text}", action.words()),
    })
}

async fn switch_queue(client: &Client, queue: &str, pause: bool) -> Result<String, CliError> {
    let queue = QueueName::parse(queue).map_err(|error| CliError::new(Code::Usage, chain(&error)))?;
    let (done, answer) = match pause {
        true => ("paused", client.pause_queue(&queue).await),
        false => ("resumed", client.resume_queue(&queue).await),
    };
    let (_, results) = answer.map_err(cannot_order)?;
    if results.is_empty() {
        return Ok(format!(
            "{done}: queue {queue}; no live worker takes tasks from it, those that start obey"
        ));
    }
    Ok(format!("{done}: queue {queue}; {}", answers(&results)))
}

/// Returns the answers of workers in words: those that obeyed are counted, the others are named.
fn answers(results: &[OrderResult]) -> String {
    let obeyed = results.iter().filter(|result| result.done).count();
    let mut text = format!("{obeyed} of {} workers obeyed", results.len());
    for result in results.iter().filter(|result| !result.done) {
        let reason = result.reason.as_deref().unwrap_or("no reason");
        text.push_str(&format!("; {}: {reason}", result.worker));
    }
    text
}

async fn order_worker(
    client: &Client,
    name: &str,
    session: &str,
    order: TopOrder,
) -> Result<String, CliError> {
    let mut workers = client.workers(&WorkerFilter::new()).await?;
    workers.retain(|worker| worker.name == name && worker.incarnation == session);
    if workers.is_empty() {
        let text = format!("worker {name} has ended or was started again since it was selected");
        return Err(CliError::new(Code::UnknownId, text).remedy("look at the list again"));
    }
    let action = match order {
        TopOrder::Pause => WorkerAction::Pause,
        TopOrder::Resume => WorkerAction::Resume,
        TopOrder::Drain => WorkerAction::Drain,
    };
    let word = action.as_str();
    let (_, results) = client.order_workers(&workers, action, false).await.map_err(cannot_order)?;
    if results.iter().all(|result| result.done) {
        return Ok(format!("{word}: worker {name} obeyed"));
    }
    Err(CliError::new(Code::Failed, answers(&results)))
}

fn task(id: &str) -> Result<TaskId, CliError> {
    TaskId::parse(id).map_err(|error| CliError::new(Code::Usage, chain(&error)))
}

async fn revoke_task(client: &Client, id: &str) -> Result<String, CliError> {
    let id = task(id)?;
    if client.is_workflow(&id).await? {
        let (ended, asked) = client.revoke_workflow(&id).await?;
        return Ok(format!("workflow {id}: {}", revoke::workflow_text(ended, asked)));
    }
    let (.., text) = revoke::words(&client.revoke(&id).await?, false);
    Ok(format!("task {id}: {text}"))
}

async fn retry_task(client: &Client, id: &str) -> Result<String, CliError> {
    let id = task(id)?;
    Ok(match client.send_again(&id).await? {
        SentAgain::As(as_task) => format!("task {id} was sent again as {as_task}"),
        SentAgain::RunsNow => format!("task {id}: {RUNS_NOW}"),
    })
}

/// Sends each failed task of a group again. One that was sent again before stays as it is.
async fn retry_group(
    client: &Client,
    fingerprint: &str,
    progress: impl Fn(String),
) -> Result<String, CliError> {
    let found =
        client.failed_tasks(fingerprint, None, MAX_RETRIED).await?.ok_or_else(|| unlisted(fingerprint))?;
    let all = found.records.len();
    let (mut sent, mut before, mut refused, mut first) = (0, 0, 0, None);
    for (at, record) in found.records.iter().enumerate() {
        progress(format!("retry of group {fingerprint}: {at} of {all}"));
        let row = bulk::apply(client, BulkChange::Retry, record).await;
        let row = row.map_err(|error| error.context(format_args!("{sent} of {all} were sent again")))?;
        match row.done {
            "refused" => {
                refused += 1;
                first = first.or(row.why);
            }
            "already" => before += 1,
            _ => sent += 1,
        }
    }
    let mut text = format!("group {fingerprint}: {sent} of {all} were sent again");
    if before > 0 {
        text.push_str(&format!("; {before} had been before"));
    }
    if refused > 0 {
        text.push_str(&format!("; {refused} were refused, the first because: {}", first.unwrap_or_default()));
    }
    if !found.is_complete {
        text.push_str("; there are more");
    }
    Ok(text)
}

async fn silence(client: &Client, fingerprint: &str) -> Result<String, CliError> {
    match client.silence_failures(fingerprint, SILENCE).await? {
        Some(until) => Ok(format!("group {fingerprint} is silenced until {until}")),
        None => Err(unlisted(fingerprint)),
    }
}

fn unlisted(fingerprint: &str) -> CliError {
    CliError::new(Code::UnknownId, format!("no listed failure belongs to group {fingerprint} any more"))
}
