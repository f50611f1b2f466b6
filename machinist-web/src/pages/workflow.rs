//! One workflow: its progress, its graph, and its steps as a list in their order, each with what it waits for.

use std::sync::Arc;

use axum::{
    extract::{Path, State},
    response::Response,
};
use machinist::{
    record::TaskState,
    view::{StepView, WorkflowView},
    visible,
};
use maud::{Markup, html};

use super::{
    fields::{button, cell, grouped, payload, pretty, seconds, state, task_link, time},
    graph::graph,
    layout::answer_page,
};
use crate::{
    Right, actions, link,
    sight::Sight,
    site::{Site, look},
    visit::Visit,
    web_error::WebError,
};

/// Number of steps in the table of one page.
const PAGE_SIZE: usize = 100;

/// Answers with the page of a workflow.
pub(crate) async fn workflow(
    State(site): State<Arc<Site>>,
    Path(root): Path<String>,
    visit: Visit,
) -> Response {
    let content = Box::pin(read(&site, visit.sight(), &root)).await.map(|view| page(&visit, &root, &view));
    answer_page(&visit, &format!("Workflow {}", cell(&root)), content)
}

/// Refuses workflows to those who do not see everything: it is not told of which queues all their tasks are.
///
/// # Errors
/// The reader does not see everything.
pub(crate) fn check(sight: &Sight, root: &str) -> Result<(), WebError> {
    match sight.is_whole() {
        true => Ok(()),
        false => Err(WebError::unknown(format!("there is no workflow {root:?} that you see"))
            .remedy("ask somebody who sees all queues and tasks")),
    }
}

/// Reads the view of a workflow.
///
/// # Errors
/// There is no such workflow, the reader does not see everything, or the backend does not answer.
pub(crate) async fn read(site: &Site, sight: &Sight, root: &str) -> Result<WorkflowView, WebError> {
    let id = actions::task_id(root)?;
    check(sight, root)?;
    Box::pin(look("the workflow", WorkflowView::read(&site.client(), &id))).await
}

fn page(visit: &Visit, root: &str, view: &WorkflowView) -> Markup {
    let rest = format!("{}api/{}", visit.root, link::workflow(root));
    let action = |verb: &str| format!("{}/{verb}", link::task(root));
    let error = view.error.as_ref().and_then(|error| error["message"].as_str());
    html! {
        p.lead { (state(view.state)) @if let Some(name) = &view.workflow_name { " " (cell(name)) } }
        div.actions {
            @if view.state == TaskState::Failure { (button(visit, Right::Retry, &action("retry"), "Retry")) }
            @if !view.state.is_final() { (button(visit, Right::Revoke, &action("revoke"), "Revoke")) }
        }
        dl {
            dt { "Progress" }
            dd {
                progress max=(view.progress.total.max(1)) value=(view.progress.done) {}
                " " (grouped(view.progress.done.into())) " of " (grouped(view.progress.total.into())) " tasks have ended"
            }
            dt { "Root" } dd { (task_link(visit, root)) }
            dt { "Started" } dd { (time(view.started_at.as_deref())) }
            dt { "Ended" } dd { (time(view.ended_at.as_deref())) }
            dt { "Duration" } dd { (seconds(view.duration)) }
            @if view.incomplete { dt { "Incomplete" } dd { "Not all of it is sent yet." } }
        }
        @if let Some(error) = error { section { h2 { "Error" } pre.error { (visible::lines(error)) } } }
        @if view.steps.len() > 1 { section { h2 { "Graph" } (graph(visit, &view.steps)) } }
        section { h2 { "Steps" } (steps(visit, root, &view.steps)) }
        @if view.state == TaskState::Success { section { h2 { "Results" } (payload(&pretty(&view.results), &rest)) } }
    }
}

/// The table of the steps from the one that the address names.
fn steps(visit: &Visit, root: &str, steps: &[StepView]) -> Markup {
    let first = visit.query.get("from").and_then(|from| from.parse().ok()).unwrap_or(0_usize);
    let first = first.min(steps.len());
    let next = first.saturating_add(PAGE_SIZE);
    let page = |from: usize| link::list(&link::workflow(root), &[("from", &from.to_string())]);
    html! {
        div.wide { table {
            thead { tr {
                th scope="col" { "Step" } th scope="col" { "State" } th scope="col" { "Task" } th scope="col" { "After" }
                th scope="col" { "Members" } th scope="col" { "Duration" } th scope="col" { "Error" }
            } }
            tbody { @for step in steps.iter().skip(first).take(PAGE_SIZE) { tr {
                th scope="row" { @if step.members.is_some() { (cell(&step.name)) } @else { a href={ (visit.root) (link::task(&step.id)) } { (cell(&step.name)) } } }
                td { (state(step.state)) @if let Some(kind) = step.kind { " " (kind) } }
                td { (cell(&step.task)) }
                td { (cell(&step.after.join(", "))) @if step.error_callback { " a failure" } }
                td.n { @if let Some(members) = step.members {
                    (grouped(members.done.into())) " of " (grouped(members.total.into()))
                    @if members.failed > 0 { ", " (grouped(members.failed.into())) " failed" }
                } }
                td.n { (seconds(step.duration)) }
                td { (cell(step.error.as_deref().unwrap_or_default())) }
            } } }
        } }
        @if first > 0 { p { a href={ (visit.root) (page(0)) } { "First steps" } } }
        @if steps.len() > next {
            p { a href={ (visit.root) (page(next)) } { "Next steps" } " of " (grouped(steps.len() as u64)) }
        }
    }
}
