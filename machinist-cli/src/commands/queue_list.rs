//! `machinist queues`: all that is known about each queue, and which queues are known.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use machinist::{
    App, QueueDetails, QueueName,
    backend::{Index, IndexUpdate},
    broker::QueueDepth,
    clock::Timestamp,
    nearest,
    settings::{Settings, show_duration},
    view::QueueView,
};

use super::{connect_reader, delays, refused};
use crate::{
    exit::{CliError, Code},
    output,
};

/// Time for which a queue that no longer exists stays in the index after its last worker started.
const FORGET_AFTER: Duration = Duration::from_secs(24 * 3600);

/// Interval at which `--watch` looks again.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);

/// Lists the queues; with `watch` again and again, until it is interrupted.
pub(super) async fn run(
    declare: bool,
    watch: bool,
    settings: &Settings,
    json: bool,
) -> Result<Code, CliError> {
    let app = connect_reader(settings).await?;
    if declare {
        app.broker().prepare(&settings.worker.named_queues().collect::<Vec<_>>()).await?;
    }
    if watch {
        tokio::select! {
            // First, so that the signal is heard from the begin.
            biased;
            _ = tokio::signal::ctrl_c() => {}
            failed = look_on(&app, settings, json) => failed?,
        }
    } else {
        look(&app, settings, json).await?;
    }
    app.broker().close().await;
    Ok(Code::Success)
}

/// Prints the list once, with the notes.
async fn look(app: &App, settings: &Settings, json: bool) -> Result<(), CliError> {
    let details = details(app, &configured(settings)).await?;
    print(&details, json)?;
    note_unknown(&details);
    refused::note(app).await?;
    delays::note(app).await;
    Ok(())
}

/// Prints the list again and again.
async fn look_on(app: &App, settings: &Settings, json: bool) -> Result<(), CliError> {
    look(app, settings, json).await?;
    loop {
        tokio::time::sleep(WATCH_INTERVAL).await;
        if !json {
            output::line("")?;
        }
        print(&details(app, &configured(settings)).await?, json)?;
    }
}

/// Returns the queues of the settings.
fn configured(settings: &Settings) -> Vec<QueueName> {
    settings.worker.named_queues().collect()
}

/// Returns what is known about the queues that are listed or configured, and forgets those that are long gone.
pub(super) async fn details(app: &App, configured: &[QueueName]) -> Result<Vec<QueueDetails>, CliError> {
    let mut listed = app.client().listed_queues().await?;
    let names: BTreeSet<QueueName> = configured.iter().chain(listed.keys()).cloned().collect();
    let details = app.client().queue_details(&names.into_iter().collect::<Vec<_>>()).await?;
    listed.retain(|queue, _| !configured.contains(queue));
    forget(app, &vanished(&details, &listed, app.clock().now())).await;
    Ok(details)
}

fn print(details: &[QueueDetails], json: bool) -> Result<(), CliError> {
    if json {
        return output::json(&details.iter().map(QueueView::from).collect::<Vec<_>>());
    }
    let number = |count: Option<u64>| count.map_or_else(|| "-".to_owned(), |count| count.to_string());
    let rate = |rate: Option<f64>| rate.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}"));
    let time = |time: Option<Duration>| {
        time.map_or_else(|| "-".to_owned(), |time| show_duration(Duration::from_secs(time.as_secs())))
    };
    let cells = |details: &QueueDetails| {
        let ready = if details.ready.is_none() { "not declared".to_owned() } else { number(details.ready) };
        vec![
            details.queue.to_string(),
            ready,
            number(details.max_depth),
            number(details.delayed),
            number(details.unacked),
            number(details.consumers),
            number(details.dead),
            rate(details.in_rate),
            rate(details.out_rate),
            time(details.oldest_age),
            time(details.empty_in),
            if details.paused { "yes" } else { "no" }.to_owned(),
        ]
    };
    let head = [
        "queue",
        "ready",
        "max",
        "delayed",
        "unacked",
        "consumers",
        "dead",
        "in/s",
        "out/s",
        "oldest",
        "empty in",
        "paused",
    ];
    output::table(&head, details.iter().map(cells))
}

/// Says why numbers are missing that one could expect.
fn note_unknown(details: &[QueueDetails]) {
    let there: Vec<&QueueDetails> = details.iter().filter(|details| details.ready.is_some()).collect();
    if there.iter().any(|details| details.delayed.is_none()) {
        output::note(
            "machinist: delayed messages are not counted: the broker does not tell them, and they are too many",
        );
    }
    if there.iter().any(|details| details.unacked.is_none()) {
        output::note(
            "machinist: unacknowledged messages are not known: RabbitMQ tells them by its management API alone",
        );
    }
    if there
        .iter()
        .any(|details| details.out_rate.is_none() && details.consumers.is_some_and(|count| count > 0))
    {
        output::note(
            "machinist: rates are not known yet: workers record them every 10 s, unless events = \"off\"",
        );
    }
}

/// Returns the queues that are listed, and those of the settings.
pub(super) async fn known(app: &App, settings: &Settings) -> Result<BTreeSet<QueueName>, CliError> {
    let listed = app.client().listed_queues().await?.into_keys();
    Ok(listed.chain(settings.worker.named_queues()).collect())
}

/// Returns the depth of a queue.
///
/// # Errors
/// The queue does not exist: the nearest name of those that are listed.
pub(super) async fn existing(
    app: &App,
    name: &QueueName,
    settings: &Settings,
) -> Result<QueueDepth, CliError> {
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

/// Returns the listed queues that have not existed for long enough to be forgotten.
fn vanished<'a>(
    details: &'a [QueueDetails],
    listed: &BTreeMap<QueueName, Timestamp>,
    now: Timestamp,
) -> Vec<&'a QueueName> {
    let gone = details.iter().filter(|details| details.ready.is_none() && details.dead.is_none());
    gone.map(|details| &details.queue).filter(|queue| is_old(listed.get(*queue).copied(), now)).collect()
}

/// Returns `true` if a queue was listed long ago.
fn is_old(listed: Option<Timestamp>, now: Timestamp) -> bool {
    listed.is_some_and(|at| now.since(at) > FORGET_AFTER)
}

/// Removes queues from the index. A worker that starts lists its queues again.
pub(super) async fn forget(app: &App, queues: &[&QueueName]) {
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
    fn only_queues_that_have_been_listed_long_ago_are_forgotten() {
        let now = Timestamp::from_micros(10 * 24 * 3600 * 1_000_000);
        let old = now.minus(FORGET_AFTER + Duration::from_secs(1));
        assert!(is_old(Some(old), now));
        assert!(!is_old(Some(now), now));
        assert!(!is_old(None, now), "a configured one");
    }
}
