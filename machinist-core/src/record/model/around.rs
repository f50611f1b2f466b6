//! What happens around deliveries: renewals as in `worker::session`, the ends of processes, and every fault.

use super::{
    super::{
        facts::Facts,
        revoke::{RevokeDecision, RevokeMode, decide_revoke},
        start::RenewalAction,
    },
    Model, ModelMutation, ModelStep, StepKind, TTL,
    store::{ClaimNo, FactsNo, PendingNo, run_id, session_id},
    world::{
        HandlerStage, ModelCancelReason, ModelFault, ModelHandler, ModelMessage, ModelReceipt, ModelRenewal,
        ModelState, ModelWorker,
    },
};
use crate::id::SessionId;

/// What a renewal comes to for one run.
enum KeptRun {
    Done,
    Cancel(ModelCancelReason),
    Commit(PendingNo),
}

/// Adds every step that is not one delivery's own.
pub(super) fn of_surroundings(model: &Model, world: &ModelState, steps: &mut Vec<ModelStep>) {
    let mut add = |worker, what, kind, world| steps.push(model.step(worker, None, what, kind, world));
    for n in 0..world.workers.len() {
        of_worker(model, world, n, &mut add);
    }
    let owned = world.workers.iter().filter(|w| w.up).fold(0, |bits, w| bits | 1u32 << w.session);
    for session in (0..32).filter(|s| world.is_alive(*s)) {
        let expired = |mut world: ModelState| {
            world.alive &= !(1 << session);
            world
        };
        if owned & (1 << session) == 0 {
            add(None, "a session that nobody renews expires", StepKind::Normal, expired(world.clone()));
        } else if let Some(world) = world.after(ModelFault::Expire) {
            let n = world.workers.iter().position(|w| w.up && w.session == session);
            add(n, "is paused, and its session expires", StepKind::ModelFault, expired(world));
        }
    }
    of_everything(model, world, &mut add);
}

fn of_everything(
    model: &Model,
    world: &ModelState,
    add: &mut impl FnMut(Option<usize>, &'static str, StepKind, ModelState),
) {
    if let Some(mut world) = world.after(ModelFault::Duplicate) {
        world.put(ModelMessage { attempt: 1, generation: 0, token: 0 });
        add(None, "the sender sends it again", StepKind::ModelFault, world);
    }
    if let Some(mut world) = world.after(ModelFault::Deadline) {
        world.expired = true;
        add(None, "its expiry passes", StepKind::ModelFault, world);
    }
    if let Some(mut world) = world.after(ModelFault::Revoke) {
        world.revoker = Some(world.facts);
        add(None, "somebody wants to revoke it, and reads its record", StepKind::ModelFault, world);
    }
    if let Some(read) = world.revoker {
        let mut world = world.clone();
        world.revoker = match decide_revoke(
            &model.id,
            &model.store.facts_of(read),
            RevokeMode::Cancel,
            Model::NOW,
            TTL,
        ) {
            RevokeDecision::Ended(_) => None,
            RevokeDecision::EndNow(commit) | RevokeDecision::AskRun(commit, _) => {
                model.commit(&mut world, &commit).map(|_| world.facts)
            }
        };
        add(None, "commits that it is revoked", StepKind::Normal, world);
    }
    for (fault, what) in [
        (ModelFault::Flush, "the backend loses everything"),
        (ModelFault::Forget, "the backend loses the record"),
    ] {
        let Some(mut world) = world.after(fault) else { continue };
        world.facts = model.store.facts(Facts::new());
        world.losses += 1;
        for worker in world.workers.iter_mut().filter(|worker| worker.up) {
            worker.fooled |= fault == ModelFault::Flush && world.alive & (1 << worker.session) != 0;
            worker.renewed &= fault == ModelFault::Flush;
            worker.overtaken = worker.renewal != ModelRenewal::Idle;
        }
        if fault == ModelFault::Flush {
            world.alive = 0;
        }
        add(None, what, StepKind::ModelFault, world);
    }
}

fn of_worker(
    model: &Model,
    world: &ModelState,
    n: usize,
    add: &mut impl FnMut(Option<usize>, &'static str, StepKind, ModelState),
) {
    let mut add = |what, kind, world| add(Some(n), what, kind, world);
    let worker = &world.workers[n];
    if !worker.up {
        let mut world = world.clone();
        let (_, session) = model.store.fresh(&world);
        world.alive |= 1 << session;
        world.workers[n] = ModelWorker::fresh(session);
        return add("starts", StepKind::Normal, world);
    }
    if !worker.draining && worker.handlers.len() < model.config.hands {
        for (at, msg) in world.queue.iter().enumerate() {
            if at > 0 && world.queue[at - 1] == *msg {
                continue;
            }
            let mut world = world.clone();
            world.queue.remove(at);
            world.workers[n].handlers.push(ModelHandler {
                msg: *msg,
                receipt: ModelReceipt::Holding,
                run: None,
                claim: None,
                cancel: None,
                alone: false,
                at: HandlerStage::Open,
            });
            add("receives", StepKind::Receives(n), world);
        }
    }
    if let Some(mut world) = world.after(ModelFault::Crash) {
        goes(&mut world, n);
        add("crashes", StepKind::ModelFault, world);
    }
    if worker.handlers.iter().any(|handler| handler.receipt == ModelReceipt::Holding)
        && let Some(mut world) = world.after(ModelFault::Drop)
    {
        let handlers = world.workers[n].handlers.iter_mut();
        let lost: Vec<_> = handlers
            .filter(|h| h.receipt == ModelReceipt::Holding)
            .map(|h| {
                h.receipt = ModelReceipt::Lost;
                h.msg
            })
            .collect();
        lost.into_iter().for_each(|msg| world.put(msg));
        add("loses its broker connection", StepKind::ModelFault, world);
    }
    if !worker.draining
        && let Some(mut world) = world.after(ModelFault::Shutdown)
    {
        world.workers[n].draining = true;
        add("is told to stop", StepKind::ModelFault, world);
    }
    if worker.draining && worker.handlers.iter().all(|handler| handler.at == HandlerStage::Left) {
        let mut world = world.clone();
        if world.workers[n].handlers.is_empty() {
            world.alive &= !(1 << world.workers[n].session);
        }
        goes(&mut world, n);
        add("exits", StepKind::Normal, world);
    }
    renewal(model, world, n, &mut add);
}

/// A process is no more: what it held is the broker's again.
fn goes(world: &mut ModelState, n: usize) {
    let mut gone = ModelWorker::fresh(0);
    gone.up = false;
    let gone = std::mem::replace(&mut world.workers[n], gone);
    for handler in gone.handlers.iter().filter(|handler| handler.receipt == ModelReceipt::Holding) {
        world.put(handler.msg);
    }
}

/// The next step of a worker's renewal.
fn renewal(
    model: &Model,
    world: &ModelState,
    n: usize,
    add: &mut impl FnMut(&'static str, StepKind, ModelState),
) {
    let worker = &world.workers[n];
    match &worker.renewal {
        ModelRenewal::Idle => {
            let mut next = world.clone();
            next.workers[n].fooled = false;
            next.workers[n].overtaken = false;
            let runs: Vec<_> =
                model.counted(world, n).into_iter().map(|(run, _)| (run, world.facts)).collect();
            if world.is_alive(worker.session) {
                begin(model, &mut next, n, &runs);
            } else {
                next.workers[n].renewal = ModelRenewal::Opening(runs);
            }
            add("renews", StepKind::Normal, next);
        }
        ModelRenewal::Opening(read) => {
            let mut next = world.clone();
            let (_, session) = model.store.fresh(world);
            next.alive |= 1 << session;
            next.workers[n].session = session;
            next.workers[n].renewed = false;
            // Those that were granted meanwhile have no record yet.
            let empty = model.store.facts(Facts::new());
            let facts_of = |run: u8| read.iter().find(|(r, _)| *r == run).map_or(empty, |(_, facts)| *facts);
            let counted = model.counted(world, n);
            let runs: Vec<_> = counted.into_iter().map(|(run, _)| (run, facts_of(run))).collect();
            begin(model, &mut next, n, &runs);
            add("opens a session", StepKind::Normal, next);
        }
        ModelRenewal::Keeping(todo) => {
            let (run, pending) = todo[0];
            let (mut commit, claim) = (*model.store.pending_of(pending)).clone();
            if model.config.mutation == Some(ModelMutation::AdoptWithoutCarry) {
                commit.equal_or_absent.clear();
            }
            let mut next = world.clone();
            let answer = model.commit(&mut next, &commit);
            // Done or not, the renewal fails, and the next one sees to what is left.
            for failed in [&next, world] {
                if let Some(mut failed) = failed.after(ModelFault::Reply) {
                    failed.workers[n].renewal = ModelRenewal::Idle;
                    failed.workers[n].renewed = false;
                    add("does not learn what its renewal's commit came to", StepKind::ModelFault, failed);
                }
            }
            let ModelRenewal::Keeping(todo) = &mut next.workers[n].renewal else { unreachable!() };
            match answer {
                None => {
                    todo.remove(0);
                    let claim = model.store.claim(claim);
                    holds(&mut next.workers[n], run, claim);
                }
                Some(facts) => match keep(model, &mut next, n, run, &facts) {
                    KeptRun::Commit(pending) => set(&mut next, n, run, Some(pending)),
                    KeptRun::Done => set(&mut next, n, run, None),
                    KeptRun::Cancel(why) => {
                        set(&mut next, n, run, None);
                        cancel(&mut next, n, run, why);
                    }
                },
            }
            finish(&mut next, n);
            add("sees to a run of its own", StepKind::Normal, next);
        }
    }
}

fn set(world: &mut ModelState, n: usize, run: u8, pending: Option<PendingNo>) {
    let ModelRenewal::Keeping(todo) = &mut world.workers[n].renewal else { unreachable!() };
    match pending {
        Some(pending) => todo[0] = (run, pending),
        None => drop(todo.remove(0)),
    }
}

/// What the records say about every run: done at once, or to be committed.
fn begin(model: &Model, world: &mut ModelState, n: usize, runs: &[(u8, FactsNo)]) {
    let mut todo = Vec::new();
    for (run, facts) in runs {
        match keep(model, world, n, *run, &model.store.facts_of(*facts)) {
            KeptRun::Done => {}
            KeptRun::Cancel(why) => cancel(world, n, *run, why),
            KeptRun::Commit(pending) => todo.push((*run, pending)),
        }
    }
    world.workers[n].renewal = ModelRenewal::Keeping(todo);
    finish(world, n);
}

fn finish(world: &mut ModelState, n: usize) {
    let worker = &mut world.workers[n];
    if worker.renewal == ModelRenewal::Keeping(Vec::new()) {
        worker.renewal = ModelRenewal::Idle;
        worker.renewed = !worker.overtaken;
    }
}

fn keep(model: &Model, world: &mut ModelState, n: usize, run: u8, facts: &Facts) -> KeptRun {
    let session: SessionId = session_id(world.workers[n].session);
    let Some((_, claim)) = model.counted(world, n).into_iter().find(|(r, _)| *r == run) else {
        return KeptRun::Done;
    };
    let mut claim = (*model.store.claim_of(claim)).clone();
    debug_assert_eq!(claim.run, run_id(run));
    if let Some(adopted) = claim.newer_claim(facts) {
        claim = adopted;
        holds(&mut world.workers[n], run, model.store.claim(claim.clone()));
    }
    let stays = model.config.mutation == Some(ModelMutation::AdoptedOnce)
        && !facts.is_empty()
        && world.workers[n].renewal == ModelRenewal::Idle
        && claim.standing(facts) == super::super::start::ClaimStatus::Current;
    if stays {
        return KeptRun::Done;
    }
    match claim.renewal_action(facts, &session, Model::now(world)) {
        RenewalAction::Nothing => KeptRun::Done,
        RenewalAction::Revoked => KeptRun::Cancel(ModelCancelReason::Revoked),
        RenewalAction::TakenOver => KeptRun::Cancel(ModelCancelReason::Superseded),
        RenewalAction::Commit(next) => KeptRun::Commit(model.store.pending(*next)),
    }
}

fn holds(worker: &mut ModelWorker, run: u8, claim: ClaimNo) {
    let mut handlers = worker.handlers.iter_mut();
    // Unless it was let go meanwhile.
    if let Some(handler) = handlers.find(|handler| handler.run == Some(run) && handler.claim.is_some()) {
        handler.claim = Some(claim);
    }
}

fn cancel(world: &mut ModelState, n: usize, run: u8, why: ModelCancelReason) {
    let handler = world.workers[n].handlers.iter_mut().find(|handler| handler.run == Some(run));
    if let Some(handler) = handler.filter(|handler| matches!(handler.at, HandlerStage::Run(_))) {
        handler.cancel.get_or_insert(why);
    }
}
