//! One task: its state and the reason, its attempts in time, arguments, results, error, log, and buttons.

use std::sync::Arc;

use axum::{
    extract::{Path, State},
    response::Response,
};
use machinist::{
    TaskLog, Why,
    record::{Record, TaskState},
    view::{AttemptView, ErrorView, TaskView},
    visible,
};
use maud::{Markup, html};

use super::{
    fields::{args, button, cell, grouped, payload, pretty, queue_link, seconds, state, task_link, time},
    layout::answer_page,
    queues::reason,
    stages::bars,
};
use crate::{
    Right, actions, link,
    site::{Site, glance},
    visit::Visit,
    web_error::WebError,
};

/// Number of log lines on the page: the last ones.
const MAX_LINES: usize = 200;
/// Number of earlier attempts on the page: the last ones.
const MAX_ATTEMPTS: usize = 50;

/// Answers with the page of a task.
pub(crate) async fn task(State(site): State<Arc<Site>>, Path(id): Path<String>, visit: Visit) -> Response {
    let content = Box::pin(content(&site, &visit, &id)).await;
    answer_page(&visit, &format!("Task {}", cell(&id)), content)
}

/// Parts of the page that do not keep it waiting.
struct TaskParts {
    view: TaskView,
    /// Stages in time.
    bars: Markup,
    why: Result<Why, WebError>,
    log: Result<TaskLog, WebError>,
}

/// Returns the view of a task with its arguments and its workflow. What cannot be read in time is left out.
pub(crate) async fn view(site: &Site, record: &Record) -> TaskView {
    let client = site.client();
    let ids = [record.id.clone()];
    let (args, places) = tokio::join!(
        glance("the arguments", site.args(record)),
        glance("the workflow", client.workflows_of(&ids)),
    );
    let root = places.ok().and_then(|places| Some(places.into_iter().next()??.root.to_string()));
    let view = site.task_view(record, root);
    view.with_args(args.unwrap_or_else(|error| machinist::view::ArgsView::hidden(error.text)))
}

async fn content(site: &Site, visit: &Visit, id: &str) -> Result<Markup, WebError> {
    let id = actions::task_id(id)?;
    let record = site.record(visit.sight(), &id).await?;
    let client = site.client();
    let (view, why, log) = tokio::join!(
        view(site, &record),
        glance("the reason", client.why(&id)),
        glance("the log", client.log(&id)),
    );
    let bars = bars(&record, site.app.clock().now());
    Ok(page(visit, &TaskParts { view, bars, why, log }))
}

fn page(visit: &Visit, parts: &TaskParts) -> Markup {
    let view = &parts.view;
    let rest = format!("{}api/{}", visit.root, link::task(&view.id));
    html! {
        p.lead { (state(view.state)) " " (summary(view)) }
        (buttons(visit, view))
        (facts(visit, view))
        section { h2 { "Why" } (reason(&parts.why)) }
        @if let Some(error) = &view.error { section { h2 { "Error" } (chain(error)) } }
        (timeline(view, &parts.bars))
        section { h2 { "Arguments" } (args(&view.args, &rest)) }
        @if view.state == TaskState::Success || !view.results.is_empty() {
            section { h2 { "Results" }
                @if let Some(locked) = &view.locked { p.hint { "Not shown: " (visible::one_line(locked)) "." } }
                @else { (payload(&pretty(&view.results), &rest)) }
            }
        }
        section { h2 { "Log" } (log(&parts.log, view, &rest)) }
    }
}

fn summary(view: &TaskView) -> String {
    let name = cell(view.name.as_deref().unwrap_or("a task of unknown name"));
    match (view.kind, view.error.as_ref()) {
        (Some(kind), Some(error)) if view.state == TaskState::Failure => {
            format!("{name}: {kind}: {}", cell(&error.message))
        }
        (Some(kind), None) if view.state == TaskState::Failure => format!("{name}: {kind}"),
        _ => name,
    }
}

fn buttons(visit: &Visit, view: &TaskView) -> Markup {
    let action = |verb: &str| format!("{}/{verb}", link::task(&view.id));
    html! {
        div.actions {
            @if view.state == TaskState::Failure && view.retried_as.is_none() { (button(visit, Right::Retry, &action("retry"), "Retry")) }
            @if view.state == TaskState::Retry { (button(visit, Right::Retry, &action("retry"), "Run now")) }
            @if !view.state.is_final() { (button(visit, Right::Revoke, &action("revoke"), "Revoke")) }
        }
    }
}

fn facts(visit: &Visit, view: &TaskView) -> Markup {
    let text = |text: &Option<String>| cell(text.as_deref().unwrap_or("–"));
    let others = [
        ("Repeats", &view.retry_of),
        ("Repeated as", &view.retried_as),
        ("Continued by", &view.continued_by),
    ];
    html! {
        dl {
            dt { "Id" } dd.id { (visible::one_line(&view.id)) }
            dt { "Name" } dd { (text(&view.name)) }
            dt { "Queue" } dd { @match &view.queue { Some(queue) => (queue_link(&visit.root, queue)), None => "–", } }
            dt { "Attempt" } dd { (view.attempt) }
            dt { "Worker" } dd { @match &view.worker {
                Some(worker) => a href={ (visit.root) "workers/" (link::segment(worker)) } { (cell(worker)) },
                None => "–",
            } }
            dt { "Duration" } dd { (seconds(view.duration)) }
            @if let Some(code) = view.code { dt { "Code" } dd { (code) } }
            @if let Some(progress) = &view.progress {
                dt { "Progress" }
                dd {
                    progress max=(progress.total.max(1)) value=(progress.done) {}
                    " " (grouped(progress.done)) " of "
                    @if progress.total == 0 { "an unknown number" } @else { (grouped(progress.total)) }
                    " " (cell(&progress.note))
                }
            }
            @if let Some(parked) = &view.parked {
                dt { "Parked" } dd { (cell(&parked.reason)) " since " (time(Some(&parked.since))) ", asks again at " (time(Some(&parked.until))) }
            }
            @if view.revoked { dt { "Revoked" } dd { "It was asked to end." } }
            @if let Some(late) = view.overdue { dt { "Overdue" } dd { "by " (grouped(late)) " s" } }
            @if let Some(root) = &view.workflow {
                dt { "Workflow" } dd { a.id href={ (visit.root) (link::workflow(root)) } { (visible::one_line(root)) } }
            }
            @for (label, id) in others { @if let Some(id) = id { dt { (label) } dd { (task_link(visit, id)) } } }
            dt { "Verified" } dd { (verified(view)) }
            @if let Some(trace) = &view.trace_id {
                dt { "Trace" }
                dd.id { @match view.trace_link.as_deref().filter(|link| is_web(link)) {
                    Some(link) => a href=(link) rel="noreferrer noopener" { (visible::one_line(trace)) },
                    None => (visible::one_line(trace)),
                } }
            }
        }
    }
}

/// Returns `true` if a link leads to a page of the web, and not into a script.
fn is_web(link: &str) -> bool {
    link.starts_with("https://") || link.starts_with("http://")
}

fn verified(view: &TaskView) -> &'static str {
    match view.verified {
        Some(true) => "✓ a key proves that a worker wrote the outcome",
        Some(false) => {
            "no: without a key here, anybody who can write to the backend may have written the outcome"
        }
        None => "it has not ended",
    }
}

fn chain(error: &ErrorView) -> Markup {
    html! {
        @for (index, cause) in error.chain.iter().enumerate() {
            @if index > 0 { p.hint { "caused by" } }
            pre.error { (visible::lines(&cause.chars().take(4096).collect::<String>())) }
        }
    }
}

/// The stages of the task as bars, and its changes in their order, each with its time.
fn timeline(view: &TaskView, bars: &Markup) -> Markup {
    let left_out = view.history.len().saturating_sub(MAX_ATTEMPTS);
    html! {
        section {
            h2 { "Timeline" }
            (bars)
            @if left_out > 0 { p.hint { (grouped(left_out as u64)) " earlier attempts are in the API." } }
            ol.timeline {
                @if view.sent_at.is_some() { li { (time(view.sent_at.as_deref())) " sent" } }
                @for attempt in &view.history[left_out..] { (past(attempt)) }
                @if view.received_at.is_some() { li { (time(view.received_at.as_deref())) " received, attempt " (view.attempt) } }
                @if view.started_at.is_some() {
                    li { (time(view.started_at.as_deref())) " started"
                        @if let Some(worker) = &view.worker { " on " (cell(worker)) }
                    }
                }
                @if view.ended_at.is_some() { li { (time(view.ended_at.as_deref())) " ended: " (view.state.as_str()) } }
                @if view.state == TaskState::Retry && view.eta.is_some() { li { (time(view.eta.as_deref())) " next run" } }
                @if view.state == TaskState::Pending && view.eta.is_some() { li { (time(view.eta.as_deref())) " not before" } }
                @if let (Some(at), false) = (&view.expires_at, view.state.is_final()) { li { (time(Some(at))) " expires" } }
            }
        }
    }
}

fn past(attempt: &AttemptView) -> Markup {
    html! {
        li {
            (time(Some(&attempt.ended_at))) " attempt " (attempt.attempt) " ended on " (cell(&attempt.worker)) ": "
            (attempt.kind) ": " (cell(&attempt.error.message)) "; next run " (time(Some(&attempt.next_run)))
        }
    }
}

fn log(log: &Result<TaskLog, WebError>, view: &TaskView, rest: &str) -> Markup {
    html! {
        @match log {
            Ok(log) if !log.lines.is_empty() => {
                @let first = log.lines.len().saturating_sub(MAX_LINES);
                @if first > 0 || log.all_missing() > 0 {
                    p.hint { (grouped(first as u64 + log.all_missing())) " older lines are not shown. "
                        a href={ (rest) "/log" } { "Show all as JSON" } }
                }
                ol.log { @for line in &log.lines[first..] {
                    @let at = line.at.to_string();
                    li { (time(Some(&at))) " " span.level { (line.level.as_str()) } " " (cell(&line.text)) }
                } }
            },
            Ok(log) => {
                @if let Some(locked) = &log.locked { p.hint { "Not shown: " (visible::one_line(locked)) "." } }
                @else if view.log.is_empty() { p.hint { "It has written no lines." } }
                @else { (payload(view.log.trim_end(), rest)) }
            },
            Err(error) => p.late { (visible::one_line(&error.text)) "." },
        }
    }
}
