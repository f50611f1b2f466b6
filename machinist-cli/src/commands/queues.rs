//! `machinist queues`: which queues there are, and how much lies in them.

use std::collections::BTreeSet;

use machinist::{App, QueueName, backend::Index, settings::Settings};
use serde::Serialize;

use super::connect_reader;
use crate::{
    args::QueuesArgs,
    exit::{CliError, Code},
    output,
};

/// How many names are read at once.
const PAGE_NAMES: usize = 1000;

#[derive(Serialize)]
struct QueueRow {
    queue: String,
    ready: Option<u64>,
    consumers: Option<u64>,
    dead: Option<u64>,
}

pub(super) async fn run(what: &QueuesArgs, settings: &Settings, json: bool) -> Result<Code, CliError> {
    let app = connect_reader(settings).await?;
    if what.declare {
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
    app.broker().close().await;
    Ok(Code::Success)
}

/// The queues that workers have consumed, and those of the settings.
pub(super) async fn known(app: &App, settings: &Settings) -> Result<BTreeSet<QueueName>, CliError> {
    // The list is kept beside the facts and may lag; what is configured belongs to it anyway.
    let mut names: BTreeSet<QueueName> = settings.worker.queues.value.iter().cloned().collect();
    let mut after = None;
    loop {
        let page = app.backend().list(Index::Queues, after, PAGE_NAMES).await?;
        names.extend(page.iter().filter_map(|(_, name)| QueueName::parse(name).ok()));
        if page.len() < PAGE_NAMES {
            return Ok(names);
        }
        after = page.into_iter().last();
    }
}
