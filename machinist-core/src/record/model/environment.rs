//! Steps that do not belong to one delivery: renewals as in `worker::session`, the ends of processes, and every fault.

use super::{
    super::{
        claim::{ClaimStatus, RenewalAction},
        facts::{Facts, name},
        fold::parked,
        park::unpark,
        revoke::{RevokeDecision, RevokeMode, decide_revoke},
    },
    Model, ModelMutation, ModelStep, StepKind, TTL,
    state::{
        HandlerStage, ModelCancelReason, ModelFault, ModelHandler, ModelMessage, ModelReceipt, ModelRenewal,
        ModelState, ModelWorker,
    },
    store::{ClaimId, FactsId, PendingId, run_id, session_id},
};
use crate::id::SessionId;

/// Result of a renewal for one run.
enum RunRenewal {
    Done,
    Cancel(ModelCancelReason),
    Commit(PendingId),
}

/// Adds every step that does not belong to one delivery.
pub(super) fn add_environment_steps(model: &Model, state: &ModelState, steps: &mut Vec<ModelStep>) {
    let mut add = |worker, action, kind, state| steps.push(model.step(worker, None, action, kind, state));
    for number in 0..state.workers.len() {
        add_worker_steps(model, state, number, &mut add);
    }
    let renewed_sessions =
        state.workers.iter().filter(|worker| worker.up).fold(0, |bits, worker| bits | 1u32 << worker.session);
    for session in (0..32).filter(|s| state.is_alive(*s)) {
        let expired = |mut state: ModelState| {
            state.live_sessions &= !(1 << session);
            state
        };
        if renewed_sessions & (1 << session) == 0 {
            add(None, "a session that nobody renews expires", StepKind::Normal, expired(state.clone()));
        } else if let Some(state) = state.after(ModelFault::Expire) {
            let number = state.workers.iter().position(|worker| worker.up && worker.session == session);
            add(number, "is paused, and its session expires", StepKind::Fault, expired(state));
        }
    }
    add_shared_steps(model, state, &mut add);
}

/// Adds the steps of the sender, of a process that revokes the task, and of the backend.
fn add_shared_steps(
    model: &Model,
    state: &ModelState,
    add: &mut impl FnMut(Option<usize>, &'static str, StepKind, ModelState),
) {
    if let Some(mut state) = state.after(ModelFault::Duplicate) {
        state.put(ModelMessage { attempt: 1, generation: 0, token: 0 });
        add(None, "the sender sends it again", StepKind::Fault, state);
    }
    if let Some(mut state) = state.after(ModelFault::Deadline) {
        state.expired = true;
        add(None, "its expiry passes", StepKind::Fault, state);
    }
    add_admission_steps(model, state, add);
    if let Some(mut state) = state.after(ModelFault::Revoke) {
        state.revoker = Some(state.facts);
        add(None, "a process that wants to revoke it reads its record", StepKind::Fault, state);
    }
    if let Some(read) = state.revoker {
        let mut state = state.clone();
        state.revoker = match decide_revoke(
            &model.id,
            &model.store.facts_of(read),
            RevokeMode::Cancel,
            Model::NOW,
            TTL,
        ) {
            RevokeDecision::Ended(_) => None,
            RevokeDecision::EndNow(commit) | RevokeDecision::AskRun(commit, _) => {
                model.commit(&mut state, &commit).map(|_| state.facts)
            }
        };
        add(None, "the process commits the revocation", StepKind::Normal, state);
    }
    for (fault, action) in [
        (ModelFault::Flush, "the backend loses everything"),
        (ModelFault::Forget, "the backend loses the record"),
    ] {
        let Some(mut state) = state.after(fault) else { continue };
        state.facts = model.store.facts(Facts::new());
        state.losses += 1;
        for worker in state.workers.iter_mut().filter(|worker| worker.up) {
            worker.unaware_of_loss |=
                fault == ModelFault::Flush && state.live_sessions & (1 << worker.session) != 0;
            worker.renewed &= fault == ModelFault::Flush;
            worker.outdated_by_loss = worker.renewal != ModelRenewal::Idle;
        }
        if fault == ModelFault::Flush {
            state.live_sessions = 0;
        }
        add(None, action, StepKind::Fault, state);
    }
}

/// Adds the steps of a rule that refuses starts, and of a process that releases the parked task.
fn add_admission_steps(
    model: &Model,
    state: &ModelState,
    add: &mut impl FnMut(Option<usize>, &'static str, StepKind, ModelState),
) {
    if let Some(mut state) = state.after(ModelFault::Refuse) {
        state.refused = true;
        add(None, "a rule refuses starts", StepKind::Fault, state);
    }
    if state.refused {
        add(None, "the rule allows starts", StepKind::Normal, ModelState { refused: false, ..state.clone() });
    }
    let facts = model.store.facts_of(state.facts);
    if state.releaser.is_none()
        && let Some(parked) = parked(&facts)
        && let Some(mut state) = state.after(ModelFault::Release)
    {
        let token = facts.text(name::PARKED_MESSAGE).and_then(|token| token.parse().ok()).unwrap_or_default();
        let guard = ModelMessage { attempt: parked.attempt, generation: parked.generation + 1, token };
        state.releaser = Some((guard, false));
        add(None, "a process that releases it reads its record", StepKind::Fault, state);
    }
    let Some((guard, published)) = state.releaser else { return };
    if let Some(mut state) = state.after(ModelFault::Crash) {
        state.releaser = None;
        add(None, "the process that releases it crashes", StepKind::Fault, state);
    }
    let store_first = model.config.mutation == Some(ModelMutation::ReleaseStoredFirst);
    let mut next = state.clone();
    if published != store_first {
        let commit = unpark(&model.id, guard.attempt, guard.generation);
        model.commit(&mut next, &commit);
    } else {
        next.put(guard);
    }
    next.releaser = (!published).then_some((guard, true));
    let action = if published != store_first { "records the release" } else { "publishes the released task" };
    add(None, action, StepKind::Normal, next);
}

/// Adds the steps of one worker's process.
fn add_worker_steps(
    model: &Model,
    state: &ModelState,
    number: usize,
    add: &mut impl FnMut(Option<usize>, &'static str, StepKind, ModelState),
) {
    let mut add = |action, kind, state| add(Some(number), action, kind, state);
    let worker = &state.workers[number];
    if !worker.up {
        let mut state = state.clone();
        let session = model.store.unused_session(&state);
        state.live_sessions |= 1 << session;
        state.workers[number] = ModelWorker::fresh(session);
        return add("starts", StepKind::Normal, state);
    }
    if !worker.draining && worker.handlers.len() < model.config.max_deliveries {
        for (position, message) in state.queue.iter().enumerate() {
            if position > 0 && state.queue[position - 1] == *message {
                continue;
            }
            let mut state = state.clone();
            state.queue.remove(position);
            state.workers[number].handlers.push(ModelHandler {
                message: *message,
                receipt: ModelReceipt::Unsettled,
                run: None,
                claim: None,
                cancel: None,
                alone: false,
                stage: HandlerStage::Open,
            });
            add("receives", StepKind::Receives(number), state);
        }
    }
    if let Some(mut state) = state.after(ModelFault::Crash) {
        remove_process(&mut state, number);
        add("crashes", StepKind::Fault, state);
    }
    if worker.handlers.iter().any(|handler| handler.receipt == ModelReceipt::Unsettled)
        && let Some(mut state) = state.after(ModelFault::Drop)
    {
        let handlers = state.workers[number].handlers.iter_mut();
        let lost: Vec<_> = handlers
            .filter(|handler| handler.receipt == ModelReceipt::Unsettled)
            .map(|handler| {
                handler.receipt = ModelReceipt::Lost;
                handler.message
            })
            .collect();
        lost.into_iter().for_each(|message| state.put(message));
        add("loses its broker connection", StepKind::Fault, state);
    }
    if !worker.draining
        && let Some(mut state) = state.after(ModelFault::Shutdown)
    {
        state.workers[number].draining = true;
        add("is told to stop", StepKind::Fault, state);
    }
    if worker.draining && worker.handlers.iter().all(|handler| handler.stage == HandlerStage::Abandoned) {
        let mut state = state.clone();
        if state.workers[number].handlers.is_empty() {
            state.live_sessions &= !(1 << state.workers[number].session);
        }
        remove_process(&mut state, number);
        add("exits", StepKind::Normal, state);
    }
    add_renewal_step(model, state, number, &mut add);
}

/// Removes a process: the broker takes back its unsettled messages.
fn remove_process(state: &mut ModelState, number: usize) {
    let mut stopped = ModelWorker::fresh(0);
    stopped.up = false;
    let removed = std::mem::replace(&mut state.workers[number], stopped);
    for handler in removed.handlers.iter().filter(|handler| handler.receipt == ModelReceipt::Unsettled) {
        state.put(handler.message);
    }
}

/// Adds the next step of a worker's renewal.
fn add_renewal_step(
    model: &Model,
    state: &ModelState,
    number: usize,
    add: &mut impl FnMut(&'static str, StepKind, ModelState),
) {
    let worker = &state.workers[number];
    match &worker.renewal {
        // Before the renewal, as its owner does.
        ModelRenewal::Idle if !worker.hand_backs.is_empty() => {
            let claim = model.store.claim_of(worker.hand_backs[0]);
            let mut next = state.clone();
            if claim.standing(&model.store.facts_of(state.facts)) == ClaimStatus::Current {
                model.commit(&mut next, &claim.hand_back());
            }
            if let Some(lost) = next.after(ModelFault::Reply) {
                add("hands back a start that does not run, and the reply is lost", StepKind::Fault, lost);
            }
            next.workers[number].hand_backs.remove(0);
            add("hands back a start that does not run", StepKind::Normal, next);
        }
        ModelRenewal::Idle => {
            let mut next = state.clone();
            next.workers[number].unaware_of_loss = false;
            next.workers[number].outdated_by_loss = false;
            let runs: Vec<_> =
                model.runs_to_renew(state, number).into_iter().map(|(run, _)| (run, state.facts)).collect();
            if state.is_alive(worker.session) {
                begin_commits(model, &mut next, number, &runs);
            } else {
                next.workers[number].renewal = ModelRenewal::Opening(runs);
            }
            add("renews", StepKind::Normal, next);
        }
        ModelRenewal::Opening(records) => {
            let mut next = state.clone();
            let session = model.store.unused_session(state);
            next.live_sessions |= 1 << session;
            next.workers[number].session = session;
            next.workers[number].renewed = false;
            // Runs that were granted meanwhile have no record yet.
            let empty = model.store.facts(Facts::new());
            let facts_of =
                |run: u8| records.iter().find(|(of, _)| *of == run).map_or(empty, |(_, facts)| *facts);
            let runs_to_renew = model.runs_to_renew(state, number);
            let runs: Vec<_> = runs_to_renew.into_iter().map(|(run, _)| (run, facts_of(run))).collect();
            begin_commits(model, &mut next, number, &runs);
            add("opens a session", StepKind::Normal, next);
        }
        ModelRenewal::Committing(due) => {
            let (run, pending) = due[0];
            let (mut commit, claim) = (*model.store.pending_of(pending)).clone();
            if model.config.mutation == Some(ModelMutation::AdoptWithoutStarts) {
                commit.equal_or_absent.clear();
            }
            let mut next = state.clone();
            let answer = model.commit(&mut next, &commit);
            // Whether the commit is done or not, the renewal fails, and the next renewal handles the rest.
            for failed in [&next, state] {
                if let Some(mut failed) = failed.after(ModelFault::Reply) {
                    failed.workers[number].renewal = ModelRenewal::Idle;
                    failed.workers[number].renewed = false;
                    add("does not learn the result of its renewal's commit", StepKind::Fault, failed);
                }
            }
            let ModelRenewal::Committing(due) = &mut next.workers[number].renewal else { unreachable!() };
            match answer {
                None => {
                    due.remove(0);
                    let claim = model.store.claim(claim);
                    let is_running = set_claim(&mut next.workers[number], run, claim);
                    if !is_running && model.config.mutation != Some(ModelMutation::WrittenBackAfterEnd) {
                        next.workers[number].hand_backs.push(claim);
                    }
                }
                Some(facts) => match renew_run(model, &mut next, number, run, &facts) {
                    RunRenewal::Commit(pending) => {
                        replace_first_commit(&mut next, number, run, Some(pending))
                    }
                    RunRenewal::Done => replace_first_commit(&mut next, number, run, None),
                    RunRenewal::Cancel(reason) => {
                        replace_first_commit(&mut next, number, run, None);
                        cancel(&mut next, number, run, reason);
                    }
                },
            }
            finish_if_done(&mut next, number);
            add("renews one of its runs", StepKind::Normal, next);
        }
    }
}

/// Replaces the first commit that is due, or removes it.
fn replace_first_commit(state: &mut ModelState, number: usize, run: u8, pending: Option<PendingId>) {
    let ModelRenewal::Committing(due) = &mut state.workers[number].renewal else { unreachable!() };
    match pending {
        Some(pending) => due[0] = (run, pending),
        None => drop(due.remove(0)),
    }
}

/// Decides about every run based on the records: some are done at once, for the others a commit is due.
fn begin_commits(model: &Model, state: &mut ModelState, number: usize, runs: &[(u8, FactsId)]) {
    let mut due = Vec::new();
    for (run, facts) in runs {
        match renew_run(model, state, number, *run, &model.store.facts_of(*facts)) {
            RunRenewal::Done => {}
            RunRenewal::Cancel(reason) => cancel(state, number, *run, reason),
            RunRenewal::Commit(pending) => due.push((*run, pending)),
        }
    }
    state.workers[number].renewal = ModelRenewal::Committing(due);
    finish_if_done(state, number);
}

/// Ends the renewal if no commit is due any more.
fn finish_if_done(state: &mut ModelState, number: usize) {
    let worker = &mut state.workers[number];
    if worker.renewal == ModelRenewal::Committing(Vec::new()) {
        worker.renewal = ModelRenewal::Idle;
        worker.renewed = !worker.outdated_by_loss;
    }
}

/// Decides what a renewal does about a run.
fn renew_run(model: &Model, state: &mut ModelState, number: usize, run: u8, facts: &Facts) -> RunRenewal {
    let session: SessionId = session_id(state.workers[number].session);
    let Some((_, claim)) = model.runs_to_renew(state, number).into_iter().find(|(of, _)| *of == run) else {
        return RunRenewal::Done;
    };
    let mut claim = (*model.store.claim_of(claim)).clone();
    assert_eq!(claim.run, run_id(run));
    if let Some(adopted) = claim.newer_claim(facts) {
        claim = adopted;
        set_claim(&mut state.workers[number], run, model.store.claim(claim.clone()));
    }
    let adoption_is_left_out = model.config.mutation == Some(ModelMutation::AdoptionNotRepeated)
        && !facts.is_empty()
        && state.workers[number].renewal == ModelRenewal::Idle
        && claim.standing(facts) == ClaimStatus::Current;
    if adoption_is_left_out {
        return RunRenewal::Done;
    }
    match claim.renewal_action(facts, &session, Model::now(state)) {
        RenewalAction::Nothing => RunRenewal::Done,
        RenewalAction::Revoked => RunRenewal::Cancel(ModelCancelReason::Revoked),
        RenewalAction::TakenOver => RunRenewal::Cancel(ModelCancelReason::TakenOver),
        RenewalAction::Commit(next) => RunRenewal::Commit(model.store.pending(*next)),
    }
}

/// Replaces the claim of a run. Returns `false` if the run has ended or its outcome is recorded.
fn set_claim(worker: &mut ModelWorker, run: u8, claim: ClaimId) -> bool {
    let mut handlers = worker.handlers.iter_mut();
    let handler = handlers.find(|handler| handler.run == Some(run) && handler.claim.is_some());
    handler.map(|handler| handler.claim = Some(claim)).is_some()
}

fn cancel(state: &mut ModelState, number: usize, run: u8, reason: ModelCancelReason) {
    let handler = state.workers[number].handlers.iter_mut().find(|handler| handler.run == Some(run));
    if let Some(handler) = handler.filter(|handler| matches!(handler.stage, HandlerStage::Run(_))) {
        handler.cancel.get_or_insert(reason);
    }
}
