//! What a worker does with a delivery, one small step at a time: the order is that of `worker::processor` and
//! `worker::guard`, and every decision is made by the function that makes it there.

use std::rc::Rc;

use super::{
    super::{
        facts::{Counters, ErrorText, Facts, name},
        start::Claim,
        verdict::{
            CommitRefusal, FollowUp, explain_refusal, failure_without_run, follow_up_of, outcome_commit,
            recorded_follow_up,
        },
    },
    Model, ModelMutation, ModelStep, StepKind, TTL,
    store::{FollowUpNo, PendingNo},
    world::{
        Bystander, GuardStep, HandlerStage, MessageFate, ModelCancelReason, ModelFault, ModelHandler,
        ModelMessage, ModelReceipt, ModelState, OutcomeKind,
    },
};
use crate::{
    backend::Commit,
    clock::Timestamp,
    wire::{Codec, Envelope, FirstSigner},
};

/// A handler in a world: whose, and which.
#[derive(Clone, Copy)]
pub(super) struct HandlerPlace {
    pub(super) worker: usize,
    pub(super) handler: usize,
}

impl HandlerPlace {
    pub(super) fn of(self, world: &ModelState) -> &ModelHandler {
        &world.workers[self.worker].handlers[self.handler]
    }
    pub(super) fn of_mut(self, world: &mut ModelState) -> &mut ModelHandler {
        &mut world.workers[self.worker].handlers[self.handler]
    }
    /// Settled: the handler is gone, and its registration with it.
    pub(super) fn end(self, world: &mut ModelState, requeue: bool) {
        let handler = world.workers[self.worker].handlers.remove(self.handler);
        if requeue && handler.receipt == ModelReceipt::Holding {
            world.put(handler.msg);
        }
    }
}

/// What a delivery does next.
struct Steps<'a> {
    model: &'a Model,
    world: &'a ModelState,
    place: HandlerPlace,
    steps: &'a mut Vec<ModelStep>,
}

/// Adds every step that the handler at this place can take.
pub(super) fn of_handler(model: &Model, world: &ModelState, place: HandlerPlace, steps: &mut Vec<ModelStep>) {
    let mut on = Steps { model, world, place, steps };
    let draining = world.workers[place.worker].draining;
    let handler = place.of(world).clone();
    if draining && !matches!(handler.at, HandlerStage::Run(_) | HandlerStage::Left) {
        on.step("leaves it", StepKind::ModelFault, |_, world| place.of_mut(world).at = HandlerStage::Left);
    }
    match handler.at {
        HandlerStage::Open | HandlerStage::Busy | HandlerStage::Suspect
            if !draining && !world.has_slot(place) => {}
        HandlerStage::Open => on.step("asks", StepKind::Normal, |model, world| model.ask(world, place)),
        HandlerStage::Suspect => {
            on.step("asks alone", StepKind::Normal, |model, world| {
                place.of_mut(world).alone = true;
                model.ask_now(world, place);
            });
            if handler.msg.generation < model.config.generations && !draining {
                on.guard(GuardStep::None);
            }
        }
        HandlerStage::Busy => {
            if draining || model.is_free(world, place) {
                on.step("asks again", StepKind::Normal, |model, world| model.ask(world, place));
            }
            if handler.msg.generation < model.config.generations && !draining {
                on.guard(GuardStep::None);
            }
        }
        HandlerStage::Guard(so_far) => on.guard(so_far),
        HandlerStage::Ask(pending, session) => on.ask(pending, session),
        HandlerStage::Run(so_far) => on.run(&handler, so_far, draining),
        HandlerStage::Record(say, claim) => on.record_outcome(say, &model.store.claim_of(claim)),
        HandlerStage::HandBack => on.hand_back(&handler),
        HandlerStage::Requeue => on.publish(
            "publishes its next guard to the queue",
            move |_, world| {
                let msg = place.of(world).msg;
                world.put(ModelMessage { generation: msg.generation + 1, ..msg });
            },
            |_, world| place.end(world, true),
        ),
        HandlerStage::End(who, facts) => on.end(who, &model.store.facts_of(facts)),
        HandlerStage::Publish(no) => on.follow(no, &model.store.follow_up_of(no)),
        HandlerStage::Mark(no) => {
            let follow_up = model.store.follow_up_of(no);
            on.commit(
                "says that it followed",
                follow_up.done(&model.id, handler.msg.attempt),
                |_, world, _| {
                    place.of_mut(world).at = HandlerStage::Ack;
                },
            );
        }
        HandlerStage::Ack => on.step("acks", StepKind::Normal, |_, world| place.end(world, false)),
        HandlerStage::Left => {}
    }
}

impl Steps<'_> {
    fn step(&mut self, what: &'static str, kind: StepKind, change: impl FnOnce(&Model, &mut ModelState)) {
        let mut world = self.world.clone();
        change(self.model, &mut world);
        self.push(what, kind, world);
    }

    fn push(&mut self, what: &'static str, kind: StepKind, world: ModelState) {
        let msg = self.place.of(self.world).msg;
        self.steps.push(self.model.step(Some(self.place.worker), Some(msg), what, kind, world));
    }

    /// A commit and what its answer leads to. With a lost reply it is done, and asked for again.
    fn commit(
        &mut self,
        what: &'static str,
        commit: Option<Commit>,
        then: impl FnOnce(&Model, &mut ModelState, Option<Rc<Facts>>),
    ) {
        let commit = commit.expect("something to commit");
        let mut world = self.world.clone();
        let answer = self.model.commit(&mut world, &commit);
        if let Some(lost) = world.after(ModelFault::Reply).filter(|_| answer.is_none()) {
            self.push("commits, and does not learn it", StepKind::ModelFault, lost);
        }
        then(self.model, &mut world, answer);
        self.push(what, StepKind::Normal, world);
    }

    /// A publish. It may have been done although nobody says so, and is then tried again.
    fn publish(
        &mut self,
        what: &'static str,
        publish: impl FnOnce(&Model, &mut ModelState),
        then: impl FnOnce(&Model, &mut ModelState),
    ) {
        let mut world = self.world.clone();
        publish(self.model, &mut world);
        if let Some(unknown) = world.after(ModelFault::Confirm) {
            self.push("publishes, and does not learn it", StepKind::ModelFault, unknown);
        }
        then(self.model, &mut world);
        self.push(what, StepKind::Normal, world);
    }

    fn ask(&mut self, pending: PendingNo, session: u8) {
        let (place, asked) = (self.place, self.model.store.pending_of(pending));
        self.commit("commits a start", Some(asked.0.clone()), |model, world, answer| match answer {
            None => model.granted(world, place, asked.1.clone()),
            Some(facts) => model.refused_start(world, place, session, &facts),
        });
    }

    fn run(&mut self, handler: &ModelHandler, so_far: GuardStep, draining: bool) {
        let place = self.place;
        let says = |say| {
            move |_: &Model, world: &mut ModelState| {
                let handler = place.of_mut(world);
                let claim = handler.claim.expect("what runs holds a start");
                handler.at = HandlerStage::Record(say, claim);
            }
        };
        self.step("succeeds", StepKind::Normal, says(OutcomeKind::Success));
        match handler.cancel {
            Some(ModelCancelReason::Superseded) => {
                self.step("stops: superseded", StepKind::Normal, |model, world| {
                    model.superseded(world, place)
                });
            }
            Some(ModelCancelReason::Revoked) => {
                self.step("stops: revoked", StepKind::Normal, says(OutcomeKind::Revoked))
            }
            None => self.step("fails", StepKind::Normal, says(OutcomeKind::Failed)),
        }
        if draining && handler.cancel.is_none() {
            self.step("is cut off", StepKind::Normal, |_, world| {
                place.of_mut(world).at = HandlerStage::HandBack
            });
            if self.model.config.mutation == Some(ModelMutation::HandBackRunning) {
                let claim = self.model.store.claim_of(handler.claim.expect("held"));
                self.commit("hands back while it runs", Some(claim.hand_back()), |_, world, _| {
                    let handler = place.of_mut(world);
                    handler.receipt = ModelReceipt::Lost;
                    let msg = handler.msg;
                    world.put(msg);
                });
            }
        }
        let guardable = handler.receipt != ModelReceipt::Guarded
            && (so_far != GuardStep::None || handler.msg.generation < self.model.config.generations);
        if guardable {
            self.guard(so_far);
        }
    }

    /// The next of a guard's steps: publish, store, acknowledge.
    fn guard(&mut self, so_far: GuardStep) {
        let (place, msg) = (self.place, self.place.of(self.world).msg);
        let running = matches!(place.of(self.world).at, HandlerStage::Run(_));
        let at = |step| if running { HandlerStage::Run(step) } else { HandlerStage::Guard(step) };
        let guard = next_guard(msg);
        let store = |generation| {
            let mut commit = Commit::new(self.model.id.clone());
            commit.facts = vec![(name::guard(msg.attempt, generation), "1".into())];
            commit
        };
        let stored_first = self.model.config.mutation == Some(ModelMutation::GuardStoredFirst);
        let publishing = |_: &Model, world: &mut ModelState| world.put(guard);
        match (so_far, stored_first) {
            (GuardStep::None, false) => {
                self.publish("publishes a guard", publishing, |_, world| {
                    place.of_mut(world).at = at(GuardStep::Published);
                });
            }
            (GuardStep::Published, false) => {
                let commit = store(guard.generation);
                self.commit("stores the guard", Some(commit), |_, world, _| {
                    place.of_mut(world).at = at(GuardStep::Stored);
                });
            }
            (GuardStep::None, true) => {
                let commit = store(guard.generation);
                self.commit("stores the guard", Some(commit), |_, world, _| {
                    place.of_mut(world).at = at(GuardStep::Published);
                });
            }
            (GuardStep::Published, true) => {
                self.publish("publishes a guard", publishing, |_, world| {
                    place.of_mut(world).at = at(GuardStep::Stored);
                });
            }
            (GuardStep::Stored, _) if running => {
                self.step("acks for the guard", StepKind::Normal, |_, world| {
                    let handler = place.of_mut(world);
                    (handler.receipt, handler.at, handler.msg) =
                        (ModelReceipt::Guarded, HandlerStage::Run(GuardStep::None), guard);
                });
            }
            (GuardStep::Stored, _) => {
                self.step("acks for the guard", StepKind::Normal, |_, world| place.end(world, false));
            }
        }
    }

    fn record_outcome(&mut self, say: OutcomeKind, claim: &Claim) {
        let (place, msg) = (self.place, self.place.of(self.world).msg);
        let verdict = self.model.verdict(say, msg);
        let mut commit = outcome_commit(claim, &verdict, String::new(), Model::NOW, TTL);
        match self.model.config.mutation {
            Some(ModelMutation::VerdictUnguarded) => {
                commit.unless.retain(|name| *name != name::start(claim.attempt, claim.start + 1));
            }
            Some(ModelMutation::VerdictWithoutCarry) => commit.equal_or_absent.clear(),
            _ => {}
        }
        self.commit("records its outcome", Some(commit), |model, world, answer| {
            let Some(facts) = answer else {
                return model.follow(world, place, follow_up_of(&verdict, claim));
            };
            match explain_refusal(&facts, claim, &verdict) {
                CommitRefusal::Recorded => model.follow(world, place, follow_up_of(&verdict, claim)),
                CommitRefusal::Over(follow_up) => model.follow(world, place, follow_up),
                CommitRefusal::Revoked => {
                    place.of_mut(world).at =
                        HandlerStage::Record(OutcomeKind::Revoked, model.store.claim(claim.clone()))
                }
                CommitRefusal::Adopted(adopted) => {
                    place.of_mut(world).at = HandlerStage::Record(say, model.store.claim(adopted));
                }
                CommitRefusal::TakenOver => model.superseded(world, place),
            }
        });
    }

    fn hand_back(&mut self, handler: &ModelHandler) {
        let place = self.place;
        let claim = self.model.store.claim_of(handler.claim.expect("what ran holds a start"));
        let mut commit = claim.hand_back();
        if self.model.config.mutation == Some(ModelMutation::HandBackWithoutCarry) {
            commit.equal_or_absent.clear();
        }
        let guarded = handler.receipt == ModelReceipt::Guarded;
        self.commit("hands back", Some(commit), |_, world, _| {
            if guarded {
                place.of_mut(world).at = HandlerStage::Requeue;
            } else {
                place.end(world, true);
            }
        });
    }

    fn end(&mut self, who: Bystander, facts: &Facts) {
        let (place, msg) = (self.place, self.place.of(self.world).msg);
        let error = ErrorText::from("ended");
        let mut commit =
            failure_without_run(&self.model.id, facts, msg.attempt, who.kind(), error, Model::NOW, TTL);
        if self.model.config.mutation == Some(ModelMutation::EndUnguarded) {
            commit.unless.retain(|name| !name.starts_with("s:"));
        }
        let ended: Facts = commit.facts.iter().cloned().collect();
        self.commit("ends the task as it read it", Some(commit), |model, world, answer| {
            let facts = answer.unwrap_or_else(|| Rc::new(ended));
            match (recorded_follow_up(&facts, msg.attempt), who) {
                (Some(follow_up), _) => model.follow(world, place, follow_up),
                // Started in time: this is another delivery of it.
                (None, Bystander::Expired) => model.ask_now(world, place),
                (None, Bystander::Revoked | Bystander::Lost) => model.busy(world, place),
            }
        });
    }

    fn follow(&mut self, no: FollowUpNo, follow_up: &FollowUp) {
        let place = self.place;
        if self.model.config.mutation == Some(ModelMutation::AckBeforeFollow)
            && place.of(self.world).receipt == ModelReceipt::Holding
        {
            self.step("acks too early", StepKind::Normal, |_, world| {
                place.of_mut(world).receipt = ModelReceipt::Lost
            });
        }
        let marked_first = self.model.config.mutation == Some(ModelMutation::MarkBeforePublish);
        if marked_first {
            let done = follow_up.done(&self.model.id, place.of(self.world).msg.attempt);
            let mut world = self.world.clone();
            let before = world.facts;
            self.model.commit(&mut world, &done.expect("a mark"));
            if world.facts != before {
                return self.push("says that it followed", StepKind::Normal, world);
            }
        }
        let at = if marked_first { HandlerStage::Ack } else { HandlerStage::Mark(no) };
        let publish = |_: &Model, world: &mut ModelState| match follow_up {
            FollowUp::Nothing => {}
            FollowUp::NextRun { due, counters, token } => {
                let next = next_attempt(place.of(world).msg, *due, *counters, *token);
                world.put(next);
            }
            FollowUp::DeadLetter { .. } => {
                if world.fate == MessageFate::Unburied {
                    world.fate = MessageFate::Done;
                }
            }
        };
        self.publish("publishes what follows", publish, |_, world| place.of_mut(world).at = at);
    }
}

impl ModelState {
    fn has_slot(&self, place: HandlerPlace) -> bool {
        let handler = place.of(self);
        let alone = handler.alone || handler.at == HandlerStage::Suspect;
        self.workers[place.worker].has_slot(place.handler, alone)
    }

    /// This world after a fault, if there is one left of it.
    pub(super) fn after(&self, fault: ModelFault) -> Option<Self> {
        let mut world = self.clone();
        let left = &mut world.left[fault as usize];
        *left = left.checked_sub(1)?;
        Some(world)
    }
}

fn next_guard(msg: ModelMessage) -> ModelMessage {
    msg_of(&envelope(msg).next_guard(Model::NOW))
}

fn next_attempt(msg: ModelMessage, due: Timestamp, counters: Counters, token: u64) -> ModelMessage {
    msg_of(&envelope(msg).next_attempt(due, counters, token))
}

fn msg_of(envelope: &Envelope) -> ModelMessage {
    ModelMessage { attempt: envelope.attempt, generation: envelope.generation, token: envelope.token }
}

fn envelope(msg: ModelMessage) -> Envelope {
    Envelope {
        id: "t".try_into().expect("an id"),
        name: "add".try_into().expect("a name"),
        queue: "math".try_into().expect("a queue"),
        attempt: msg.attempt,
        generation: msg.generation,
        eta: None,
        expires: None,
        issued: Model::NOW,
        counters: Counters::default(),
        token: msg.token,
        first: FirstSigner::Nobody,
        unknown_since: None,
        traceparent: None,
        tracestate: None,
        priority: None,
        content_type: Codec::Json.content_type().to_owned(),
        body: bytes::Bytes::new(),
    }
}
