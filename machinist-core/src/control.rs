//! Control over sent tasks: revoking them, listing the scheduled ones, running a scheduled one at
//! once, send a failed one again.

use std::{fmt, time::Duration};

use bytes::Bytes;

use crate::{
    args::Results,
    backend::{BackendError, Commit, Committed, Expiry, Index, IndexUpdate},
    broker::{BrokerError, Publish, PublishError, Target},
    client::{Client, sender_facts},
    clock::Timestamp,
    error::SendError,
    event::{EventKind, EventTask},
    id::{QueueName, RecordId, RecordKind, SessionId, TaskId, TaskName},
    mirror::SentTask,
    prepared_signature::{PreparedSignature, Sending},
    record::{
        DeadReason, Facts, FailureKind, NextAttempt, Record, RevokeDecision, RevokeMode, TaskState,
        UNFINISHED_TTL, WaitingAttempt, continued_by_record, decide_revoke, failure_of, fold, late_message,
        name, next_attempt, retention, waiting_attempt, wake_session,
    },
    result::AsyncResult,
    security::open,
    signature::Signature,
    trace::TraceContext,
    wire::{Envelope, MAX_STORED_BYTES, dead_id, message_from_fact, message_to_fact},
};

/// Number of index entries in one page.
const LIST_PAGE_SIZE: usize = 500;

/// Result of a revocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Revoked {
    /// It has ended in FAILURE/revoked, and will not be started.
    Ended,
    /// It runs. Its handler's cancellation token fires within a second, and some seconds later it is cut off; what
    /// it returns until then counts.
    Asked,
    /// It had ended before, in this state.
    Already(TaskState),
}

/// A scheduled task: it waits for its ETA or for its next run.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Scheduled {
    /// Due time.
    pub due: Timestamp,
    /// Its record; in state RETRY it holds the error of the last run.
    pub record: Record,
}

/// Error of a request to control a task.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// The backend knows no task of this id: it was never sent, or its record was forgotten.
    #[error("task {id} is unknown: it was never sent, or its record has expired")]
    Unknown {
        /// The task.
        id: TaskId,
    },
    /// The task is not in a state in which this can be done.
    #[error("task {id} is {state}: {why}")]
    State {
        /// The task.
        id: TaskId,
        /// Its state.
        state: TaskState,
        /// The state that the request needs.
        why: &'static str,
    },
    /// The record does not hold the message, which would have to be sent again.
    #[error("the record of task {id} does not hold its message: {why}")]
    NoMessage {
        /// The task.
        id: TaskId,
        /// The reason.
        why: String,
    },
    /// The message could not be sent.
    #[error(transparent)]
    Send(#[from] SendError),
    /// The broker could not be asked.
    #[error("the broker could not be asked")]
    Broker(#[from] BrokerError),
    /// The backend could not be asked.
    #[error("the backend could not be asked")]
    Backend(#[from] BackendError),
}

impl ControlError {
    /// Returns the error of a message that may or may not be in the broker.
    pub(crate) fn unpublished(source: PublishError) -> Self {
        Self::Broker(BrokerError::Unavailable(source.into()))
    }
}

impl Client {
    /// Revokes a task: it does not start, or it is asked to end.
    ///
    /// One that nobody runs ends at once, delayed ones and those that wait for a retry too; the message that is on its
    /// way finds it ended. If a delayed one belongs to a workflow, its message is sent again at once, so that the workflow
    /// goes on. One that runs gets its cancellation token fired, and is cut off if it has not ended five
    /// seconds later. Revoking twice is fine.
    ///
    /// # Errors
    /// [`ControlError::Unknown`], [`ControlError::Backend`]; after the latter it may be revoked or not.
    ///
    /// # Cancel safety
    /// A dropped future leaves the task revoked or not.
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
    /// use machinist_core::Revoked;
    /// use std::time::Duration;
    ///
    /// let tomorrow = client.send(ADD.call((2, 3)).countdown(Duration::from_secs(24 * 3600))).await?;
    /// assert_eq!(client.revoke(tomorrow.id()).await?, Revoked::Ended);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn revoke(&self, id: &TaskId) -> Result<Revoked, ControlError> {
        self.revoke_in(id, RevokeMode::Cancel).await
    }

    /// Revokes a task like [`revoke`](Self::revoke), and cuts a run off at once, as at its hard timeout.
    ///
    /// The future of an `async fn` is dropped where it waits; the process group of a command gets TERM, and KILL three
    /// seconds later. A function that blocks its thread cannot be ended: its token is fired, and five seconds later
    /// nobody waits for it any more. A task that was revoked and still runs can be terminated.
    ///
    /// # Errors
    /// As [`revoke`](Self::revoke).
    ///
    /// # Cancel safety
    /// A dropped future leaves the task revoked or not.
    pub async fn terminate(&self, id: &TaskId) -> Result<Revoked, ControlError> {
        self.revoke_in(id, RevokeMode::Terminate).await
    }

    async fn revoke_in(&self, id: &TaskId, manner: RevokeMode) -> Result<Revoked, ControlError> {
        let app = &self.app.0;
        let mut facts = self.facts(id).await?;
        let mut stopwatch = app.observers.stopwatch();
        loop {
            let (commit, running) = match decide_revoke(id, &facts, manner, app.clock.now(), app.results_ttl)
            {
                RevokeDecision::Ended(_) if ended_as_revoked(id, &facts) => {
                    // Whoever revoked it may have died before this.
                    self.hurry_late_message(id, &facts).await;
                    return Ok(Revoked::Ended);
                }
                RevokeDecision::Ended(state) => {
                    return match continued_by_record(&facts) {
                        Some(last) => Box::pin(self.revoke_replacement(&last)).await,
                        None => Ok(Revoked::Already(state)),
                    };
                }
                RevokeDecision::EndNow(commit) => (commit, None),
                RevokeDecision::AskRun(commit, session) => (commit, Some(session)),
            };
            match self.commit(self.signed_end(id, commit)?).await? {
                Committed::Refused(newer) => facts = newer,
                Committed::Done { .. } => {
                    self.emit_revoked(id, &facts, running.is_some(), stopwatch.lap());
                    self.after_revoking(id, running.as_ref()).await;
                    if running.is_some() {
                        return Ok(Revoked::Asked);
                    }
                    self.hurry_late_message(id, &facts).await;
                    return Ok(Revoked::Ended);
                }
            }
        }
    }

    /// Emits the revocation, unless the record does not name its task.
    fn emit_revoked(&self, id: &TaskId, facts: &Facts, running: bool, record_wait: Duration) {
        if self.app.0.observers.is_empty() && !self.app.0.published_events.is_on() {
            return;
        }
        let name = facts.text(name::TASK).and_then(|name| TaskName::parse(&name).ok());
        let queue = facts.text(name::QUEUE).and_then(|queue| QueueName::parse(&queue).ok());
        let (Some(name), Some(queue)) = (name, queue) else { return };
        let attempt = fold(id, facts).map_or(1, |record| record.attempt.max(1));
        let task = EventTask::new(id, &name, &queue, attempt);
        self.app.emit(EventKind::Revoked { task, running });
        if !running {
            let (kind, error) = (FailureKind::Revoked, "revoked".into());
            self.app.emit(EventKind::ended_without_run(task, kind, &error, record_wait));
        }
    }

    /// Reports the end of a task by a purge, and removes it from the schedule; `facts` is its record before.
    pub(crate) async fn ended_by_purge(&self, id: &TaskId, facts: &Facts) {
        self.emit_revoked(id, facts, false, Duration::ZERO);
        self.after_revoking(id, None).await;
    }

    /// Wakes the worker, or removes the task from the schedule. Both are best effort.
    async fn after_revoking(&self, id: &TaskId, running: Option<&SessionId>) {
        let done = match running.map(wake_session) {
            Some(wake) => self.commit(wake).await.map(drop),
            None => self.unlist(&Index::Scheduled, id).await,
        };
        if let Err(error) = done {
            tracing::debug!(%error, "a revocation takes its time");
        }
    }

    /// Lets a worker follow up a task of a workflow that a revocation has ended, though its message is delayed: another copy
    /// is sent at once. Without it, what follows the task would end when the delayed message comes, perhaps after days.
    async fn hurry_late_message(&self, id: &TaskId, facts: &Facts) {
        let Some((kept, generation)) = late_message(facts) else { return };
        if let Err(error) = self.send_late_message(id, facts, kept, generation).await {
            tracing::warn!(%id, %error, "what follows a revoked task ends when its delayed message comes; revoke it again");
        }
    }

    async fn send_late_message(
        &self,
        id: &TaskId,
        facts: &Facts,
        kept: &str,
        generation: u32,
    ) -> Result<(), ControlError> {
        // As of its sending: it was fresh then.
        let sent = facts.read(name::SENT).unwrap_or_else(|| self.app.clock().now());
        let envelope = self.kept_envelope(id, facts, kept, sent)?;
        if !envelope.pairs.are_of_workflow() {
            return Ok(());
        }
        let copy = Envelope { generation, ..envelope }.at_once();
        let target = Target::Queue(self.app.0.rules.queue_of(&copy));
        let publish = Publish { target, message: self.message(&copy)?, delay: Duration::ZERO };
        self.publish_one(publish).await.map_err(|source| SendError::Publish { id: id.clone(), source }.into())
    }

    /// Lists scheduled tasks, the earliest due first, at most `limit`. Tasks that were
    /// started or have ended are left out and removed from the index.
    ///
    /// # Errors
    /// [`BackendError`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn scheduled(&self, limit: usize) -> Result<Vec<Scheduled>, BackendError> {
        let backend = &self.app.0.backend;
        let mut waiting = Vec::new();
        let mut over = Vec::new();
        let mut after = None;
        while waiting.len() < limit {
            let page = backend.list(&Index::Scheduled, after, LIST_PAGE_SIZE).await?;
            for (id, mut facts) in self.listed(&page).await? {
                let locked =
                    self.app.0.trust.decrypt_outcome(&id, &mut facts).map(|locked| locked.to_string());
                let record = fold(&id, &facts).map(|record| Record { locked, ..record });
                match (record, waiting_attempt(&facts)) {
                    (Some(record), Some(WaitingAttempt { due, .. })) => {
                        waiting.push(Scheduled { due, record });
                    }
                    _ => over.push(IndexUpdate::Remove { index: Index::Scheduled, member: id.to_string() }),
                }
            }
            if page.len() < LIST_PAGE_SIZE {
                break;
            }
            after = page.into_iter().last();
        }
        waiting.truncate(limit);
        if !over.is_empty() {
            backend.update_indexes(over).await?;
        }
        Ok(waiting)
    }

    /// Runs a task that waits for its time as soon as a worker is free.
    ///
    /// The message is sent once more, without its delay. The delayed one stays in the broker, and finds the task
    /// started or ended.
    ///
    /// # Errors
    /// [`ControlError`]: only a task that waits for its time or for its next run can be run at once, and only while its
    /// record holds its message (256 KiB at most; that of a retry if it waits for a minute or longer). A retry that is due
    /// later than its record would be kept cannot be run at once.
    ///
    /// # Cancel safety
    /// A dropped future leaves the task sent or not; asking again is fine.
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
    /// client.send(ADD.call((2, 3)).countdown(Duration::from_secs(24 * 3600))).await?;
    /// for waiting in client.scheduled(10).await? {
    ///     client.run_now(&waiting.record.id).await?;
    /// }
    /// # assert_eq!(app.drain().await.len(), 1);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn run_now(&self, id: &TaskId) -> Result<(), ControlError> {
        let facts = self.facts(id).await?;
        let Some(waiting) = waiting_attempt(&facts) else {
            let why = "only a task that waits for its time or for its next run can be run at once";
            return Err(self.wrong_state(id, &facts, why));
        };
        let now = self.app.clock().now();
        if waiting.retried.is_some() && waiting.due.since(now) > retention(self.app.0.results_ttl, None, now)
        {
            // The delayed message would find no record, and run the task once more.
            let why = "its next run is due later than its record is kept after its end (results_ttl)";
            return Err(self.wrong_state(id, &facts, why));
        }
        let envelope = self.waiting_envelope(id, &facts, &waiting)?.at_once();
        let target = Target::Queue(envelope.queue.clone());
        let publish = Publish { target, message: self.message(&envelope)?, delay: Duration::ZERO };
        let answer = self.publish_one(publish).await;
        answer.map_err(|source| SendError::Publish { id: id.clone(), source })?;
        if let Err(error) = self.unlist(&Index::Scheduled, id).await {
            tracing::debug!(%error, "a task that was sent at once is still listed as scheduled");
        }
        Ok(())
    }

    /// Sends a task that ended in FAILURE again: the same call, as a new task. Each record names the other.
    ///
    /// A failed task is sent again once: asked a second time, this returns the task of the first time.
    ///
    /// # Errors
    /// [`ControlError`]: only a task in FAILURE can be sent again, and only while its record holds its message
    /// (256 KiB at most; a larger one is among the dead letters of its queue).
    ///
    /// # Cancel safety
    /// A dropped future leaves the task sent or not; asking again is fine.
    ///
    /// # Examples
    /// ```
    /// # use machinist_core::{TaskDef, TaskError};
    /// # const FAIL: TaskDef<(), ()> = TaskDef::new("fail");
    /// # async fn fail() -> Result<(), TaskError> { Err(TaskError::permanent("no")) }
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let app = machinist_test::TestApp::new(|worker| worker.task(FAIL, fail)).await;
    /// # let client = app.client();
    /// # let failed = client.send(FAIL.call(())).await?.id().clone();
    /// # app.drain().await;
    /// // When the cause is mended:
    /// let again = client.retry(&failed).await?;
    /// assert_ne!(again.id(), &failed);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn retry(&self, id: &TaskId) -> Result<AsyncResult<Results>, ControlError> {
        let facts = self.facts(id).await?;
        let record = fold(id, &facts);
        if record.as_ref().is_none_or(|record| record.state != TaskState::Failure) {
            return Err(self.wrong_state(id, &facts, "only a task in FAILURE can be sent again"));
        }
        let envelope = self.ended_envelope(id, &facts, record.as_ref())?;
        self.send_copy(&facts, envelope).await
    }

    /// Opens the message that the record of a task keeps, as of the end of the task, if it has ended: it was fresh when
    /// a worker ended it.
    fn ended_envelope(
        &self,
        id: &TaskId,
        facts: &Facts,
        record: Option<&Record>,
    ) -> Result<Envelope, ControlError> {
        self.check_before_sending_again(id, facts)?;
        let now = self.app.clock().now();
        let ended = record.and_then(|record| record.ended_at).unwrap_or(now).min(now);
        self.kept_envelope(id, facts, name::MESSAGE, ended)
    }

    /// Refuses a task whose end nobody trusted has signed, and one that a worker has refused as stale.
    pub(crate) fn check_before_sending_again(&self, id: &TaskId, facts: &Facts) -> Result<(), ControlError> {
        // Who can write to the backend must not be able to name what is sent again, nor when it was fresh.
        let unsigned = self.app.0.trust.check_end(id, facts).err();
        match unsigned.or_else(|| stale(facts)) {
            Some(why) => Err(ControlError::NoMessage { id: id.clone(), why }),
            None => Ok(()),
        }
    }

    /// Returns the call of a task as a new signature, with another id, so that it can be changed and sent as a new task.
    /// Its first sender does not vouch for it any more: this application signs it.
    ///
    /// # Errors
    /// [`ControlError`]: the record has to hold the message (256 KiB at most), no worker may find a fault with it or
    /// have refused it as stale, the end of the task has to be signed by a trusted key if there are keys, and the task
    /// must not belong to a workflow.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn call_of(&self, id: &TaskId) -> Result<Signature, ControlError> {
        let refused = |why: String| ControlError::NoMessage { id: id.clone(), why };
        let facts = self.facts(id).await?;
        let envelope = self.ended_envelope(id, &facts, fold(id, &facts).as_ref())?;
        if envelope.pairs.are_of_workflow() {
            return Err(refused("it belongs to a workflow, which is sent again as a whole".to_owned()));
        }
        let body = self.app.decode(&envelope).map_err(|error| refused(error.to_string()))?;
        Ok(Signature::of_call(&envelope, body))
    }

    /// Sends the call of an envelope as a new task; `facts` is the record of its task. Until the new task is known to have
    /// reached a worker, its message is published again: an interruption may have lost it.
    pub(crate) async fn send_copy(
        &self,
        facts: &Facts,
        envelope: Envelope,
    ) -> Result<AsyncResult<Results>, ControlError> {
        let of = envelope.id.clone();
        let refused = |why: String| ControlError::NoMessage { id: of.clone(), why };
        let now = self.app.clock().now();
        let app = &self.app.0;
        let renamed = |id: TaskId| {
            let into_new_task = |old: Envelope| old.into_new_task(id, now, TraceContext::current());
            app.trust.renamed(&envelope, into_new_task).map_err(|locked| refused(locked.to_string()))
        };
        // Before anything is written: a worker with these keys runs what is sent, or it is not sent.
        let trial = self.message(&renamed(of.clone())?)?;
        open(&app.trust, &app.rules, &app.max_sizes, Some(&envelope.queue), &trial, now).map_err(
            |(reason, why)| refused(format!("sent again, it would be {}: {why}", reason.as_str())),
        )?;
        let repetition = repetition_record(&of, envelope.attempt);
        let noted = self.read(repetition.clone()).await?;
        let again = self.name_successor(&of, &repetition, facts).await?;
        let known = self.read(&again).await?;
        // It was sent, and ended so long ago that its record is forgotten.
        let forgotten = noted.has(name::FOLLOWED) && known.is_empty();
        let waits = matches!(next_attempt(&known), Ok(NextAttempt { attempt: 1, .. }));
        if forgotten || known.has(name::END) || !waits {
            return Ok(AsyncResult::sent(self.app.clone(), again));
        }
        let envelope = renamed(again)?;
        let mut record = sender_facts(&envelope);
        record.facts.push((name::RETRY_OF.into(), text(&of)));
        let target = Target::Queue(envelope.queue.clone());
        let publish = Publish { target, message: self.message(&envelope)?, delay: Duration::ZERO };
        if let Some(outline) = facts.get(name::OUTLINE) {
            record.facts.push((name::OUTLINE.into(), outline.clone()));
            let message = message_to_fact(&publish.message, publish.message.size());
            record.facts.extend(message.map(|message| (name::MESSAGE.into(), message)));
        }
        let Envelope { id, name, queue, .. } = envelope;
        let result = id.clone();
        let sending = Sending { id, name, queue, eta: None, result, span: tracing::Span::none() };
        let sent = self.app.0.rules.mirror(&sending.queue);
        let now = self.app.clock().latest();
        let sent = sent.map(|_| SentTask::new(sending.id.clone(), sending.name.clone(), now));
        let prepared =
            PreparedSignature { publish, facts: record, sending, unique: None, require_worker: false, sent };
        // INVARIANT: one answer for one message.
        let sent = self.publish(vec![Ok(prepared)]).await.pop().expect("one answer")?;
        let mut done = Commit::new(repetition);
        done.facts = vec![(name::RETRIED_AS.into(), text(sent.id())), (name::FOLLOWED.into(), "1".into())];
        done.expiry = Expiry::AfterUnlessSet(UNFINISHED_TTL);
        self.commit(done).await?;
        Ok(sent)
    }

    /// Records the id of the task that repeats an attempt of another, before it is sent. A concurrent or later request
    /// sends the same task.
    ///
    /// The id belongs to the task and its attempt, whatever copy of the message is sent again, and for longer than the
    /// record of the task is kept. That record names it too, for people.
    async fn name_successor(
        &self,
        of: &TaskId,
        repetition: &RecordId,
        facts: &Facts,
    ) -> Result<TaskId, ControlError> {
        let named = |facts: &Facts| {
            let unreadable = || ControlError::NoMessage {
                id: of.clone(),
                why: "the name of the task that repeats it cannot be read".to_owned(),
            };
            facts.text(name::RETRIED_AS).and_then(|text| TaskId::parse(&text).ok()).ok_or_else(unreadable)
        };
        if facts.has(name::RETRIED_AS) {
            return named(facts);
        }
        let fresh = TaskId::fresh();
        let mut commit = Commit::new(repetition.clone());
        commit.unless = vec![name::RETRIED_AS.into()];
        commit.facts = vec![(name::RETRIED_AS.into(), text(&fresh))];
        commit.expiry = Expiry::AfterUnlessSet(UNFINISHED_TTL);
        let successor = match self.commit(commit).await? {
            Committed::Done { .. } => fresh,
            Committed::Refused(newer) => named(&newer)?,
        };
        let Some(end) = facts.get(name::END) else { return Ok(successor) };
        let mut commit = Commit::new(of);
        commit.unless = vec![name::RETRIED_AS.into()];
        // A record that was forgotten meanwhile is not made anew.
        commit.require = vec![(name::END.into(), end.clone())];
        commit.facts = vec![(name::RETRIED_AS.into(), text(&successor))];
        match self.commit(commit).await? {
            Committed::Refused(newer) if newer.has(name::RETRIED_AS) => named(&newer),
            _ => Ok(successor),
        }
    }

    pub(crate) async fn read(&self, id: impl Into<RecordId>) -> Result<Facts, BackendError> {
        let mut facts = self.app.0.backend.read(&[id.into()]).await?;
        Ok(facts.pop().unwrap_or_default())
    }

    async fn facts(&self, id: &TaskId) -> Result<Facts, ControlError> {
        let facts = self.read(id).await?;
        if facts.is_empty() { Err(ControlError::Unknown { id: id.clone() }) } else { Ok(facts) }
    }

    pub(crate) async fn commit(&self, commit: Commit) -> Result<Committed, BackendError> {
        // INVARIANT: one answer for one commit.
        self.app.0.backend.commit(vec![commit.into()]).await.pop().expect("one answer")
    }

    /// Reads the records of a page of an index of tasks. A record that cannot be read is left out, and said.
    pub(crate) async fn listed(
        &self,
        page: &[(Timestamp, String)],
    ) -> Result<impl Iterator<Item = (TaskId, Facts)>, BackendError> {
        let ids: Vec<_> = page.iter().filter_map(|(_, member)| TaskId::parse(member).ok()).collect();
        let records: Vec<_> = ids.iter().map(RecordId::from).collect();
        let facts = self.app.0.backend.read_each(&records).await?;
        let readable = |(id, facts): (TaskId, Result<Facts, BackendError>)| match facts {
            Ok(facts) => Some((id, facts)),
            Err(error) => {
                tracing::warn!(%id, %error, "a listed task has no readable record");
                None
            }
        };
        Ok(ids.into_iter().zip(facts).filter_map(readable))
    }

    /// Removes a task from an index.
    pub(crate) async fn unlist(&self, index: &Index, id: &TaskId) -> Result<(), BackendError> {
        let update = IndexUpdate::Remove { index: index.clone(), member: id.to_string() };
        self.app.0.backend.update_indexes(vec![update]).await
    }

    /// Returns the message of the attempt that a task waits for, from its record.
    pub(crate) fn waiting_envelope(
        &self,
        id: &TaskId,
        facts: &Facts,
        waiting: &WaitingAttempt,
    ) -> Result<Envelope, ControlError> {
        let kept = self.kept_envelope(id, facts, name::MESSAGE, self.app.clock().now())?;
        Ok(match waiting.retried {
            None => kept,
            Some((counters, token)) => {
                Envelope { attempt: waiting.attempt - 1, ..kept }.next_attempt(waiting.due, counters, token)
            }
        })
    }

    /// Returns the message that a record holds in this fact, if a worker would have run it at this instant, and this
    /// application may sign it.
    pub(crate) fn kept_envelope(
        &self,
        id: &TaskId,
        facts: &Facts,
        fact: &str,
        at: Timestamp,
    ) -> Result<Envelope, ControlError> {
        let no_message = |why: String| ControlError::NoMessage { id: id.clone(), why };
        let fact = facts.get(fact);
        let fact = fact.ok_or_else(|| {
            no_message(format!("it was not kept, or is larger than {MAX_STORED_BYTES} bytes"))
        })?;
        let message =
            message_from_fact(fact).ok_or_else(|| no_message("what it holds cannot be read".to_owned()))?;
        let app = &self.app.0;
        let opened = open(&app.trust, &app.rules, &app.max_sizes, None, &message, at);
        let envelope = opened.map_err(|(reason, why)| no_message(format!("{}: {why}", reason.as_str())))?;
        if envelope.id != *id {
            return Err(no_message(format!("what it holds is the message of task {}", envelope.id)));
        }
        self.app
            .may_publish(&envelope.name, &envelope.queue)
            .map_err(|why| SendError::Key { id: id.clone(), why })?;
        Ok(envelope)
    }

    /// Signs the end of a task in a commit. Refuses an end that readers would not accept.
    pub(crate) fn signed_end(&self, id: &TaskId, commit: Commit) -> Result<Commit, ControlError> {
        let commit = self.app.0.trust.sign_end(commit);
        let facts: Facts = commit.facts.iter().cloned().collect();
        match self.app.0.trust.check_end(id, &facts) {
            Ok(()) => Ok(commit),
            Err(why) => Err(SendError::Key { id: id.clone(), why }.into()),
        }
    }

    pub(crate) fn wrong_state(&self, id: &TaskId, facts: &Facts, why: &'static str) -> ControlError {
        match fold(id, facts) {
            Some(record) => ControlError::State { id: id.clone(), state: record.state, why },
            None => ControlError::Unknown { id: id.clone() },
        }
    }
}

/// Returns the record of the task that repeats an attempt of another: its id, and whether its message was confirmed.
fn repetition_record(of: &TaskId, attempt: u32) -> RecordId {
    RecordId::new(RecordKind::DeadLetter, &dead_id(of, attempt))
}

/// Returns the error of a task that was refused as stale. Its worker has signed its message again, so that the message
/// itself is fresh.
fn stale(facts: &Facts) -> Option<String> {
    let failure = failure_of(facts).filter(|failure| failure.reason() == DeadReason::Stale)?;
    Some(failure.error.chain.join(": "))
}

fn ended_as_revoked(id: &TaskId, facts: &Facts) -> bool {
    fold(id, facts).is_some_and(|record| record.kind == Some(FailureKind::Revoked))
}

fn text(id: &TaskId) -> Bytes {
    Bytes::copy_from_slice(id.as_str().as_bytes())
}

impl fmt::Display for Revoked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended => f.write_str("revoked"),
            Self::Asked => f.write_str("asked to end"),
            Self::Already(state) => write!(f, "already {state}"),
        }
    }
}
