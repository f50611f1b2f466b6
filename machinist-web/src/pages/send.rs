//! Sending a task by hand: the tasks that live workers know, and a form with a field for each argument.

use std::sync::Arc;

use axum::{extract::State, response::Response};
use machinist::{RegisteredName, args::ArgInfo, visible};
use maud::{Markup, html};

use super::{
    fields::{cell, field, grouped, late},
    layout::answer_page,
};
use crate::{Right, call_args, link, panel::PanelView, site::Site, visit::Visit, web_error::WebError};

/// Number of tasks on one page.
const PAGE_SIZE: usize = 200;
/// Number of queues that the form proposes.
const MAX_QUEUES: usize = 100;

/// Answers with the tasks that can be sent, or with the form of one.
pub(crate) async fn send(State(site): State<Arc<Site>>, visit: Visit) -> Response {
    let seen = site.registered(visit.sight()).await;
    let content = match visit.query.get("task") {
        None => Ok(html! { (late(&seen)) (list(&visit, &seen)) }),
        Some(name) => known(&seen, name).map(|task| html! { (late(&seen)) (one(&site, &visit, task)) }),
    };
    answer_page(&visit, "Send a task", content)
}

/// Returns a task that live workers know.
///
/// # Errors
/// No live worker knows it, or the workers are not known.
pub(crate) fn known<'a>(
    seen: &'a PanelView<Vec<RegisteredName>>,
    name: &str,
) -> Result<&'a RegisteredName, WebError> {
    let Some(tasks) = &seen.value else {
        return Err(WebError::away(seen.problem.as_deref().unwrap_or("the tasks are not known yet")));
    };
    tasks.iter().find(|task| task.name == name).ok_or_else(|| {
        WebError::unknown(format!("no live worker knows the task {name:?}"))
            .remedy("start a worker that has it, or send it with `machinist send`")
    })
}

fn list(visit: &Visit, seen: &PanelView<Vec<RegisteredName>>) -> Markup {
    let (wanted, after) = (visit.query.text("name"), visit.query.text("after"));
    let mut tasks: Vec<&RegisteredName> = seen.value.iter().flat_map(|tasks| tasks.iter()).collect();
    tasks.retain(|task| task.name.contains(wanted));
    let count = tasks.len();
    tasks.retain(|task| task.name.as_str() > after);
    let next = tasks.get(PAGE_SIZE - 1).filter(|_| tasks.len() > PAGE_SIZE).map(|last| last.name.clone());
    tasks.truncate(PAGE_SIZE);
    html! {
        form.filter role="search" { (field(visit, "name", "Name contains")) button { "Search" } }
        p { (grouped(count as u64)) " tasks that live workers know." }
        @if !tasks.is_empty() { (table(visit, &tasks)) }
        @if let Some(next) = next {
            p { a href={ (visit.root) (link::list("send", &[("name", wanted), ("after", &next)])) } { "Next page" } }
        }
    }
}

fn table(visit: &Visit, tasks: &[&RegisteredName]) -> Markup {
    html! {
        div.wide { table {
            thead { tr {
                th scope="col" { "Task" } th scope="col" { "Arguments" } th scope="col" { "Queues" } th scope="col" { "Workers" }
                th scope="col" { "State" }
            } }
            tbody { @for task in tasks { tr {
                th scope="row" { a href={ (visit.root) (link::list("send", &[("task", &task.name)])) } { (cell(&task.name)) } }
                td { (cell(&arguments(task))) }
                td { (cell(&task.queues.iter().take(MAX_QUEUES).cloned().collect::<Vec<_>>().join(", "))) }
                td.n { (grouped(task.workers.len() as u64)) }
                td { (enabled(task)) }
            } } }
        } }
    }
}

fn enabled(task: &RegisteredName) -> &'static str {
    if task.enabled { "✓ enabled" } else { "‖ disabled: it waits until it is enabled" }
}

/// Returns the arguments of a task in one line.
fn arguments(task: &RegisteredName) -> String {
    let text = |(index, arg): (usize, &ArgInfo)| {
        let kind = arg.kind.as_deref().map(|kind| format!(": {kind}")).unwrap_or_default();
        format!("{}{kind}", call_args::label(index, arg))
    };
    match task.args.as_deref() {
        None => "any".to_owned(),
        Some([]) => "none".to_owned(),
        Some(args) => args.iter().enumerate().map(text).collect::<Vec<_>>().join(", "),
    }
}

fn one(site: &Site, visit: &Visit, task: &RegisteredName) -> Markup {
    let default = site.app.default_queue().as_str();
    let queues = &task.queues;
    let queue =
        if queues.contains(default) { default } else { queues.first().map_or(default, String::as_str) };
    html! {
        dl {
            dt { "Task" } dd { (visible::one_line(&task.name)) }
            dt { "Arguments" } dd { (cell(&arguments(task))) }
            dt { "Workers" } dd { (grouped(task.workers.len() as u64)) }
            dt { "State" } dd { (enabled(task)) }
        }
        @if visit.actor.may(Right::Send) {
            form.call method="post" action={ (visit.root) "api/tasks" } {
                input type="hidden" name="back" value=(visit.here);
                input type="hidden" name="name" value=(task.name);
                @match task.args.as_deref() {
                    None => { label { "Arguments, one in each line: JSON, or else text" textarea name="arg" rows="4" {} } },
                    Some(args) => { @for (index, arg) in args.iter().enumerate() { (argument(index, arg)) } },
                }
                label { "Queue" input name="queue" value=(queue) list="queues"; }
                datalist #queues { @for queue in queues.iter().take(MAX_QUEUES) { option value=(queue) {} } }
                p.hint { "An empty field is an empty text where text is taken. Otherwise it is left out, or null before others." }
                div.actions { button { "Send" } }
            }
        } @else {
            p.hint { "You do not have the right to send tasks here." }
        }
        p { a href={ (visit.root) "send" } { "All tasks" } }
    }
}

/// A field for one argument.
fn argument(index: usize, arg: &ArgInfo) -> Markup {
    let kind = arg.kind.as_deref();
    let label = cell(&call_args::label(index, arg));
    html! {
        label {
            @match kind {
                Some(kind) if call_args::repeated(arg).is_some() => { (label) " (" (cell(kind)) ", one in each line)" },
                Some(kind) => { (label) " (" (cell(kind)) ")" },
                None => { (label) " (JSON, or else text)" },
            }
            @match kind {
                Some("bool") => { select name="arg" {
                    option value="" { "left out" } option value="true" { "true" } option value="false" { "false" }
                } },
                Some(kind) if kind.starts_with("int") || kind.starts_with("uint") => { input name="arg" inputmode="numeric"; },
                Some(kind) if kind.starts_with("float") => { input name="arg" inputmode="decimal"; },
                None | Some("string") => { input name="arg"; },
                Some(_) => { textarea name="arg" rows="3" {} },
            }
        }
    }
}
