//! An exhaustive search over the protocol: one task, two workers, every interleaving of small steps and faults.
//!
//! The decisions are the production's own functions, the record is kept by what the backend in memory commits with,
//! and the steps are in the order of `worker`. In every state it is checked that what must never happen has not, and
//! that a way without faults leads to an end, whichever worker alone receives. What is left out and what was found
//! stands in `docs/delivery-model.md`.
//!
//! `MACHINIST_MODEL=large cargo test -p machinist-core --lib model -- --nocapture` searches further.

mod around;
mod decisions;
mod search;
mod steps;
mod store;
mod world;

use std::{cell::RefCell, collections::BTreeMap, num::NonZero, rc::Rc, sync::Mutex, time::Duration};

use self::{
    search::{SearchReport, search},
    steps::HandlerPlace,
    store::FactStore,
    world::{FAULTS, MessageFate, ModelFault, ModelMessage, ModelState},
};
use super::{
    facts::{End, EndVerdict, Facts, NumberedFact, Retried, Start, name},
    fold::Attempts,
};
use crate::{
    backend::Commit,
    clock::Timestamp,
    id::TaskId,
    retry::{Backoff, RetryPolicy},
};

const TTL: Duration = Duration::from_secs(3600);

/// What is searched.
#[derive(Debug, Clone)]
struct ModelConfig {
    name: &'static str,
    /// Each as often as it stands here, at any moment.
    faults: &'static [ModelFault],
    /// What `MACHINIST_MODEL=large` adds.
    more: &'static [ModelFault],
    /// How often the task is tried again.
    retries: u32,
    /// How many guards of an attempt there are.
    generations: u32,
    /// How many deliveries a worker holds.
    hands: usize,
    mutation: Option<ModelMutation>,
}

/// A rule of the protocol, broken: the search must find what it was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ModelMutation {
    /// A start does not ask whether there is one already.
    StartUnguarded,
    /// A task is taken over without a look at its session.
    TakeOverUnseen,
    /// FAILURE and RETRY do not ask whether there is a newer start.
    VerdictUnguarded,
    /// FAILURE and RETRY do not carry the starts that the run knows.
    VerdictWithoutCarry,
    /// Nor does an adoption.
    AdoptWithoutCarry,
    /// Nor does a hand-back.
    HandBackWithoutCarry,
    /// A hand-back does not wait for the end of the handler.
    HandBackRunning,
    AckBeforeFollow,
    MarkBeforePublish,
    /// A guard is stored before it is published.
    GuardStoredFirst,
    /// A run is made known only when its start was granted.
    RegisteredLate,
    /// A copy that a guard has replaced goes, even if its own start is written.
    GuardBeforeOwnStart,
    /// What a renewal did not manage to adopt stays so.
    AdoptedOnce,
    /// A start runs that was asked for under a session which has been replaced.
    StartUnderReplacedSession,
    /// Renewals look after a run whose outcome is recorded.
    KeptAfterItsOutcome,
    /// Who ends a task that he does not run does not ask whether there is a newer start.
    EndUnguarded,
    /// A task of which workers may die is run like any other.
    SuspectInCompany,
    /// A start does not say that it is alone.
    AloneUnsaid,
}

/// What kind of step it is, for the ways without faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StepKind {
    Normal,
    Receives(usize),
    ModelFault,
}

#[derive(Debug)]
struct ModelStep {
    worker: Option<usize>,
    msg: Option<ModelMessage>,
    what: &'static str,
    kind: StepKind,
    world: ModelState,
    /// What a commit in it broke.
    broken: Option<String>,
}

#[derive(Debug)]
struct Model {
    config: ModelConfig,
    id: TaskId,
    policy: RetryPolicy,
    store: FactStore,
    /// What a commit broke.
    broken: RefCell<Option<String>>,
}

impl Model {
    const NOW: Timestamp = Timestamp::from_micros(1_000_000);

    fn new(config: ModelConfig) -> Self {
        let policy = RetryPolicy::new(config.retries).backoff(Backoff::fixed(Duration::ZERO));
        let id = "t".try_into().expect("an id");
        Self { config, id, policy, store: FactStore::new(), broken: RefCell::default() }
    }

    fn begin(&self) -> ModelState {
        let mut left = [0; FAULTS];
        for fault in self.config.faults.iter().chain(self.config.more.iter().filter(|_| large())) {
            left[*fault as usize] += 1;
        }
        ModelState::first(left)
    }

    fn step(
        &self,
        worker: Option<usize>,
        msg: Option<ModelMessage>,
        what: &'static str,
        kind: StepKind,
        mut world: ModelState,
    ) -> ModelStep {
        // Which of two deliveries was first is of no interest.
        world.workers.iter_mut().for_each(|worker| worker.handlers.sort_unstable());
        ModelStep { worker, msg, what, kind, world, broken: self.broken.borrow_mut().take() }
    }

    fn steps(&self, world: &ModelState) -> Vec<ModelStep> {
        let mut steps = Vec::new();
        // No start passes an end, and nothing more is owed: only lost data could make something happen again.
        let may_be_lost =
            [ModelFault::Flush, ModelFault::Forget].iter().any(|fault| world.left[*fault as usize] > 0);
        if world.fate == MessageFate::Done && !may_be_lost && self.store.facts_of(world.facts).has(name::END)
        {
            return steps;
        }
        for (worker, of) in world.workers.iter().enumerate() {
            for handler in 0..of.handlers.len() {
                steps::of_handler(self, world, HandlerPlace { worker, handler }, &mut steps);
            }
        }
        around::of_surroundings(self, world, &mut steps);
        steps
    }

    /// Commits as a backend does, and notes what must never be committed. `None` if it is done.
    fn commit(&self, world: &mut ModelState, commit: &Commit) -> Option<Rc<Facts>> {
        let before = self.store.facts_of(world.facts);
        let mut after = Facts::clone(&before);
        if !commit.apply(&mut after) {
            return Some(before);
        }
        if let Err(why) = check_commit(world, &before, &after, commit) {
            *self.broken.borrow_mut() = Some(why);
        }
        // After lost data another end may be written, and what the first demanded is forgotten with it.
        if !before.has(name::END)
            && world.fate != MessageFate::Done
            && let Some(end) = after.read::<End>(name::END)
        {
            let is_dead_lettered =
                super::verdict::recorded_follow_up(&after, 1) != Some(super::verdict::FollowUp::Nothing);
            let failed = matches!(end.verdict, EndVerdict::Failure { .. });
            world.fate = if failed && is_dead_lettered { MessageFate::Unburied } else { MessageFate::Done };
        }
        world.facts = self.store.facts(after);
        None
    }

    /// What must never be, and is.
    fn wrong(&self, before: &ModelState, step: &ModelStep) -> Option<String> {
        if step.broken.is_some() {
            return step.broken.clone();
        }
        let after = &step.world;
        let runs = after.live_runs();
        if runs.len() > 1 {
            return Some(format!("two runs under live sessions: {runs:?}"));
        }
        if after.fate != MessageFate::Done && !after.message_exists() {
            return Some("lost: no message, and the task is not over".to_owned());
        }
        if let [(_, attempt)] = runs[..]
            && before.facts != after.facts
            && self.decided_against(before, after, attempt)
        {
            return Some("decided over a run under a live session".to_owned());
        }
        None
    }

    /// Whether a FAILURE or RETRY of this attempt came by this step. A SUCCESS counts from any run.
    fn decided_against(&self, before: &ModelState, after: &ModelState, attempt: u32) -> bool {
        let decided = |world: &ModelState| {
            let facts = self.store.facts_of(world.facts);
            let failed = |end: End| matches!(end.verdict, EndVerdict::Failure { .. });
            facts.read(name::END).is_some_and(failed) || facts.has(&name::retried(attempt))
        };
        decided(after) && !decided(before)
    }
}

/// What no commit may do to a record.
fn check_commit(
    world: &mut ModelState,
    before: &Facts,
    after: &Facts,
    commit: &Commit,
) -> Result<(), String> {
    if before.has(name::END) && before.get(name::END) != after.get(name::END) {
        return Err("an end was rewritten".to_owned());
    }
    for (fact, value) in &commit.facts {
        if before.has(fact) {
            continue;
        }
        match NumberedFact::parse(fact) {
            Some(NumberedFact::Start { attempt, .. }) => {
                if before.has(name::END) || before.has(&name::retried(attempt)) {
                    return Err("started after its outcome".to_owned());
                }
                let start: Start = serde_json::from_slice(value).map_err(|e| e.to_string())?;
                // What was asked for before data was lost does not know of what was granted since.
                let asked_since = start.token >= u64::try_from(Model::now(world).as_micros()).unwrap_or(0);
                if asked_since && start.token <= world.greatest_token {
                    return Err("a fencing token fell".to_owned());
                }
                world.greatest_token = world.greatest_token.max(start.token);
                may_start(before, attempt, &start)?;
            }
            Some(NumberedFact::Retried { .. }) => {
                let retried: Retried = serde_json::from_slice(value).map_err(|e| e.to_string())?;
                newest(before, &retried.origin)?;
            }
            _ if fact == name::END => {
                let end: End = serde_json::from_slice(value).map_err(|e| e.to_string())?;
                if let (Some(origin), EndVerdict::Failure { .. }) = (end.origin, end.verdict) {
                    newest(before, &origin)?;
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// Two runs of an attempt that came to nothing make it a suspect, which starts alone only, and three times only.
fn may_start(facts: &Facts, attempt: u32, asked: &Start) -> Result<(), String> {
    let mut died = BTreeMap::new();
    for number in 1..=Attempts::of(facts).newest_start(attempt).unwrap_or(0) {
        let start = facts.read::<Start>(&name::start(attempt, number));
        // An adoption goes on with what was started before.
        if start.as_ref().is_some_and(|start| start.run == asked.run) {
            return Ok(());
        }
        if let Some(start) = start {
            let (alone, returned) = died.entry(start.run).or_insert((false, false));
            *alone |= start.alone;
            *returned |= facts.has(&name::returned(attempt, number));
        }
    }
    let died: Vec<bool> =
        died.into_values().filter(|(_, returned)| !returned).map(|(alone, _)| alone).collect();
    if died.iter().filter(|alone| **alone).count() >= 3 {
        return Err("run again although three died of it alone".to_owned());
    }
    if died.len() >= 2 && !asked.alone { Err("a suspect started in company".to_owned()) } else { Ok(()) }
}

fn newest(facts: &Facts, origin: &super::facts::RunOrigin) -> Result<(), String> {
    let newest = Attempts::of(facts).newest_start(origin.attempt).unwrap_or(0);
    let same = facts
        .read::<Start>(&name::start(origin.attempt, origin.start))
        .is_none_or(|start| start.run == origin.run);
    if newest <= origin.start && same { Ok(()) } else { Err("a stale run decided".to_owned()) }
}

use ModelFault::{Confirm, Crash, Deadline, Drop, Duplicate, Expire, Flush, Forget, Reply, Revoke, Shutdown};

/// What is searched, each with the faults that meet in it.
const CONFIGS: [ModelConfig; 17] = [
    plain("crash, lost connection, expiry", 2, &[Crash, Drop, Expire], &[Reply]),
    plain("replies, expiry, duplicate", 2, &[Reply, Reply, Expire, Duplicate], &[Drop]),
    retried("retry: crash, lost connection, confirm", 1, &[Crash, Drop, Confirm], &[Expire]),
    retried("retry: duplicate, reply", 2, &[Duplicate, Reply], &[Crash]),
    retried("retry: flush, expiry", 1, &[Flush, Expire], &[Reply]),
    plain("flush, duplicate", 2, &[Flush, Duplicate], &[Expire]),
    plain("flush, shutdown", 2, &[Flush, Shutdown], &[Drop]),
    plain("lost record, shutdown, duplicate", 1, &[Forget, Shutdown, Duplicate], &[Reply]),
    plain("lost record, reply, lost connection", 2, &[Forget, Reply, Drop], &[Expire]),
    plain("shutdown, reply, lost connection", 2, &[Shutdown, Reply, Drop], &[Expire]),
    guarded("guards: crash, duplicate", 2, &[Crash, Duplicate], &[Reply]),
    guarded("guards: shutdown, lost connection", 1, &[Shutdown, Drop], &[Confirm]),
    guarded("guards: reply, duplicate, expiry", 1, &[Reply, Duplicate, Expire], &[Crash]),
    plain("suspects: five crashes", 1, &[Crash; 5], &[Crash]),
    guarded("suspects: guard, two crashes", 1, &[Crash, Crash], &[Expire]),
    plain("revoked: reply, expiry, lost connection", 2, &[Revoke, Reply, Expire, Drop], &[Crash]),
    plain("too late: crash, lost connection, expiry", 2, &[Deadline, Crash, Drop, Expire], &[Reply]),
];

/// What is too large for every day.
const LARGE: [ModelConfig; 1] =
    [plain("large: flush, shutdown, duplicate", 2, &[Flush, Shutdown, Duplicate], &[])];

const fn plain(
    name: &'static str,
    hands: usize,
    faults: &'static [ModelFault],
    more: &'static [ModelFault],
) -> ModelConfig {
    ModelConfig { name, faults, more, retries: 0, generations: 0, hands, mutation: None }
}
const fn retried(
    name: &'static str,
    hands: usize,
    faults: &'static [ModelFault],
    more: &'static [ModelFault],
) -> ModelConfig {
    ModelConfig { retries: 1, ..plain(name, hands, faults, more) }
}
/// With as many guards of an attempt.
const fn guarded(
    name: &'static str,
    generations: u32,
    faults: &'static [ModelFault],
    more: &'static [ModelFault],
) -> ModelConfig {
    ModelConfig { generations, ..plain(name, 1, faults, more) }
}

fn large() -> bool {
    std::env::var("MACHINIST_MODEL").is_ok_and(|size| size == "large")
}

fn run(config: ModelConfig) -> SearchReport {
    let begun = std::time::Instant::now();
    let (name, mutation) = (config.name, config.mutation);
    let found = search(&Model::new(config));
    let found_in = begun.elapsed();
    match mutation {
        Some(mutation) => println!("{mutation:?}: {} states of {name}, {found_in:.1?}", found.states),
        None => println!("{name}: {} states, {found_in:.1?}", found.states),
    }
    found
}

/// Runs searches side by side, and returns what they found in their order.
fn side_by_side(configs: Vec<ModelConfig>) -> Vec<(ModelConfig, SearchReport)> {
    let todo = Mutex::new(configs.into_iter().enumerate());
    let found = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, NonZero::get) {
            scope.spawn(|| {
                loop {
                    let next = todo.lock().expect("no panic").next();
                    let Some((n, config)) = next else { return };
                    let result = run(config.clone());
                    found.lock().expect("no panic").insert(n, (config, result));
                }
            });
        }
    });
    found.into_inner().expect("no panic").into_values().collect()
}

#[test]
fn nothing_is_lost_and_nothing_runs_twice() {
    let configs = CONFIGS.into_iter().chain(LARGE.into_iter().filter(|_| large()));
    for (config, found) in side_by_side(configs.collect()) {
        assert!(found.wrong.is_none(), "{}: {}", config.name, found.wrong.unwrap_or_default());
    }
}

#[test]
fn every_broken_rule_is_found() {
    use ModelMutation::*;
    // Each with a configuration that finds it soon, and how it must be found.
    let broken = [
        (StartUnguarded, "replies, expiry, duplicate", "two runs"),
        (TakeOverUnseen, "replies, expiry, duplicate", "two runs"),
        (VerdictUnguarded, "crash, lost connection, expiry", "a stale run decided"),
        (VerdictWithoutCarry, "flush, duplicate", "a stale run decided"),
        (AdoptWithoutCarry, "flush, duplicate", "a fencing token fell"),
        (HandBackWithoutCarry, "lost record, shutdown, duplicate", "two runs"),
        (HandBackRunning, "shutdown, reply, lost connection", "two runs"),
        (AckBeforeFollow, "retry: crash, lost connection, confirm", "lost"),
        (MarkBeforePublish, "retry: crash, lost connection, confirm", "lost"),
        (GuardStoredFirst, "guards: crash, duplicate", "lost"),
        (RegisteredLate, "shutdown, reply, lost connection", "two runs"),
        (GuardBeforeOwnStart, "guards: reply, duplicate, expiry", "stuck"),
        (AdoptedOnce, "replies, expiry, duplicate", "two runs"),
        (StartUnderReplacedSession, "crash, lost connection, expiry", "two runs"),
        (KeptAfterItsOutcome, "retry: flush, expiry", "a fencing token fell"),
        (SuspectInCompany, "suspects: five crashes", "a suspect started in company"),
        (AloneUnsaid, "suspects: five crashes", "a suspect started in company"),
        (EndUnguarded, "too late: crash, lost connection, expiry", "decided over a run"),
    ];
    let config = |name| CONFIGS.into_iter().find(|config| config.name == name).expect("a configuration");
    let searches = broken.map(|(mutation, name, _)| ModelConfig { mutation: Some(mutation), ..config(name) });
    for ((config, found), (.., expected)) in side_by_side(searches.to_vec()).into_iter().zip(broken) {
        let wrong = found.wrong.unwrap_or_default();
        let told = wrong.lines().next().unwrap_or("nothing");
        println!("{:?}: {told}", config.mutation);
        assert!(told.starts_with(expected), "{:?} in {}: {told}", config.mutation, config.name);
    }
}
