//! `machinist queues`: lists the queues and their numbers of messages.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use machinist::{
    App, QueueName,
    backend::{Index, IndexUpdate},
    broker::QueueDepth,
    clock::Timestamp,
    settings::Settings,
};
use serde::Serialize;

use super::{connect_reader, refused};
use crate::{
    args::QueuesArgs,
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

pub(super) async fn run(args: &QueuesArgs, settings: &Settings, json: bool) -> Result<Code, CliError> {
    let app = connect_reader(settings).await?;
    if args.declare {
        app.broker().prepare(&settings.worker.queues.value).await?;
    }
    let mut listed = listed(&app).await?;
    let configured = &settings.worker.queues.value;
    let names: BTreeSet<QueueName> = configured.iter().chain(listed.keys()).cloned().collect();
    let depths = app.broker().depth(&names.into_iter().collect::<Vec<_>>()).await?;
    listed.retain(|queue, _| !configured.contains(queue));
    forget(&app, &vanished(&depths, &listed, app.clock().now())).await;
    let paused = app.client().paused_queues().await?;
    let rows = depths.into_iter().map(|depth| QueueRow {
        paused: paused.contains(&depth.queue),
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
    app.broker().close().await;
    Ok(Code::Success)
}

/// Returns the queues that workers have consumed, and those of the settings.
pub(super) async fn known(app: &App, settings: &Settings) -> Result<BTreeSet<QueueName>, CliError> {
    let listed = listed(app).await?.into_keys();
    Ok(listed.chain(settings.worker.queues.value.iter().cloned()).collect())
}

/// Returns the queues that workers have consumed, with the time when the last of them started.
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
