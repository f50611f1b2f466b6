//! `machinist queues`: lists the queues and their numbers of messages.

use std::collections::BTreeSet;

use machinist::{App, QueueName, backend::Index, settings::Settings};
use serde::Serialize;

use super::{connect_reader, refused};
use crate::{
    args::QueuesArgs,
    exit::{CliError, Code},
    output,
};

/// Maximum number of queue names that are read at once.
const PAGE_NAMES: usize = 1000;

#[derive(Serialize)]
struct QueueRow {
    queue: String,
    ready: Option<u64>,
    consumers: Option<u64>,
    dead: Option<u64>,
}

pub(super) async fn run(args: &QueuesArgs, settings: &Settings, json: bool) -> Result<Code, CliError> {
    let app = connect_reader(settings).await?;
    if args.declare {
        app.broker().prepare(&settings.worker.queues.value).await?;
    }
    let names: Vec<QueueName> = known(&app, settings).await?.into_iter().collect();
    let depths = app.broker().depth(&names).await?;
    let rows = depths.into_iter().map(|depth| QueueRow {
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
            vec![row.queue, ready, number(row.consumers), number(row.dead)]
        };
        output::table(&["queue", "ready", "consumers", "dead"], rows.map(cells))?;
    }
    refused::note(&app).await?;
    app.broker().close().await;
    Ok(Code::Success)
}

/// Returns the queues that workers have consumed, and those of the settings.
pub(super) async fn known(app: &App, settings: &Settings) -> Result<BTreeSet<QueueName>, CliError> {
    // The index of queues is separate from the facts and may lag; the configured queues are always part of the list.
    let mut names: BTreeSet<QueueName> = settings.worker.queues.value.iter().cloned().collect();
    let mut after = None;
    loop {
        let page = app.backend().list(&Index::Queues, after, PAGE_NAMES).await?;
        names.extend(page.iter().filter_map(|(_, name)| QueueName::parse(name).ok()));
        if page.len() < PAGE_NAMES {
            return Ok(names);
        }
        after = page.into_iter().last();
    }
}
