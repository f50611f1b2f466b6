//! `machinist status`: shows the state of a task; with `--watch` until it has ended.

use std::time::Duration;

use machinist::{QueueName, ResultError, record::Record, settings::Settings};

use super::{connect_reader, verifies, workflow};
use crate::{
    args::StatusArgs,
    exit::{CliError, Code},
    output,
    view::TaskView,
    visible,
};

/// Maximum time without a wake-up of the backend before the record is read again.
const MAX_CHANGE_WAIT: Duration = Duration::from_secs(3600);

pub(super) async fn run(args: StatusArgs, settings: &Settings, json: bool) -> Result<Code, CliError> {
    let app = connect_reader(settings).await?;
    let verifies = verifies(settings)?;
    let place = workflow::place_of(&app.client(), &args.id).await?;
    if place.as_ref().is_some_and(|place| place.path.is_none()) {
        let code = workflow::show(&app, &args, json).await?;
        app.broker().close().await;
        return Ok(code);
    }
    if let Some(step) = &args.members {
        let text = format!("--members {step:?} needs the id of a workflow's root, and {} is none", args.id);
        return Err(CliError::new(Code::Usage, text).remedy("`machinist send --flow` prints the root's id"));
    }
    let result = app.result(args.id.clone());
    let found = result.record().await;
    if let (Err(ResultError::Unknown { .. }), Some(place)) = (&found, &place) {
        let code = workflow::show_part(&app.client(), &args.id, place, json).await?;
        app.broker().close().await;
        return Ok(code);
    }
    let mut record = found?;
    let root = place.map(|place| place.root.to_string());
    let view = |record: &Record| {
        let now = app.clock().now();
        TaskView::from(record).verified(verifies).at(record, now).of_workflow(root.clone())
    };
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
    Ok(Code::of(record.state))
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
