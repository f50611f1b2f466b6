//! What happens around deliveries: renewals as in `worker::session`, the ends of processes, and every fault.

use super::{
    super::{
        facts::Facts,
        revoke::{RevokeDecision, RevokeMode, decide_revoke},
        start::RenewalAction,
    },
    Kind, Model, Mutation, Step, TTL,
    store::{ClaimNo, FactsNo, PendingNo, run_id, session_id},
    world::{At, Fault, Handler, Msg, Receipt, Renewal, Why, Worker, World},
};
use crate::id::SessionId;

/// What a renewal comes to for one run.
enum Kept {
    Done,
    Cancel(Why),
    Commit(PendingNo),
}

/// Adds every step that is not one delivery's own.
pub(super) fn of_surroundings(model: &Model, world: &World, steps: &mut Vec<Step>) {
    let mut add = |worker, what, kind, world| steps.push(model.step(worker, None, what, kind, world));
    for n in 0..world.workers.len() {
        of_worker(model, world, n, &mut add);
    }
    let owned = world.workers.iter().filter(|w| w.up).fold(0, |bits, w| bits | 1u32 << w.session);
    for session in (0..32).filter(|s| world.is_alive(*s)) {
        let expired = |mut world: World| {
            world.alive &= !(1 << session);
            world
        };
        if owned & (1 << session) == 0 {
            add(None, "a session that nobody renews expires", Kind::Normal, expired(world.clone()));
        } else if let Some(world) = world.after(Fault::Expire) {
            let n = world.workers.iter().position(|w| w.up && w.session == session);
            add(n, "is paused, and its session expires", Kind::Fault, expired(world));
        }
    }
    of_everything(model, world, &mut add);
}

fn of_everything(
    model: &Model,
    world: &World,
    add: &mut impl FnMut(Option<usize>, &'static str, Kind, World),
) {
    if let Some(mut world) = world.after(Fault::Duplicate) {
        world.put(Msg { attempt: 1, generation: 0, token: 0 });
        add(None, "the sender sends it again", Kind::Fault, world);
    }
    if let Some(mut world) = world.after(Fault::Deadline) {
        world.expired = true;
        add(None, "its expiry passes", Kind::Fault, world);
    }
    if let Some(mut world) = world.after(Fault::Revoke) {
        world.revoker = Some(world.facts);
        add(None, "somebody wants to revoke it, and reads its record", Kind::Fault, world);
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
        add(None, "commits that it is revoked", Kind::Normal, world);
    }
    for (fault, what) in
        [(Fault::Flush, "the backend loses everything"), (Fault::Forget, "the backend loses the record")]
    {
        let Some(mut world) = world.after(fault) else { continue };
        world.facts = model.store.facts(Facts::new());
        world.losses += 1;
        for worker in world.workers.iter_mut().filter(|worker| worker.up) {
            worker.fooled |= fault == Fault::Flush && world.alive & (1 << worker.session) != 0;
            worker.renewed &= fault == Fault::Flush;
            worker.overtaken = worker.renewal != Renewal::Idle;
        }
        if fault == Fault::Flush {
            world.alive = 0;
        }
        add(None, what, Kind::Fault, world);
    }
}

fn of_worker(
    model: &Model,
    world: &World,
    n: usize,
    add: &mut impl FnMut(Option<usize>, &'static str, Kind, World),
) {
    let mut add = |what, kind, world| add(Some(n), what, kind, world);
    let worker = &world.workers[n];
    if !worker.up {
        let mut world = world.clone();
        let (_, session) = model.store.fresh(&world);
        world.alive |= 1 << session;
        world.workers[n] = Worker::fresh(session);
        return add("starts", Kind::Normal, world);
    }
    if !worker.draining && worker.handlers.len() < model.config.hands {
        for (at, msg) in world.queue.iter().enumerate() {
            if at > 0 && world.queue[at - 1] == *msg {
                continue;
            }
            let mut world = world.clone();
            world.queue.remove(at);
            world.workers[n].handlers.push(Handler {
                msg: *msg,
                receipt: Receipt::Holding,
                run: None,
                claim: None,
                cancel: None,
                alone: false,
                at: At::Open,
            });
            add("receives", Kind::Receives(n), world);
        }
    }
    if let Some(mut world) = world.after(Fault::Crash) {
        goes(&mut world, n);
        add("crashes", Kind::Fault, world);
    }
    if worker.handlers.iter().any(|handler| handler.receipt == Receipt::Holding)
        && let Some(mut world) = world.after(Fault::Drop)
    {
        let handlers = world.workers[n].handlers.iter_mut();
        let lost: Vec<_> = handlers
            .filter(|h| h.receipt == Receipt::Holding)
            .map(|h| {
                h.receipt = Receipt::Lost;
                h.msg
            })
            .collect();
        lost.into_iter().for_each(|msg| world.put(msg));
        add("loses its broker connection", Kind::Fault, world);
    }
    if !worker.draining
        && let Some(mut world) = world.after(Fault::Shutdown)
    {
        world.workers[n].draining = true;
        add("is told to stop", Kind::Fault, world);
    }
    if worker.draining && worker.handlers.iter().all(|handler| handler.at == At::Left) {
        let mut world = world.clone();
        if world.workers[n].handlers.is_empty() {
            world.alive &= !(1 << world.workers[n].session);
        }
        goes(&mut world, n);
        add("exits", Kind::Normal, world);
    }
    renewal(model, world, n, &mut add);
}

/// A process is no more: what it held is the broker's again.
fn goes(world: &mut World, n: usize) {
    let mut gone = Worker::fresh(0);
    gone.up = false;
    let gone = std::mem::replace(&mut world.workers[n], gone);
    for handler in gone.handlers.iter().filter(|handler| handler.receipt == Receipt::Holding) {
        world.put(handler.msg);
    }
}

/// The next step of a worker's renewal.
fn renewal(model: &Model, world: &World, n: usize, add: &mut impl FnMut(&'static str, Kind, World)) {
    let worker = &world.workers[n];
    match &worker.renewal {
        Renewal::Idle => {
            let mut next = world.clone();
            next.workers[n].fooled = false;
            next.workers[n].overtaken = false;
            let runs: Vec<_> =
                model.counted(world, n).into_iter().map(|(run, _)| (run, world.facts)).collect();
            if world.is_alive(worker.session) {
                begin(model, &mut next, n, &runs);
            } else {
                next.workers[n].renewal = Renewal::Opening(runs);
            }
            add("renews", Kind::Normal, next);
        }
        Renewal::Opening(read) => {
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
            add("opens a session", Kind::Normal, next);
        }
        Renewal::Keeping(todo) => {
            let (run, pending) = todo[0];
            let (mut commit, claim) = (*model.store.pending_of(pending)).clone();
            if model.config.mutation == Some(Mutation::AdoptWithoutCarry) {
                commit.equal_or_absent.clear();
            }
            let mut next = world.clone();
            let answer = model.commit(&mut next, &commit);
            // Done or not, the renewal fails, and the next one sees to what is left.
            for failed in [&next, world] {
                if let Some(mut failed) = failed.after(Fault::Reply) {
                    failed.workers[n].renewal = Renewal::Idle;
                    failed.workers[n].renewed = false;
                    add("does not learn what its renewal's commit came to", Kind::Fault, failed);
                }
            }
            let Renewal::Keeping(todo) = &mut next.workers[n].renewal else { unreachable!() };
            match answer {
                None => {
                    todo.remove(0);
                    let claim = model.store.claim(claim);
                    holds(&mut next.workers[n], run, claim);
                }
                Some(facts) => match keep(model, &mut next, n, run, &facts) {
                    Kept::Commit(pending) => set(&mut next, n, run, Some(pending)),
                    Kept::Done => set(&mut next, n, run, None),
                    Kept::Cancel(why) => {
                        set(&mut next, n, run, None);
                        cancel(&mut next, n, run, why);
                    }
                },
            }
            finish(&mut next, n);
            add("sees to a run of its own", Kind::Normal, next);
        }
    }
}

fn set(world: &mut World, n: usize, run: u8, pending: Option<PendingNo>) {
    let Renewal::Keeping(todo) = &mut world.workers[n].renewal else { unreachable!() };
    match pending {
        Some(pending) => todo[0] = (run, pending),
        None => drop(todo.remove(0)),
    }
}

/// What the records say about every run: done at once, or to be committed.
fn begin(model: &Model, world: &mut World, n: usize, runs: &[(u8, FactsNo)]) {
    let mut todo = Vec::new();
    for (run, facts) in runs {
        match keep(model, world, n, *run, &model.store.facts_of(*facts)) {
            Kept::Done => {}
            Kept::Cancel(why) => cancel(world, n, *run, why),
            Kept::Commit(pending) => todo.push((*run, pending)),
        }
    }
    world.workers[n].renewal = Renewal::Keeping(todo);
    finish(world, n);
}

fn finish(world: &mut World, n: usize) {
    let worker = &mut world.workers[n];
    if worker.renewal == Renewal::Keeping(Vec::new()) {
        worker.renewal = Renewal::Idle;
        worker.renewed = !worker.overtaken;
    }
}

fn keep(model: &Model, world: &mut World, n: usize, run: u8, facts: &Facts) -> Kept {
    let session: SessionId = session_id(world.workers[n].session);
    let Some((_, claim)) = model.counted(world, n).into_iter().find(|(r, _)| *r == run) else {
        return Kept::Done;
    };
    let mut claim = (*model.store.claim_of(claim)).clone();
    debug_assert_eq!(claim.run, run_id(run));
    if let Some(adopted) = claim.newer_claim(facts) {
        claim = adopted;
        holds(&mut world.workers[n], run, model.store.claim(claim.clone()));
    }
    let stays = model.config.mutation == Some(Mutation::AdoptedOnce)
        && !facts.is_empty()
        && world.workers[n].renewal == Renewal::Idle
        && claim.standing(facts) == super::super::start::ClaimStatus::Current;
    if stays {
        return Kept::Done;
    }
    match claim.renewal_action(facts, &session, Model::now(world)) {
        RenewalAction::Nothing => Kept::Done,
        RenewalAction::Revoked => Kept::Cancel(Why::Revoked),
        RenewalAction::TakenOver => Kept::Cancel(Why::Superseded),
        RenewalAction::Commit(next) => Kept::Commit(model.store.pending(*next)),
    }
}

fn holds(worker: &mut Worker, run: u8, claim: ClaimNo) {
    let mut handlers = worker.handlers.iter_mut();
    // Unless it was let go meanwhile.
    if let Some(handler) = handlers.find(|handler| handler.run == Some(run) && handler.claim.is_some()) {
        handler.claim = Some(claim);
    }
}

fn cancel(world: &mut World, n: usize, run: u8, why: Why) {
    let handler = world.workers[n].handlers.iter_mut().find(|handler| handler.run == Some(run));
    if let Some(handler) = handler.filter(|handler| matches!(handler.at, At::Run(_))) {
        handler.cancel.get_or_insert(why);
    }
}
