//! Continuation of a workflow after the end of one of its tasks: what follows is published, what never runs is ended, and
//! the task joins.
//!
//! The delivery is acknowledged after all of it, so a crash anywhere repeats it from the message and the recorded end.
//! Every repetition publishes the same tasks with the same ids.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{
    StreamExt as _,
    future::{BoxFuture, join_all},
    stream::FuturesUnordered,
};

use super::{
    Settlement, WorkerContext,
    server_calls::{Unanswered, Unpublished},
};
use crate::{
    backend::{Commit, Committed, Index, IndexUpdate},
    broker::{Publish, PublishError, Target},
    client::sender_facts,
    clock::Timestamp,
    delay::keep_for,
    event::{EventKind, EventTask},
    flow::{Flow, Policy, StepPlace},
    id::{QueueName, RecordId, TaskId, TaskName},
    record::{
        Child, DeadReason, End, EndVerdict, Facts, Failure, FailureKind, JoinedMember, Joining,
        after_failure, after_success, awaited_join, failure_without_run, forget_join, join, joinings,
        may_be_decided, name, never_after, retention, spawned_by, unpark, upstream_error, waiting_callback,
    },
    security::encrypt_outcome,
    wire::{Body, Envelope, Pairs, message_to_fact},
};

/// Maximum number of tasks in a window: they are published and confirmed together.
const WINDOW: usize = 512;
/// Size of the messages at which a window ends, in bytes.
const WINDOW_BYTES: usize = 2 * 1024 * 1024;
/// Number of windows on their way at a time: one is made while the broker confirms the other.
const WINDOWS: usize = 2;
/// Number of records that are changed at the same time.
const CONCURRENT_COMMITS: usize = 64;
/// Delay of the first copy of a task that waits for a join: by then the members of most groups have ended.
const FIRST_WAIT: Duration = Duration::from_secs(15);

/// An ended task that joins.
struct Ended<'a> {
    place: StepPlace,
    flow: &'a Flow,
    /// The end as its record holds it.
    end: Bytes,
    failed: bool,
}

/// A child that is not published, with the reason.
type Unsent = (Child, Failure);

impl WorkerContext {
    /// Lets the workflow of an ended task go on. `end` is the end as this worker has recorded it; without it, the record is
    /// read. Returns `true` if anything could follow the task: then its record tells others that all of it is published.
    pub(super) async fn continue_workflow(
        &self,
        envelope: &Envelope,
        place: Option<&StepPlace>,
        end: Option<Bytes>,
    ) -> Result<bool, Unpublished> {
        self.calls.can_sign().await?;
        let mut recorded = self.recorded_end(envelope, end).await?;
        let flow = match place.map(|_| self.app.decode(envelope)) {
            None => None,
            Some(Ok(body)) => Some(body.flow.unwrap_or_default()),
            Some(Err(error)) if self.app.0.trust.check_decryptable(envelope).is_err() => {
                return Err(Unpublished::Never(PublishError::Rejected { reason: error.to_string() }));
            }
            // What follows it cannot be read either. The steps that wait for it look at its record.
            Some(Err(_)) => None,
        };
        let id = &envelope.id;
        let at = recorded.end.at;
        let spawned = std::mem::take(&mut recorded.end.spawned);
        let spawned = spawned_by(id, spawned, place, flow.as_deref());
        // The runs of what follows are children of the run that has ended.
        let traced = recorded.end.trace.take();
        let traced = traced.map(|trace| Envelope { traceparent: Some(trace), ..envelope.clone() });
        let parent = traced.as_ref().unwrap_or(envelope);
        let mut unsent = self.publish_children(parent, spawned, at).await?;
        let mut woken = BTreeSet::new();
        let awaited = place.zip(flow.as_deref()).and_then(|(place, flow)| awaited_join(place, flow));
        let (Some(place), Some(flow), None) = (place, flow, &recorded.end.continued_by) else {
            self.end_unsent(envelope, unsent, &mut woken).await?;
            self.release_callbacks(woken).await?;
            self.forget_join(awaited).await?;
            return Ok(true);
        };
        let leads_on = recorded.end.spawns > 0 || !flow.then.is_empty() || flow.replaces.is_some();
        let failed = match &recorded.end.verdict {
            EndVerdict::Success { results } => {
                let children = after_success(place, &flow, &results.0);
                unsent.extend(self.publish_children(parent, children, at).await?);
                false
            }
            EndVerdict::Failure(failure) => {
                let children = after_failure(place, &flow, failure);
                unsent.extend(self.publish_children(parent, children, at).await?);
                self.cancel_rest(place, &flow).await;
                let upstream = Failure::new(FailureKind::Upstream, &*upstream_error(id, failure));
                let never = never_after(place, &flow).into_iter();
                unsent.extend(never.map(|child| (child, upstream.clone())));
                true
            }
        };
        self.end_unsent(envelope, unsent, &mut woken).await?;
        let own = Ended { place: place.clone(), flow: &flow, end: recorded.fact, failed };
        self.join(id, own, &mut woken).await?;
        self.release_callbacks(woken).await?;
        self.forget_join(awaited).await?;
        Ok(leads_on)
    }

    /// Lets a task join that has succeeded, and that nothing else follows. `end` is the end as this worker has recorded it.
    ///
    /// Most tasks of large groups end so. What the worker knows from the run is not decoded and verified a second time.
    pub(super) async fn join_after_success(
        &self,
        envelope: &Envelope,
        flow: &Flow,
        end: Bytes,
    ) -> Settlement {
        let Some(place) = envelope.place() else { return Settlement::Ack };
        let mut stopwatch = self.events.stopwatch();
        let mut woken = BTreeSet::new();
        let joined = async {
            self.calls.can_sign().await?;
            let awaited = awaited_join(&place, flow);
            self.join(&envelope.id, Ended { place, flow, end, failed: false }, &mut woken).await?;
            self.release_callbacks(woken).await?;
            self.forget_join(awaited).await
        };
        match joined.await {
            Ok(()) => {
                let (task, follow_up_wait) = (EventTask::of(envelope), stopwatch.lap());
                self.emit(EventKind::FollowedUp { task, follow_up_wait });
                Settlement::Ack
            }
            Err(unpublished) => self.settled_by::<()>(Err(unpublished)).await,
        }
    }

    /// Lets the join that an ended task has waited for be forgotten with the results.
    async fn forget_join(&self, awaited: Option<RecordId>) -> Result<(), Unpublished> {
        let Some(join) = awaited else { return Ok(()) };
        let kept_for = retention(self.app.0.results_ttl, None, self.now());
        match self.calls.commit(forget_join(join, kept_for)).await {
            // Another program wrote there: it stays as it is.
            Ok(_) | Err(Unanswered::BadRecord) => Ok(()),
            Err(unanswered) => Err(unanswered.into()),
        }
    }

    async fn release_callbacks(&self, woken: BTreeSet<StepPlace>) -> Result<(), Unpublished> {
        for waiting in woken {
            self.release_callback(&waiting).await?;
        }
        Ok(())
    }

    /// Revokes the members that a task has waited for, where its policy says so. Best effort: a member that is missed runs
    /// for nothing.
    async fn cancel_rest(&self, place: &StepPlace, flow: &Flow) {
        let client = self.app.client();
        for part in flow.awaits.iter().filter(|part| part.policy == Policy::CancelRest) {
            let ids = part.tasks(place);
            for window in ids.chunks(CONCURRENT_COMMITS) {
                let revoked = window.iter().map(|id| client.revoke(id));
                for error in join_all(revoked).await.into_iter().filter_map(Result::err) {
                    tracing::debug!(%error, "a member of a group that has failed was not revoked");
                }
            }
        }
    }

    /// Returns the end of a task as its record holds it, verified and decrypted.
    pub(super) async fn recorded_end(
        &self,
        envelope: &Envelope,
        end: Option<Bytes>,
    ) -> Result<RecordedEnd, Unpublished> {
        let id = &envelope.id;
        let mut facts = match end {
            Some(end) => [(name::END.into(), end)].into_iter().collect(),
            None => self.calls.read(id).await?,
        };
        // Gone since it was looked at: the message decides again.
        let Some(fact) = facts.get(name::END).cloned() else { return Err(Unanswered::GivenUp.into()) };
        if let Err(why) = self.app.0.trust.check_end(id, &facts) {
            tracing::error!(%id, why, "the end of a task of a workflow is not authentic: its message is set aside");
            return Err(Unanswered::BadRecord.into());
        }
        if let Some(locked) = self.app.0.trust.decrypt_outcome(id, &mut facts) {
            return Err(Unpublished::Never(PublishError::Rejected { reason: locked.to_string() }));
        }
        match facts.read(name::END) {
            Some(end) => Ok(RecordedEnd { end, fact }),
            None => Err(Unanswered::BadRecord.into()),
        }
    }

    /// Publishes tasks that follow the end of another, each confirmed. Returns those that can never be published.
    async fn publish_children(
        &self,
        parent: &Envelope,
        children: Vec<Child>,
        at: Timestamp,
    ) -> Result<Vec<Unsent>, Unpublished> {
        let mut unsent = Vec::new();
        // The tasks that wait come first: a member that ends at once finds the task that waits for it.
        let (waiting, others): (Vec<_>, Vec<_>) =
            children.into_iter().partition(|child| !child.step.flow.awaits.is_empty());
        for children in [waiting, others] {
            self.publish_in_windows(parent, children, at, &mut unsent).await?;
        }
        Ok(unsent)
    }

    async fn publish_in_windows(
        &self,
        parent: &Envelope,
        children: Vec<Child>,
        at: Timestamp,
        unsent: &mut Vec<Unsent>,
    ) -> Result<(), Unpublished> {
        let mut children = children.into_iter();
        let mut under_way = FuturesUnordered::new();
        loop {
            while under_way.len() < WINDOWS {
                let window = self.next_window(parent, &mut children, at, unsent);
                if window.is_empty() {
                    break;
                }
                under_way.push(self.publish_window(window));
            }
            match under_way.next().await {
                Some(refused) => unsent.extend(refused?),
                None => return Ok(()),
            }
        }
    }

    /// Makes the messages of the next window. Adds the tasks that can never be published to `unsent`.
    fn next_window(
        &self,
        parent: &Envelope,
        children: &mut impl Iterator<Item = Child>,
        at: Timestamp,
        unsent: &mut Vec<Unsent>,
    ) -> Vec<(Child, Prepared)> {
        let (mut window, mut bytes) = (Vec::new(), 0);
        while window.len() < WINDOW && bytes < WINDOW_BYTES {
            let Some(child) = children.next() else { break };
            match self.prepared_child(parent, &child, at) {
                Ok(prepared) => {
                    bytes += prepared.envelope.body.len();
                    window.push((child, prepared));
                }
                Err(failure) => unsent.push((child, failure)),
            }
        }
        window
    }

    async fn publish_window(&self, window: Vec<(Child, Prepared)>) -> Result<Vec<Unsent>, Unpublished> {
        let app = &self.app;
        let facts = window.iter().map(|(_, prepared)| Arc::clone(&prepared.facts)).collect();
        let batch = window.iter().map(|(_, prepared)| prepared.publish.clone()).collect();
        let mut stopwatch = self.events.stopwatch();
        let queues = window.iter().map(|(_, prepared)| &prepared.envelope.queue);
        let listed = app.0.listed_queues.list(app.backend().as_ref(), self.now(), queues);
        let published = async {
            let (published, recorded, ()) =
                tokio::join!(app.broker().publish(batch), app.backend().commit(facts), listed);
            (published, recorded)
        };
        let (published, recorded) = tokio::select! {
            answers = published => answers,
            () = self.stages.reached_leave() => return Err(Unanswered::Leaving.into()),
        };
        for ((_, prepared), written) in window.iter().zip(recorded) {
            let Err(error) = written else { continue };
            tracing::debug!(%error, "the backend did not take the sender's part of a record of a workflow; trying again");
            // A member that is published and has no record would count as lost.
            match self.calls.commit(Arc::clone(&prepared.facts)).await {
                Ok(_) | Err(Unanswered::BadRecord) => {}
                Err(unanswered) => return Err(unanswered.into()),
            }
        }
        let confirm_wait = stopwatch.lap();
        let mut unsent = Vec::new();
        let (mut scheduled, mut delayed) = (Vec::new(), Vec::new());
        let mut published = published.into_iter();
        for (child, Prepared { envelope, publish, .. }) in window {
            let answer = match published.next() {
                Some(Ok(())) => Ok(()),
                Some(Err(error)) if error.is_certain() => Err(Unpublished::Never(error)),
                // Repeated until it is confirmed: a second copy is harmless.
                Some(Err(_)) | None => self.calls.publish(&publish).await,
            };
            match answer {
                Ok(()) => {
                    let eta = envelope.eta;
                    self.emit(EventKind::Sent { task: EventTask::of(&envelope), eta, confirm_wait });
                    scheduled.extend(eta.map(|at| {
                        let member = envelope.id.to_string();
                        IndexUpdate::Put { index: Index::Scheduled, at, member }
                    }));
                    let place = eta.and_then(|_| envelope.place());
                    delayed.extend(place.map(|place| (place.root_id().clone(), envelope.id.clone())));
                }
                Err(Unpublished::Never(error)) => {
                    let failure =
                        Failure::new(FailureKind::Unroutable, &*format!("it could not be queued: {error}"));
                    unsent.push((child, failure));
                }
                Err(unanswered) => return Err(unanswered),
            }
        }
        if !scheduled.is_empty()
            && let Err(error) = app.backend().update_indexes(scheduled).await
        {
            tracing::debug!(%error, "delayed tasks of a workflow are not listed as scheduled");
        }
        self.revoke_delayed(&delayed).await?;
        Ok(unsent)
    }

    /// Revokes delayed tasks that were published just now, if their workflow was revoked: a revocation that looked for them
    /// before their records were there has not found them, and they would learn of it only when they are due. Each has the
    /// root of its workflow before it.
    pub(super) async fn revoke_delayed(&self, delayed: &[(TaskId, TaskId)]) -> Result<(), Unpublished> {
        let roots: BTreeSet<&TaskId> = delayed.iter().map(|(root, _)| root).collect();
        for root in roots {
            if !self.read_mark(root).await? {
                continue;
            }
            let client = self.app.client();
            for (_, id) in delayed.iter().filter(|(of, _)| of == root) {
                if let Err(error) = client.revoke(id).await {
                    tracing::warn!(%id, %error, "a delayed task of a revoked workflow ends when it is due; revoke it again");
                }
            }
        }
        Ok(())
    }

    /// Makes the message of a child, and the facts that its sender writes.
    fn prepared_child(&self, parent: &Envelope, child: &Child, at: Timestamp) -> Result<Prepared, Failure> {
        let envelope = self.child_envelope(parent, child, at)?;
        let app = &self.app.0;
        if let Some(why) = app.trust.child_refusal(&envelope, self.now()) {
            return Err(Failure::rejected(DeadReason::NotAllowed, &why));
        }
        let unroutable = |error: PublishError| Failure::new(FailureKind::Unroutable, &*error.to_string());
        let message = self.app.message(&envelope).map_err(unroutable)?;
        let size = app.max_sizes.check(&message).map_err(|oversize| {
            let error = format!(
                "its {}: {} bytes, and the maximum is {}",
                oversize.part, oversize.size, oversize.max
            );
            Failure::new(FailureKind::Malformed, &*error)
        })?;
        let mut facts = sender_facts(&envelope);
        let waits = envelope.pairs.awaits();
        if let Some(outline) = &child.outline {
            facts.facts.push((name::OUTLINE.into(), crate::record::json(outline)));
        }
        if waits || envelope.eta.is_some() || child.outline.is_some() {
            let message = message_to_fact(&message, size);
            facts.facts.extend(message.map(|message| (name::MESSAGE.into(), message)));
        }
        let delay = match envelope.eta {
            Some(eta) => keep_for(eta.since(self.now()), self.app.broker().as_ref()),
            // A join of nothing is decided already.
            None if waits && child.step.flow.awaits.iter().any(|part| part.count() > 0) => FIRST_WAIT,
            None => Duration::ZERO,
        };
        let publish = Publish { target: Target::Queue(envelope.queue.clone()), message, delay };
        Ok(Prepared { envelope, publish, facts: Arc::new(facts) })
    }

    fn child_envelope(&self, parent: &Envelope, child: &Child, at: Timestamp) -> Result<Envelope, Failure> {
        let malformed = |error: String| Failure::new(FailureKind::Malformed, &*error);
        let app = &self.app.0;
        let step = &child.step;
        // A callback starts when its join is decided, not when it is sent.
        let eta = step.countdown().filter(|_| step.flow.awaits.is_empty()).map(|delay| at.plus(delay));
        let body = Body {
            args: step.args.clone(),
            retry: step.retry.clone(),
            timeout_ms: step.timeout_ms,
            soft_timeout_ms: step.soft_timeout_ms,
            first_eta: eta,
            headers: step.headers.clone(),
            flow: (!step.flow.is_empty()).then(|| Box::new(step.flow.clone())),
            limit_key: step.limit_key.clone(),
            limit_cost: step.limit_cost,
        };
        if let Some(oversize) = body.exceeded(&app.max_sizes) {
            let error =
                format!("it has {} {}, and the maximum is {}", oversize.size, oversize.part, oversize.max);
            return Err(malformed(error));
        }
        let mut pairs = Pairs::of_labels(step.labels.clone())
            .map_err(malformed)?
            .with_first_issued(parent.first_issued());
        if child.is_of_workflow() {
            pairs = pairs.with_place(&child.place);
        }
        if !step.flow.awaits.is_empty() {
            pairs = pairs.awaiting();
        }
        let envelope = Envelope {
            id: child.id(),
            name: TaskName::parse(&step.task).map_err(|error| malformed(error.to_string()))?,
            queue: QueueName::parse(&step.queue)
                .and_then(|queue| {
                    let fair_key = step.fair_key.as_deref();
                    app.separate_queue(queue, fair_key, &step.args, &step.headers, step.priority)
                })
                .map_err(|error| malformed(error.to_string()))?,
            attempt: 1,
            generation: 0,
            eta,
            expires: step.expires_in().map(|delay| at.plus(delay)),
            issued: at,
            counters: Default::default(),
            token: 0,
            unknown_since: None,
            traceparent: parent.traceparent.clone(),
            tracestate: parent.tracestate.clone(),
            priority: step.priority,
            pairs,
            content_type: app.codec.content_type().to_owned(),
            body: app.codec.encode(&body).map_err(|error| malformed(error.to_string()))?,
            first: parent.first.clone(),
            source: None,
        };
        Ok(app.trust.encrypt_like(parent, envelope))
    }

    /// Ends tasks that are never published, with everything after them. Adds the steps that may be decided now to `woken`.
    async fn end_unsent(
        &self,
        parent: &Envelope,
        unsent: Vec<Unsent>,
        woken: &mut BTreeSet<StepPlace>,
    ) -> Result<(), Unpublished> {
        let mut all = Vec::with_capacity(unsent.len());
        for (child, failure) in unsent {
            if failure.kind != FailureKind::Upstream {
                let upstream = Failure::new(FailureKind::Upstream, &*upstream_error(&child.id(), &failure));
                let after = never_after(&child.place, &child.step.flow).into_iter();
                all.extend(after.map(|child| (child, upstream.clone())));
            }
            all.push((child, failure));
        }
        for window in all.chunks(CONCURRENT_COMMITS) {
            let mut ends: Vec<BoxFuture<'_, _>> = Vec::with_capacity(window.len());
            for (child, failure) in window {
                ends.push(Box::pin(self.end_and_join(parent, child, failure)));
            }
            for answer in join_all(ends).await {
                woken.extend(answer?);
            }
        }
        // When all have joined: a join is made by its first member. Should a step wait after all, its guard extends it again.
        for (child, _) in &all {
            self.forget_join(awaited_join(&child.place, &child.step.flow)).await?;
        }
        Ok(())
    }

    /// Ends one task that is never published, and lets it join. Returns the steps that may be decided now.
    async fn end_and_join(
        &self,
        parent: &Envelope,
        child: &Child,
        failure: &Failure,
    ) -> Result<BTreeSet<StepPlace>, Unpublished> {
        let mut woken = BTreeSet::new();
        if let Some(ended) = self.end_child(parent, child, failure).await? {
            self.join(&child.id(), ended, &mut woken).await?;
        }
        Ok(woken)
    }

    /// Ends one task that is never published. Returns its recorded end; `None` if its record says otherwise.
    async fn end_child<'a>(
        &self,
        parent: &Envelope,
        child: &'a Child,
        failure: &Failure,
    ) -> Result<Option<Ended<'a>>, Unpublished> {
        let id = child.id();
        let (now, app) = (self.now(), &self.app.0);
        let kept_for = retention(app.results_ttl, None, now);
        let mut commit = failure_without_run(&id, &Facts::new(), 1, failure.clone(), now, kept_for);
        let text = |text: &str| Bytes::copy_from_slice(text.as_bytes());
        commit.facts.push((name::TASK.into(), text(&child.step.task)));
        commit.facts.push((name::QUEUE.into(), text(&child.step.queue)));
        let commit = match app.trust.outcome_key(parent) {
            Some(key) => encrypt_outcome(commit, &key),
            None => commit,
        };
        let commit = Arc::new(app.trust.sign_end(commit));
        let facts: Facts = match self.calls.commit_outcome(Arc::clone(&commit)).await {
            Ok(Committed::Done { .. }) => commit.facts.iter().cloned().collect(),
            Ok(Committed::Refused(facts)) => facts,
            Err(Unanswered::BadRecord) => {
                tracing::error!(%id, "the record of a task that never runs cannot be used");
                return Ok(None);
            }
            Err(unanswered) => return Err(unanswered.into()),
        };
        let Some(end) = facts.get(name::END).filter(|_| app.trust.check_end(&id, &facts).is_ok()) else {
            return Ok(None);
        };
        let failed = crate::record::failure_of(&facts).is_some();
        Ok(Some(Ended { place: child.place.clone(), flow: &child.step.flow, end: end.clone(), failed }))
    }

    /// Lets an ended task join. Adds the steps that may be decided now to `woken`.
    async fn join(
        &self,
        id: &crate::id::TaskId,
        ended: Ended<'_>,
        woken: &mut BTreeSet<StepPlace>,
    ) -> Result<(), Unpublished> {
        for joining in joinings(&ended.place, ended.flow) {
            if ended.failed && joining.policy == Policy::Hold {
                continue;
            }
            if self.commit_join(id, &joining, &ended.end, ended.failed).await? {
                woken.insert(joining.waiting);
            }
        }
        Ok(())
    }

    /// Writes a member into its join. Returns `true` if the task that waits should look at the join.
    pub(super) async fn commit_join(
        &self,
        id: &crate::id::TaskId,
        joining: &Joining,
        end: &Bytes,
        failed: bool,
    ) -> Result<bool, Unanswered> {
        let record = joining.record();
        let member = JoinedMember { id: id.clone(), end: String::from_utf8_lossy(end).into_owned() };
        let member = self.app.0.trust.signed_member(&record, joining.index, &member);
        let answer = match self.calls.commit_outcome(join(joining, member)).await {
            Ok(answer) => answer,
            Err(Unanswered::BadRecord) => {
                tracing::error!(join = %record, "a join cannot be used: what waits for it looks at its members");
                return Ok(false);
            }
            Err(unanswered) => return Err(unanswered),
        };
        Ok(may_be_decided(joining, failed, &answer))
    }

    /// Publishes a task that waits for a join for an immediate look at the join. Without it, the task's guard comes back by
    /// itself.
    async fn release_callback(&self, waiting: &StepPlace) -> Result<(), Unpublished> {
        let id = waiting.id();
        let facts = self.calls.read_other(&RecordId::from(&id)).await?;
        let Some(generation) = waiting_callback(&facts) else { return Ok(()) };
        // As of its sending: it was fresh then, and its guard is signed again each time.
        let sent = facts.read(name::SENT).unwrap_or_else(|| self.now());
        let kept = match self.app.client().kept_envelope(&id, &facts, name::MESSAGE, sent) {
            Ok(kept) => kept,
            Err(error) => {
                tracing::debug!(%id, %error, "a task that waits for others is left to its guard");
                return Ok(());
            }
        };
        let copy = Envelope { generation, ..kept }.next_guard(self.now());
        self.publish_later(&copy, Duration::ZERO).await?;
        match self.calls.commit(unpark(&id, copy.attempt, copy.generation)).await {
            // Without the mark two copies come, and the record makes one of them harmless.
            Ok(_) | Err(Unanswered::BadRecord) => Ok(()),
            Err(unanswered) => Err(unanswered.into()),
        }
    }
}

/// An end as the record of its task holds it.
pub(super) struct RecordedEnd {
    pub(super) end: End,
    /// The fact: signed, and encrypted where outcomes are.
    fact: Bytes,
}

/// A child with its message.
struct Prepared {
    envelope: Envelope,
    publish: Publish,
    facts: Arc<Commit>,
}
