//! What follows from an answer: the places in `worker::processor` where a decision is asked for, and acted upon.

use super::{
    super::{
        facts::{Counters, Facts, name},
        fold::Attempts,
        poison::{Suspicion, suspicion},
        start::{Claim, StartDecision, StartRequest, decide_start},
        verdict::{FollowUp, Outcome, Verdict, decide},
    },
    Model, ModelMutation,
    steps::HandlerPlace,
    store::{ClaimNo, number, run_id, session_id},
    world::{
        Bystander, GuardStep, HandlerStage, ModelCancelReason, ModelHandler, ModelMessage, ModelReceipt,
        ModelState, OutcomeKind,
    },
};
use crate::{
    args::Results,
    clock::Timestamp,
    error::TaskError,
    id::{RunId, SessionId},
};

impl Model {
    /// Expired, or to be asked for: if the worker takes on anything at all.
    pub(super) fn ask(&self, world: &mut ModelState, place: HandlerPlace) {
        let handler = place.of(world);
        if handler.at == HandlerStage::Open && handler.msg.attempt == 1 && world.expired {
            place.of_mut(world).at = HandlerStage::End(Bystander::Expired, self.store.facts(Facts::new()));
            return;
        }
        self.ask_now(world, place);
    }

    pub(super) fn ask_now(&self, world: &mut ModelState, place: HandlerPlace) {
        let worker = &world.workers[place.worker];
        if worker.draining {
            return place.end(world, true);
        }
        let (fooled, session) = (worker.fooled, worker.session);
        let handler = place.of_mut(world);
        (handler.run, handler.claim, handler.cancel, handler.at) = (None, None, None, HandlerStage::Open);
        // Without a session that is certainly alive nothing is asked for.
        if !fooled && !world.is_alive(session) {
            return;
        }
        let (run, _) = self.store.fresh(world);
        place.of_mut(world).run = Some(run);
        let (mut commit, claim) = self.asking(world, place, session).first(Self::now(world));
        if self.config.mutation == Some(ModelMutation::StartUnguarded) {
            commit.unless.retain(|name| !name.starts_with("s:"));
        }
        place.of_mut(world).at = HandlerStage::Ask(self.store.pending((commit, claim)), session);
    }

    pub(super) fn asking(&self, world: &ModelState, place: HandlerPlace, session: u8) -> StartRequest {
        let handler = place.of(world);
        StartRequest {
            id: self.id.clone(),
            attempt: handler.msg.attempt,
            generation: handler.msg.generation,
            run: run_id(handler.run.expect("registered before it is asked for")),
            session: session_id(session),
            worker: "w".into(),
            received_at: Self::NOW,
            token: handler.msg.token,
            alone: handler.alone && self.config.mutation != Some(ModelMutation::AloneUnsaid),
        }
    }

    /// A start was granted: it runs, unless its session was replaced meanwhile; then it is adopted first.
    pub(super) fn granted(&self, world: &mut ModelState, place: HandlerPlace, claim: Claim) {
        let worker = &world.workers[place.worker];
        let (current, believed) = (worker.session, worker.fooled || world.is_alive(worker.session));
        if number(claim.session.as_str()) == current
            || self.config.mutation == Some(ModelMutation::StartUnderReplacedSession)
        {
            let claim = self.store.claim(claim);
            let handler = place.of_mut(world);
            (handler.claim, handler.at) = (Some(claim), HandlerStage::Run(GuardStep::None));
        } else if believed {
            let pending = self.store.pending(claim.adopt(&session_id(current), Self::now(world)));
            place.of_mut(world).at = HandlerStage::Ask(pending, current);
        }
        // Without a session it waits; asked for again, the start is found.
    }

    pub(super) fn refused_start(
        &self,
        world: &mut ModelState,
        place: HandlerPlace,
        session: u8,
        facts: &Facts,
    ) {
        let asking = self.asking(world, place, session);
        let worker = &world.workers[place.worker];
        let registered = |run: u8| match self.config.mutation {
            Some(ModelMutation::RegisteredLate) => {
                worker.handlers.iter().any(|h| h.run == Some(run) && !matches!(h.at, HandlerStage::Ask(..)))
            }
            _ => worker.knows(run),
        };
        let gone = |session: &SessionId, run: &RunId| {
            if registered(number(run.as_str())) {
                return false;
            }
            let session = number(session.as_str());
            session == worker.session
                // Between its two looks at a session a worker has renewed its own.
                || (!world.is_alive(session) && !worker.fooled)
                || self.config.mutation == Some(ModelMutation::TakeOverUnseen)
        };
        let guarded = Attempts::of(facts).newest_guard(asking.attempt) > asking.generation;
        let meaning = match self.config.mutation {
            Some(ModelMutation::GuardBeforeOwnStart) if guarded => StartDecision::NewerGuard,
            _ => decide_start(facts, &asking, gone, Self::now(world)),
        };
        match meaning {
            StartDecision::AlreadyStarted(claim) => self.granted(world, place, claim),
            StartDecision::Over(follow_up) => self.follow(world, place, follow_up),
            StartDecision::NewerGuard => place.end(world, false),
            StartDecision::Revoked => {
                place.of_mut(world).at =
                    HandlerStage::End(Bystander::Revoked, self.store.facts(facts.clone()));
            }
            StartDecision::Busy(_) => self.busy(world, place),
            StartDecision::TakeOver(next) => match suspicion(facts, asking.attempt) {
                Suspicion::Lost => {
                    place.of_mut(world).at =
                        HandlerStage::End(Bystander::Lost, self.store.facts(facts.clone()));
                }
                Suspicion::Suspect
                    if !place.of(world).alone
                        && self.config.mutation != Some(ModelMutation::SuspectInCompany) =>
                {
                    let handler = place.of_mut(world);
                    (handler.run, handler.at) = (None, HandlerStage::Suspect);
                }
                Suspicion::None | Suspicion::Suspect => {
                    let (mut commit, claim) = *next;
                    if self.config.mutation == Some(ModelMutation::StartUnguarded) {
                        commit.unless.retain(|name| !name.starts_with("s:"));
                    }
                    place.of_mut(world).at = HandlerStage::Ask(self.store.pending((commit, claim)), session);
                }
            },
        }
    }

    /// Whether asking again comes to anything: a step that surely leads back is left out.
    pub(super) fn is_free(&self, world: &ModelState, place: HandlerPlace) -> bool {
        let mut asked = world.clone();
        self.ask_now(&mut asked, place);
        let HandlerStage::Ask(_, session) = place.of(&asked).at else { return true };
        let facts = self.store.facts_of(world.facts);
        let first = !facts.has(&name::start(place.of(world).msg.attempt, 1));
        first || {
            self.refused_start(&mut asked, place, session, &facts);
            asked.workers[place.worker]
                .handlers
                .get(place.handler)
                .is_none_or(|handler| handler.at != HandlerStage::Busy)
        }
    }

    pub(super) fn busy(&self, world: &mut ModelState, place: HandlerPlace) {
        let handler = place.of_mut(world);
        (handler.run, handler.alone, handler.at) = (None, false, HandlerStage::Busy);
    }

    /// Whoever holds the delivery asks anew; who does not is done.
    pub(super) fn superseded(&self, world: &mut ModelState, place: HandlerPlace) {
        if place.of(world).receipt == ModelReceipt::Guarded {
            place.end(world, false);
        } else {
            self.ask_now(world, place);
        }
    }

    pub(super) fn follow(&self, world: &mut ModelState, place: HandlerPlace, follow_up: FollowUp) {
        let at = match follow_up {
            FollowUp::Nothing => HandlerStage::Ack,
            _ => HandlerStage::Publish(self.store.follow_up(follow_up)),
        };
        let handler = place.of_mut(world);
        handler.at = at;
        if self.config.mutation != Some(ModelMutation::KeptAfterItsOutcome) {
            handler.claim = None;
        }
    }

    pub(super) fn verdict(&self, say: OutcomeKind, msg: ModelMessage) -> Verdict {
        let spent = Counters { retries: msg.attempt - 1, postponements: 0 };
        let outcome = match say {
            OutcomeKind::Success => Outcome::Returned(Results::default()),
            OutcomeKind::Failed => Outcome::Failed(TaskError::new("no")),
            OutcomeKind::Revoked => Outcome::Revoked,
        };
        decide(outcome, &self.policy, spent, Self::NOW, 0.0)
    }

    /// Time stands still but for lost data: so that a token rises by itself there and nowhere else.
    pub(super) fn now(world: &ModelState) -> Timestamp {
        Timestamp::from_micros(Self::NOW.as_micros() + 1000 * i64::from(world.losses))
    }

    /// Every run of a worker that has to be looked after.
    pub(super) fn counted(&self, world: &ModelState, worker: usize) -> Vec<(u8, ClaimNo)> {
        let counts = |handler: &&ModelHandler| handler.cancel != Some(ModelCancelReason::Superseded);
        let handlers = world.workers[worker].handlers.iter().filter(counts);
        handlers.filter_map(|handler| Some((handler.run?, handler.claim?))).collect()
    }
}
