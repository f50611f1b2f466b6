//! Sending signatures, so that *Ok* means what it says: the broker has them.

mod nested_workflow;
mod prepared_send;
mod send_buffered;
mod send_nested;
mod send_within;
mod unique_key;

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;

use crate::{
    app::App,
    args::Results,
    backend::{Commit, Expiry, Index, IndexUpdate},
    broker::{Message, Publish, PublishError, Target},
    clock::Timestamp,
    delay::keep_for,
    error::SendError,
    event::{EventKind, EventTask},
    flow::{Flow, StepPlace},
    id::{QueueName, TaskId, TaskName},
    limit::MAX_BURST,
    mirror::SentTask,
    prepared_signature::{PreparedSignature, RetriedSend, Sending},
    record::{self, Counters, FactName, Facts, Failure, FailureKind, name},
    result::AsyncResult,
    sent_name::check_sent_name,
    signature::{SignatureParts, When},
    trace::TraceContext,
    wire::{Body, Envelope, FirstSigner, NestedTasks, Oversize, Pairs, message_to_fact},
    workflow::{Sendable, SendableParts},
};

pub use prepared_send::PreparedSend;
pub use send_buffered::BufferedSend;
use unique_key::ClaimAnswer;

/// Sends signatures. Cheap to clone; share one per process.
///
/// # Examples
/// ```
/// # use machinist_core::{TaskDef, TaskError};
/// # const ADD: TaskDef<(i64, i64), i64> = TaskDef::new("add");
/// # async fn add(a: i64, b: i64) -> Result<i64, TaskError> { Ok(a + b) }
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let app = machinist_test::TestApp::new(|worker| worker.task(ADD, add)).await;
/// # let client = app.client();
/// use std::time::Duration;
///
/// let client = app.client();
/// let sum = client.send(ADD.call((2, 3))).await?;
/// // A worker runs it, in this process or in another.
/// # app.drain().await;
/// assert_eq!(sum.wait(Duration::from_secs(30)).await?, 5);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Client {
    pub(crate) app: App,
}

/// Maximum length of the id of a workflow's root, in bytes: the ids of its tasks are longer.
const MAX_ROOT_ID: usize = 150;

impl App {
    /// Returns a client that sends signatures.
    pub fn client(&self) -> Client {
        Client { app: self.clone() }
    }
}

impl Client {
    /// Returns the application whose client this is.
    pub fn app(&self) -> &App {
        &self.app
    }

    /// Sends a signature or a workflow. `Ok` means that the broker has confirmed it: stored and in its queue. The result of
    /// a workflow is that of its last task.
    ///
    /// Sending the same one again (after [`PublishError::Unknown`] or [`PublishError::Nacked`], say) is safe: it
    /// keeps its id, and runs once. Until then the task is PENDING.
    ///
    /// # Errors
    /// [`SendError`]. After an error that is not [`SendError::is_unknown`] the task is certainly not queued.
    ///
    /// # Cancel safety
    /// A dropped future leaves the task either queued or not; sending the signature again is safe.
    ///
    /// # Examples
    /// ```
    /// # use machinist_core::{TaskDef, TaskError};
    /// # const ADD: TaskDef<(i64, i64), i64> = TaskDef::new("add");
    /// # async fn add(a: i64, b: i64) -> Result<i64, TaskError> { Ok(a + b) }
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let app = machinist_test::TestApp::new(|worker| worker.task(ADD, add)).await;
    /// # let client = app.client();
    /// let signature = ADD.call((2, 3)).retries(5);
    /// // Both have the same id, so the task runs once.
    /// let sum = match client.send(signature.clone()).await {
    ///     Err(error) if error.is_unknown() => client.send(signature).await?,
    ///     sent => sent?,
    /// };
    /// println!("sent {}", sum.id());
    /// # Ok(())
    /// # }
    /// ```
    pub async fn send<S: Sendable>(&self, what: S) -> Result<AsyncResult<S::ResultType>, SendError> {
        let mut sent = self.send_all(vec![what]).await;
        // INVARIANT: one answer for each signature.
        sent.pop().expect("one answer")
    }

    /// Sends many signatures or workflows at once, confirmed together: one answer for each, in their order.
    ///
    /// # Errors
    /// One signature's error says nothing about its neighbours.
    ///
    /// # Cancel safety
    /// As [`send`](Self::send), for each of them.
    ///
    /// # Examples
    /// ```
    /// # use machinist_core::{TaskDef, TaskError};
    /// # const ADD: TaskDef<(i64, i64), i64> = TaskDef::new("add");
    /// # async fn add(a: i64, b: i64) -> Result<i64, TaskError> { Ok(a + b) }
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let app = machinist_test::TestApp::new(|worker| worker.task(ADD, add)).await;
    /// # let client = app.client();
    /// let signatures = (1..=3).map(|n| ADD.call((n, n))).collect();
    /// for sent in client.send_all(signatures).await {
    ///     println!("sent {}", sent?.id());
    /// }
    /// # assert_eq!(app.drain().await.len(), 3);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn send_all<S: Sendable>(
        &self,
        all: Vec<S>,
    ) -> Vec<Result<AsyncResult<S::ResultType>, SendError>> {
        let all: Vec<_> = all.into_iter().map(Sendable::into_parts).collect();
        if all.iter().any(|one| self.is_nested(one)) {
            return Box::pin(self.send_some_nested::<S>(all)).await;
        }
        self.send_parts(all).await
    }

    /// Sends signatures, each as one message.
    async fn send_parts<R>(&self, all: Vec<SendableParts>) -> Vec<Result<AsyncResult<R>, SendError>> {
        let mut prepared = Vec::with_capacity(all.len());
        for one in all {
            prepared.push(self.prepare_debounced(one).await);
        }
        self.send_prepared(prepared).await
    }

    /// Prepares a signature to be sent now. The start of a debounced one is decided before.
    async fn prepare_debounced(&self, mut one: SendableParts) -> Result<PreparedSignature, SendError> {
        if one.parts.unique.is_some() {
            Box::pin(self.debounce(&mut one.parts)).await?;
        }
        self.prepare(one)
    }

    /// Checks and prepares a signature that is tried until it is sent. A delay and an expiry count from now.
    fn prepare_retried(&self, sendable: SendableParts) -> Result<RetriedSend, SendError> {
        let is_debounced = sendable.parts.unique.as_ref().is_some_and(|unique| unique.debounce.is_some());
        let debounced = is_debounced.then(|| {
            let mut kept = sendable.clone();
            let now = self.app.0.clock.latest();
            kept.parts.expires = kept.parts.expires.map(|expires| When::At(expires.at(now)));
            Box::new(kept)
        });
        Ok(RetriedSend { prepared: self.prepare(sendable)?, debounced })
    }

    /// Tries to send a signature.
    async fn try_send<R>(&self, what: &RetriedSend) -> Result<AsyncResult<R>, SendError> {
        let prepared = match &what.debounced {
            Some(parts) => self.prepare_debounced(SendableParts::clone(parts)).await,
            None => Ok(what.prepared.at(self.app.0.clock.latest(), self.app.broker().as_ref())),
        };
        let mut sent = self.send_prepared(vec![prepared]).await;
        // INVARIANT: one answer for each signature.
        sent.pop().expect("one answer")
    }

    /// Sends what was prepared. Returns one answer for each, in their order.
    async fn send_prepared<R>(
        &self,
        mut prepared: Vec<Result<PreparedSignature, SendError>>,
    ) -> Vec<Result<AsyncResult<R>, SendError>> {
        let depths = &self.app.0.depths;
        // Those that are not sent leave the batch, so that the answers of the others keep their places.
        let mut unsent = BTreeMap::new();
        if !depths.is_empty() {
            let existing = Box::pin(self.refuse_for_full_queues(&mut prepared)).await;
            let existing = existing.into_iter();
            unsent
                .extend(existing.map(|(place, id)| (place, Ok(AsyncResult::existing(self.app.clone(), id)))));
        }
        let is_asked_about = |task: &Result<PreparedSignature, _>| {
            task.as_ref().is_ok_and(|task| task.unique.is_some() || task.require_worker)
        };
        if !prepared.iter().any(is_asked_about) {
            return self.publish(prepared).await;
        }
        let number = prepared.len();
        let mut claims = BTreeMap::new();
        for (place, slot) in prepared.iter_mut().enumerate() {
            let Ok(task) = slot else { continue };
            if unsent.contains_key(&place) {
                continue;
            }
            if task.require_worker {
                let ended = Box::pin(self.end_without_worker(task)).await;
                if let Some(answer) = ended.transpose() {
                    depths.discount(&task.sending.queue);
                    unsent.insert(place, answer.map(|id| AsyncResult::sent(self.app.clone(), id)));
                    continue;
                }
            }
            let Some(unique) = task.unique.take() else { continue };
            let answer = match Box::pin(self.claim(task, &unique)).await {
                Ok(ClaimAnswer::Send(claim)) => {
                    claims.insert(place, (unique, claim));
                    continue;
                }
                Ok(ClaimAnswer::Existing(id)) => Ok(AsyncResult::existing(self.app.clone(), id)),
                Err(error) => Err(error),
            };
            depths.discount(&task.sending.queue);
            unsent.insert(place, answer);
        }
        let kept = prepared.into_iter().enumerate().filter(|(place, _)| !unsent.contains_key(place));
        let kept = kept.map(|(_, task)| task).collect();
        let mut sent = self.publish(kept).await.into_iter();
        let answer = |place| unsent.remove(&place).or_else(|| sent.next());
        let answers: Vec<_> = (0..number).filter_map(answer).collect();
        for (place, (unique, claim)) in &claims {
            let Some(answer) = answers.get(*place) else { continue };
            self.note_sent(unique, claim, answer.as_ref().map(drop)).await;
        }
        answers
    }

    /// Refuses the tasks whose queues are full, before any key is claimed: a task that would replace another one and cannot
    /// be sent must not end that one. Returns the tasks that are the answers to unique ones which would not be sent in any
    /// case, by the places of those.
    async fn refuse_for_full_queues(
        &self,
        prepared: &mut [Result<PreparedSignature, SendError>],
    ) -> BTreeMap<usize, TaskId> {
        let mut existing = BTreeMap::new();
        for (place, slot) in prepared.iter_mut().enumerate() {
            let Ok(task) = slot else { continue };
            let Sending { id, queue, .. } = &task.sending;
            let Err(full) = self.app.0.depths.count(self.app.broker().as_ref(), queue).await else {
                continue;
            };
            let error = match self.answer_unsent(task).await {
                Some(Ok(id)) => {
                    existing.insert(place, id);
                    continue;
                }
                Some(Err(error)) => error,
                None => {
                    let (id, queue) = (id.clone(), queue.clone());
                    SendError::QueueFull { id, queue, depth: full.depth, most: full.most }
                }
            };
            *slot = Err(error);
        }
        existing
    }

    /// Ends a task that is not sent, because no live worker consumes its queue and knows its name. Returns its id, or
    /// `None` if there is such a worker.
    async fn end_without_worker(&self, task: &PreparedSignature) -> Result<Option<TaskId>, SendError> {
        let Sending { id, name, queue, .. } = &task.sending;
        let failed = |source| SendError::Workers { id: id.clone(), source };
        if self.has_worker(queue, name).await.map_err(failed)? {
            return Ok(None);
        }
        let app = &self.app.0;
        let why = format!(
            "no live worker takes tasks from queue {queue} and knows the task {name}; it was not sent"
        );
        let failure = Failure::new(FailureKind::NoWorker, &*why);
        let facts = Facts::new();
        let mut commit =
            record::failure_without_run(id, &facts, 1, failure, app.clock.now(), app.results_ttl);
        commit.facts.extend(task.facts.facts.iter().cloned());
        self.commit(app.trust.sign_end(commit)).await.map_err(failed)?;
        Ok(Some(id.clone()))
    }

    /// Publishes and records prepared signatures; one answer for each, in their order.
    pub(crate) async fn publish<R>(
        &self,
        mut prepared: Vec<Result<PreparedSignature, SendError>>,
    ) -> Vec<Result<AsyncResult<R>, SendError>> {
        let app = &self.app.0;
        self.show_sending(&mut prepared).await;
        let mut shown: BTreeMap<TaskId, (QueueName, SentTask)> = BTreeMap::new();
        let mut batch = Vec::with_capacity(prepared.len());
        let mut facts = Vec::with_capacity(prepared.len());
        let sending: Vec<Result<Sending, SendError>> = prepared
            .into_iter()
            .map(|prepared| {
                let prepared = prepared?;
                if let Some(sent) = prepared.sent {
                    shown.insert(sent.id.clone(), (prepared.sending.queue.clone(), sent));
                }
                batch.push(prepared.publish);
                facts.push(prepared.facts.into());
                Ok(prepared.sending)
            })
            .collect();
        let mut stopwatch = app.observers.stopwatch();
        let publish = async { (app.broker.publish(batch).await, stopwatch.lap()) };
        let queues: Vec<_> =
            sending.iter().filter_map(|sending| Some(&sending.as_ref().ok()?.queue)).collect();
        let ((published, confirm_wait), recorded, ()) = tokio::join!(
            publish,
            app.backend.commit(facts),
            app.listed_queues.list(app.backend.as_ref(), app.clock.now(), queues.into_iter())
        );
        // The order of the two does not matter, and a record that could not be written does not undo a
        // confirmed message: to its sender a missing record reads as pending.
        if let Some(error) = recorded.iter().find_map(|written| written.as_ref().err()) {
            tracing::warn!(%error, "the backend did not take the sender's part of a record");
        }
        let mut published = published.into_iter();
        let mut unsent = Vec::new();
        let mut not_sent = Vec::new();
        let mut scheduled = Vec::new();
        let results = sending
            .into_iter()
            .map(|sending| {
                let Sending { id, name, queue, eta, result, span: _span } = sending?;
                match published.next() {
                    Some(Ok(())) => {
                        let task = EventTask::new(&id, &name, &queue, 1);
                        self.app.emit(EventKind::Sent { task, eta, confirm_wait });
                        scheduled.extend(eta.map(|at| {
                            let member = id.to_string();
                            IndexUpdate::Put { index: Index::Scheduled, at, member }
                        }));
                        let of_workflow = result != id;
                        let result = AsyncResult::sent(self.app.clone(), result).of_queue(queue);
                        Ok(if of_workflow { result.of_workflow(id) } else { result })
                    }
                    Some(Err(source)) => {
                        if source.is_certain() {
                            unsent.push(forget(&id).into());
                            not_sent.extend(shown.remove(&id));
                        }
                        Err(SendError::Publish { id, source })
                    }
                    None => Err(SendError::Publish {
                        id,
                        source: PublishError::Unknown("the broker adapter gave no answer".into()),
                    }),
                }
            })
            .collect();
        if !unsent.is_empty() {
            for error in app.backend.commit(unsent).await.into_iter().filter_map(Result::err) {
                tracing::warn!(%error, "the record of a task that was not sent remains as PENDING");
            }
        }
        self.show_not_sent(&not_sent).await;
        // After the records: whoever lists takes out what has none.
        if !scheduled.is_empty()
            && let Err(error) = app.backend.update_indexes(scheduled).await
        {
            tracing::warn!(%error, "delayed tasks were sent and are not listed as scheduled");
        }
        results
    }

    /// The result of a task that was sent earlier, perhaps by another process.
    ///
    /// # Examples
    /// ```
    /// # use machinist_core::{TaskDef, TaskError};
    /// # const ADD: TaskDef<(i64, i64), i64> = TaskDef::new("add");
    /// # async fn add(a: i64, b: i64) -> Result<i64, TaskError> { Ok(a + b) }
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let app = machinist_test::TestApp::new(|worker| worker.task(ADD, add)).await;
    /// # let client = app.client();
    /// use machinist_core::TaskId;
    /// use std::time::Duration;
    ///
    /// # let id: String = client.send(ADD.call((2, 3))).await?.id().to_string();
    /// # app.drain().await;
    /// // The id as text, from a table or a request:
    /// let sum = client.result(TaskId::parse(&id)?).typed::<i64>();
    /// assert_eq!(sum.wait(Duration::from_secs(30)).await?, 5);
    /// # Ok(())
    /// # }
    /// ```
    pub fn result(&self, id: TaskId) -> AsyncResult<Results> {
        self.app.result(id)
    }

    /// Checks a signature, and makes its message and its facts.
    pub(crate) fn prepare(&self, sendable: SendableParts) -> Result<PreparedSignature, SendError> {
        let SendableParts { mut parts, outline, result, nested } = sendable;
        let app = &self.app.0;
        let now = app.clock.latest();
        let due = parts.when.at(now);
        let expires = parts.expires.map(|when| when.at(now));
        check(&parts, due.max(now), expires, now)?;
        let queue = parts.queue_name(&app.default_queue)?;
        let fair_key = parts.fair_key.as_deref();
        let queue = app.separate_queue(queue, fair_key, &parts.args, &parts.headers, parts.priority)?;
        for hook in &app.hooks {
            let SignatureParts { id, name, headers, .. } = &mut parts;
            app.observers.call_hook("a hook of what is sent", || hook.before_publish(id, name, headers));
        }
        let name = TaskName::parse(&parts.name)?;
        self.check_names(&name, &queue)?;
        let span = send_span(&parts.id, &name, &queue);
        let trace = span.in_scope(TraceContext::current);
        self.app.may_publish(&name, &queue).map_err(|why| SendError::Key { id: parts.id.clone(), why })?;
        let eta = (due > now).then_some(due);
        let unique = self.unique_claim(&parts, due.since(now));
        let id = parts.id.clone();
        let (priority, require_worker) = (parts.priority, parts.require_worker);
        let pairs = Pairs::of_labels(std::mem::take(&mut parts.labels))
            .map_err(|why| SendError::Invalid(format!("task {id}: {why}")))?;
        let pairs = match &mut parts.flow {
            Some(flow) => {
                self.check_flow(&id, flow)?;
                pairs.with_place(&StepPlace::root(id.clone()))
            }
            None => pairs,
        };
        let body = self.encode_body(parts, eta)?;
        let envelope = app.trust.encrypt(Envelope {
            id,
            name,
            queue: queue.clone(),
            attempt: 1,
            generation: 0,
            eta,
            expires,
            issued: now,
            counters: Counters::default(),
            token: 0,
            unknown_since: None,
            traceparent: Some(trace.parent),
            tracestate: trace.state,
            priority,
            pairs,
            content_type: app.codec.content_type().to_owned(),
            body,
            first: FirstSigner::Publisher,
            source: None,
        });
        let message = self.message_with(&envelope, nested)?;
        let size = app.max_sizes.check(&message).map_err(|oversize| too_large(&envelope.id, oversize))?;
        let mut facts = sender_facts(&envelope);
        if let Some(outline) = outline {
            facts.facts.push((name::OUTLINE.into(), record::json(&outline)));
        }
        if eta.is_some() || envelope.pairs.are_of_workflow() {
            facts
                .facts
                .extend(message_to_fact(&message, size).map(|message| (name::MESSAGE.into(), message)));
        }
        let delay = keep_for(due.since(now), self.app.broker().as_ref());
        let publish = Publish { target: Target::Queue(queue), message, delay };
        let Envelope { id, name, queue, eta, .. } = envelope;
        let result = result.unwrap_or_else(|| id.clone());
        let sent = SentTask { due: due.max(now), ..SentTask::new(id.clone(), name.clone(), now) };
        let sent = app.rules.mirror(&queue).map(|_| sent);
        let sending = Sending { id, name, queue, eta, result, span };
        Ok(PreparedSignature { publish, facts, sending, unique, require_worker, sent })
    }

    /// Checks the names under which a task is sent. A queue of another program has the names of that program.
    fn check_names(&self, task: &TaskName, queue: &QueueName) -> Result<(), SendError> {
        if self.app.0.rules.profile(queue).is_some() {
            return Ok(());
        }
        check_sent_name("task", task.as_str()).map_err(SendError::Invalid)?;
        check_sent_name("queue", queue.as_str()).map_err(SendError::Invalid)
    }

    /// Checks the steps of a workflow, and gives a queue to those that name none.
    fn check_flow(&self, id: &TaskId, flow: &mut Flow) -> Result<(), SendError> {
        let invalid = |why: String| SendError::Invalid(format!("workflow {id}: {why}"));
        if id.as_str().len() > MAX_ROOT_ID {
            return Err(invalid(format!(
                "its id has {} bytes, and the maximum is {MAX_ROOT_ID}",
                id.as_str().len()
            )));
        }
        flow.check().map_err(invalid)?;
        flow.fill_queues(self.app.default_queue().as_str());
        for step in flow.all_steps() {
            let (task, queue) = step.target()?;
            self.check_names(&task, &queue)?;
            let refused =
                |why: String| SendError::Key { id: id.clone(), why: format!("step {:?}: {why}", step.name) };
            self.app.may_publish(&task, &queue).map_err(refused)?;
            Pairs::of_labels(step.labels.clone())
                .map_err(|why| invalid(format!("step {:?}: {why}", step.name)))?;
        }
        Ok(())
    }

    /// Returns the message of a task, in the format of its queue.
    pub(crate) fn message(&self, envelope: &Envelope) -> Result<Message, SendError> {
        self.message_with(envelope, NestedTasks::default())
    }

    /// Returns the message of a task and of what follows it, in the format of its queue.
    fn message_with(&self, envelope: &Envelope, nested: NestedTasks) -> Result<Message, SendError> {
        let id = &envelope.id;
        self.app.message_with(envelope, nested).map_err(|error| match error {
            // The format has no word for it: nothing that another try or the broker could change.
            PublishError::Rejected { reason } => SendError::Invalid(format!("task {id}: {reason}")),
            source => SendError::Publish { id: id.clone(), source },
        })
    }

    /// Publishes one message.
    pub(crate) async fn publish_one(&self, publish: Publish) -> Result<(), PublishError> {
        // INVARIANT: one answer for one message.
        self.app.broker().publish(vec![publish]).await.pop().expect("one answer")
    }

    /// Encodes the body of a signature, if it does not exceed the maximum sizes.
    fn encode_body(&self, parts: SignatureParts, eta: Option<Timestamp>) -> Result<Bytes, SendError> {
        let app = &self.app.0;
        let millis = |t: Duration| u64::try_from(t.as_millis()).unwrap_or(u64::MAX);
        let body = Body {
            limit_key: parts.key_of_limits(),
            args: parts.args,
            retry: parts.retry,
            timeout_ms: parts.timeout.map(millis),
            soft_timeout_ms: parts.soft_timeout.map(millis),
            first_eta: eta,
            headers: parts.headers,
            flow: parts.flow,
            limit_cost: parts.limit_cost,
        };
        if let Some(oversize) = body.exceeded(&app.max_sizes) {
            return Err(too_large(&parts.id, oversize));
        }
        let invalid = |error| SendError::Invalid(format!("task {}: {error}", parts.id));
        app.codec.encode(&body).map_err(invalid)
    }
}

/// Checks what a signature says about itself; `earliest` is when it may start.
fn check(
    parts: &SignatureParts,
    earliest: Timestamp,
    expires: Option<Timestamp>,
    now: Timestamp,
) -> Result<(), SendError> {
    let invalid = |why: String| Err(SendError::Invalid(format!("task {}: {why}", parts.id)));
    if let Some(why) = &parts.unsendable {
        return invalid(why.clone());
    }
    if parts.unique.is_some() && parts.flow.is_some() {
        return invalid("a workflow cannot be unique: leave the rule of its first task out (`not_unique()` drops that of a definition)".to_owned());
    }
    if parts.id.as_str().contains(['!', '+']) {
        return invalid(
            "its id contains `!` or `+`, which mark ids that machinist derives from it".to_owned(),
        );
    }
    if earliest.since(now) > record::MAX_DELAY {
        return invalid(format!("its ETA {earliest} is more than ten years away: send it later"));
    }
    if let Some(expires) = expires.filter(|expires| *expires <= earliest) {
        return invalid(format!("it expires at {expires}, before it may start at {earliest}"));
    }
    if let Some(priority) = parts.priority.filter(|priority| *priority > 9) {
        return invalid(format!("priority {priority} is not in 0 to 9"));
    }
    if let Some(cost) = parts.limit_cost.filter(|cost| !(1..=MAX_BURST).contains(cost)) {
        return invalid(format!("limit_cost {cost} is not in 1 to {MAX_BURST}"));
    }
    match (parts.soft_timeout, parts.timeout) {
        (Some(soft), Some(hard)) if soft >= hard => {
            invalid(format!("its soft timeout of {soft:?} is not below its timeout of {hard:?}"))
        }
        _ => Ok(()),
    }
}

/// Error of a signature that exceeds a maximum size.
fn too_large(id: &TaskId, Oversize { part, size, max }: Oversize) -> SendError {
    SendError::TooLarge { id: id.clone(), what: part, size, limit: max }
}

/// The span of one message's way to the broker, after OpenTelemetry's conventions for messaging.
fn send_span(id: &TaskId, name: &TaskName, queue: &QueueName) -> tracing::Span {
    tracing::info_span!(
        "send",
        %id,
        task = %name,
        %queue,
        otel.name = %format_args!("send {name}"),
        otel.kind = "producer",
        messaging.system = "machinist",
        messaging.operation.name = "send",
        messaging.operation.type = "send",
        messaging.destination.name = %queue,
        messaging.message.id = %id,
    )
}

/// Returns the facts that name a task and its queue.
pub(crate) fn names_of_task(envelope: &Envelope) -> [(FactName, Bytes); 2] {
    let text = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    [(name::TASK.into(), text(envelope.name.as_str())), (name::QUEUE.into(), text(envelope.queue.as_str()))]
}

/// Returns the facts that a sender writes. They depend on the envelope alone, so every writer writes the same.
pub(crate) fn sender_facts(envelope: &Envelope) -> Commit {
    let text = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    let mut commit = Commit::new(envelope.id.clone());
    commit.facts = names_of_task(envelope).into();
    commit.facts.push((name::SENT.into(), record::json(&envelope.issued)));
    if let Some(trace) = &envelope.traceparent {
        commit.facts.push((name::TRACE.into(), text(trace)));
    }
    for (name, instant) in [(name::ETA, envelope.eta), (name::EXPIRES, envelope.expires)] {
        if let Some(instant) = instant {
            commit.facts.push((name.into(), record::json(&instant)));
        }
    }
    let waits = envelope.eta.map_or(Duration::ZERO, |eta| eta.since(envelope.issued));
    commit.expiry = Expiry::AfterUnlessSet(waits + record::UNFINISHED_TTL);
    commit
}

/// Takes the sender's facts out again, if nobody has added to them: so that sending again is clean.
fn forget(id: &TaskId) -> Commit {
    let mut commit = Commit::new(id.clone());
    commit.unless =
        vec![name::END.into(), name::REVOKED.into(), name::received(1), name::start(1, 1), name::guard(1, 1)];
    commit.drop = name::OF_SENDER.map(Into::into).to_vec();
    commit
}
