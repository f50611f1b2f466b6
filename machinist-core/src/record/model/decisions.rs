//! What follows from an answer: the places in `worker::processor` where a decision is asked for, and acted upon.

use super::{
    super::{
        facts::{Counters, Facts, name},
        fold::Attempts,
        poison::{Suspicion, suspicion},
        start::{Claim, StartDecision, StartRequest, decide_start},
        verdict::{FollowUp, Outcome, Verdict, decide},
    },
    Model, Mutation,
    steps::Place,
    store::{ClaimNo, number, run_id, session_id},
    world::{Anybody, At, GuardStep, Handler, Msg, Receipt, Say, Why, World},
};
use crate::{
    args::Results,
    clock::Timestamp,
    error::TaskError,
    id::{RunId, SessionId},
};

impl Model {
    /// Expired, or to be asked for: if the worker takes on anything at all.
    pub(super) fn ask(&self, world: &mut World, place: Place) {
        let handler = place.of(world);
        if handler.at == At::Open && handler.msg.attempt == 1 && world.expired {
            place.of_mut(world).at = At::End(Anybody::Expired, self.store.facts(Facts::new()));
            return;
        }
        self.ask_now(world, place);
    }

    pub(super) fn ask_now(&self, world: &mut World, place: Place) {
        let worker = &world.workers[place.worker];
        if worker.draining {
            return place.end(world, true);
        }
        let (fooled, session) = (worker.fooled, worker.session);
        let handler = place.of_mut(world);
        (handler.run, handler.claim, handler.cancel, handler.at) = (None, None, None, At::Open);
        // Without a session that is certainly alive nothing is asked for.
        if !fooled && !world.is_alive(session) {
            return;
        }
        let (run, _) = self.store.fresh(world);
        place.of_mut(world).run = Some(run);
        let (mut commit, claim) = self.asking(world, place, session).first(Self::now(world));
        if self.config.mutation == Some(Mutation::StartUnguarded) {
            commit.unless.retain(|name| !name.starts_with("s:"));
        }
        place.of_mut(world).at = At::Ask(self.store.pending((commit, claim)), session);
    }

    pub(super) fn asking(&self, world: &World, place: Place, session: u8) -> StartRequest {
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
            alone: handler.alone && self.config.mutation != Some(Mutation::AloneUnsaid),
        }
    }

    /// A start was granted: it runs, unless its session was replaced meanwhile; then it is adopted first.
    pub(super) fn granted(&self, world: &mut World, place: Place, claim: Claim) {
        let worker = &world.workers[place.worker];
        let (current, believed) = (worker.session, worker.fooled || world.is_alive(worker.session));
        if number(claim.session.as_str()) == current
            || self.config.mutation == Some(Mutation::StartUnderReplacedSession)
        {
            let claim = self.store.claim(claim);
            let handler = place.of_mut(world);
            (handler.claim, handler.at) = (Some(claim), At::Run(GuardStep::None));
        } else if believed {
            let pending = self.store.pending(claim.adopt(&session_id(current), Self::now(world)));
            place.of_mut(world).at = At::Ask(pending, current);
        }
        // Without a session it waits; asked for again, the start is found.
    }

    pub(super) fn refused_start(&self, world: &mut World, place: Place, session: u8, facts: &Facts) {
        let asking = self.asking(world, place, session);
        let worker = &world.workers[place.worker];
        let registered = |run: u8| match self.config.mutation {
            Some(Mutation::RegisteredLate) => {
                worker.handlers.iter().any(|h| h.run == Some(run) && !matches!(h.at, At::Ask(..)))
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
                || self.config.mutation == Some(Mutation::TakeOverUnseen)
        };
        let guarded = Attempts::of(facts).newest_guard(asking.attempt) > asking.generation;
        let meaning = match self.config.mutation {
            Some(Mutation::GuardBeforeOwnStart) if guarded => StartDecision::NewerGuard,
            _ => decide_start(facts, &asking, gone, Self::now(world)),
        };
        match meaning {
            StartDecision::AlreadyStarted(claim) => self.granted(world, place, claim),
            StartDecision::Over(follow_up) => self.follow(world, place, follow_up),
            StartDecision::NewerGuard => place.end(world, false),
            StartDecision::Revoked => {
                place.of_mut(world).at = At::End(Anybody::Revoked, self.store.facts(facts.clone()));
            }
            StartDecision::Busy(_) => self.busy(world, place),
            StartDecision::TakeOver(next) => match suspicion(facts, asking.attempt) {
                Suspicion::Lost => {
                    place.of_mut(world).at = At::End(Anybody::Lost, self.store.facts(facts.clone()));
                }
                Suspicion::Suspect
                    if !place.of(world).alone && self.config.mutation != Some(Mutation::SuspectInCompany) =>
                {
                    let handler = place.of_mut(world);
                    (handler.run, handler.at) = (None, At::Suspect);
                }
                Suspicion::None | Suspicion::Suspect => {
                    let (mut commit, claim) = *next;
                    if self.config.mutation == Some(Mutation::StartUnguarded) {
                        commit.unless.retain(|name| !name.starts_with("s:"));
                    }
                    place.of_mut(world).at = At::Ask(self.store.pending((commit, claim)), session);
                }
            },
        }
    }

    /// Whether asking again comes to anything: a step that surely leads back is left out.
    pub(super) fn is_free(&self, world: &World, place: Place) -> bool {
        let mut asked = world.clone();
        self.ask_now(&mut asked, place);
        let At::Ask(_, session) = place.of(&asked).at else { return true };
        let facts = self.store.facts_of(world.facts);
        let first = !facts.has(&name::start(place.of(world).msg.attempt, 1));
        first || {
            self.refused_start(&mut asked, place, session, &facts);
            asked.workers[place.worker]
                .handlers
                .get(place.handler)
                .is_none_or(|handler| handler.at != At::Busy)
        }
    }

    pub(super) fn busy(&self, world: &mut World, place: Place) {
        let handler = place.of_mut(world);
        (handler.run, handler.alone, handler.at) = (None, false, At::Busy);
    }

    /// Whoever holds the delivery asks anew; who does not is done.
    pub(super) fn superseded(&self, world: &mut World, place: Place) {
        if place.of(world).receipt == Receipt::Guarded {
            place.end(world, false);
        } else {
            self.ask_now(world, place);
        }
    }

    pub(super) fn follow(&self, world: &mut World, place: Place, follow_up: FollowUp) {
        let at = match follow_up {
            FollowUp::Nothing => At::Ack,
            _ => At::Publish(self.store.follow_up(follow_up)),
        };
        let handler = place.of_mut(world);
        handler.at = at;
        if self.config.mutation != Some(Mutation::KeptAfterItsOutcome) {
            handler.claim = None;
        }
    }

    pub(super) fn verdict(&self, say: Say, msg: Msg) -> Verdict {
        let spent = Counters { retries: msg.attempt - 1, postponements: 0 };
        let outcome = match say {
            Say::Success => Outcome::Returned(Results::default()),
            Say::Failed => Outcome::Failed(TaskError::new("no")),
            Say::Revoked => Outcome::Revoked,
        };
        decide(outcome, &self.policy, spent, Self::NOW, 0.0)
    }

    /// Time stands still but for lost data: so that a token rises by itself there and nowhere else.
    pub(super) fn now(world: &World) -> Timestamp {
        Timestamp::from_micros(Self::NOW.as_micros() + 1000 * i64::from(world.losses))
    }

    /// Every run of a worker that has to be looked after.
    pub(super) fn counted(&self, world: &World, worker: usize) -> Vec<(u8, ClaimNo)> {
        let counts = |handler: &&Handler| handler.cancel != Some(Why::Superseded);
        let handlers = world.workers[worker].handlers.iter().filter(counts);
        handlers.filter_map(|handler| Some((handler.run?, handler.claim?))).collect()
    }
}
