//! Consequences of an answer: the places in `worker::processor` that ask for a decision and act on it.

use super::{
    super::{
        claim::Claim,
        facts::{Counters, EncodedResults, Facts, Start, name},
        fold::{Attempts, abandoned_start},
        follow_up::FollowUp,
        park::{ParkDecision, decide_parking},
        poison::{Suspicion, suspicion},
        start::{StartDecision, StartRequest, decide_start},
        verdict::{RunOutcome, Verdict, decide},
    },
    Model, ModelMutation,
    state::{
        EndReason, GuardStep, HandlerStage, ModelCancelReason, ModelHandler, ModelMessage, ModelReceipt,
        ModelState, OutcomeKind,
    },
    steps::HandlerIndex,
    store::{ClaimId, number_of, run_id, session_id},
};
use crate::{
    clock::Timestamp,
    error::TaskError,
    id::{RunId, SessionId},
};

impl Model {
    /// Ends the task if it has expired, and requests a start otherwise.
    pub(super) fn expire_or_request(&self, state: &mut ModelState, index: HandlerIndex) {
        let handler = index.get(state);
        if handler.stage == HandlerStage::Open && handler.message.attempt == 1 && state.expired {
            index.get_mut(state).stage =
                HandlerStage::EndWithoutRun(EndReason::Expired, self.store.facts(Facts::new()));
            return;
        }
        self.ask_for_admission(state, index);
    }

    /// Parks the task if its start is refused and its record allows it, and requests the start otherwise.
    fn ask_for_admission(&self, state: &mut ModelState, index: HandlerIndex) {
        let message = index.get(state).message;
        if !state.refused || state.workers[index.worker].draining {
            return self.request_start(state, index);
        }
        let facts = self.store.facts_of(state.facts);
        let gone = |start: &Start| self.is_gone(state, index, &start.session, &start.run);
        let may_run = abandoned_start(&facts, message.attempt).is_some_and(|start| !gone(&start));
        match decide_parking(&facts, message.attempt, message.generation, may_run) {
            ParkDecision::Over(follow_up) => self.follow(state, index, follow_up),
            ParkDecision::NewerGuard => index.settle(state, false),
            ParkDecision::Proceed => self.request_start(state, index),
            // Otherwise it waits in the process.
            ParkDecision::Park(_) if message.generation < self.config.max_guards => {
                index.get_mut(state).stage = HandlerStage::Park(GuardStep::None);
            }
            ParkDecision::Park(_) => {}
        }
    }

    /// Returns `true` if a worker knows that a start does not run any more.
    fn is_gone(&self, state: &ModelState, index: HandlerIndex, session: &SessionId, run: &RunId) -> bool {
        let worker = &state.workers[index.worker];
        let run = number_of(run.as_str());
        let is_registered = match self.config.mutation {
            Some(ModelMutation::RegisteredLate) => worker
                .handlers
                .iter()
                .any(|h| h.run == Some(run) && !matches!(h.stage, HandlerStage::StartRequested(..))),
            _ => worker.knows(run),
        };
        let session = number_of(session.as_str());
        !is_registered
            && (session == worker.session
                // Between its two checks of a session a worker has renewed its own.
                || (!state.is_alive(session) && !worker.unaware_of_loss)
                || self.config.mutation == Some(ModelMutation::TakeOverUnchecked))
    }

    /// Requests a start, if the worker takes on work at all.
    pub(super) fn request_start(&self, state: &mut ModelState, index: HandlerIndex) {
        let worker = &state.workers[index.worker];
        if worker.draining {
            return index.settle(state, true);
        }
        let unaware_of_loss = worker.unaware_of_loss;
        let session = worker.session;
        let handler = index.get_mut(state);
        handler.run = None;
        handler.claim = None;
        handler.cancel = None;
        handler.stage = HandlerStage::Open;
        // Nothing is requested without a session that is certainly alive.
        if !unaware_of_loss && !state.is_alive(session) {
            return;
        }
        let run = self.store.unused_run(state);
        index.get_mut(state).run = Some(run);
        let (mut commit, claim) = self.start_request(state, index, session).first(Self::now(state));
        if self.config.mutation == Some(ModelMutation::StartUnchecked) {
            commit.unless.retain(|name| !name.starts_with("s:"));
        }
        index.get_mut(state).stage =
            HandlerStage::StartRequested(self.store.pending((commit, claim)), session);
    }

    pub(super) fn start_request(&self, state: &ModelState, index: HandlerIndex, session: u8) -> StartRequest {
        let handler = index.get(state);
        StartRequest {
            id: self.id.clone(),
            attempt: handler.message.attempt,
            generation: handler.message.generation,
            run: run_id(handler.run.expect("a run is registered before its start is requested")),
            session: session_id(session),
            worker: "w".into(),
            received_at: Self::NOW,
            token: handler.message.token,
            alone: handler.alone && self.config.mutation != Some(ModelMutation::AloneNotRecorded),
            gathered: None,
        }
    }

    /// Runs a granted start. If its session was replaced meanwhile, it is adopted first.
    pub(super) fn start_granted(&self, state: &mut ModelState, index: HandlerIndex, claim: Claim) {
        let worker = &state.workers[index.worker];
        let current = worker.session;
        let believes_alive = worker.unaware_of_loss || state.is_alive(worker.session);
        if number_of(claim.session.as_str()) == current
            || self.config.mutation == Some(ModelMutation::StartUnderReplacedSession)
        {
            let claim = self.store.claim(claim);
            let handler = index.get_mut(state);
            handler.claim = Some(claim);
            handler.stage = HandlerStage::Run(GuardStep::None);
        } else if believes_alive {
            let pending = self.store.pending(claim.adopt(&session_id(current), Self::now(state)));
            index.get_mut(state).stage = HandlerStage::StartRequested(pending, current);
        }
        // Without a session it waits; when the start is requested again, it is found.
    }

    pub(super) fn start_refused(
        &self,
        state: &mut ModelState,
        index: HandlerIndex,
        session: u8,
        facts: &Facts,
    ) {
        let request = self.start_request(state, index, session);
        let gone = |session: &SessionId, run: &RunId| self.is_gone(state, index, session, run);
        let guarded = Attempts::of(facts).newest_guard(request.attempt) > request.generation;
        let decision = match self.config.mutation {
            Some(ModelMutation::GuardBeforeOwnStart) if guarded => StartDecision::NewerGuard,
            _ => decide_start(facts, &request, gone, Self::now(state)),
        };
        match decision {
            StartDecision::AlreadyStarted(claim) => self.start_granted(state, index, claim),
            StartDecision::Over(follow_up) => self.follow(state, index, follow_up),
            StartDecision::NewerGuard => index.settle(state, false),
            StartDecision::OtherArguments => unreachable!("the task waits for no join"),
            StartDecision::Revoked => {
                index.get_mut(state).stage =
                    HandlerStage::EndWithoutRun(EndReason::Revoked, self.store.facts(facts.clone()));
            }
            StartDecision::Busy(_) => self.busy(state, index),
            StartDecision::TakeOver(next) => match suspicion(facts, request.attempt) {
                Suspicion::Lost => {
                    index.get_mut(state).stage =
                        HandlerStage::EndWithoutRun(EndReason::Lost, self.store.facts(facts.clone()));
                }
                Suspicion::Suspect
                    if !index.get(state).alone
                        && self.config.mutation != Some(ModelMutation::SuspectBesideOthers) =>
                {
                    let handler = index.get_mut(state);
                    handler.run = None;
                    handler.stage = HandlerStage::Suspect;
                }
                Suspicion::None | Suspicion::Suspect => {
                    let (mut commit, claim) = *next;
                    if self.config.mutation == Some(ModelMutation::StartUnchecked) {
                        commit.unless.retain(|name| !name.starts_with("s:"));
                    }
                    index.get_mut(state).stage =
                        HandlerStage::StartRequested(self.store.pending((commit, claim)), session);
                }
            },
        }
    }

    /// Returns `true` if another request can change the state; a step that surely leads back is left out.
    pub(super) fn can_progress(&self, state: &ModelState, index: HandlerIndex) -> bool {
        let mut after_request = state.clone();
        self.request_start(&mut after_request, index);
        let HandlerStage::StartRequested(_, session) = index.get(&after_request).stage else { return true };
        let facts = self.store.facts_of(state.facts);
        let is_first = !facts.has(&name::start(index.get(state).message.attempt, 1));
        is_first || {
            self.start_refused(&mut after_request, index, session, &facts);
            after_request.workers[index.worker]
                .handlers
                .get(index.handler)
                .is_none_or(|handler| handler.stage != HandlerStage::Busy)
        }
    }

    pub(super) fn busy(&self, state: &mut ModelState, index: HandlerIndex) {
        let handler = index.get_mut(state);
        handler.run = None;
        handler.alone = false;
        handler.stage = HandlerStage::Busy;
    }

    /// Requests a start again if the delivery is still held; otherwise it is done.
    pub(super) fn taken_over(&self, state: &mut ModelState, index: HandlerIndex) {
        if index.get(state).receipt == ModelReceipt::Guarded {
            index.settle(state, false);
        } else {
            self.request_start(state, index);
        }
    }

    pub(super) fn follow(&self, state: &mut ModelState, index: HandlerIndex, follow_up: FollowUp) {
        let stage = match follow_up {
            // The task belongs to no workflow.
            FollowUp::Nothing | FollowUp::Ended { .. } => HandlerStage::Ack,
            _ => HandlerStage::Publish(self.store.follow_up(follow_up)),
        };
        let handler = index.get_mut(state);
        handler.stage = stage;
        if self.config.mutation != Some(ModelMutation::RenewedAfterOutcome) {
            handler.claim = None;
        }
    }

    pub(super) fn verdict(&self, outcome: OutcomeKind, message: ModelMessage) -> Verdict {
        let spent = Counters { retries: message.attempt - 1, postponements: 0 };
        let outcome = match outcome {
            OutcomeKind::Success => RunOutcome::Returned(EncodedResults::default()),
            OutcomeKind::Failed => RunOutcome::Failed(TaskError::new("no")),
            OutcomeKind::Revoked => RunOutcome::Revoked,
        };
        decide(outcome, &self.policy, spent, Self::NOW, 0.0)
    }

    /// Returns the model's time. It only advances when data is lost, so that a token rises by itself there and nowhere
    /// else.
    pub(super) fn now(state: &ModelState) -> Timestamp {
        Timestamp::from_micros(Self::NOW.as_micros() + 1000 * i64::from(state.losses))
    }

    /// Returns every run of a worker that a renewal maintains.
    pub(super) fn runs_to_renew(&self, state: &ModelState, worker: usize) -> Vec<(u8, ClaimId)> {
        let is_renewed = |handler: &&ModelHandler| handler.cancel != Some(ModelCancelReason::TakenOver);
        let handlers = state.workers[worker].handlers.iter().filter(is_renewed);
        handlers.filter_map(|handler| Some((handler.run?, handler.claim?))).collect()
    }
}
