//! `machinist status`: shows the state of a task; with `--watch` until it has ended.

use std::time::Duration;

use machinist::{
    Client, QueueName, ResultError,
    record::{Record, TaskState},
    settings::Settings,
    workflow_status::WorkflowStatus,
};

use super::{connect_reader, verifies};
use crate::{
    args::StatusArgs,
    exit::{CliError, Code},
    output,
    view::TaskView,
    visible,
    workflow_view::{self, MemberView},
};

/// Interval at which a workflow is looked at.
const WORKFLOW_INTERVAL: Duration = Duration::from_millis(500);
/// Maximum time without a wake-up of the backend before the record is read again.
const MAX_CHANGE_WAIT: Duration = Duration::from_secs(3600);

pub(super) async fn run(args: StatusArgs, settings: &Settings, json: bool) -> Result<Code, CliError> {
    let app = connect_reader(settings).await?;
    let verifies = verifies(settings)?;
    let view = |record: &Record| TaskView::from(record).verified(verifies).at(record, app.clock().now());
    if let Some(workflow) = app.client().workflow(&args.id).await? {
        let code = show_workflow(&app.client(), &args, workflow, json).await?;
        app.broker().close().await;
        return Ok(code);
    }
    if args.members.is_some() {
        let error = format!("{} is a task and no workflow: it has no members", args.id);
        return Err(
            CliError::new(Code::Usage, error).remedy("name the root's id, which `send --flow` prints")
        );
    }
    let result = app.result(args.id);
    let mut record = result.record().await?;
    if args.watch {
        show_change(&record, &view(&record), json)?;
        while !record.state.is_final() {
            let newer = result.changed(Some(&record), MAX_CHANGE_WAIT).await?;
            if newer != record {
                show_change(&newer, &view(&newer), json)?;
            }
            record = newer;
        }
        if !json {
            output::raw(&format!("\n{}", view(&record).page()))?;
        }
    } else if json {
        output::json(&view(&record))?;
    } else {
        output::raw(&view(&record).page())?;
    }
    let queue = record.queue.as_deref().filter(|_| !record.state.is_final());
    if let Some(queue) = queue.and_then(|queue| QueueName::parse(queue).ok())
        && let Some(reason) = app.client().waiting_reason(&record.id, &queue).await?
    {
        output::note(&format!(
            "machinist: the workers of queue {queue} cannot read a message that claims to be this task, and it waits: {}",
            visible::one_line(&reason)
        ));
    }
    app.broker().close().await;
    Ok(code(record.state))
}

/// Shows a workflow, or the members of one of its groups.
async fn show_workflow(
    client: &Client,
    args: &StatusArgs,
    mut workflow: WorkflowStatus,
    json: bool,
) -> Result<Code, CliError> {
    if let Some(step) = &args.members {
        let members = client.workflow_members(&args.id, step, args.first, args.limit).await?;
        let views = (args.first..).zip(&members);
        let views: Vec<_> =
            views.map(|(index, (id, record))| MemberView::new(index, id, record.as_ref())).collect();
        if json {
            output::json(&views)?;
        } else {
            output::table(&["index", "state", "kind", "results", "id"], views.iter().map(MemberView::row))?;
        }
        return Ok(code(workflow.state));
    }
    if args.watch {
        loop {
            if json {
                output::json(&workflow_view::json(&workflow))?;
            } else {
                output::line(&format!("{}  {}", machinist::clock::wall(), workflow_view::line(&workflow)))?;
            }
            if workflow.state.is_final() {
                break;
            }
            workflow = changed(client, workflow).await?;
        }
        if !json {
            output::raw(&format!("\n{}", workflow_view::page(&workflow)))?;
        }
    } else if json {
        output::json(&workflow_view::json(&workflow))?;
    } else {
        output::raw(&workflow_view::page(&workflow))?;
    }
    Ok(code(workflow.state))
}

/// Waits for a change of a workflow, and returns it.
async fn changed(client: &Client, before: WorkflowStatus) -> Result<WorkflowStatus, CliError> {
    loop {
        tokio::time::sleep(WORKFLOW_INTERVAL).await;
        let unknown = || ResultError::Unknown { id: before.root.clone() };
        let now = client.workflow(&before.root).await?.ok_or_else(unknown)?;
        if now != before {
            return Ok(now);
        }
    }
}

/// Returns the exit code for the state of a task.
pub(super) fn code(state: TaskState) -> Code {
    match state {
        TaskState::Success => Code::Success,
        TaskState::Failure => Code::Failed,
        _ => Code::NotFinished,
    }
}

/// Prints a change in one line; in JSON one object per line.
fn show_change(record: &Record, view: &TaskView, json: bool) -> Result<(), CliError> {
    if json { output::json(view) } else { output::line(&format!("{}  {}", latest(record), view.line())) }
}

/// Returns the newest instant of a record, at which it reached its state.
fn latest(record: &Record) -> String {
    let instants = [record.sent_at, record.received_at, record.started_at, record.ended_at];
    let of_history = record.history.last().map(|attempt| attempt.ended_at);
    instants
        .into_iter()
        .chain([of_history])
        .flatten()
        .max()
        .map_or_else(|| "-".to_owned(), |at| at.to_string())
}
