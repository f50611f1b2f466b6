//! The live workers, and one worker: what it runs, and orders to it.

use std::sync::Arc;

use axum::{
    extract::{Path, State},
    response::Response,
};
use machinist::{WorkerInfo, record::PresenceState, visible};
use maud::{Markup, html};

use super::{
    fields::{button, cell, field, grouped, late, queue_link, task_link, time},
    layout::answer_page,
};
use crate::{Right, link, panel::PanelView, site::Site, visit::Visit, web_error::WebError};

/// Number of workers on one page.
const PAGE_SIZE: usize = 200;
/// Number of names of a list that are shown.
const MAX_NAMES: usize = 50;

/// Answers with the list of workers.
pub(crate) async fn workers(State(site): State<Arc<Site>>, visit: Visit) -> Response {
    let seen = site.workers(visit.sight()).await;
    let mut all: Vec<&WorkerInfo> = seen.value.iter().flat_map(|workers| workers.iter()).collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    let (wanted, after) = (visit.query.text("name"), visit.query.text("after"));
    all.retain(|worker| worker.name.contains(wanted));
    let count = all.len();
    all.retain(|worker| worker.name.as_str() > after);
    let next = all.get(PAGE_SIZE - 1).filter(|_| all.len() > PAGE_SIZE).map(|last| last.name.clone());
    all.truncate(PAGE_SIZE);
    let content = html! {
        form.filter role="search" { (field(&visit, "name", "Name contains")) button { "Search" } }
        (late(&seen))
        p { (grouped(count as u64)) " live workers." }
        @if !all.is_empty() { (table(&visit, &all)) }
        @if let Some(next) = next {
            p { a href={ (visit.root) (link::list("workers", &[("name", wanted), ("after", &next)])) } { "Next page" } }
        }
    };
    answer_page(&visit, "Workers", Ok(content))
}

fn table(visit: &Visit, workers: &[&WorkerInfo]) -> Markup {
    html! {
        div.wide { table {
            thead { tr {
                th scope="col" { "Worker" } th scope="col" { "State" } th scope="col" { "Health" } th scope="col" { "Running" }
                th scope="col" { "Queues" } th scope="col" { "Tags" } th scope="col" { "Host" } th scope="col" { "Version" }
            } }
            tbody { @for worker in workers { tr {
                th scope="row" { a href={ (visit.root) "workers/" (link::segment(&worker.name)) } { (cell(&worker.name)) } }
                td { (state(worker)) }
                td { (health(worker)) }
                td.n { (worker.running) "/" (worker.concurrency) }
                td { (cell(&worker.patterns.iter().chain(&worker.queues).take(MAX_NAMES).cloned().collect::<Vec<_>>().join(", "))) }
                td { (cell(&worker.tags.join(", "))) }
                td { (cell(worker.host.as_deref().unwrap_or("–"))) }
                td { (cell(worker.version.as_deref().unwrap_or("–"))) }
            } } }
        } }
    }
}

fn state(worker: &WorkerInfo) -> String {
    let state = worker.state.as_str();
    worker.asleep.as_ref().map_or_else(|| state.to_owned(), |reason| format!("{state}: {}", cell(reason)))
}

fn health(worker: &WorkerInfo) -> String {
    let shape = if worker.health.as_str() == "green" { "✓" } else { "!" };
    let health = format!("{shape} {}", worker.health.as_str());
    worker
        .health_reason
        .as_ref()
        .map_or_else(|| health.clone(), |reason| format!("{health}: {}", cell(reason)))
}

/// Answers with the page of one worker.
pub(crate) async fn worker(
    State(site): State<Arc<Site>>,
    Path(name): Path<String>,
    visit: Visit,
) -> Response {
    let seen = site.workers(visit.sight()).await;
    let content = known(&seen, &name).map(|worker| html! { (late(&seen)) (one(&visit, worker)) });
    answer_page(&visit, &format!("Worker {}", cell(&name)), content)
}

/// Returns a live worker.
///
/// # Errors
/// No live worker is called so, or the workers are not known.
pub(crate) fn known<'a>(
    seen: &'a PanelView<Vec<WorkerInfo>>,
    name: &str,
) -> Result<&'a WorkerInfo, WebError> {
    let Some(workers) = &seen.value else {
        return Err(WebError::away(seen.problem.as_deref().unwrap_or("the workers are not known yet")));
    };
    workers.iter().find(|worker| worker.name == name).ok_or_else(|| {
        WebError::unknown(format!("no live worker is called {name:?}"))
            .remedy("the page of workers lists the live ones")
    })
}

fn one(visit: &Visit, worker: &WorkerInfo) -> Markup {
    let action = |verb: &str| format!("workers/{}/{verb}", link::segment(&worker.name));
    let started = worker.started_at.to_string();
    html! {
        div.actions {
            @if worker.state == PresenceState::Asleep { (button(visit, Right::Control, &action("resume"), "Resume")) }
            @else { (button(visit, Right::Control, &action("pause"), "Pause")) }
            @if worker.state != PresenceState::Draining { (button(visit, Right::Control, &action("drain"), "Drain and stop")) }
        }
        dl {
            dt { "State" } dd { (state(worker)) }
            dt { "Health" } dd { (health(worker)) }
            dt { "Host" } dd { (cell(worker.host.as_deref().unwrap_or("–"))) }
            dt { "Process" } dd { (worker.pid) }
            dt { "Version" } dd { (cell(worker.version.as_deref().unwrap_or("–"))) }
            dt { "Started" } dd { (time(Some(&started))) }
            dt { "Running" } dd { (worker.running) " of " (worker.concurrency) }
            dt { "Processed" } dd { (grouped(worker.processed)) }
            dt { "Failed" } dd { (grouped(worker.failed)) }
            dt { "Retried" } dd { (grouped(worker.retried)) }
            @if let Some(bytes) = worker.memory { dt { "Memory" } dd { (grouped(bytes >> 20)) " MiB" } }
            @if !worker.open_circuits.is_empty() { dt { "Tasks not taken for a while" } dd { (names(&worker.open_circuits)) } }
            dt { "Tags" } dd { (names(&worker.tags)) }
            dt { "Tasks" } dd { (names(&worker.tasks)) }
            dt { "Queues" }
            dd { @for queue in worker.queues.iter().take(MAX_NAMES) { (queue_link(&visit.root, queue)) " " } (names(&worker.patterns)) }
        }
        section {
            h2 { "What runs" }
            @if worker.runs.is_empty() { p.hint { "Nothing." } }
            ul { @for id in &worker.runs { li { (task_link(visit, id)) } } }
        }
    }
}

fn names(names: &[String]) -> String {
    let shown: Vec<String> = names.iter().take(MAX_NAMES).map(|name| visible::one_line(name)).collect();
    let more = names.len().saturating_sub(MAX_NAMES);
    if more == 0 { shown.join(", ") } else { format!("{} and {more} more", shown.join(", ")) }
}
