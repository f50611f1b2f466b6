//! Exhaustive search over the protocol: one task, two workers, every interleaving of small steps and faults.
//!
//! The decisions are the production functions. The record is kept by the function with which the in-memory backend
//! commits. The steps are in the order of `worker`. In every state the search checks the invariants, and that a path
//! without faults leads to an end, even if only one of the workers receives messages. `docs/delivery-model.md`
//! describes what the model leaves out and what the search found.
//!
//! `MACHINIST_MODEL=large cargo model -- --nocapture` searches further.

mod decisions;
mod environment;
mod lease;
mod search;
mod state;
mod steps;
mod store;

use std::{cell::RefCell, collections::BTreeMap, num::NonZero, rc::Rc, sync::Mutex, time::Duration};

use self::{
    search::{SearchReport, search},
    state::{Completion, FAULTS, ModelFault, ModelMessage, ModelState},
    steps::HandlerIndex,
    store::FactStore,
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

/// Configuration of one search.
#[derive(Debug, Clone)]
struct ModelConfig {
    name: &'static str,
    /// Faults of the search, each as often as it is listed, at any moment.
    faults: &'static [ModelFault],
    /// Faults that `MACHINIST_MODEL=large` adds.
    large_faults: &'static [ModelFault],
    /// Number of retries of the task.
    retries: u32,
    /// Maximum number of guards of an attempt.
    max_guards: u32,
    /// Maximum number of deliveries that a worker holds.
    max_deliveries: usize,
    mutation: Option<ModelMutation>,
}

/// Rule of the protocol that is broken on purpose: the search must find the violation that the rule prevents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ModelMutation {
    /// A start does not check for an existing one.
    StartUnchecked,
    /// A task is taken over without a check of its session.
    TakeOverUnchecked,
    /// FAILURE and RETRY do not check for a newer start.
    VerdictUnchecked,
    /// FAILURE and RETRY do not write the starts that the run knows.
    VerdictWithoutStarts,
    /// An adoption does not write the starts that the run knows.
    AdoptWithoutStarts,
    /// A hand-back does not write the starts that the run knows.
    HandBackWithoutStarts,
    /// A hand-back does not wait for the end of the handler.
    HandBackRunning,
    AckBeforeFollow,
    MarkBeforePublish,
    /// A guard is stored before it is published.
    GuardStoredFirst,
    /// A run is registered only after its start was granted.
    RegisteredLate,
    /// A copy that a guard has replaced is dropped, even if its own start is written.
    GuardBeforeOwnStart,
    /// A renewal does not repeat an adoption that failed.
    AdoptionNotRepeated,
    /// A start that was requested under a session runs although that session was replaced.
    StartUnderReplacedSession,
    /// Renewals still maintain a run whose outcome is recorded.
    RenewedAfterOutcome,
    /// An end without a run does not check for a newer start.
    EndUnchecked,
    /// A suspect runs beside other tasks.
    SuspectBesideOthers,
    /// A start does not record that it runs alone.
    AloneNotRecorded,
    /// A start that a renewal has written back after the end of its run is not handed back.
    WrittenBackAfterEnd,
    /// A parked delivery is acknowledged before its guard is published.
    ParkAckedFirst,
    /// A released guard is stored before it is published.
    ReleaseStoredFirst,
}

/// Kind of a step, for the paths without faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StepKind {
    Normal,
    Receives(usize),
    Fault,
}

#[derive(Debug)]
struct ModelStep {
    worker: Option<usize>,
    message: Option<ModelMessage>,
    action: &'static str,
    kind: StepKind,
    state: ModelState,
    /// Rule that a commit of this step broke.
    violation: Option<String>,
}

#[derive(Debug)]
struct Model {
    config: ModelConfig,
    id: TaskId,
    policy: RetryPolicy,
    store: FactStore,
    /// Rule that the last commit broke.
    violation: RefCell<Option<String>>,
}

impl Model {
    const NOW: Timestamp = Timestamp::from_micros(1_000_000);

    fn new(config: ModelConfig) -> Self {
        let policy = RetryPolicy::new(config.retries).backoff(Backoff::fixed(Duration::ZERO));
        let id = "t".try_into().expect("an id");
        Self { config, id, policy, store: FactStore::new(), violation: RefCell::default() }
    }

    fn initial_state(&self) -> ModelState {
        let mut faults_left = [0; FAULTS];
        for fault in self.config.faults.iter().chain(self.config.large_faults.iter().filter(|_| large())) {
            faults_left[*fault as usize] += 1;
        }
        ModelState::initial(faults_left)
    }

    fn step(
        &self,
        worker: Option<usize>,
        message: Option<ModelMessage>,
        action: &'static str,
        kind: StepKind,
        mut state: ModelState,
    ) -> ModelStep {
        // The order in which two deliveries arrived makes no difference.
        state.workers.iter_mut().for_each(|worker| worker.handlers.sort_unstable());
        ModelStep { worker, message, action, kind, state, violation: self.violation.borrow_mut().take() }
    }

    fn steps(&self, state: &ModelState) -> Vec<ModelStep> {
        let mut steps = Vec::new();
        // No start can follow an end, and no follow-up is due: only lost data could make something happen again.
        let may_be_lost = [ModelFault::Flush, ModelFault::Forget]
            .iter()
            .any(|fault| state.faults_left[*fault as usize] > 0);
        if state.completion == Completion::Done
            && !may_be_lost
            && self.store.facts_of(state.facts).has(name::END)
        {
            return steps;
        }
        for (worker, contents) in state.workers.iter().enumerate() {
            for handler in 0..contents.handlers.len() {
                steps::add_handler_steps(self, state, HandlerIndex { worker, handler }, &mut steps);
            }
        }
        environment::add_environment_steps(self, state, &mut steps);
        steps
    }

    /// Commits as a backend does, and remembers a violated rule. Returns `None` if the commit is done, and the record
    /// if it is refused.
    fn commit(&self, state: &mut ModelState, commit: &Commit) -> Option<Rc<Facts>> {
        let before = self.store.facts_of(state.facts);
        let mut after = Facts::clone(&before);
        if !commit.apply(&mut after) {
            return Some(before);
        }
        if let Err(violation) = check_commit(state, &before, &after, commit) {
            *self.violation.borrow_mut() = Some(violation);
        }
        // After lost data another end may be written, and the follow-up of the first end is lost with it.
        if !before.has(name::END)
            && state.completion != Completion::Done
            && let Some(end) = after.read::<End>(name::END)
        {
            let follow_up = super::follow_up::recorded_follow_up(&after, 1);
            let is_dead_lettered = matches!(follow_up, Some(super::follow_up::FollowUp::DeadLetter { .. }));
            let failed = matches!(end.verdict, EndVerdict::Failure(_));
            state.completion =
                if failed && is_dead_lettered { Completion::DeadLetterDue } else { Completion::Done };
        }
        state.facts = self.store.facts(after);
        None
    }

    /// Returns the invariant that this step violates, if any.
    fn violation(&self, before: &ModelState, step: &ModelStep) -> Option<String> {
        if step.violation.is_some() {
            return step.violation.clone();
        }
        let after = &step.state;
        let runs = after.live_runs();
        if runs.len() > 1 {
            return Some(format!("two runs under live sessions: {runs:?}"));
        }
        if after.completion != Completion::Done && !after.message_exists() {
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

    /// Returns `true` if this step recorded a FAILURE or RETRY of this attempt. A SUCCESS counts from any run.
    fn decided_against(&self, before: &ModelState, after: &ModelState, attempt: u32) -> bool {
        let decided = |state: &ModelState| {
            let facts = self.store.facts_of(state.facts);
            let failed = |end: End| matches!(end.verdict, EndVerdict::Failure(_));
            facts.read(name::END).is_some_and(failed) || facts.has(&name::retried(attempt))
        };
        decided(after) && !decided(before)
    }
}

/// Checks the rules that every commit must keep.
fn check_commit(
    state: &mut ModelState,
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
                // A start that was requested before data was lost does not know the tokens that were granted since.
                let requested_since_loss =
                    start.token >= u64::try_from(Model::now(state).as_micros()).unwrap_or(0);
                if requested_since_loss && start.token <= state.greatest_token {
                    return Err("a fencing token fell".to_owned());
                }
                state.greatest_token = state.greatest_token.max(start.token);
                check_start(before, attempt, &start)?;
            }
            Some(NumberedFact::Retried { .. }) => {
                let retried: Retried = serde_json::from_slice(value).map_err(|e| e.to_string())?;
                check_newest(before, &retried.origin)?;
            }
            _ if fact == name::END => {
                let end: End = serde_json::from_slice(value).map_err(|e| e.to_string())?;
                if let (Some(origin), EndVerdict::Failure(_)) = (end.origin, end.verdict) {
                    check_newest(before, &origin)?;
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// Checks a start of a suspect. Two runs of an attempt without an outcome make it a suspect, which starts only alone,
/// and only three times.
fn check_start(facts: &Facts, attempt: u32, requested: &Start) -> Result<(), String> {
    let mut runs = BTreeMap::new();
    for number in 1..=Attempts::of(facts).newest_start(attempt).unwrap_or(0) {
        let start = facts.read::<Start>(&name::start(attempt, number));
        // An adoption continues a run that was started before.
        if start.as_ref().is_some_and(|start| start.run == requested.run) {
            return Ok(());
        }
        if let Some(start) = start {
            let (alone, returned) = runs.entry(start.run).or_insert((false, false));
            *alone |= start.alone;
            *returned |= facts.has(&name::returned(attempt, number));
        }
    }
    let crashed: Vec<bool> =
        runs.into_values().filter(|(_, returned)| !returned).map(|(alone, _)| alone).collect();
    if crashed.iter().filter(|alone| **alone).count() >= 3 {
        return Err("run again although three processes died while it ran alone".to_owned());
    }
    if crashed.len() >= 2 && !requested.alone {
        Err("a suspect started in company".to_owned())
    } else {
        Ok(())
    }
}

fn check_newest(facts: &Facts, origin: &super::facts::RunOrigin) -> Result<(), String> {
    let newest = Attempts::of(facts).newest_start(origin.attempt).unwrap_or(0);
    let same = facts
        .read::<Start>(&name::start(origin.attempt, origin.start))
        .is_none_or(|start| start.run == origin.run);
    if newest <= origin.start && same { Ok(()) } else { Err("a stale run decided".to_owned()) }
}

use ModelFault::{
    Confirm, Crash, Deadline, Drop, Duplicate, Expire, Flush, Forget, Refuse, Release, Reply, Revoke,
    Shutdown,
};

/// Searches, each with the faults that it combines.
const CONFIGS: [ModelConfig; 21] = [
    without_retry("crash, lost connection, expiry", 2, &[Crash, Drop, Expire], &[Reply]),
    without_retry("replies, expiry, duplicate", 2, &[Reply, Reply, Expire, Duplicate], &[Drop]),
    retried("retry: crash, lost connection, confirm", 1, &[Crash, Drop, Confirm], &[Expire]),
    retried("retry: duplicate, reply", 2, &[Duplicate, Reply], &[Crash]),
    retried("retry: flush, expiry", 1, &[Flush, Expire], &[Reply]),
    without_retry("flush, duplicate", 2, &[Flush, Duplicate], &[Expire]),
    without_retry("flush, shutdown", 2, &[Flush, Shutdown], &[Drop]),
    without_retry("lost record, shutdown, duplicate", 1, &[Forget, Shutdown, Duplicate], &[Reply]),
    without_retry("lost record, reply, lost connection", 2, &[Forget, Reply, Drop], &[Expire]),
    without_retry("shutdown, reply, lost connection", 2, &[Shutdown, Reply, Drop], &[Expire]),
    guarded("guards: crash, duplicate", 2, &[Crash, Duplicate], &[Reply]),
    guarded("guards: shutdown, lost connection", 1, &[Shutdown, Drop], &[Confirm]),
    guarded("guards: reply, duplicate, expiry", 1, &[Reply, Duplicate, Expire], &[Crash]),
    without_retry("suspects: five crashes", 1, &[Crash; 5], &[Crash]),
    guarded("suspects: guard, two crashes", 1, &[Crash, Crash], &[Expire]),
    without_retry("revoked: reply, expiry, lost connection", 2, &[Revoke, Reply, Expire, Drop], &[Crash]),
    without_retry("too late: crash, lost connection, expiry", 2, &[Deadline, Crash, Drop, Expire], &[Reply]),
    guarded("guards: lost record, expiry", 1, &[Forget, Expire], &[Reply]),
    guarded("parked: release, crash", 1, &[Refuse, Release, Crash], &[Drop]),
    guarded("parked: release, duplicate, reply", 1, &[Refuse, Release, Duplicate, Reply], &[Expire]),
    guarded("parked: lost record, release", 1, &[Refuse, Forget, Release], &[Drop]),
];

/// Searches that are too large for every day.
const LARGE: [ModelConfig; 1] =
    [without_retry("large: flush, shutdown, duplicate", 2, &[Flush, Shutdown, Duplicate], &[])];

const fn without_retry(
    name: &'static str,
    max_deliveries: usize,
    faults: &'static [ModelFault],
    large_faults: &'static [ModelFault],
) -> ModelConfig {
    ModelConfig { name, faults, large_faults, retries: 0, max_guards: 0, max_deliveries, mutation: None }
}
const fn retried(
    name: &'static str,
    max_deliveries: usize,
    faults: &'static [ModelFault],
    large_faults: &'static [ModelFault],
) -> ModelConfig {
    ModelConfig { retries: 1, ..without_retry(name, max_deliveries, faults, large_faults) }
}
/// Configuration with guards of an attempt, at most as many as given.
const fn guarded(
    name: &'static str,
    max_guards: u32,
    faults: &'static [ModelFault],
    large_faults: &'static [ModelFault],
) -> ModelConfig {
    ModelConfig { max_guards, ..without_retry(name, 1, faults, large_faults) }
}

fn large() -> bool {
    std::env::var("MACHINIST_MODEL").is_ok_and(|size| size == "large")
}

fn run(config: ModelConfig) -> SearchReport {
    let started = std::time::Instant::now();
    let name = config.name;
    let mutation = config.mutation;
    let report = search(&Model::new(config));
    let elapsed = started.elapsed();
    match mutation {
        Some(mutation) => println!("{mutation:?}: {} states of {name}, {elapsed:.1?}", report.states),
        None => println!("{name}: {} states, {elapsed:.1?}", report.states),
    }
    report
}

/// Runs searches in parallel, and returns their reports in the order of the configurations.
fn run_in_parallel(configs: Vec<ModelConfig>) -> Vec<(ModelConfig, SearchReport)> {
    let todo = Mutex::new(configs.into_iter().enumerate());
    let reports = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, NonZero::get) {
            scope.spawn(|| {
                loop {
                    let next = todo.lock().expect("no panic").next();
                    let Some((number, config)) = next else { return };
                    let report = run(config.clone());
                    reports.lock().expect("no panic").insert(number, (config, report));
                }
            });
        }
    });
    reports.into_inner().expect("no panic").into_values().collect()
}

#[test]
fn no_task_is_lost_and_none_runs_twice() {
    let configs = CONFIGS.into_iter().chain(LARGE.into_iter().filter(|_| large()));
    for (config, report) in run_in_parallel(configs.collect()) {
        assert!(report.violation.is_none(), "{}: {}", config.name, report.violation.unwrap_or_default());
    }
}

#[test]
fn every_broken_rule_is_found() {
    use ModelMutation::*;
    // Each mutation with a configuration that finds it soon, and the violation that must be found.
    let mutations = [
        (StartUnchecked, "replies, expiry, duplicate", "two runs"),
        (TakeOverUnchecked, "replies, expiry, duplicate", "two runs"),
        (VerdictUnchecked, "crash, lost connection, expiry", "a stale run decided"),
        (VerdictWithoutStarts, "flush, duplicate", "a stale run decided"),
        (AdoptWithoutStarts, "flush, duplicate", "a fencing token fell"),
        (HandBackWithoutStarts, "lost record, shutdown, duplicate", "two runs"),
        (HandBackRunning, "shutdown, reply, lost connection", "two runs"),
        (AckBeforeFollow, "retry: crash, lost connection, confirm", "lost"),
        (MarkBeforePublish, "retry: crash, lost connection, confirm", "lost"),
        (GuardStoredFirst, "guards: crash, duplicate", "lost"),
        (RegisteredLate, "shutdown, reply, lost connection", "two runs"),
        (GuardBeforeOwnStart, "guards: reply, duplicate, expiry", "stuck"),
        (AdoptionNotRepeated, "replies, expiry, duplicate", "two runs"),
        (StartUnderReplacedSession, "crash, lost connection, expiry", "two runs"),
        (RenewedAfterOutcome, "retry: flush, expiry", "a fencing token fell"),
        (SuspectBesideOthers, "suspects: five crashes", "a suspect started in company"),
        (AloneNotRecorded, "suspects: five crashes", "a suspect started in company"),
        (WrittenBackAfterEnd, "guards: lost record, expiry", "stuck"),
        (ParkAckedFirst, "parked: release, crash", "lost"),
        (ReleaseStoredFirst, "parked: release, crash", "lost"),
        (EndUnchecked, "too late: crash, lost connection, expiry", "decided over a run"),
    ];
    let config_named =
        |name| CONFIGS.into_iter().find(|config| config.name == name).expect("a configuration");
    let searches =
        mutations.map(|(mutation, name, _)| ModelConfig { mutation: Some(mutation), ..config_named(name) });
    for ((config, report), (.., expected)) in run_in_parallel(searches.to_vec()).into_iter().zip(mutations) {
        let violation = report.violation.unwrap_or_default();
        let found = violation.lines().next().unwrap_or("nothing");
        println!("{:?}: {found}", config.mutation);
        assert!(found.starts_with(expected), "{:?} in {}: {found}", config.mutation, config.name);
    }
}
