//! `machinist workers`: lists the live workers, and gives them orders.

use std::time::Duration;

use machinist::{
    App, Client, OrderError, OrderResult, WorkerAction, WorkerChange, WorkerFilter, WorkerInfo, nearest,
    record::PresenceState,
    settings::Settings,
    view::{OrderView, WorkerRunView, WorkerView},
};

use super::{connect, connect_reader};
use crate::{
    args::{StateArg, WorkerSetArgs, WorkerTargets, WorkersArgs, WorkersCommand},
    exit::{CliError, Code},
    output,
};

/// Interval at which `--watch` looks for changes.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// Maximum number of names that an error lists.
const LISTED_NAMES: usize = 10;

pub(super) async fn run(args: WorkersArgs, settings: &Settings, json: bool) -> Result<Code, CliError> {
    match args.command {
        None => list(&args, settings, json).await,
        Some(WorkersCommand::Show { name, all }) => show(name, all, settings, json).await,
        Some(WorkersCommand::Pause(order)) => {
            give(&order.targets, WorkerAction::Pause, order.now, settings, json).await
        }
        Some(WorkersCommand::Resume(targets)) => {
            give(&targets, WorkerAction::Resume, false, settings, json).await
        }
        Some(WorkersCommand::Drain(order)) => {
            give(&order.targets, WorkerAction::Drain, order.now, settings, json).await
        }
        Some(WorkersCommand::Restart(order)) => {
            give(&order.targets, WorkerAction::Restart, order.now, settings, json).await
        }
        Some(WorkersCommand::Reload(targets)) => {
            give(&targets, WorkerAction::Reload, false, settings, json).await
        }
        Some(WorkersCommand::Set(set)) => {
            give(&set.targets, WorkerAction::Set(change(&set)), false, settings, json).await
        }
        Some(WorkersCommand::Order { id }) => order(&id, settings, json).await,
        Some(WorkersCommand::Ping(targets)) => {
            give(&targets, WorkerAction::Ping, false, settings, json).await
        }
    }
}

async fn list(args: &WorkersArgs, settings: &Settings, json: bool) -> Result<Code, CliError> {
    let app = connect_reader(settings).await?;
    let client = app.client();
    let mut filter = WorkerFilter::new();
    filter.queue.clone_from(&args.queue);
    filter.task.clone_from(&args.task);
    filter.tag = args.tag.as_ref().map(ToString::to_string);
    filter.state = args.state.map(|state| match state {
        StateArg::Starting => PresenceState::Starting,
        StateArg::Awake => PresenceState::Awake,
        StateArg::Asleep => PresenceState::Asleep,
        StateArg::Draining => PresenceState::Draining,
        StateArg::Offline => PresenceState::Offline,
    });
    if args.state == Some(StateArg::Offline) {
        output::note("machinist: workers that have ended are not listed");
    }
    // Asked of one future: a signal that comes while the servers answer is not lost.
    let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
    let mut shown = None;
    loop {
        let mut workers = client.workers(&filter).await?;
        let next = args.page.cut(&mut workers, |worker| worker.name.clone());
        if shown.as_ref() != Some(&workers) {
            print(&workers, json)?;
            output::note_next(next);
            shown = Some(workers);
        }
        if !args.watch {
            break;
        }
        tokio::select! {
            () = tokio::time::sleep(WATCH_INTERVAL) => {}
            _ = &mut interrupted => break,
        }
    }
    app.broker().close().await;
    Ok(Code::Success)
}

fn print(workers: &[WorkerInfo], json: bool) -> Result<(), CliError> {
    if json {
        return output::json(workers);
    }
    let row = |worker: &WorkerInfo| {
        vec![
            worker.name.clone(),
            state(worker),
            health(worker),
            format!("{}/{}", worker.running, worker.concurrency),
            queues(worker).join(", "),
            worker.tags.join(", "),
            worker.host.clone().unwrap_or_else(|| "-".to_owned()),
            worker.pid.to_string(),
        ]
    };
    output::table(
        &["worker", "state", "health", "running", "queues", "tags", "host", "pid"],
        workers.iter().map(row),
    )
}

/// Returns the patterns of a worker, and its queues that none of them fits: a pattern can stand for hundreds.
fn queues(worker: &WorkerInfo) -> Vec<String> {
    let is_in = |queue: &String| {
        let mut beginnings = worker.patterns.iter().filter_map(|pattern| pattern.strip_suffix('*'));
        beginnings.any(|beginning| queue.starts_with(beginning))
    };
    let others = worker.queues.iter().filter(|queue| !is_in(queue));
    worker.patterns.iter().chain(others).cloned().collect()
}

fn state(worker: &WorkerInfo) -> String {
    let state = worker.state.as_str();
    worker.asleep.as_ref().map_or_else(|| state.to_owned(), |reason| format!("{state}: {reason}"))
}

fn health(worker: &WorkerInfo) -> String {
    let health = worker.health.as_str();
    worker.health_reason.as_ref().map_or_else(|| health.to_owned(), |reason| format!("{health}: {reason}"))
}

fn limits(worker: &WorkerInfo) -> String {
    let limits = worker.limits.iter().map(|(target, limit)| format!("{target} {limit}"));
    limits.collect::<Vec<_>>().join(", ")
}

async fn show(name: String, all: bool, settings: &Settings, json: bool) -> Result<Code, CliError> {
    let app = if all { connect(settings).await? } else { connect_reader(settings).await? };
    let targets = WorkerTargets { names: vec![name], ..WorkerTargets::default() };
    let client = app.client();
    let workers = selected(&client, &targets).await?;
    for worker in &workers {
        let runs = if all {
            client.all_worker_runs(worker).await.map_err(cannot_order)?
        } else {
            client.worker_runs(worker).await?
        };
        let view = WorkerView::with_runs(worker, &runs);
        if json {
            output::json(&view)?;
            continue;
        }
        let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        for (label, value) in [
            ("name", worker.name.clone()),
            ("incarnation", worker.incarnation.clone()),
            ("state", state(worker)),
            ("health", health(worker)),
            ("host", text(&worker.host)),
            ("pid", worker.pid.to_string()),
            ("version", text(&worker.version)),
            ("started", worker.started_at.to_string()),
            ("queues", worker.queues.join(", ")),
            ("patterns", worker.patterns.join(", ")),
            ("tasks", worker.tasks.join(", ")),
            ("tags", worker.tags.join(", ")),
            ("limits", limits(worker)),
            ("circuits", worker.open_circuits.join(", ")),
            ("running", format!("{} of {}", worker.running, worker.concurrency)),
            ("processed", worker.processed.to_string()),
            ("failed", worker.failed.to_string()),
            ("retried", worker.retried.to_string()),
            ("memory", worker.memory.map_or_else(|| "-".to_owned(), |bytes| format!("{} MiB", bytes >> 20))),
        ] {
            output::line(format!("{label:<13}{value}").trim_end())?;
        }
        for WorkerRunView { id, task, since, .. } in view.runs {
            let since = since.map_or_else(String::new, |since| format!(" since {since}"));
            output::line(&format!("{:<13}{id} {}{since}", "runs", task.unwrap_or("-")))?;
        }
        let unnamed = (worker.running as usize).saturating_sub(worker.runs.len());
        if unnamed > 0 && !all {
            output::note(&format!("machinist: {unnamed} further tasks run; --all asks the worker for them"));
        }
    }
    app.broker().close().await;
    Ok(Code::Success)
}

/// Gives an order, and prints the answers.
async fn give(
    targets: &WorkerTargets,
    action: WorkerAction,
    now: bool,
    settings: &Settings,
    json: bool,
) -> Result<Code, CliError> {
    let app = connect(settings).await?;
    let client = app.client();
    let workers = selected(&client, targets).await?;
    let word = action.as_str();
    let (id, results) = client.order_workers(&workers, action, now).await.map_err(cannot_order)?;
    answered(&app, word, &id, &results, json).await
}

/// Prints the answers to an order. Fails if a worker has refused or has not answered.
pub(super) async fn answered(
    app: &App,
    action: &str,
    id: &str,
    results: &[OrderResult],
    json: bool,
) -> Result<Code, CliError> {
    if json {
        output::json(&OrderView::new(id, results))?;
    } else {
        let row = |result: &OrderResult| {
            let done = if result.done { "done" } else { "not done" }.to_owned();
            let took = format!("{} ms", result.took.as_millis());
            vec![result.worker.clone(), done, took, result.reason.clone().unwrap_or_default()]
        };
        output::table(&["worker", action, "after", "reason"], results.iter().map(row))?;
    }
    app.broker().close().await;
    Ok(if results.iter().all(|result| result.done) { Code::Success } else { Code::Failed })
}

/// Returns the change that the options ask for.
fn change(set: &WorkerSetArgs) -> WorkerChange {
    let mut change = WorkerChange::default();
    change.concurrency = set.concurrency;
    change.add_queues.clone_from(&set.add_queue);
    change.drop_queues.clone_from(&set.drop_queue);
    change.log_level.clone_from(&set.log_level);
    change
}

/// Shows an order and its answers.
async fn order(id: &str, settings: &Settings, json: bool) -> Result<Code, CliError> {
    // Its note is signed.
    let app = connect(settings).await?;
    let Some(report) = app.client().order(id).await? else {
        let text = format!("there is no order {id:?} of the last day");
        return Err(CliError::new(Code::UnknownId, text).remedy(
            "`--json` prints the id of each order; a note that no trusted key has signed is not shown",
        ));
    };
    if json {
        output::json(&report)?;
    } else {
        let by = report.by.as_ref().map_or_else(|| "nobody".to_owned(), |key| format!("key {key}"));
        output::line(&format!("{} at {}, signed by {by}", report.action, report.at))?;
        let row = |result: &OrderResult| {
            let done = if result.done { "done" } else { "not done" }.to_owned();
            let at = result.at.map_or_else(|| "-".to_owned(), |at| at.to_string());
            vec![result.worker.clone(), done, at, result.reason.clone().unwrap_or_default()]
        };
        output::table(&["worker", report.action, "at", "reason"], report.results.iter().map(row))?;
    }
    app.broker().close().await;
    Ok(Code::Success)
}

/// Returns the live workers that are meant.
async fn selected(client: &Client, targets: &WorkerTargets) -> Result<Vec<WorkerInfo>, CliError> {
    let mut workers = client.workers(&WorkerFilter::new()).await?;
    let live: Vec<_> = workers.iter().take(LISTED_NAMES).map(|worker| worker.name.clone()).collect();
    let remedy = || match live.is_empty() {
        true => "no worker is live; `machinist worker` starts one".to_owned(),
        false => format!("live workers: {}", live.join(", ")),
    };
    if let Some(name) = targets.names.iter().find(|name| workers.iter().all(|worker| worker.name != **name)) {
        let text = format!("no live worker is called {name:?}");
        let known = workers.iter().map(|worker| &*worker.name);
        let remedy = nearest(name, known).map_or_else(remedy, |meant| format!("did you mean {meant}?"));
        return Err(CliError::new(Code::UnknownId, text).remedy(remedy));
    }
    workers.retain(|worker| {
        targets.all
            || targets.names.contains(&worker.name)
            || targets.with_tag.as_ref().is_some_and(|tag| worker.tags.iter().any(|has| has == tag.as_str()))
    });
    if workers.is_empty() {
        let text = targets.with_tag.as_ref().map_or_else(
            || "no worker is live".to_owned(),
            |tag| format!("no live worker has the tag {tag}"),
        );
        return Err(CliError::new(Code::UnknownId, text).remedy(remedy()));
    }
    Ok(workers)
}

pub(super) fn cannot_order(error: OrderError) -> CliError {
    match error {
        OrderError::Backend(error) => error.into(),
        OrderError::Release(error) => error.into(),
        error @ (OrderError::Contended(_) | OrderError::NotTold { .. }) => {
            CliError::from_error(Code::Failed, &error)
        }
        error => CliError::from_error(Code::NotPermitted, &error)
            .remedy("give the order where an unrestricted key signs"),
    }
}
