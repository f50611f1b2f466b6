//! Reading, as JSON.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{Path, State},
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
};
use machinist::{
    HistorySelection, TaskId, TaskName,
    view::{
        DeadLetterView, FailureGroupView, HistoryView, MemberView, PeriodicDetailsView, PeriodicView,
        QueueView, TaskLogView, TaskView, WorkerView,
    },
};
use serde_json::{Value, json};

use crate::{
    actions, pages,
    panel::PanelView,
    site::{Site, look},
    visit::Visit,
    web_error::WebError,
};

/// Answer of a request that reads.
type Read = Result<Json<Value>, WebError>;

/// Maximum number of members of a group in one answer.
const MAX_MEMBERS: usize = 500;
/// Time of which the history is told if the address names none.
const RECENT: Duration = Duration::from_secs(3600);

fn json(value: impl serde::Serialize) -> Read {
    let value = serde_json::to_value(value);
    value.map(Json).map_err(|error| WebError::away(error.to_string()))
}

/// Returns the value of a panel, or the reason that there is none.
fn known<T>(seen: &PanelView<T>) -> Result<&T, WebError> {
    match (&seen.value, &seen.problem) {
        (Some(value), _) => Ok(value),
        (None, problem) => Err(WebError::away(problem.as_deref().unwrap_or("nothing is known yet"))),
    }
}

/// Everything that the first page shows. A part that did not answer has its last value, and the problem says so.
pub(crate) async fn overview(State(site): State<Arc<Site>>, visit: Visit) -> Read {
    let overview = site.overview(visit.sight()).await;
    let groups = overview.failures.value.as_deref().map(|failures| &failures.groups);
    json(json!({
        "troubles": overview.troubles(),
        "queues": overview.queues.value.as_deref(),
        "workers": overview.workers.value.as_deref(),
        "failures": groups.map(|groups| groups.iter().map(FailureGroupView::from).collect::<Vec<_>>()),
        "problems": [&overview.queues.problem, &overview.workers.problem, &overview.failures.problem],
    }))
}

pub(crate) async fn queues(State(site): State<Arc<Site>>, visit: Visit) -> Read {
    json(known(&site.queues(visit.sight()).await)?)
}

pub(crate) async fn queue(State(site): State<Arc<Site>>, Path(name): Path<String>, visit: Visit) -> Read {
    let name = actions::queue_name(&name)?;
    let view: QueueView = pages::queue_details(&site, visit.sight(), &name).await?;
    let why = look("the reason", site.client().why_queue(&name)).await?;
    let mut value = serde_json::to_value(view).unwrap_or_default();
    value["why"] = serde_json::to_value(why).unwrap_or_default();
    json(value)
}

pub(crate) async fn tasks(State(site): State<Arc<Site>>, visit: Visit) -> Read {
    let found = pages::find_tasks(&site, &visit).await?;
    let tasks: Vec<TaskView> = found.records.iter().map(|record| site.task_view(record, None)).collect();
    json(json!({
        "tasks": tasks,
        "next": found.next.as_ref().map(pages::cursor),
        "looked_at": found.looked_at,
        "listed": found.listed,
        "cut": found.cut,
        "unnamed": found.unnamed,
        "queued": found.queued,
    }))
}

pub(crate) async fn task(State(site): State<Arc<Site>>, Path(id): Path<String>, visit: Visit) -> Read {
    let record = site.record(visit.sight(), &actions::task_id(&id)?).await?;
    json(pages::task_view(&site, &record).await)
}

pub(crate) async fn task_log(State(site): State<Arc<Site>>, Path(id): Path<String>, visit: Visit) -> Read {
    let id: TaskId = actions::task_id(&id)?;
    site.check_task(visit.sight(), &id).await?;
    let log = look("the log", site.client().log(&id)).await?;
    json(TaskLogView::new(&log, &log.lines))
}

pub(crate) async fn task_why(State(site): State<Arc<Site>>, Path(id): Path<String>, visit: Visit) -> Read {
    let id = actions::task_id(&id)?;
    site.check_task(visit.sight(), &id).await?;
    json(Box::pin(look("the reason", site.client().why(&id))).await?)
}

pub(crate) async fn failures(State(site): State<Arc<Site>>, visit: Visit) -> Read {
    let seen = site.failures(visit.sight()).await;
    let failures = known(&seen)?;
    json(failures.groups.iter().map(FailureGroupView::from).collect::<Vec<_>>())
}

/// The history since the time that the address asks for.
pub(crate) async fn history(State(site): State<Arc<Site>>, visit: Visit) -> Read {
    let now = site.app.clock().now();
    let since = pages::since(&visit, now)?.unwrap_or_else(|| now.minus(RECENT));
    let name = |text| TaskName::parse(text).map_err(|error| WebError::wrong(format!("task: {error}")));
    let mut selection = HistorySelection::new();
    selection.queue = visit.query.get("queue").map(actions::queue_name).transpose()?;
    selection.task = visit.query.get("task").map(name).transpose()?;
    let mut history = look("the history", site.client().history(since, &selection)).await?;
    if !visit.sight().is_whole() {
        history.points.retain_mut(|point| visit.sight().reduce_point(point));
    }
    json(HistoryView::from(&history))
}

pub(crate) async fn workflow(State(site): State<Arc<Site>>, Path(root): Path<String>, visit: Visit) -> Read {
    json(Box::pin(pages::read_workflow(&site, visit.sight(), &root)).await?)
}

pub(crate) async fn members(
    State(site): State<Arc<Site>>,
    Path((root, step)): Path<(String, String)>,
    visit: Visit,
) -> Read {
    pages::check_workflow(visit.sight(), &root)?;
    let root = actions::task_id(&root)?;
    let limit = visit.limit(100, MAX_MEMBERS)?;
    let first: u32 = match visit.query.get("after") {
        None => 0,
        Some(text) => {
            let after: u32 =
                text.parse().map_err(|_| WebError::wrong(format!("after={text} is no index")))?;
            after.saturating_add(1)
        }
    };
    let members = look("the members", site.client().workflow_members(&root, &step, first, limit)).await?;
    let rows =
        (first..).zip(&members).map(|(index, (id, record))| MemberView::new(index, id, record.as_ref()));
    json(rows.collect::<Vec<_>>())
}

pub(crate) async fn letters(State(site): State<Arc<Site>>, visit: Visit) -> Read {
    let found = pages::find_letters(&site, &visit).await?;
    let tasks: Vec<TaskId> = found.letters.iter().filter_map(|letter| letter.task.clone()).collect();
    let places = look("the workflows", site.client().workflows_of(&tasks)).await?;
    let roots: BTreeMap<TaskId, TaskId> =
        tasks.into_iter().zip(places).filter_map(|(task, place)| Some((task, place?.root))).collect();
    let view = |letter| {
        let letter: &machinist::DeadLetter = letter;
        DeadLetterView::new(letter, letter.task.as_ref().and_then(|task| roots.get(task)))
    };
    json(json!({ "letters": found.letters.iter().map(view).collect::<Vec<_>>(), "more": found.has_more }))
}

/// The tasks that live workers know, with their arguments.
pub(crate) async fn registered(State(site): State<Arc<Site>>, visit: Visit) -> Read {
    json(known(&site.registered(visit.sight()).await)?)
}

pub(crate) async fn workers(State(site): State<Arc<Site>>, visit: Visit) -> Read {
    json(known(&site.workers(visit.sight()).await)?)
}

pub(crate) async fn worker(State(site): State<Arc<Site>>, Path(name): Path<String>, visit: Visit) -> Read {
    let seen = site.workers(visit.sight()).await;
    json(WorkerView::from(pages::known_worker(&seen, &name)?))
}

pub(crate) async fn periodic(State(site): State<Arc<Site>>, visit: Visit) -> Read {
    let seen = site.periodic(visit.sight()).await;
    json(known(&seen)?.iter().map(PeriodicView::from).collect::<Vec<_>>())
}

pub(crate) async fn periodic_task(
    State(site): State<Arc<Site>>,
    Path(name): Path<String>,
    visit: Visit,
) -> Read {
    look("the periodic task", actions::check_periodic(&site, visit.sight(), &name)).await?;
    let task = look("the periodic task", site.client().known_periodic_task(&name)).await?;
    json(PeriodicDetailsView::from(&task))
}

/// Answers with the description of the API.
pub(crate) async fn openapi(_visit: Visit) -> Response {
    ([(CONTENT_TYPE, "application/json")], crate::OPENAPI).into_response()
}

/// Answers with the error of a path that does not exist.
pub(crate) async fn unknown(_visit: Visit) -> WebError {
    WebError::unknown("the API has no such path, or not with this method")
        .remedy("api/openapi.json lists all")
}
