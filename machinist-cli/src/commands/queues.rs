//! `machinist queues`: lists the queues and their numbers of messages, purges and deletes them.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use indicatif::ProgressBar;
use machinist::{
    App, PurgeMode, PurgeReport, QueueName, WorkerFilter,
    backend::{Index, IndexUpdate},
    base_queue,
    broker::{QueueDeletion, QueueDepth},
    clock::Timestamp,
    nearest,
    settings::Settings,
};
use serde::Serialize;

use super::{connect, connect_reader, delays, question, queue_pause, refused};
use crate::{
    args::{QueuesArgs, QueuesCommand},
    exit::{CliError, Code},
    output,
};

/// Maximum number of queue names that are read at once.
const PAGE_NAMES: usize = 1000;

/// Time for which a queue that no longer exists stays in the index after its last worker started.
const FORGET_AFTER: Duration = Duration::from_secs(24 * 3600);

#[derive(Serialize)]
struct QueueRow {
    queue: String,
    ready: Option<u64>,
    consumers: Option<u64>,
    dead: Option<u64>,
    paused: bool,
}

pub(super) async fn run(args: QueuesArgs, settings: &Settings, json: bool) -> Result<Code, CliError> {
    match args.command {
        Some(QueuesCommand::Purge { name, dead_letter, yes }) => {
            let mode = if dead_letter { PurgeMode::DeadLetter } else { PurgeMode::End };
            purge(&name, mode, yes, settings, json).await
        }
        Some(QueuesCommand::Pause { name }) => queue_pause::run(&name, true, settings, json).await,
        Some(QueuesCommand::Resume { name }) => queue_pause::run(&name, false, settings, json).await,
        Some(QueuesCommand::Delete { name }) => delete(&name, settings, json).await,
        None => list(args.declare, settings, json).await,
    }
}

async fn list(declare: bool, settings: &Settings, json: bool) -> Result<Code, CliError> {
    let app = connect_reader(settings).await?;
    if declare {
        app.broker().prepare(&settings.worker.named_queues().collect::<Vec<_>>()).await?;
    }
    let mut listed = listed(&app).await?;
    let configured: Vec<_> = settings.worker.named_queues().collect();
    let names: BTreeSet<QueueName> = configured.iter().chain(listed.keys()).cloned().collect();
    let depths = app.broker().depth(&names.into_iter().collect::<Vec<_>>()).await?;
    listed.retain(|queue, _| !configured.contains(queue));
    forget(&app, &vanished(&depths, &listed, app.clock().now())).await;
    let paused = app.client().paused_queues().await?;
    let rows = depths.into_iter().map(|depth| QueueRow {
        paused: paused.contains(&depth.queue)
            || base_queue(&depth.queue).is_some_and(|base| paused.contains(&base)),
        queue: depth.queue.to_string(),
        ready: depth.ready,
        consumers: depth.consumers,
        dead: depth.dead,
    });
    if json {
        output::json(&rows.collect::<Vec<_>>())?;
    } else {
        let number = |count: Option<u64>| count.map_or_else(|| "-".to_owned(), |count| count.to_string());
        let cells = |row: QueueRow| {
            let ready = if row.ready.is_none() { "not declared".to_owned() } else { number(row.ready) };
            let paused = if row.paused { "yes" } else { "no" }.to_owned();
            vec![row.queue, ready, number(row.consumers), number(row.dead), paused]
        };
        output::table(&["queue", "ready", "consumers", "dead", "paused"], rows.map(cells))?;
    }
    refused::note(&app).await?;
    delays::note(&app).await;
    app.broker().close().await;
    Ok(Code::Success)
}

/// Returns the depth of a queue.
///
/// # Errors
/// It does not exist: the nearest name of those that are listed.
async fn existing(app: &App, name: &QueueName, settings: &Settings) -> Result<QueueDepth, CliError> {
    let depth = app.broker().depth(std::slice::from_ref(name)).await?.pop();
    if let Some(depth) = depth.filter(|depth| depth.ready.is_some() || depth.dead.is_some()) {
        return Ok(depth);
    }
    let listed = known(app, settings).await?;
    let remedy = match nearest(name.as_str(), listed.iter().map(QueueName::as_str)) {
        Some(meant) => format!("did you mean {meant}?"),
        None => "`machinist queues` lists the known ones".to_owned(),
    };
    Err(CliError::new(Code::UnknownId, format!("there is no queue {name}")).remedy(remedy))
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

/// Returns the queues that are listed, and those of the settings.
pub(super) async fn known(app: &App, settings: &Settings) -> Result<BTreeSet<QueueName>, CliError> {
    let listed = listed(app).await?.into_keys();
    Ok(listed.chain(settings.worker.named_queues()).collect())
}

/// Returns the queues that workers have consumed or senders have named, with the time of the last of that.
///
/// The index of queues is separate from the facts and may lag: the configured queues belong to every list.
async fn listed(app: &App) -> Result<BTreeMap<QueueName, Timestamp>, CliError> {
    let mut listed = BTreeMap::new();
    let mut after = None;
    loop {
        let page = app.backend().list(&Index::Queues, after, PAGE_NAMES).await?;
        listed.extend(page.iter().filter_map(|(at, name)| Some((QueueName::parse(name).ok()?, *at))));
        if page.len() < PAGE_NAMES {
            return Ok(listed);
        }
        after = page.into_iter().last();
    }
}

/// Returns the listed queues that have not existed for long enough to be forgotten.
fn vanished<'a>(
    depths: &'a [QueueDepth],
    listed: &BTreeMap<QueueName, Timestamp>,
    now: Timestamp,
) -> Vec<&'a QueueName> {
    let is_gone = |depth: &&QueueDepth| depth.ready.is_none() && depth.dead.is_none();
    let is_old = |queue: &&QueueName| listed.get(queue).is_some_and(|at| now.since(*at) > FORGET_AFTER);
    depths.iter().filter(is_gone).map(|depth| &depth.queue).filter(is_old).collect()
}

/// Removes queues from the index. A worker that starts lists its queues again.
async fn forget(app: &App, queues: &[&QueueName]) {
    if queues.is_empty() {
        return;
    }
    let remove = |queue: &&QueueName| IndexUpdate::Remove { index: Index::Queues, member: queue.to_string() };
    if let Err(error) = app.backend().update_indexes(queues.iter().map(remove).collect()).await {
        tracing::debug!(%error, "queues that no longer exist stay listed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_queues_that_have_been_gone_for_long_are_forgotten() {
        let now = Timestamp::from_micros(10 * 24 * 3600 * 1_000_000);
        let queue = |name: &str| QueueName::parse(name).unwrap();
        let depth = |name: &str, ready, dead| QueueDepth { queue: queue(name), ready, consumers: None, dead };
        let depths = [
            depth("old", None, None),
            depth("new", None, None),
            depth("there", Some(0), None),
            depth("letters", None, Some(1)),
            depth("configured", None, None),
        ];
        let old = now.minus(FORGET_AFTER + Duration::from_secs(1));
        let mut listed: BTreeMap<_, _> =
            ["old", "there", "letters"].map(|name| (queue(name), old)).into_iter().collect();
        listed.insert(queue("new"), now);
        assert_eq!(vanished(&depths, &listed, now), [&queue("old")]);
    }
}
