//! Collection of what the stores say about a task or a queue. Decides nothing.

use machinist_adapter::error::chain;

use super::situation::{Letter, QueueSituation, TaskSituation, WorkflowPart};
use crate::{
    affinity::with_base,
    backend::{BackendError, Index},
    broker::QueueDepth,
    client::Client,
    clock::Timestamp,
    dead_letters::letter_of,
    error::ResultError,
    fleet::WorkerFilter,
    id::{QueueName, RecordId, TaskId},
    left_out::left_out,
    limit::Limit,
    record::{DeadReason, Facts, Record, is_alive, name, newest_start, overdue_attempt},
    refused::RefusedMessages,
};

/// Number of running tasks whose names are read.
const NAMED_RUNS: usize = 40;
/// Number of queue names that are read, to find the one that was meant.
const KNOWN_QUEUES: usize = 1000;

/// Reason for which a message waits whose task no worker of its queue knows.
const UNREGISTERED: &str = DeadReason::Unregistered.as_str();

/// Reads all that a task's answer depends on.
pub(super) async fn task(client: &Client, id: &TaskId) -> Result<TaskSituation, ResultError> {
    let facts = client.read(id).await?;
    let now = client.app.clock().now();
    let mut situation = TaskSituation {
        id: id.clone(),
        record: None,
        session_lives: true,
        parked_last: facts.read(name::PARKED),
        overdue: overdue_attempt(&facts, now).is_some(),
        disabled: false,
        limit_source: None,
        limit_is_zero: false,
        letter: None,
        waits_unread: None,
        workflow: None,
        queue: None,
        now,
    };
    let Some(record) = client.app.full_record(id, facts.clone(), None).await? else {
        situation.workflow = unsent_step(client, id).await?;
        return Ok(situation);
    };
    situation.session_lives = session_lives(client, &record, &facts).await?;
    if facts.has(name::OUTLINE) {
        situation.workflow = root(client, id).await?;
    }
    let queue = record.queue.as_deref().and_then(|queue| QueueName::parse(queue).ok());
    if let Some(queue) = queue {
        let since = record.sent_at.unwrap_or(Timestamp::from_micros(0));
        let letter = letter_of(&client.app, &queue, id, record.attempt, since, record.state.is_final());
        situation.letter = letter.await?.map(|letter| Letter {
            reason: letter.reason.clone(),
            error: letter.error.message().to_owned(),
            id: letter.dead_id,
        });
        if !record.state.is_final() {
            // The workers say better whether they know the task.
            let unread = client.waiting_reason(id, &queue).await?;
            situation.waits_unread = unread.filter(|why| !why.starts_with(UNREGISTERED));
            situation.queue = Some(self::queue(client, queue).await?);
        }
    }
    let disabled = client.disabled_tasks().await?;
    situation.disabled = disabled.iter().any(|name| record.name.as_deref() == Some(name.as_str()));
    if let Some(parked) = &record.parked
        && let Some((limit, source)) = limit_of(client, &parked.reason).await?
    {
        situation.limit_is_zero = limit.is_paused();
        situation.limit_source = Some(source);
    }
    situation.record = Some(record);
    Ok(situation)
}

/// Reads all that a queue's answer depends on.
pub(super) async fn queue(client: &Client, name: QueueName) -> Result<QueueSituation, BackendError> {
    let everyone = WorkerFilter::new();
    let (workers, paused) = tokio::try_join!(client.workers(&everyone), client.paused_queues())?;
    let refused = RefusedMessages::read(client.app.backend().as_ref()).await;
    let refused = left_out("the counts of messages that workers did not accept", refused)?;
    let unread = refused.into_iter().find(|of| of.waiting && of.queue == name && of.reason != UNREGISTERED);
    let known = client.app.backend().list(&Index::Queues, None, KNOWN_QUEUES).await;
    let known = left_out("the names of the queues", known)?;
    let depth = client.app.broker().depth(std::slice::from_ref(&name)).await;
    let absent = QueueDepth { queue: name.clone(), ready: None, consumers: None, dead: None };
    let paused = with_base(&name).any(|queue| paused.contains(&*queue));
    let mut situation = QueueSituation {
        paused,
        depth: depth
            .map(|mut depths| depths.pop().unwrap_or(absent))
            .map_err(|error| chain(&error).join(": ")),
        known: known.into_iter().map(|(_, name)| name).collect(),
        unread: unread.map(|of| (format!("{}: {}", of.reason, of.error), of.count)),
        name,
        workers,
        running: Vec::new(),
    };
    situation.running = running(client, &situation).await?;
    Ok(situation)
}

/// Returns the names of the tasks that the workers of a queue run.
async fn running(client: &Client, queue: &QueueSituation) -> Result<Vec<String>, BackendError> {
    let runs = queue.consumers().flat_map(|worker| &worker.runs).take(NAMED_RUNS);
    let ids: Vec<RecordId> =
        runs.filter_map(|id| TaskId::parse(id).ok()).map(|id| RecordId::from(&id)).collect();
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let records = client.app.backend().read_each(&ids).await?;
    Ok(records.into_iter().filter_map(|facts| facts.ok()?.text(name::TASK)).collect())
}

/// Returns `false` if the session of the newest start is gone.
async fn session_lives(client: &Client, record: &Record, facts: &Facts) -> Result<bool, BackendError> {
    let Some(start) = newest_start(facts, record.attempt).filter(|_| !record.state.is_final()) else {
        return Ok(true);
    };
    // A record that cannot be used is no session. Its worker opens another.
    Ok(is_alive(&left_out("the session of its worker", client.read(&start.session).await)?))
}

/// Returns the limit that a task waits for, and its source.
async fn limit_of(client: &Client, reason: &str) -> Result<Option<(Limit, String)>, ResultError> {
    let Some((_, subject)) = reason.split_once(':') else { return Ok(None) };
    let limits = client.known_limits().await?;
    let is_of = |target: &str| {
        subject.strip_prefix(target).is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
    };
    let found = limits.into_iter().find(|(target, _)| is_of(&target.subject()));
    Ok(found.and_then(|(_, definitions)| definitions.into_iter().next()))
}

/// Returns the workflow of its root.
async fn root(client: &Client, id: &TaskId) -> Result<Option<WorkflowPart>, ResultError> {
    let Some(status) = client.workflow(id).await? else { return Ok(None) };
    let open = status.steps.iter().filter(|step| !step.state.is_final() && !step.is_error_callback);
    Ok(Some(WorkflowPart {
        root: id.clone(),
        done: status.progress.done,
        total: status.progress.total,
        missing: open.map(|step| step.name.clone()).collect(),
        incomplete: status.incomplete,
        ended: status.state.is_final(),
    }))
}

/// Returns the workflow of a step that has no record because it is not sent yet; `None` if the id is that of no step.
async fn unsent_step(client: &Client, id: &TaskId) -> Result<Option<WorkflowPart>, ResultError> {
    let Some(place) = client.workflows_of(std::slice::from_ref(id)).await?.pop().flatten() else {
        return Ok(None);
    };
    let Some(status) = client.workflow(&place.root).await? else { return Ok(None) };
    let first = place.path.as_deref().and_then(|path| path.split('.').next()).unwrap_or_default();
    let before = status.steps.iter().find(|step| step.name == first).map(|step| step.after.clone());
    let is_missing =
        |name: &String| status.steps.iter().any(|step| step.name == *name && !step.state.is_final());
    Ok(Some(WorkflowPart {
        root: place.root,
        done: status.progress.done,
        total: status.progress.total,
        missing: before.unwrap_or_default().into_iter().filter(is_missing).collect(),
        incomplete: status.incomplete,
        ended: status.state.is_final(),
    }))
}
