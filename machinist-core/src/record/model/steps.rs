//! Steps of a worker with one delivery, one small step at a time. The order is that of `worker::processor` and
//! `worker::guard`, and every decision is made by the production function.

use std::rc::Rc;

use super::{
    super::{
        claim::Claim,
        facts::{Counters, Facts, Failure, Parked, name},
        follow_up::{FollowUp, recorded_follow_up},
        park::park,
        verdict::{CommitRefusal, explain_refusal, failure_without_run, follow_up_of, outcome_commit},
    },
    Model, ModelMutation, ModelStep, StepKind, TTL,
    state::{
        Completion, EndReason, GuardStep, HandlerStage, ModelCancelReason, ModelFault, ModelHandler,
        ModelMessage, ModelReceipt, ModelState, OutcomeKind,
    },
    store::{FollowUpId, PendingId},
};
use crate::{
    backend::Commit,
    clock::Timestamp,
    wire::{Codec, Envelope, FirstSigner, Pairs},
};

/// Position of a handler in a state.
#[derive(Clone, Copy)]
pub(super) struct HandlerIndex {
    pub(super) worker: usize,
    pub(super) handler: usize,
}

impl HandlerIndex {
    pub(super) fn get(self, state: &ModelState) -> &ModelHandler {
        &state.workers[self.worker].handlers[self.handler]
    }
    pub(super) fn get_mut(self, state: &mut ModelState) -> &mut ModelHandler {
        &mut state.workers[self.worker].handlers[self.handler]
    }
    /// Settles the delivery, which removes the handler and its registration.
    pub(super) fn settle(self, state: &mut ModelState, requeue: bool) {
        let handler = state.workers[self.worker].handlers.remove(self.handler);
        if requeue && handler.receipt == ModelReceipt::Unsettled {
            state.put(handler.message);
        }
    }
}

/// Collector of the next steps of a delivery.
struct NextSteps<'a> {
    model: &'a Model,
    state: &'a ModelState,
    index: HandlerIndex,
    steps: &'a mut Vec<ModelStep>,
}

/// Adds every step that the handler at this position can take.
pub(super) fn add_handler_steps(
    model: &Model,
    state: &ModelState,
    index: HandlerIndex,
    steps: &mut Vec<ModelStep>,
) {
    let mut next = NextSteps { model, state, index, steps };
    let draining = state.workers[index.worker].draining;
    let handler = index.get(state).clone();
    if draining && !matches!(handler.stage, HandlerStage::Run(_) | HandlerStage::Abandoned) {
        next.step("abandons it", StepKind::Fault, |_, state| {
            index.get_mut(state).stage = HandlerStage::Abandoned
        });
    }
    match handler.stage {
        HandlerStage::Open | HandlerStage::Busy | HandlerStage::Suspect
            if !draining && !state.has_slot(index) => {}
        HandlerStage::Open => next
            .step("requests a start", StepKind::Normal, |model, state| model.expire_or_request(state, index)),
        HandlerStage::Suspect => {
            next.step("requests a start alone", StepKind::Normal, |model, state| {
                index.get_mut(state).alone = true;
                model.request_start(state, index);
            });
            if handler.message.generation < model.config.max_guards && !draining {
                next.guard(GuardStep::None);
            }
        }
        HandlerStage::Busy => {
            if draining || model.can_progress(state, index) {
                next.step("requests a start again", StepKind::Normal, |model, state| {
                    model.expire_or_request(state, index)
                });
            }
            if handler.message.generation < model.config.max_guards && !draining {
                next.guard(GuardStep::None);
            }
        }
        HandlerStage::Guard(guard_step) => next.guard(guard_step),
        HandlerStage::Park(park_step) => next.park(park_step),
        HandlerStage::StartRequested(pending, session) => next.commit_start(pending, session),
        HandlerStage::Run(guard_step) => next.run(&handler, guard_step, draining),
        HandlerStage::Record(outcome, claim) => next.record_outcome(outcome, &model.store.claim_of(claim)),
        HandlerStage::HandBack => next.hand_back(&handler),
        HandlerStage::Requeue => next.publish(
            "publishes its next guard to the queue",
            move |_, state| {
                let message = index.get(state).message;
                state.put(ModelMessage { generation: message.generation + 1, ..message });
            },
            |_, state| index.settle(state, true),
        ),
        HandlerStage::EndWithoutRun(reason, facts) => {
            next.end_without_run(reason, &model.store.facts_of(facts))
        }
        HandlerStage::Publish(id) => next.follow(id, &model.store.follow_up_of(id)),
        HandlerStage::Mark(id) => {
            let follow_up = model.store.follow_up_of(id);
            next.commit(
                "marks the follow-up as done",
                follow_up.done(&model.id, handler.message.attempt),
                |_, state, _| {
                    index.get_mut(state).stage = HandlerStage::Ack;
                },
            );
        }
        HandlerStage::Ack => next.step("acks", StepKind::Normal, |_, state| index.settle(state, false)),
        HandlerStage::Abandoned => {}
    }
}

impl NextSteps<'_> {
    fn step(&mut self, action: &'static str, kind: StepKind, change: impl FnOnce(&Model, &mut ModelState)) {
        let mut state = self.state.clone();
        change(self.model, &mut state);
        self.push(action, kind, state);
    }

    fn push(&mut self, action: &'static str, kind: StepKind, state: ModelState) {
        let message = self.index.get(self.state).message;
        self.steps.push(self.model.step(Some(self.index.worker), Some(message), action, kind, state));
    }

    /// Adds a commit and the effect of its answer. If the reply is lost, the commit is done and requested again.
    fn commit(
        &mut self,
        action: &'static str,
        commit: Option<Commit>,
        then: impl FnOnce(&Model, &mut ModelState, Option<Rc<Facts>>),
    ) {
        let commit = commit.expect("a commit");
        let mut state = self.state.clone();
        let answer = self.model.commit(&mut state, &commit);
        if let Some(lost) = state.after(ModelFault::Reply).filter(|_| answer.is_none()) {
            self.push("commits, and the reply is lost", StepKind::Fault, lost);
        }
        then(self.model, &mut state, answer);
        self.push(action, StepKind::Normal, state);
    }

    /// Adds a publish. It may succeed although the confirm is lost, and is then tried again.
    fn publish(
        &mut self,
        action: &'static str,
        publish: impl FnOnce(&Model, &mut ModelState),
        then: impl FnOnce(&Model, &mut ModelState),
    ) {
        let mut state = self.state.clone();
        publish(self.model, &mut state);
        if let Some(unknown) = state.after(ModelFault::Confirm) {
            self.push("publishes, and the confirm is lost", StepKind::Fault, unknown);
        }
        then(self.model, &mut state);
        self.push(action, StepKind::Normal, state);
    }

    fn commit_start(&mut self, pending: PendingId, session: u8) {
        let index = self.index;
        let pending = self.model.store.pending_of(pending);
        self.commit("commits a start", Some(pending.0.clone()), |model, state, answer| match answer {
            None => model.start_granted(state, index, pending.1.clone()),
            Some(facts) => model.start_refused(state, index, session, &facts),
        });
    }

    fn run(&mut self, handler: &ModelHandler, guard_step: GuardStep, draining: bool) {
        let index = self.index;
        let ends_with = |outcome| {
            move |_: &Model, state: &mut ModelState| {
                let handler = index.get_mut(state);
                let claim = handler.claim.expect("a run has a claim");
                handler.stage = HandlerStage::Record(outcome, claim);
            }
        };
        self.step("succeeds", StepKind::Normal, ends_with(OutcomeKind::Success));
        match handler.cancel {
            Some(ModelCancelReason::TakenOver) => {
                self.step("stops: taken over", StepKind::Normal, |model, state| {
                    model.taken_over(state, index)
                });
            }
            Some(ModelCancelReason::Revoked) => {
                self.step("stops: revoked", StepKind::Normal, ends_with(OutcomeKind::Revoked))
            }
            None => self.step("fails", StepKind::Normal, ends_with(OutcomeKind::Failed)),
        }
        if draining && handler.cancel.is_none() {
            self.step("is cut off", StepKind::Normal, |_, state| {
                index.get_mut(state).stage = HandlerStage::HandBack
            });
            if self.model.config.mutation == Some(ModelMutation::HandBackRunning) {
                let claim = self.model.store.claim_of(handler.claim.expect("a run has a claim"));
                self.commit("hands back while it runs", Some(claim.hand_back()), |_, state, _| {
                    let handler = index.get_mut(state);
                    handler.receipt = ModelReceipt::Lost;
                    let message = handler.message;
                    state.put(message);
                });
            }
        }
        let guardable = handler.receipt != ModelReceipt::Guarded
            && (guard_step != GuardStep::None || handler.message.generation < self.model.config.max_guards);
        if guardable {
            self.guard(guard_step);
        }
    }

    /// Adds the next step of a guard: publish, store, acknowledge.
    fn guard(&mut self, guard_step: GuardStep) {
        let index = self.index;
        let message = index.get(self.state).message;
        let is_running = matches!(index.get(self.state).stage, HandlerStage::Run(_));
        let stage = |step| if is_running { HandlerStage::Run(step) } else { HandlerStage::Guard(step) };
        let guard = next_guard(message);
        let store = |generation| {
            let mut commit = Commit::new(self.model.id.clone());
            commit.facts = vec![(name::guard(message.attempt, generation), "1".into())];
            commit
        };
        let store_first = self.model.config.mutation == Some(ModelMutation::GuardStoredFirst);
        let publish_guard = |_: &Model, state: &mut ModelState| state.put(guard);
        match (guard_step, store_first) {
            (GuardStep::None, false) => {
                self.publish("publishes a guard", publish_guard, |_, state| {
                    index.get_mut(state).stage = stage(GuardStep::Published);
                });
            }
            (GuardStep::Published, false) => {
                let commit = store(guard.generation);
                self.commit("stores the guard", Some(commit), |_, state, _| {
                    index.get_mut(state).stage = stage(GuardStep::Stored);
                });
            }
            (GuardStep::None, true) => {
                let commit = store(guard.generation);
                self.commit("stores the guard", Some(commit), |_, state, _| {
                    index.get_mut(state).stage = stage(GuardStep::Published);
                });
            }
            (GuardStep::Published, true) => {
                self.publish("publishes a guard", publish_guard, |_, state| {
                    index.get_mut(state).stage = stage(GuardStep::Stored);
                });
            }
            (GuardStep::Stored, _) if is_running => {
                self.step("acks for the guard", StepKind::Normal, |_, state| {
                    let handler = index.get_mut(state);
                    handler.receipt = ModelReceipt::Guarded;
                    handler.stage = HandlerStage::Run(GuardStep::None);
                    handler.message = guard;
                });
            }
            (GuardStep::Stored, _) => {
                self.step("acks for the guard", StepKind::Normal, |_, state| index.settle(state, false));
            }
        }
    }

    /// Adds the next step of parking: publish the guard, store it with its reason, acknowledge.
    fn park(&mut self, park_step: GuardStep) {
        let index = self.index;
        let message = index.get(self.state).message;
        let guard = next_guard(message);
        if self.model.config.mutation == Some(ModelMutation::ParkAckedFirst)
            && index.get(self.state).receipt == ModelReceipt::Unsettled
        {
            return self.step("acks before it parks", StepKind::Normal, |_, state| {
                index.get_mut(state).receipt = ModelReceipt::Lost;
            });
        }
        match park_step {
            GuardStep::None => self.publish(
                "publishes a guard that parks it",
                |_, state| state.put(guard),
                |_, state| index.get_mut(state).stage = HandlerStage::Park(GuardStep::Published),
            ),
            GuardStep::Published => {
                let parked = Parked {
                    attempt: guard.attempt,
                    generation: guard.generation,
                    reason: "paused:a".to_owned(),
                    since: Model::NOW,
                    until: Model::NOW,
                    reserved: Vec::new(),
                };
                let token = guard.token.to_string().into();
                let commit = park(&self.model.id, &parked, Some(token), Model::NOW);
                // Refused: the task has ended.
                self.commit("records that it is parked", Some(commit), |_, state, _| {
                    index.get_mut(state).stage = HandlerStage::Park(GuardStep::Stored);
                });
            }
            GuardStep::Stored => {
                self.step("acks what is parked", StepKind::Normal, |_, state| index.settle(state, false));
            }
        }
    }

    fn record_outcome(&mut self, outcome: OutcomeKind, claim: &Claim) {
        let index = self.index;
        let message = index.get(self.state).message;
        let verdict = self.model.verdict(outcome, message);
        let mut commit = outcome_commit(claim, &verdict, String::new(), Model::NOW, TTL);
        match self.model.config.mutation {
            Some(ModelMutation::VerdictUnchecked) => {
                commit.unless.retain(|name| *name != name::start(claim.attempt, claim.start + 1));
            }
            Some(ModelMutation::VerdictWithoutStarts) => commit.equal_or_absent.clear(),
            _ => {}
        }
        self.commit("records its outcome", Some(commit), |model, state, answer| {
            let Some(facts) = answer else {
                return model.follow(state, index, follow_up_of(&verdict, claim));
            };
            match explain_refusal(&facts, claim, &verdict) {
                CommitRefusal::Recorded => model.follow(state, index, follow_up_of(&verdict, claim)),
                CommitRefusal::Over(follow_up) => model.follow(state, index, follow_up),
                CommitRefusal::Revoked => {
                    index.get_mut(state).stage =
                        HandlerStage::Record(OutcomeKind::Revoked, model.store.claim(claim.clone()))
                }
                CommitRefusal::Adopted(adopted) => {
                    index.get_mut(state).stage = HandlerStage::Record(outcome, model.store.claim(adopted));
                }
                CommitRefusal::TakenOver => model.taken_over(state, index),
            }
        });
    }

    fn hand_back(&mut self, handler: &ModelHandler) {
        let index = self.index;
        let claim = self.model.store.claim_of(handler.claim.expect("a run has a claim"));
        let mut commit = claim.hand_back();
        if self.model.config.mutation == Some(ModelMutation::HandBackWithoutStarts) {
            commit.equal_or_absent.clear();
        }
        let guarded = handler.receipt == ModelReceipt::Guarded;
        self.commit("hands back", Some(commit), |_, state, _| {
            if guarded {
                index.get_mut(state).stage = HandlerStage::Requeue;
            } else {
                index.settle(state, true);
            }
        });
    }

    fn end_without_run(&mut self, reason: EndReason, facts: &Facts) {
        let index = self.index;
        let message = index.get(self.state).message;
        let mut commit = failure_without_run(
            &self.model.id,
            facts,
            message.attempt,
            Failure::new(reason.kind(), "ended"),
            Model::NOW,
            TTL,
        );
        if self.model.config.mutation == Some(ModelMutation::EndUnchecked) {
            commit.unless.retain(|name| !name.starts_with("s:"));
        }
        let ended: Facts = commit.facts.iter().cloned().collect();
        self.commit("ends the task based on its record", Some(commit), |model, state, answer| {
            let facts = answer.unwrap_or_else(|| Rc::new(ended));
            match (recorded_follow_up(&facts, message.attempt), reason) {
                (Some(follow_up), _) => model.follow(state, index, follow_up),
                // It was started in time: this is another delivery of it.
                (None, EndReason::Expired) => model.request_start(state, index),
                (None, EndReason::Revoked | EndReason::Lost) => model.busy(state, index),
            }
        });
    }

    fn follow(&mut self, id: FollowUpId, follow_up: &FollowUp) {
        let index = self.index;
        if self.model.config.mutation == Some(ModelMutation::AckBeforeFollow)
            && index.get(self.state).receipt == ModelReceipt::Unsettled
        {
            self.step("acks too early", StepKind::Normal, |_, state| {
                index.get_mut(state).receipt = ModelReceipt::Lost
            });
        }
        let mark_first = self.model.config.mutation == Some(ModelMutation::MarkBeforePublish);
        if mark_first {
            let done = follow_up.done(&self.model.id, index.get(self.state).message.attempt);
            let mut state = self.state.clone();
            let before = state.facts;
            self.model.commit(&mut state, &done.expect("a follow-up that is due"));
            if state.facts != before {
                return self.push("marks the follow-up as done", StepKind::Normal, state);
            }
        }
        let stage = if mark_first { HandlerStage::Ack } else { HandlerStage::Mark(id) };
        let publish = |_: &Model, state: &mut ModelState| match follow_up {
            FollowUp::Nothing | FollowUp::Ended { .. } => {}
            FollowUp::NextRun { due, counters, token } => {
                let next = next_attempt(index.get(state).message, *due, *counters, *token);
                state.put(next);
            }
            FollowUp::DeadLetter { .. } => {
                if state.completion == Completion::DeadLetterDue {
                    state.completion = Completion::Done;
                }
            }
        };
        self.publish("publishes the follow-up", publish, |_, state| index.get_mut(state).stage = stage);
    }
}

impl ModelState {
    fn has_slot(&self, index: HandlerIndex) -> bool {
        let handler = index.get(self);
        let alone = handler.alone || handler.stage == HandlerStage::Suspect;
        self.workers[index.worker].has_slot(index.handler, alone)
    }

    /// Returns this state after a fault, if the configuration has one left.
    pub(super) fn after(&self, fault: ModelFault) -> Option<Self> {
        let mut state = self.clone();
        let faults_left = &mut state.faults_left[fault as usize];
        *faults_left = faults_left.checked_sub(1)?;
        Some(state)
    }
}

fn next_guard(message: ModelMessage) -> ModelMessage {
    message_of(&envelope(message).next_guard(Model::NOW))
}

fn next_attempt(message: ModelMessage, due: Timestamp, counters: Counters, token: u64) -> ModelMessage {
    message_of(&envelope(message).next_attempt(due, counters, token))
}

fn message_of(envelope: &Envelope) -> ModelMessage {
    ModelMessage { attempt: envelope.attempt, generation: envelope.generation, token: envelope.token }
}

fn envelope(message: ModelMessage) -> Envelope {
    Envelope {
        id: "t".try_into().expect("an id"),
        name: "add".try_into().expect("a name"),
        queue: "math".try_into().expect("a queue"),
        attempt: message.attempt,
        generation: message.generation,
        eta: None,
        expires: None,
        issued: Model::NOW,
        counters: Counters::default(),
        token: message.token,
        first: FirstSigner::Nobody,
        source: None,
        unknown_since: None,
        traceparent: None,
        tracestate: None,
        priority: None,
        pairs: Pairs::default(),
        content_type: Codec::Json.content_type().to_owned(),
        body: bytes::Bytes::new(),
    }
}
