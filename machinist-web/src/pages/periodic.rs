//! Periodic tasks: their schedules, next and last ticks, and what can be done.

use std::sync::Arc;

use axum::{extract::State, response::Response};
use machinist::{periodic::PeriodicTask, view::PeriodicView};
use maud::{Markup, html};

use super::{
    fields::{button, cell, late, state, task_link, time},
    layout::answer_page,
};
use crate::{Right, link, site::Site, visit::Visit};

/// Maximum number of periodic tasks on the page.
const MAX_TASKS: usize = 500;

/// Answers with the list of periodic tasks.
pub(crate) async fn periodic(State(site): State<Arc<Site>>, visit: Visit) -> Response {
    let seen = site.periodic(visit.sight()).await;
    let tasks = seen.value.as_deref().map(Vec::as_slice).unwrap_or_default();
    let content = html! {
        (late(&seen))
        @if tasks.is_empty() && seen.problem.is_none() {
            p.hint { "There is no periodic task. " code { "machinist periodic add" } " adds one." }
        }
        @if !tasks.is_empty() { (table(&visit, tasks)) }
        @if tasks.len() > MAX_TASKS { p.hint { (tasks.len() - MAX_TASKS) " more are in the API." } }
    };
    answer_page(&visit, "Periodic tasks", Ok(content))
}

fn table(visit: &Visit, tasks: &[PeriodicTask]) -> Markup {
    html! {
        div.wide { table {
            thead { tr {
                th scope="col" { "Name" } th scope="col" { "Task" } th scope="col" { "Schedule" } th scope="col" { "Next" }
                th scope="col" { "Last tick" } th scope="col" { "Source" }
                @if visit.actor.may(Right::Periodic) { th scope="col" { "Actions" } }
            } }
            tbody { @for task in tasks.iter().take(MAX_TASKS) { (row(visit, &PeriodicView::from(task))) } }
        } }
    }
}

fn row(visit: &Visit, task: &PeriodicView) -> Markup {
    let action = |verb: &str| format!("periodic/{}/{verb}", link::segment(&task.name));
    html! {
        tr {
            th scope="row" { (cell(&task.name)) }
            td { (cell(&task.task)) }
            td { (schedule(task)) }
            td {
                @if let Some(problem) = &task.problem { "! " (cell(problem)) }
                @else if task.paused { "‖ paused" }
                @else { (time(task.next.as_deref())) }
            }
            td {
                @if let Some(last) = &task.last {
                    (time(Some(&last.tick))) " " (task_link(visit, &last.id)) " "
                    @match last.state { Some(known) => (state(known)), None => "forgotten", }
                } @else { "–" }
            }
            td { (task.source.to_string()) @if let Some(worker) = &task.worker { " of " (cell(worker)) } }
            @if visit.actor.may(Right::Periodic) {
                td.actions {
                    @if task.paused { (button(visit, Right::Periodic, &action("resume"), "Resume")) }
                    @else { (button(visit, Right::Periodic, &action("pause"), "Pause")) }
                    (button(visit, Right::Periodic, &action("trigger"), "Trigger"))
                }
            }
        }
    }
}

fn schedule(task: &PeriodicView) -> String {
    let zone = task.time_zone.as_deref().map(|zone| format!(" in {zone}")).unwrap_or_default();
    match (&task.cron, &task.every) {
        (Some(cron), _) => cell(&format!("{cron}{zone}")),
        (None, Some(every)) => format!("every {every}"),
        (None, None) => "unreadable".to_owned(),
    }
}
