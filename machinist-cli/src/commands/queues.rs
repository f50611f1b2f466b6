//! `machinist queues NAME`: purges and deletes queues. The list is in `queue_list`.

use indicatif::ProgressBar;
use machinist::{PurgeMode, PurgeReport, QueueName, WorkerFilter, broker::QueueDeletion, settings::Settings};
use serde::Serialize;

use super::{
    connect, connect_reader, question,
    queue_list::{self, existing, forget},
    queue_pause, queue_peek,
};
use crate::{
    args::{QueuesArgs, QueuesCommand},
    exit::{CliError, Code},
    output,
};

pub(super) async fn run(args: QueuesArgs, settings: &Settings, json: bool) -> Result<Code, CliError> {
    match args.command {
        Some(QueuesCommand::Purge { name, dead_letter, yes }) => {
            let mode = if dead_letter { PurgeMode::DeadLetter } else { PurgeMode::End };
            purge(&name, mode, yes, settings, json).await
        }
        Some(QueuesCommand::Pause { name }) => queue_pause::run(&name, true, settings, json).await,
        Some(QueuesCommand::Resume { name }) => queue_pause::run(&name, false, settings, json).await,
        Some(QueuesCommand::Delete { name }) => delete(&name, settings, json).await,
        Some(QueuesCommand::Peek { name, limit }) => queue_peek::run(&name, limit, settings, json).await,
        None => queue_list::run(args.declare, args.watch, settings, json).await,
    }
}

#[derive(Serialize)]
struct PurgeOutput<'a> {
    queue: &'a str,
    /// Messages that are gone from the queue.
    purged: u64,
    /// Tasks that have ended by it.
    ended: u64,
    /// Messages that are dead letters now.
    dead_lettered: u64,
    /// Messages of workflows, which stay.
    of_workflows: u64,
    /// Messages of tasks that run, which stay.
    in_use: u64,
}

async fn purge(
    name: &QueueName,
    mode: PurgeMode,
    yes: bool,
    settings: &Settings,
    json: bool,
) -> Result<Code, CliError> {
    // The end of each task is signed.
    let app = connect(settings).await?;
    let ready = existing(&app, name, settings).await?.ready.unwrap_or(0);
    let question = format!("purge queue {name} with {ready} messages, and end their tasks?");
    if ready > 0 && !yes && !question::confirmed(&question, json)? {
        output::note("machinist: nothing was changed");
        return Ok(Code::Success);
    }
    let progress = ProgressBar::new(ready).with_message("purged");
    let report = app.client().purge_queue(name, mode, |done| progress.set_position(done.purged)).await?;
    progress.finish_and_clear();
    if json {
        let PurgeReport { purged, ended, dead_lettered, of_workflows, in_use, .. } = report;
        let queue = name.as_str();
        output::json(&PurgeOutput { queue, purged, ended, dead_lettered, of_workflows, in_use })?;
    } else {
        output::line(&format!(
            "purged: {}; tasks that ended: {}; dead letters: {}",
            report.purged, report.ended, report.dead_lettered
        ))?;
    }
    for (count, why) in [
        (report.of_workflows, "belong to workflows: `machinist revoke ROOT` ends a workflow"),
        (report.in_use, "belong to tasks that run or have just ended: their workers remove them"),
    ] {
        if count > 0 {
            output::note(&format!("machinist: {count} messages stay, because they {why}"));
        }
    }
    app.broker().close().await;
    Ok(Code::Success)
}

async fn delete(name: &QueueName, settings: &Settings, json: bool) -> Result<Code, CliError> {
    let app = connect_reader(settings).await?;
    existing(&app, name, settings).await?;
    let refused = |why: String, remedy: &str| Err(CliError::new(Code::Usage, why).remedy(remedy));
    let mut its_workers = WorkerFilter::new();
    its_workers.queue = Some(name.clone());
    let workers = app.client().workers(&its_workers).await?;
    if !workers.is_empty() {
        // One that drains has no subscription, and may hold deliveries.
        let names: Vec<_> = workers.iter().map(|worker| worker.name.as_str()).collect();
        return refused(
            format!("queue {name} has workers: {}; it was not deleted", names.join(", ")),
            "stop them first",
        );
    }
    let outcome = app.broker().delete_queue(name).await?;
    match outcome {
        QueueDeletion::Deleted => {}
        QueueDeletion::NotEmpty { ready, dead } => {
            return refused(
                format!(
                    "queue {name} is not empty: {ready} messages and {dead} dead letters; it was not deleted"
                ),
                "`machinist queues purge` and `machinist dead purge --queue` empty it",
            );
        }
        QueueDeletion::Consumed { consumers } => {
            return refused(
                format!("queue {name} has {consumers} consumers; it was not deleted"),
                "stop its workers first; `machinist workers --queue` lists them",
            );
        }
        _ => return refused(format!("queue {name} was not deleted"), "`machinist queues` shows it"),
    }
    forget(&app, &[name]).await;
    if json {
        output::json(&serde_json::json!({ "queue": name.as_str(), "deleted": true }))?;
    } else {
        output::line("deleted")?;
    }
    app.broker().close().await;
    Ok(Code::Success)
}
