//! Sending to a queue that another program shares: what that program looks for comes first, then the messages.
//!
//! A workflow becomes several messages there. A sender that dies between them has not been told that they were sent;
//! sending the workflow again completes it, because every id follows from its root.

use std::{collections::HashMap, sync::Arc};

use super::{
    Client,
    nested_workflow::{FirstTask, nest},
};
use crate::{
    args::Results,
    backend::{BackendError, Commit, Expiry},
    broker::PublishError,
    clock::Timestamp,
    error::SendError,
    flow::{Flow, Outline},
    id::{QueueName, TaskId},
    mirror::{Mirror, SentGroup, SentTask},
    prepared_signature::PreparedSignature,
    record::{self, name},
    result::AsyncResult,
    signature::{SignatureParts, When},
    workflow::{Sendable, SendableParts},
};

impl Client {
    /// Returns `true` if this is a workflow whose queue has the format of another program that can hold it.
    pub(super) fn is_nested(&self, sendable: &SendableParts) -> bool {
        let nests =
            |queue: &QueueName| self.app.0.rules.profile(queue).is_some_and(|profile| profile.nests());
        sendable.parts.flow.is_some()
            && sendable.parts.queue_name(&self.app.0.default_queue).is_ok_and(|queue| nests(&queue))
    }

    /// Sends some workflows in the format of another program, and what stands between them.
    pub(super) async fn send_some_nested<S: Sendable>(
        &self,
        all: Vec<SendableParts>,
    ) -> Vec<Result<AsyncResult<S::ResultType>, SendError>> {
        let mut answers = Vec::with_capacity(all.len());
        for one in all {
            if self.is_nested(&one) {
                answers.push(self.send_nested(one).await.map(AsyncResult::typed));
            } else {
                answers.extend(self.send_parts(vec![one]).await);
            }
        }
        answers
    }

    /// Sends a workflow in the format of another program.
    async fn send_nested(&self, sendable: SendableParts) -> Result<AsyncResult<Results>, SendError> {
        let SendableParts { mut parts, outline, result, .. } = sendable;
        let id = parts.id.clone();
        let now = self.app.0.clock.latest();
        let queue = parts.queue_name(&self.app.0.default_queue)?;
        let due = parts.when.at(now).max(now);
        super::check(&parts, due, None, now)?;
        let invalid = |why: String| SendError::Invalid(format!("workflow {id}: {why}"));
        if parts.require_worker {
            return Err(invalid("it cannot require a worker in the format of another program".to_owned()));
        }
        if parts.expires.is_some() {
            return Err(invalid("the format of its queue has no expiry; leave it out".to_owned()));
        }
        let mut flow = parts.flow.take().unwrap_or_default();
        // A step that names no queue goes where the workflow goes, as in the other program.
        flow.steps.iter_mut().for_each(|step| step.fill_queue(queue.as_str()));
        self.check_flow(&id, &mut flow)?;
        self.check_format(&queue, &flow).map_err(invalid)?;
        let result = result.unwrap_or_else(|| id.clone());
        let format = self.app.0.rules.profile(&queue).map_or("another program", |profile| profile.name());
        let nested = nest(&id, &flow, &result)
            .map_err(|why| invalid(format!("it cannot be written as {format}: {why}")))?;
        let mut prepared = Vec::with_capacity(nested.first.len());
        for first in nested.first {
            prepared.push(self.prepare(first_task(first, &parts, now)));
        }
        if !self.app.0.depths.is_empty() {
            self.refuse_for_full_queues(&mut prepared).await;
        }
        if let Some(at) = prepared.iter().position(Result::is_err) {
            prepared.swap_remove(at)?;
        }
        // What others have to find is there before the first message: the group of a chord, and what its result depends on.
        let later = nested.later.iter().map(|(task, name, queue)| task_facts(task, name, queue, now));
        let mut plan: Vec<Commit> = later.collect();
        plan.push(root_facts(&id, &queue, outline, now));
        if !(nested.awaited.before.is_empty() && nested.awaited.parts.is_empty()) {
            let mut commit = Commit::new(result.clone());
            commit.facts.push((name::AWAITED.into(), record::json(&nested.awaited)));
            plan.push(commit);
        }
        let failed = |source| SendError::Record { id: id.clone(), source };
        let plan = plan.into_iter().map(|commit| kept(commit, &parts, now).into()).collect();
        for written in self.app.0.backend.commit(plan).await {
            written.map_err(failed)?;
        }
        let groups: Vec<_> = nested
            .groups
            .into_iter()
            .map(|(id, members)| SentGroup { due, ..SentGroup::new(id, members, now) })
            .collect();
        if let Some(mirror) = self.app.0.rules.mirror(&queue) {
            mirror.sending(&[], &groups).await.map_err(failed)?;
        } else if !groups.is_empty() {
            let why = "its groups need a record in the store of the other program, and the queue has none; set result_backend";
            return Err(invalid(why.to_owned()));
        }
        self.publish_all(&id, prepared).await?;
        Ok(AsyncResult::sent(self.app.clone(), result).of_queue(queue).of_workflow(id))
    }

    /// Publishes the messages of a workflow: all of them, or an error.
    async fn publish_all(
        &self,
        id: &TaskId,
        prepared: Vec<Result<PreparedSignature, SendError>>,
    ) -> Result<(), SendError> {
        let count = prepared.len();
        let answers = self.publish::<Results>(prepared).await;
        let certain = |answer: &Result<_, SendError>| answer.as_ref().is_err_and(|error| !error.is_unknown());
        let unsent = answers.iter().filter(|answer| certain(answer)).count();
        let Some(error) = answers.into_iter().find_map(Result::err) else { return Ok(()) };
        if unsent == count {
            return Err(error);
        }
        let why = format!("{unsent} of its {count} messages were certainly not sent; send it again: {error}");
        Err(SendError::Publish { id: id.clone(), source: PublishError::Unknown(why.into()) })
    }

    /// Checks that all steps have the format of the queue.
    fn check_format(&self, queue: &QueueName, flow: &Flow) -> Result<(), String> {
        let format =
            |queue: &QueueName| self.app.0.rules.profile(queue).map(|profile| profile.name().to_owned());
        let mut open = vec![flow];
        while let Some(flow) = open.pop() {
            let catches = flow.catch.iter().map(|catch| &catch.step);
            for step in flow.steps.iter().chain(catches) {
                let own = QueueName::parse(&step.queue).ok();
                if own.is_none_or(|own| format(&own) != format(queue)) {
                    return Err(format!(
                        "step {:?} goes to queue {}, which has another format than queue {queue}; a workflow has one",
                        step.name, step.queue
                    ));
                }
                open.push(&step.flow);
            }
        }
        Ok(())
    }

    /// Shows the tasks to the programs that share their queues. Those that could not be shown are not sent.
    pub(super) async fn show_sending(&self, prepared: &mut [Result<PreparedSignature, SendError>]) {
        if !self.app.0.rules.has_mirrors() {
            return;
        }
        for (mirror, places) in self.mirrored_places(prepared) {
            let tasks: Vec<SentTask> =
                places.iter().filter_map(|at| prepared[*at].as_ref().ok()?.sent.clone()).collect();
            let Err(error) = mirror.sending(&tasks, &[]).await else { continue };
            // The source of an error belongs to one of them.
            let text = machinist_adapter::error::chain(&error).join(": ");
            for at in places {
                let Ok(task) = &prepared[at] else { continue };
                let source = BackendError::Unavailable(text.clone().into());
                prepared[at] = Err(SendError::Record { id: task.sending.id.clone(), source });
            }
        }
    }

    /// Takes back what was shown of tasks that are certainly not queued.
    pub(super) async fn show_not_sent(&self, tasks: &[(QueueName, SentTask)]) {
        for (queue, task) in tasks {
            let Some(mirror) = self.app.0.rules.mirror(queue) else { continue };
            if let Err(error) = mirror.not_sent(std::slice::from_ref(task)).await {
                tracing::warn!(id = %task.id, %error, "the state of a task that was not sent remains as PENDING");
            }
        }
    }

    /// Returns the places of the tasks of each mirror.
    fn mirrored_places(
        &self,
        prepared: &[Result<PreparedSignature, SendError>],
    ) -> Vec<(Arc<dyn Mirror>, Vec<usize>)> {
        let mut places: HashMap<QueueName, Vec<usize>> = HashMap::new();
        for (at, task) in prepared.iter().enumerate() {
            let Ok(task) = task else { continue };
            places.entry(task.sending.queue.clone()).or_default().push(at);
        }
        let mirror = |(queue, places)| Some((Arc::clone(self.app.0.rules.mirror(&queue)?), places));
        places.into_iter().filter_map(mirror).collect()
    }
}

/// Returns what is sent of a step that follows nothing.
fn first_task(first: FirstTask, root: &SignatureParts, now: Timestamp) -> SendableParts {
    let FirstTask { id, step, nested } = first;
    let due = step.countdown().map_or(root.when, |while_| When::At(root.when.at(now).max(now).plus(while_)));
    let parts = SignatureParts {
        id,
        name: step.task,
        args: step.args,
        queue: Some(step.queue),
        when: due,
        retry: step.retry,
        timeout: step.timeout_ms.map(std::time::Duration::from_millis),
        soft_timeout: step.soft_timeout_ms.map(std::time::Duration::from_millis),
        priority: step.priority,
        headers: step.headers,
        ..crate::signature::Signature::<Results>::typed(String::new(), Vec::new()).parts
    };
    SendableParts { nested, ..SendableParts::from(parts) }
}

fn task_facts(id: &TaskId, task: &str, queue: &str, now: Timestamp) -> Commit {
    let text = |text: &str| bytes::Bytes::copy_from_slice(text.as_bytes());
    let mut commit = Commit::new(id.clone());
    commit.facts = vec![
        (name::TASK.into(), text(task)),
        (name::QUEUE.into(), text(queue)),
        (name::SENT.into(), record::json(&now)),
    ];
    commit
}

/// Returns the facts of the root, which is not sent: no task has its id.
fn root_facts(id: &TaskId, queue: &QueueName, outline: Option<Outline>, now: Timestamp) -> Commit {
    let mut commit = task_facts(id, crate::builtin::WORKFLOW_TASK, queue.as_str(), now);
    commit.facts.extend(outline.map(|outline| (name::OUTLINE.into(), record::json(&outline))));
    commit
}

/// Keeps what a commit writes for as long as the workflow may wait and run.
fn kept(mut commit: Commit, root: &SignatureParts, now: Timestamp) -> Commit {
    commit.expiry = Expiry::AfterUnlessSet(root.when.at(now).since(now) + record::UNFINISHED_TTL);
    commit
}
