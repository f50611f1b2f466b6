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
    Kind, Model, Mutation, Step, TTL,
    store::{FollowUpNo, PendingNo},
    world::{Anybody, At, Fate, Fault, GuardStep, Handler, Msg, Receipt, Say, Why, World},
};
use crate::{
    backend::Commit,
    clock::Timestamp,
    codec::Codec,
    envelope::{Envelope, FirstSigner},
};

/// A handler in a world: whose, and which.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) worker: usize,
    pub(super) handler: usize,
}

impl Place {
    pub(super) fn of(self, world: &World) -> &Handler {
        &world.workers[self.worker].handlers[self.handler]
    }
    pub(super) fn of_mut(self, world: &mut World) -> &mut Handler {
        &mut world.workers[self.worker].handlers[self.handler]
    }
    /// Settled: the handler is gone, and its registration with it.
    pub(super) fn end(self, world: &mut World, requeue: bool) {
        let handler = world.workers[self.worker].handlers.remove(self.handler);
        if requeue && handler.receipt == Receipt::Holding {
            world.put(handler.msg);
        }
    }
}

/// What a delivery does next.
struct Steps<'a> {
    model: &'a Model,
    world: &'a World,
    place: Place,
    steps: &'a mut Vec<Step>,
}

/// Adds every step that the handler at this place can take.
pub(super) fn of_handler(model: &Model, world: &World, place: Place, steps: &mut Vec<Step>) {
    let mut on = Steps { model, world, place, steps };
    let draining = world.workers[place.worker].draining;
    let handler = place.of(world).clone();
    if draining && !matches!(handler.at, At::Run(_) | At::Left) {
        on.step("leaves it", Kind::Fault, |_, world| place.of_mut(world).at = At::Left);
    }
    match handler.at {
        At::Open | At::Busy | At::Suspect if !draining && !world.has_slot(place) => {}
        At::Open => on.step("asks", Kind::Normal, |model, world| model.ask(world, place)),
        At::Suspect => {
            on.step("asks alone", Kind::Normal, |model, world| {
                place.of_mut(world).alone = true;
                model.ask_now(world, place);
            });
            if handler.msg.generation < model.config.generations && !draining {
                on.guard(GuardStep::None);
            }
        }
        At::Busy => {
            if draining || model.is_free(world, place) {
                on.step("asks again", Kind::Normal, |model, world| model.ask(world, place));
            }
            if handler.msg.generation < model.config.generations && !draining {
                on.guard(GuardStep::None);
            }
        }
        At::Guard(so_far) => on.guard(so_far),
        At::Ask(pending, session) => on.ask(pending, session),
        At::Run(so_far) => on.run(&handler, so_far, draining),
        At::Record(say, claim) => on.record_outcome(say, &model.store.claim_of(claim)),
        At::HandBack => on.hand_back(&handler),
        At::Requeue => on.publish(
            "publishes its next guard to the queue",
            move |_, world| {
                let msg = place.of(world).msg;
                world.put(Msg { generation: msg.generation + 1, ..msg });
            },
            |_, world| place.end(world, true),
        ),
        At::End(who, facts) => on.end(who, &model.store.facts_of(facts)),
        At::Publish(no) => on.follow(no, &model.store.follow_up_of(no)),
        At::Mark(no) => {
            let follow_up = model.store.follow_up_of(no);
            on.commit(
                "says that it followed",
                follow_up.done(&model.id, handler.msg.attempt),
                |_, world, _| {
                    place.of_mut(world).at = At::Ack;
                },
            );
        }
        At::Ack => on.step("acks", Kind::Normal, |_, world| place.end(world, false)),
        At::Left => {}
    }
}

impl Steps<'_> {
    fn step(&mut self, what: &'static str, kind: Kind, change: impl FnOnce(&Model, &mut World)) {
        let mut world = self.world.clone();
        change(self.model, &mut world);
        self.push(what, kind, world);
    }

    fn push(&mut self, what: &'static str, kind: Kind, world: World) {
        let msg = self.place.of(self.world).msg;
        self.steps.push(self.model.step(Some(self.place.worker), Some(msg), what, kind, world));
    }

    /// A commit and what its answer leads to. With a lost reply it is done, and asked for again.
    fn commit(
        &mut self,
        what: &'static str,
        commit: Option<Commit>,
        then: impl FnOnce(&Model, &mut World, Option<Rc<Facts>>),
    ) {
        let commit = commit.expect("something to commit");
        let mut world = self.world.clone();
        let answer = self.model.commit(&mut world, &commit);
        if let Some(lost) = world.after(Fault::Reply).filter(|_| answer.is_none()) {
            self.push("commits, and does not learn it", Kind::Fault, lost);
        }
        then(self.model, &mut world, answer);
        self.push(what, Kind::Normal, world);
    }

    /// A publish. It may have been done although nobody says so, and is then tried again.
    fn publish(
        &mut self,
        what: &'static str,
        publish: impl FnOnce(&Model, &mut World),
        then: impl FnOnce(&Model, &mut World),
    ) {
        let mut world = self.world.clone();
        publish(self.model, &mut world);
        if let Some(unknown) = world.after(Fault::Confirm) {
            self.push("publishes, and does not learn it", Kind::Fault, unknown);
        }
        then(self.model, &mut world);
        self.push(what, Kind::Normal, world);
    }

    fn ask(&mut self, pending: PendingNo, session: u8) {
        let (place, asked) = (self.place, self.model.store.pending_of(pending));
        self.commit("commits a start", Some(asked.0.clone()), |model, world, answer| match answer {
            None => model.granted(world, place, asked.1.clone()),
            Some(facts) => model.refused_start(world, place, session, &facts),
        });
    }

    fn run(&mut self, handler: &Handler, so_far: GuardStep, draining: bool) {
        let place = self.place;
        let says = |say| {
            move |_: &Model, world: &mut World| {
                let handler = place.of_mut(world);
                let claim = handler.claim.expect("what runs holds a start");
                handler.at = At::Record(say, claim);
            }
        };
        self.step("succeeds", Kind::Normal, says(Say::Success));
        match handler.cancel {
            Some(Why::Superseded) => {
                self.step("stops: superseded", Kind::Normal, |model, world| model.superseded(world, place));
            }
            Some(Why::Revoked) => self.step("stops: revoked", Kind::Normal, says(Say::Revoked)),
            None => self.step("fails", Kind::Normal, says(Say::Failed)),
        }
        if draining && handler.cancel.is_none() {
            self.step("is cut off", Kind::Normal, |_, world| place.of_mut(world).at = At::HandBack);
            if self.model.config.mutation == Some(Mutation::HandBackRunning) {
                let claim = self.model.store.claim_of(handler.claim.expect("held"));
                self.commit("hands back while it runs", Some(claim.hand_back()), |_, world, _| {
                    let handler = place.of_mut(world);
                    handler.receipt = Receipt::Lost;
                    let msg = handler.msg;
                    world.put(msg);
                });
            }
        }
        let guardable = handler.receipt != Receipt::Guarded
            && (so_far != GuardStep::None || handler.msg.generation < self.model.config.generations);
        if guardable {
            self.guard(so_far);
        }
    }

    /// The next of a guard's steps: publish, store, acknowledge.
    fn guard(&mut self, so_far: GuardStep) {
        let (place, msg) = (self.place, self.place.of(self.world).msg);
        let running = matches!(place.of(self.world).at, At::Run(_));
        let at = |step| if running { At::Run(step) } else { At::Guard(step) };
        let guard = next_guard(msg);
        let store = |generation| {
            let mut commit = Commit::new(self.model.id.clone());
            commit.facts = vec![(name::guard(msg.attempt, generation), "1".into())];
            commit
        };
        let stored_first = self.model.config.mutation == Some(Mutation::GuardStoredFirst);
        let publishing = |_: &Model, world: &mut World| world.put(guard);
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
                self.step("acks for the guard", Kind::Normal, |_, world| {
                    let handler = place.of_mut(world);
                    (handler.receipt, handler.at, handler.msg) =
                        (Receipt::Guarded, At::Run(GuardStep::None), guard);
                });
            }
            (GuardStep::Stored, _) => {
                self.step("acks for the guard", Kind::Normal, |_, world| place.end(world, false));
            }
        }
    }

    fn record_outcome(&mut self, say: Say, claim: &Claim) {
        let (place, msg) = (self.place, self.place.of(self.world).msg);
        let verdict = self.model.verdict(say, msg);
        let mut commit = outcome_commit(claim, &verdict, String::new(), Model::NOW, TTL);
        match self.model.config.mutation {
            Some(Mutation::VerdictUnguarded) => {
                commit.unless.retain(|name| *name != name::start(claim.attempt, claim.start + 1));
            }
            Some(Mutation::VerdictWithoutCarry) => commit.equal_or_absent.clear(),
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
                    place.of_mut(world).at = At::Record(Say::Revoked, model.store.claim(claim.clone()))
                }
                CommitRefusal::Adopted(adopted) => {
                    place.of_mut(world).at = At::Record(say, model.store.claim(adopted));
                }
                CommitRefusal::TakenOver => model.superseded(world, place),
            }
        });
    }

    fn hand_back(&mut self, handler: &Handler) {
        let place = self.place;
        let claim = self.model.store.claim_of(handler.claim.expect("what ran holds a start"));
        let mut commit = claim.hand_back();
        if self.model.config.mutation == Some(Mutation::HandBackWithoutCarry) {
            commit.equal_or_absent.clear();
        }
        let guarded = handler.receipt == Receipt::Guarded;
        self.commit("hands back", Some(commit), |_, world, _| {
            if guarded {
                place.of_mut(world).at = At::Requeue;
            } else {
                place.end(world, true);
            }
        });
    }

    fn end(&mut self, who: Anybody, facts: &Facts) {
        let (place, msg) = (self.place, self.place.of(self.world).msg);
        let error = ErrorText::from("ended");
        let mut commit =
            failure_without_run(&self.model.id, facts, msg.attempt, who.kind(), error, Model::NOW, TTL);
        if self.model.config.mutation == Some(Mutation::EndUnguarded) {
            commit.unless.retain(|name| !name.starts_with("s:"));
        }
        let ended: Facts = commit.facts.iter().cloned().collect();
        self.commit("ends the task as it read it", Some(commit), |model, world, answer| {
            let facts = answer.unwrap_or_else(|| Rc::new(ended));
            match (recorded_follow_up(&facts, msg.attempt), who) {
                (Some(follow_up), _) => model.follow(world, place, follow_up),
                // Started in time: this is another delivery of it.
                (None, Anybody::Expired) => model.ask_now(world, place),
                (None, Anybody::Revoked | Anybody::Lost) => model.busy(world, place),
            }
        });
    }

    fn follow(&mut self, no: FollowUpNo, follow_up: &FollowUp) {
        let place = self.place;
        if self.model.config.mutation == Some(Mutation::AckBeforeFollow)
            && place.of(self.world).receipt == Receipt::Holding
        {
            self.step("acks too early", Kind::Normal, |_, world| place.of_mut(world).receipt = Receipt::Lost);
        }
        let marked_first = self.model.config.mutation == Some(Mutation::MarkBeforePublish);
        if marked_first {
            let done = follow_up.done(&self.model.id, place.of(self.world).msg.attempt);
            let mut world = self.world.clone();
            let before = world.facts;
            self.model.commit(&mut world, &done.expect("a mark"));
            if world.facts != before {
                return self.push("says that it followed", Kind::Normal, world);
            }
        }
        let at = if marked_first { At::Ack } else { At::Mark(no) };
        let publish = |_: &Model, world: &mut World| match follow_up {
            FollowUp::Nothing => {}
            FollowUp::NextRun { due, counters, token } => {
                let next = next_attempt(place.of(world).msg, *due, *counters, *token);
                world.put(next);
            }
            FollowUp::DeadLetter { .. } => {
                if world.fate == Fate::Unburied {
                    world.fate = Fate::Done;
                }
            }
        };
        self.publish("publishes what follows", publish, |_, world| place.of_mut(world).at = at);
    }
}

impl World {
    fn has_slot(&self, place: Place) -> bool {
        let handler = place.of(self);
        let alone = handler.alone || handler.at == At::Suspect;
        self.workers[place.worker].has_slot(place.handler, alone)
    }

    /// This world after a fault, if there is one left of it.
    pub(super) fn after(&self, fault: Fault) -> Option<Self> {
        let mut world = self.clone();
        let left = &mut world.left[fault as usize];
        *left = left.checked_sub(1)?;
        Some(world)
    }
}

fn next_guard(msg: Msg) -> Msg {
    msg_of(&envelope(msg).next_guard(Model::NOW))
}

fn next_attempt(msg: Msg, due: Timestamp, counters: Counters, token: u64) -> Msg {
    msg_of(&envelope(msg).next_attempt(due, counters, token))
}

fn msg_of(envelope: &Envelope) -> Msg {
    Msg { attempt: envelope.attempt, generation: envelope.generation, token: envelope.token }
}

fn envelope(msg: Msg) -> Envelope {
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
