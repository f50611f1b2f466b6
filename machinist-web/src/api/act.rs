//! Actions, for programs as JSON and for the forms of the pages. A form returns to the page that it came from.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{FromRequest, Path, Request},
    http::{
        HeaderMap, HeaderValue, StatusCode,
        header::{CONTENT_TYPE, LOCATION},
    },
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use machinist::{WorkerAction, settings::parse_duration};
use maud::html;
use serde::Deserialize;

use crate::{
    actions::{self, ActionResult, LetterChange, PeriodicChange, TaskCall},
    call_args, link,
    pages::{Frame, error_page, known_task},
    site::Site,
    visit::{QueryFields, Visit},
    web_error::WebError,
};

/// Request that changes something.
#[derive(Debug)]
pub(crate) struct ActionRequest {
    visit: Visit,
    /// Fields of a form; `None` for a program.
    form: Option<QueryFields>,
    body: Bytes,
}

impl FromRequest<Arc<Site>> for ActionRequest {
    type Rejection = Response;

    async fn from_request(request: Request, site: &Arc<Site>) -> Result<Self, Response> {
        use axum::RequestExt as _;
        let mut request = request;
        let visit: Visit =
            request.extract_parts_with_state(site).await.map_err(IntoResponse::into_response)?;
        let is_form = is_form(request.headers());
        let body = Bytes::from_request(request, site).await.map_err(IntoResponse::into_response)?;
        Ok(Self { visit, form: is_form.then(|| QueryFields::parse(&body)), body })
    }
}

fn is_form(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    kind.starts_with(b"application/x-www-form-urlencoded")
}

/// Ids of dead letters, as a program sends them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LetterIds {
    ids: Vec<String>,
}

impl ActionRequest {
    /// Returns the ids of dead letters that the request names.
    fn ids(&self) -> Result<Vec<String>, WebError> {
        match &self.form {
            Some(form) => Ok(form.all("ids")),
            None => {
                let body: Result<LetterIds, _> = serde_json::from_slice(&self.body);
                body.map(|body| body.ids).map_err(|error| actions::unreadable(&error.to_string()))
            }
        }
    }

    /// Acts and answers. The action goes on if the client hangs up, so that its end is logged.
    async fn finish<F, A>(self, word: &str, action: A) -> Response
    where
        A: FnOnce(Visit) -> F,
        F: Future<Output = Result<ActionResult, WebError>> + Send + 'static,
    {
        let acting = tokio::spawn(action(self.visit.clone()));
        let outcome = acting.await.unwrap_or_else(|error| Err(WebError::away(error.to_string())));
        match &self.form {
            Some(form) => self.show(word, form, outcome),
            None => outcome.map(|done| Json(done.body)).into_response(),
        }
    }

    /// Answers a form: with the page that it came from, or with the reason that it is not all done.
    fn show(&self, word: &str, form: &QueryFields, outcome: Result<ActionResult, WebError>) -> Response {
        let back = link::back(form.text("back"));
        let frame = Frame { here: back, ..Frame::of(&self.visit) };
        match outcome {
            Ok(done) if done.is_whole => {
                see(&format!("{}{}", self.visit.root, with_notice(back, word, done.task.as_deref())))
            }
            Ok(done) => {
                let content = html! {
                    p.problem role="status" { (done.text) }
                    p { a href={ (self.visit.root) (back) } { "Back" } }
                };
                frame.page("Not all is done", &content).into_response()
            }
            Err(error) => error_page(&frame, &error),
        }
    }
}

/// Adds the notice about an action to an address.
fn with_notice(back: &str, word: &str, task: Option<&str>) -> String {
    let (page, query) = back.split_once('?').unwrap_or((back, ""));
    let query = QueryFields::parse(query.as_bytes());
    let mut parameters = query.without(&crate::visit::NOTICE);
    parameters.push(("done", word));
    parameters.extend(task.map(|task| ("sent", task)));
    link::list(page, &parameters)
}

fn see(location: &str) -> Response {
    match HeaderValue::from_str(location) {
        Ok(location) => (StatusCode::SEE_OTHER, [(LOCATION, location)]).into_response(),
        Err(_) => StatusCode::BAD_REQUEST.into_response(),
    }
}

pub(crate) async fn retry_task(Path(id): Path<String>, order: ActionRequest) -> Response {
    order.finish("retry", |visit| async move { actions::retry(&visit.site, &visit.actor, &id).await }).await
}

pub(crate) async fn revoke_task(Path(id): Path<String>, order: ActionRequest) -> Response {
    order.finish("revoke", |visit| async move { actions::revoke(&visit.site, &visit.actor, &id).await }).await
}

pub(crate) async fn send_task(order: ActionRequest) -> Response {
    let (body, form) = (order.body.clone(), order.form.clone());
    let send = |visit: Visit| async move {
        let site = &visit.site;
        let (subject, call) = match &form {
            Some(form) => (form.text("name").to_owned(), call_of(&visit, form).await),
            None => {
                let call: Result<TaskCall, _> = serde_json::from_slice(&body);
                let subject = call.as_ref().map(|call| call.name.clone()).unwrap_or_default();
                (subject, call.map_err(|error| actions::unreadable(&error.to_string())))
            }
        };
        actions::send(site, &visit.actor, &subject, call).await
    };
    order.finish("send", send).await
}

/// Returns the call that a form describes. The types of its fields are those that live workers tell now.
///
/// # Errors
/// No live worker knows the task, or a field does not fit.
async fn call_of(visit: &Visit, form: &QueryFields) -> Result<TaskCall, WebError> {
    let seen = visit.site.registered(visit.sight()).await;
    let task = known_task(&seen, form.text("name"))?;
    let args = call_args::read(task.args.as_deref(), &form.all("arg")).map_err(WebError::wrong)?;
    Ok(TaskCall::new(&task.name, args, form.get("queue")))
}

async fn switch_queue(order: ActionRequest, name: String, pause: bool) -> Response {
    let word = if pause { "pause" } else { "resume" };
    let switch =
        |visit: Visit| async move { actions::switch_queue(&visit.site, &visit.actor, &name, pause).await };
    order.finish(word, switch).await
}

pub(crate) async fn pause_queue(Path(name): Path<String>, order: ActionRequest) -> Response {
    switch_queue(order, name, true).await
}

pub(crate) async fn resume_queue(Path(name): Path<String>, order: ActionRequest) -> Response {
    switch_queue(order, name, false).await
}

async fn order_worker(order: ActionRequest, name: String, action: WorkerAction) -> Response {
    let word = action.as_str();
    let give = |visit: Visit| async move { actions::order(&visit.site, &visit.actor, &name, action).await };
    order.finish(word, give).await
}

pub(crate) async fn pause_worker(Path(name): Path<String>, order: ActionRequest) -> Response {
    order_worker(order, name, WorkerAction::Pause).await
}

pub(crate) async fn resume_worker(Path(name): Path<String>, order: ActionRequest) -> Response {
    order_worker(order, name, WorkerAction::Resume).await
}

pub(crate) async fn drain_worker(Path(name): Path<String>, order: ActionRequest) -> Response {
    order_worker(order, name, WorkerAction::Drain).await
}

/// Time for which a group of failures is silenced, as a program sends it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SilenceTime {
    #[serde(rename = "for")]
    duration: Option<String>,
}

/// Time for which a group is silenced if the request names none.
const SILENCE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Reads the time for which a group is silenced.
///
/// # Errors
/// It is no duration, or the body cannot be read.
fn silence_time(order: &ActionRequest) -> Result<Duration, WebError> {
    let text = match &order.form {
        Some(form) => form.get("for").map(str::to_owned),
        None if order.body.is_empty() => None,
        None => {
            let body: Result<SilenceTime, _> = serde_json::from_slice(&order.body);
            body.map_err(|error| actions::unreadable(&error.to_string()))?.duration
        }
    };
    let Some(text) = text else { return Ok(SILENCE) };
    parse_duration(&text).map_err(|problem| WebError::wrong(format!("for={text}: {problem}")))
}

pub(crate) async fn silence_group(Path(fingerprint): Path<String>, order: ActionRequest) -> Response {
    let duration = silence_time(&order);
    let silence = |visit: Visit| async move {
        actions::silence(&visit.site, &visit.actor, &fingerprint, duration).await
    };
    order.finish("silence", silence).await
}

pub(crate) async fn unsilence_group(Path(fingerprint): Path<String>, order: ActionRequest) -> Response {
    let end = |visit: Visit| async move {
        actions::silence(&visit.site, &visit.actor, &fingerprint, Ok(Duration::ZERO)).await
    };
    order.finish("unsilence", end).await
}

async fn change_periodic(order: ActionRequest, name: String, word: &str, change: PeriodicChange) -> Response {
    let change = |visit: Visit| async move {
        actions::change_periodic(&visit.site, &visit.actor, &name, change).await
    };
    order.finish(word, change).await
}

pub(crate) async fn pause_periodic(Path(name): Path<String>, order: ActionRequest) -> Response {
    change_periodic(order, name, "pause", PeriodicChange::Pause).await
}

pub(crate) async fn resume_periodic(Path(name): Path<String>, order: ActionRequest) -> Response {
    change_periodic(order, name, "resume", PeriodicChange::Resume).await
}

pub(crate) async fn trigger_periodic(Path(name): Path<String>, order: ActionRequest) -> Response {
    change_periodic(order, name, "trigger", PeriodicChange::Trigger).await
}

async fn settle(order: ActionRequest, word: &str, change: LetterChange) -> Response {
    let ids = order.ids();
    let settle = |visit: Visit| async move { actions::settle(&visit.site, &visit.actor, ids, change).await };
    order.finish(word, settle).await
}

pub(crate) async fn replay_letters(order: ActionRequest) -> Response {
    settle(order, "replay", LetterChange::Replay).await
}

pub(crate) async fn purge_letters(order: ActionRequest) -> Response {
    settle(order, "purge", LetterChange::Purge).await
}
