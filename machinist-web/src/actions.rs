//! Everything that the dashboard can change. The right is checked here, where the change is made, and each action is
//! logged: who, what, from where, and how it ended.

use std::{collections::BTreeSet, time::Duration};

use axum::http::StatusCode;
use machinist::{
    DeadFilter, DeadLetter, DeadLetterOutcome, OrderResult, QueueName, Revoked, Signature, TaskId, TaskName,
    WorkerAction, WorkerFilter, nearest,
    record::TaskState,
    view::{DeadLetterView, OrderView, SettledView},
    workflow_status::SentAgain,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{Right, access::Actor, sight::Sight, site::Site, web_error::WebError};

/// Maximum number of dead letters that one request changes.
pub(crate) const MAX_LETTERS: usize = 500;
/// Maximum length of a subject in the log, in characters.
const MAX_SUBJECT: usize = 200;

/// Result of an action: JSON for programs, and a sentence for people.
#[derive(Debug)]
pub(crate) struct ActionResult {
    pub(crate) body: Value,
    /// One sentence.
    pub(crate) text: String,
    /// `false` if a part of it was refused.
    pub(crate) is_whole: bool,
    /// Task that was sent by it.
    pub(crate) task: Option<String>,
}

impl ActionResult {
    fn whole(body: Value, text: impl Into<String>) -> Self {
        Self { body, text: text.into(), is_whole: true, task: None }
    }

    fn sent(body: Value, text: impl Into<String>, task: &TaskId) -> Self {
        Self { task: Some(task.to_string()), ..Self::whole(body, text) }
    }
}

/// Does something for which a right is needed, and logs it.
async fn act(
    site: &Site,
    actor: &Actor,
    right: Right,
    action: &str,
    subject: &str,
    acting: impl Future<Output = Result<ActionResult, WebError>>,
) -> Result<ActionResult, WebError> {
    let done = match actor.check(right) {
        Ok(()) => {
            let done = acting.await;
            // A failed action can have changed something too.
            site.expire();
            done
        }
        Err(refused) => Err(refused),
    };
    let subject: String = subject.chars().take(MAX_SUBJECT).collect();
    let from = actor.from.map_or_else(|| "unknown".to_owned(), |from| from.to_string());
    let user = actor.user.name();
    match &done {
        Ok(done) => {
            tracing::info!(target: "machinist::audit", user, from, action, subject, outcome = %done.text, "action");
        }
        Err(error) => {
            tracing::warn!(target: "machinist::audit", user, from, action, subject, refused = %error.text, "action");
        }
    }
    done
}

/// Returns the id of a task.
///
/// # Errors
/// The text is no id.
pub(crate) fn task_id(text: &str) -> Result<TaskId, WebError> {
    TaskId::parse(text).map_err(|error| WebError::unknown(format!("there is no task {text:?}: {error}")))
}

/// Returns the name of a queue.
///
/// # Errors
/// The text is no name.
pub(crate) fn queue_name(text: &str) -> Result<QueueName, WebError> {
    QueueName::parse(text).map_err(|error| WebError::unknown(format!("there is no queue {text:?}: {error}")))
}

/// Creates the error of a queue that does not exist, or is not seen.
pub(crate) fn unknown_queue(queue: &QueueName) -> WebError {
    WebError::unknown(format!("there is no queue {queue}"))
        .remedy("the page of all queues lists the known ones")
}

/// Sends a failed task or workflow again. A task that waits for its next run runs now.
pub(crate) async fn retry(site: &Site, actor: &Actor, id: &str) -> Result<ActionResult, WebError> {
    let acting = async {
        let (client, id) = (site.client(), task_id(id)?);
        site.check_task(actor.user.sight(), &id).await?;
        let (again, text) = match client.send_again(&id).await? {
            SentAgain::As(again) => (again, "It was sent again, as this task."),
            SentAgain::RunsNow => (id.clone(), "It runs as soon as a worker is free."),
        };
        Ok(ActionResult::sent(json!({"id": again, "retry_of": id}), text, &again))
    };
    act(site, actor, Right::Retry, "retry", id, acting).await
}

/// Revokes a task or a workflow.
pub(crate) async fn revoke(site: &Site, actor: &Actor, id: &str) -> Result<ActionResult, WebError> {
    let acting = async {
        let (client, id) = (site.client(), task_id(id)?);
        site.check_task(actor.user.sight(), &id).await?;
        if client.is_workflow(&id).await? {
            let (ended, asked) = client.revoke_workflow(&id).await?;
            let text = format!(
                "Nothing more of it starts. Tasks that ended: {ended}; running tasks asked to end: {asked}."
            );
            return Ok(ActionResult::whole(json!({"id": id, "ended": ended, "asked": asked}), text));
        }
        let (revoked, state, text) = match client.revoke(&id).await? {
            Revoked::Ended => ("ended", TaskState::Failure, "It will not run.".to_owned()),
            Revoked::Asked => ("asked", TaskState::Started, "It runs, and was asked to end.".to_owned()),
            Revoked::Already(state) => ("already", state, format!("It had ended already: {state}.")),
        };
        Ok(ActionResult::whole(json!({"id": id, "revoked": revoked, "state": state}), text))
    };
    let done = act(site, actor, Right::Revoke, "revoke", id, acting).await;
    site.app.flush_events().await;
    done
}

/// Call of a task, as a program sends it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TaskCall {
    pub(crate) name: String,
    #[serde(default)]
    args: Vec<Value>,
    #[serde(default)]
    named_args: Map<String, Value>,
    queue: Option<String>,
}

impl TaskCall {
    /// Creates a call with arguments in order.
    pub(crate) fn new(name: &str, args: Vec<Value>, queue: Option<&str>) -> Self {
        Self { name: name.to_owned(), args, named_args: Map::new(), queue: queue.map(str::to_owned) }
    }
}

/// Sends a new task. `subject` is the name that the request gives it, readable or not.
pub(crate) async fn send(
    site: &Site,
    actor: &Actor,
    subject: &str,
    call: Result<TaskCall, WebError>,
) -> Result<ActionResult, WebError> {
    let acting = async {
        let call = call?;
        let name = TaskName::parse(&call.name).map_err(|error| WebError::wrong(format!("name: {error}")))?;
        let mut signature = Signature::new(name.as_str());
        for value in call.args {
            signature = signature.arg(value);
        }
        for (name, value) in call.named_args {
            signature = signature.named_arg(name, value);
        }
        if let Some(queue) = &call.queue {
            let queue =
                QueueName::parse(queue).map_err(|error| WebError::wrong(format!("queue: {error}")))?;
            signature = signature.queue(queue.as_str());
        }
        let queue = call.queue.as_deref().unwrap_or_else(|| site.app.default_queue().as_str());
        if !actor.user.sight().task(Some(name.as_str()), Some(queue)) {
            let text = format!("user {:?} does not see this task in the queue {queue}", actor.user.name());
            return Err(WebError::forbidden(text).remedy("send it to another queue, or ask for more rights"));
        }
        let sent = site.client().send(signature).await?;
        Ok(ActionResult::sent(json!({"id": sent.id()}), "It was sent.", sent.id()))
    };
    act(site, actor, Right::Send, "send", subject, acting).await
}

fn answered(action: &str, id: &str, results: &[OrderResult]) -> ActionResult {
    let done = results.iter().filter(|result| result.done).count();
    let refused: Vec<&str> =
        results.iter().filter(|result| !result.done).map(|result| result.worker.as_str()).collect();
    let mut text = format!("{action}: {done} of {} workers have obeyed.", results.len());
    if !refused.is_empty() {
        text = format!("{text} Not obeyed: {}.", refused.join(", "));
    }
    let body = serde_json::to_value(OrderView::new(id, results)).unwrap_or_default();
    ActionResult { is_whole: refused.is_empty(), ..ActionResult::whole(body, text) }
}

/// Pauses a queue, or resumes it.
pub(crate) async fn switch_queue(
    site: &Site,
    actor: &Actor,
    queue: &str,
    pause: bool,
) -> Result<ActionResult, WebError> {
    let word = if pause { "pause queue" } else { "resume queue" };
    let acting = async {
        let (client, name) = (site.client(), queue_name(queue)?);
        if !actor.user.sight().queue(name.as_str()) {
            return Err(unknown_queue(&name));
        }
        let (id, results) =
            if pause { client.pause_queue(&name).await? } else { client.resume_queue(&name).await? };
        Ok(answered(if pause { "Paused" } else { "Resumed" }, &id, &results))
    };
    act(site, actor, Right::Control, word, queue, acting).await
}

/// Gives an order to one worker.
pub(crate) async fn order(
    site: &Site,
    actor: &Actor,
    worker: &str,
    action: WorkerAction,
) -> Result<ActionResult, WebError> {
    let word = format!("{} worker", action.as_str());
    let acting = async {
        let client = site.client();
        let mut workers = client.workers(&WorkerFilter::new()).await?;
        let sight = actor.user.sight();
        workers.retain(|live| sight.is_whole() || sight.reduce_worker(&mut live.clone()));
        let names: Vec<String> = workers.iter().map(|worker| worker.name.clone()).collect();
        workers.retain(|live| live.name == worker);
        if workers.is_empty() {
            let error = WebError::unknown(format!("no live worker is called {worker:?}"));
            return Err(match nearest(worker, names.iter().map(String::as_str)) {
                Some(meant) => error.remedy(format!("did you mean {meant}?")),
                None => error,
            });
        }
        if !workers.iter().all(|worker| sight.whole_worker(worker)) {
            let text = format!("user {:?} does not see everything that this worker does", actor.user.name());
            return Err(WebError::forbidden(text).remedy("ask somebody who sees all queues"));
        }
        let title = format!("Order {}", action.as_str());
        let (id, results) = client.order_workers(&workers, action, false).await?;
        Ok(answered(&title, &id, &results))
    };
    act(site, actor, Right::Control, &word, worker, acting).await
}

/// Creates the error of a group of failures that is not listed.
pub(crate) fn unknown_group(fingerprint: &str) -> WebError {
    WebError::unknown(format!("no listed failure has the fingerprint {fingerprint}"))
        .remedy("the page of failures lists the groups")
}

/// Silences a group of failures for a time; no time ends its silence.
pub(crate) async fn silence(
    site: &Site,
    actor: &Actor,
    fingerprint: &str,
    duration: Result<Duration, WebError>,
) -> Result<ActionResult, WebError> {
    let word = if duration.as_ref().is_ok_and(Duration::is_zero) {
        "list failures again"
    } else {
        "silence failures"
    };
    let acting = async {
        let duration = duration?;
        let sight = actor.user.sight();
        if !sight.is_whole() {
            let seen = site.failures(sight).await;
            let mut groups = seen.value.iter().flat_map(|all| &all.groups);
            if !groups.any(|group| group.fingerprint == fingerprint) {
                return Err(unknown_group(fingerprint));
            }
        }
        let until = site.client().silence_failures(fingerprint, duration).await?;
        let until = until.ok_or_else(|| unknown_group(fingerprint))?;
        let until = (!duration.is_zero()).then(|| until.to_string());
        let text = match &until {
            Some(until) => format!("It is silenced until {until}."),
            None => "It is listed again.".to_owned(),
        };
        Ok(ActionResult::whole(json!({ "fingerprint": fingerprint, "silenced_until": until }), text))
    };
    act(site, actor, Right::Control, word, fingerprint, acting).await
}

/// Change of a periodic task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PeriodicChange {
    Pause,
    Resume,
    Trigger,
}

/// Refuses a periodic task that is not seen, for those who do not see everything.
///
/// # Errors
/// There is none of this name that is seen, or the backend cannot be asked.
pub(crate) async fn check_periodic(site: &Site, sight: &Sight, name: &str) -> Result<(), WebError> {
    if sight.is_whole() {
        return Ok(());
    }
    let task = site.client().periodic_task(name).await?;
    match task.is_some_and(|task| sight.periodic(&task)) {
        true => Ok(()),
        false => Err(WebError::unknown(format!("there is no periodic task {name:?}"))
            .remedy("the page of periodic tasks lists them")),
    }
}

/// Changes a periodic task.
pub(crate) async fn change_periodic(
    site: &Site,
    actor: &Actor,
    name: &str,
    change: PeriodicChange,
) -> Result<ActionResult, WebError> {
    let word = match change {
        PeriodicChange::Pause => "pause periodic task",
        PeriodicChange::Resume => "resume periodic task",
        PeriodicChange::Trigger => "trigger periodic task",
    };
    let acting = async {
        let client = site.client();
        check_periodic(site, actor.user.sight(), name).await?;
        match change {
            PeriodicChange::Pause => {
                client.pause_periodic(name).await?;
                Ok(ActionResult::whole(json!({"name": name, "paused": true}), "It is paused."))
            }
            PeriodicChange::Resume => {
                client.resume_periodic(name).await?;
                Ok(ActionResult::whole(json!({"name": name, "paused": false}), "It is resumed."))
            }
            PeriodicChange::Trigger => {
                let sent = client.trigger_periodic(name).await?;
                let body = json!({"id": sent.id, "tick": sent.tick.to_string()});
                Ok(ActionResult::sent(body, "An extra tick was sent, as this task.", &sent.id))
            }
        }
    };
    act(site, actor, Right::Periodic, word, name, acting).await
}

/// Replays dead letters, or purges them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LetterChange {
    Replay,
    Purge,
}

/// Replays or purges dead letters that are named by their ids. What failed after the page was made is not among them.
pub(crate) async fn settle(
    site: &Site,
    actor: &Actor,
    ids: Result<Vec<String>, WebError>,
    change: LetterChange,
) -> Result<ActionResult, WebError> {
    let (right, word) = match change {
        LetterChange::Replay => (Right::Replay, "replay"),
        LetterChange::Purge => (Right::Purge, "purge"),
    };
    let subject = ids.as_ref().map(|ids| ids.join(" ")).unwrap_or_default();
    let acting = async {
        let ids = ids?;
        let ids: BTreeSet<&String> = ids.iter().collect();
        check_number(ids.len())?;
        let client = site.client();
        let dead_ids = Some(ids.iter().map(|id| (*id).clone()).collect());
        let filter = DeadFilter { dead_ids, ..DeadFilter::default() };
        let mut letters = client.dead_letters(&filter, ids.len()).await?;
        letters.retain(|letter| actor.user.sight().letter(letter));
        let mut settled: Vec<(DeadLetter, SettledView)> = Vec::new();
        let mut told = |letter: &DeadLetter, outcome: DeadLetterOutcome| {
            settled.push((letter.clone(), SettledView::from(&outcome)));
        };
        let pace = Duration::ZERO;
        match change {
            LetterChange::Replay => client.replay_dead_letters(&letters, pace, &mut told).await?,
            LetterChange::Purge => client.purge_dead_letters(&letters, pace, &mut told).await?,
        }
        Ok(settlement(&ids, &settled, word))
    };
    act(site, actor, right, &format!("{word} dead letters"), &subject, acting).await
}

fn check_number(letters: usize) -> Result<(), WebError> {
    match letters {
        0 => Err(WebError::wrong("no dead letter was selected").remedy("select some, or name their ids")),
        1..=MAX_LETTERS => Ok(()),
        letters => Err(WebError::wrong(format!("{letters} dead letters are too many for one request"))
            .remedy(format!("name {MAX_LETTERS} at most; `machinist dead` changes all that fit a filter"))),
    }
}

/// Returns what became of letters, in words. Those that are not found any more were settled by somebody else.
fn settlement(ids: &BTreeSet<&String>, settled: &[(DeadLetter, SettledView)], word: &str) -> ActionResult {
    let rows: Vec<_> = settled
        .iter()
        .map(|(letter, outcome)| DeadLetterView::new(letter, None).settled(outcome.clone()))
        .collect();
    let mut rows: Vec<Value> = rows.iter().map(|row| serde_json::to_value(row).unwrap_or_default()).collect();
    let is_known = |id: &String| settled.iter().any(|(letter, _)| letter.dead_id == *id);
    let gone: Vec<&String> = ids.iter().copied().filter(|id| !is_known(id)).collect();
    rows.extend(
        gone.iter()
            .map(|id| json!({"dead_id": id, "outcome": {"done": "missing", "why": "it is not listed"}})),
    );
    let count = |done: &str| settled.iter().filter(|(_, outcome)| outcome.done == done).count();
    let (replayed, purged, refused) = (count("replayed"), count("purged"), count("refused"));
    let missing = count("missing") + gone.len();
    let mut text =
        format!("{}: {}.", if word == "replay" { "Replayed" } else { "Purged" }, replayed + purged);
    if refused > 0 {
        let why = settled
            .iter()
            .find_map(|(_, outcome)| outcome.why.as_deref().filter(|_| outcome.done == "refused"));
        text = format!("{text} Refused: {refused}, as {}.", why.unwrap_or("no reason was given"));
    }
    if missing > 0 {
        text = format!("{text} Not there any more: {missing}.");
    }
    ActionResult { is_whole: refused == 0, ..ActionResult::whole(Value::Array(rows), text) }
}

/// Returns the error of a body that cannot be read.
pub(crate) fn unreadable(problem: &str) -> WebError {
    WebError::new(StatusCode::BAD_REQUEST, format!("the body cannot be read: {problem}"))
        .remedy("api/openapi.json describes it")
}
