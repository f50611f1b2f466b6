//! The search for tasks, with an honest bound: how far it has looked, and what is only counted.

use std::sync::Arc;

use axum::{extract::State, response::Response};
use machinist::{
    FoundTasks, IntoInstant, TaskFilter, TaskSearch,
    clock::Timestamp,
    record::{Record, TaskState},
    settings::parse_duration,
};
use maud::{Markup, html};

use super::{
    failures::silence,
    fields::{cell, field, grouped, queue_link, state, task_link, time},
    layout::answer_page,
};
use crate::{
    actions, link,
    site::{Site, look},
    visit::Visit,
    web_error::WebError,
};

/// Number of tasks on one page.
const PAGE_SIZE: usize = 50;
/// Maximum number of tasks on one page.
const MAX_PAGE: usize = 500;
/// States that a search can ask for.
const STATES: [TaskState; 6] = [
    TaskState::Failure,
    TaskState::Started,
    TaskState::Retry,
    TaskState::Pending,
    TaskState::Success,
    TaskState::Received,
];
/// Criteria of a search, with their labels.
const CRITERIA: [(&str, &str); 7] = [
    ("name", "Task"),
    ("queue", "Queue"),
    ("error", "Error contains"),
    ("worker", "Worker"),
    ("label", "Label, as KEY=VALUE"),
    ("since", "Within, as 1h"),
    ("id", "Id"),
];

/// Answers with the search, and what it has found.
pub(crate) async fn tasks(State(site): State<Arc<Site>>, visit: Visit) -> Response {
    let content = content(&site, &visit).await;
    answer_page(&visit, "Tasks", content)
}

async fn content(site: &Site, visit: &Visit) -> Result<Markup, WebError> {
    if let Some(id) = visit.query.get("id") {
        return Ok(html! { (search_form(visit)) p { "Task " (task_link(visit, id)) } });
    }
    if let Some(group) = visit.query.get("group") {
        return group_page(site, visit, group).await;
    }
    let found = find(site, visit).await;
    Ok(html! {
        (search_form(visit))
        @match &found {
            Ok(found) => (list(visit, found)),
            Err(error) => {
                p.problem role="alert" { (cell(&error.text)) "." }
                @if let Some(remedy) = &error.remedy { p { (cell(remedy)) "." } }
            },
        }
    })
}

/// Returns the tasks that an address asks for, those that the reader sees.
///
/// # Errors
/// A criterion cannot be read, or the backend does not answer.
pub(crate) async fn find(site: &Site, visit: &Visit) -> Result<FoundTasks, WebError> {
    let search = search(visit, site.app.clock().now())?;
    let mut found = look("the search", site.client().search_tasks(&search)).await?;
    found.records.retain(|record| visit.sight().record(record));
    Ok(found)
}

/// Returns the failed tasks of one cause.
async fn group_page(site: &Site, visit: &Visit, group: &str) -> Result<Markup, WebError> {
    let since = since(visit, site.app.clock().now())?;
    let limit = visit.limit(PAGE_SIZE, MAX_PAGE)?;
    let found = look("the failures", site.client().failed_tasks(group, since, limit)).await?;
    let mut found = found.ok_or_else(|| actions::unknown_group(group))?;
    found.records.retain(|record| visit.sight().record(record));
    if found.records.is_empty() {
        return Err(actions::unknown_group(group));
    }
    let groups = site.failures(visit.sight()).await;
    let listed = groups.value.iter().flat_map(|all| &all.groups).find(|listed| listed.fingerprint == group);
    let more =
        link::list("tasks", &[("group", group), ("since", visit.query.text("since")), ("limit", "500")]);
    Ok(html! {
        p { "Failed tasks of one cause. " a href={ (visit.root) (link::list("dead", &[("group", group)])) } { "Their dead letters" } }
        @if let Some(listed) = listed { (silence(visit, listed)) }
        (table(visit, &found.records))
        @if !found.is_complete { p { "There are more. " a href={ (visit.root) (more) } { "Show up to 500" } } }
    })
}

/// Reads the begin of the time that an address asks for.
///
/// # Errors
/// It is no duration.
pub(crate) fn since(visit: &Visit, now: Timestamp) -> Result<Option<Timestamp>, WebError> {
    let Some(text) = visit.query.get("since") else { return Ok(None) };
    let age = parse_duration(text).map_err(|problem| WebError::wrong(format!("since={text}: {problem}")))?;
    Ok(Some(now.minus(age)))
}

/// Reads the search of an address.
///
/// # Errors
/// A criterion cannot be read.
fn search(visit: &Visit, now: Timestamp) -> Result<TaskSearch, WebError> {
    let query = &visit.query;
    let owned = |name: &str| query.get(name).map(str::to_owned);
    let mut filter = TaskFilter::new();
    (filter.name, filter.queue, filter.worker, filter.error) =
        (owned("name"), owned("queue"), owned("worker"), owned("error"));
    filter.state = query.get("state").map(read_state).transpose()?;
    filter.since = since(visit, now)?;
    let mut search = TaskSearch::new(filter);
    for label in query.all("label").iter().filter(|label| !label.trim().is_empty()) {
        let pair = label.split_once('=').filter(|(key, _)| !key.trim().is_empty());
        let (key, value) =
            pair.ok_or_else(|| WebError::wrong(format!("label={label:?} is not of the form KEY=VALUE")))?;
        search.labels.insert(key.trim().to_owned(), value.trim().to_owned());
    }
    search.after = query.get("after").map(read_cursor).transpose()?;
    search.limit = visit.limit(PAGE_SIZE, MAX_PAGE)?;
    Ok(search)
}

fn read_state(text: &str) -> Result<TaskState, WebError> {
    let known = STATES.into_iter().find(|state| state.as_str().eq_ignore_ascii_case(text));
    known.ok_or_else(|| {
        let names: Vec<&str> = STATES.into_iter().map(TaskState::as_str).collect();
        WebError::wrong(format!("there is no state {text:?}"))
            .remedy(format!("write one of {}", names.join(", ")))
    })
}

/// Returns the text of a cursor.
pub(crate) fn cursor((at, id): &(Timestamp, String)) -> String {
    format!("{at}/{id}")
}

fn read_cursor(text: &str) -> Result<(Timestamp, String), WebError> {
    let cursor = text.split_once('/').and_then(|(at, id)| Some((at.into_instant().ok()?, id.to_owned())));
    cursor.ok_or_else(|| {
        WebError::wrong(format!("{text:?} is no cursor"))
            .remedy("take that of the answer before, or leave it out")
    })
}

fn search_form(visit: &Visit) -> Markup {
    let wanted = visit.query.text("state");
    html! {
        form.filter role="search" action={ (visit.root) "tasks" } {
            label { "State"
                select name="state" {
                    option value="" { "any that has ended or runs" }
                    @for state in STATES {
                        option value=(state.as_str()) selected[state.as_str().eq_ignore_ascii_case(wanted)] { (state.as_str()) }
                    }
                }
            }
            @for (name, label) in CRITERIA { (field(visit, name, label)) }
            button { "Search" }
        }
    }
}

fn list(visit: &Visit, found: &FoundTasks) -> Markup {
    let after = found.next.as_ref().map(cursor);
    let mut filter = visit.query.without(&["after", "done", "sent"]);
    filter.extend(after.as_deref().map(|after| ("after", after)));
    html! {
        @if found.records.is_empty() { p.hint { "No task was found." } } @else { (table(visit, &found.records)) }
        (bounds(found))
        @if after.is_some() {
            p { a href={ (visit.root) (link::list("tasks", &filter)) } { "Go on" } }
        }
    }
}

/// Says how far the search has looked, and what it leaves out.
fn bounds(found: &FoundTasks) -> Markup {
    let FoundTasks { looked_at, listed, cut, unnamed, queued, next, .. } = found;
    let more = if next.is_some() && listed <= looked_at { "+" } else { "" };
    html! {
        p.hint {
            "Looked at " (grouped(*looked_at)) " of " (grouped(*listed)) (more) " listed tasks. "
            @if *cut > 0 { (grouped(*cut)) " ended tasks are no longer listed: too many have ended. " }
            @if *unnamed > 0 { (grouped(*unnamed)) " further tasks run, and are only counted. " }
            @if let Some(queued) = queued { @if *queued > 0 { (grouped(*queued)) " tasks wait in queues, and are only counted. " } }
            "Tasks that succeed are listed by workers with events = \"all\"."
        }
    }
}

fn table(visit: &Visit, records: &[Record]) -> Markup {
    html! {
        div.wide { table {
            thead { tr {
                th scope="col" { "Task" } th scope="col" { "State" } th scope="col" { "Name" } th scope="col" { "Queue" }
                th scope="col" { "Worker" } th scope="col" { "At" } th scope="col" { "Error" }
            } }
            tbody { @for record in records {
                @let at = changed_at(record).map(|at| at.to_string());
                @let error = record.error.as_ref().map(|error| error.message().to_owned()).or_else(|| record.locked.clone());
                tr {
                    td { (task_link(visit, record.id.as_str())) }
                    td { (state(record.state)) }
                    td { (cell(record.name.as_deref().unwrap_or("–"))) }
                    td { @if let Some(queue) = &record.queue { (queue_link(&visit.root, queue)) } }
                    td { (cell(record.worker.as_deref().unwrap_or("–"))) }
                    td { (time(at.as_deref())) }
                    td { (cell(error.as_deref().unwrap_or_default())) }
                }
            } }
        } }
    }
}

/// Returns the time by which a task is listed.
fn changed_at(record: &Record) -> Option<Timestamp> {
    match record.state {
        state if state.is_final() => record.ended_at,
        TaskState::Started => record.started_at,
        _ => record.eta.or(record.sent_at),
    }
}
