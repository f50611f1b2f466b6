//! Every transition of a record, found by exhaustive search over the production code's own commits.
//!
//! Two attempts, up to four starts, every order of receiving, starting, taking over, handing back, deciding and ending.
//! The transitions found are those of the table in `docs/state-machine.md`, no more and no fewer. Every step is checked
//! against the invariants.

use std::collections::{BTreeSet, HashSet, VecDeque};

use super::{
    claim::{Claim, ClaimStatus},
    verdict::*,
    *,
};
use crate::{
    backend::{Commit, Expiry},
    clock::Timestamp,
    error::TaskError,
    id::TaskId,
    retry::{Backoff, RetryPolicy},
};

const NOW: Timestamp = Timestamp::from_micros(1_000_000);
const TTL: std::time::Duration = std::time::Duration::from_secs(3600);

/// A point of the search: the record, and the runs that believe they hold a start.
#[derive(Clone)]
struct Point {
    facts: Facts,
    runs: Vec<Claim>,
    started: u32,
}

impl Point {
    /// Identifies the point: two points are the same if facts and runs are.
    fn key(&self) -> String {
        let runs: Vec<_> = self.runs.iter().map(|claim| (claim.attempt, claim.start, &claim.run)).collect();
        format!("{:?}{runs:?}", self.facts.iter().collect::<Vec<_>>())
    }

    fn state(&self) -> Option<TaskState> {
        fold(&"t".try_into().unwrap(), &self.facts).map(|record| record.state)
    }
}

/// A possible step: its name in the table, the commit, and the run that begins or ends with it.
struct RecordStep {
    event: &'static str,
    commit: Commit,
    begins: Option<Claim>,
    ends: Option<usize>,
}

fn steps(point: &Point) -> Vec<RecordStep> {
    let mut steps = Vec::new();
    let step = |event, commit| RecordStep { event, commit, begins: None, ends: None };
    steps.push(step("sent", sent()));
    for attempt in 1..=2 {
        // The message of attempt 2 exists only once attempt 1 was retried.
        if attempt == 2 && !point.facts.has(&name::retried(1)) {
            continue;
        }
        steps.push(step("received", received(attempt)));
        if point.started < 4 {
            steps.extend(start_steps(point, attempt));
        }
        for kind in [FailureKind::Expired, FailureKind::Revoked] {
            let error = ErrorText::from("ended");
            let live = point.runs.iter().any(|claim| {
                claim.attempt == attempt && claim.standing(&point.facts) == ClaimStatus::Current
            });
            if !live {
                let commit = failure_without_run(
                    &"t".try_into().unwrap(),
                    &point.facts,
                    attempt,
                    Failure::new(kind, error),
                    NOW,
                    TTL,
                );
                steps.push(step("failed by anybody", commit));
            }
        }
    }
    for (index, claim) in point.runs.iter().enumerate() {
        for (event, verdict) in [
            ("succeeded", Verdict::Success(EncodedResults::default())),
            ("failed", Verdict::Failure { kind: FailureKind::Error, error: ErrorText::from("no") }),
            ("asked for another run", retry()),
        ] {
            if claim.attempt == 2 && event == "asked for another run" {
                continue;
            }
            let commit = outcome_commit(claim, &verdict, String::new(), NOW, TTL);
            steps.push(RecordStep { event, commit, begins: None, ends: Some(index) });
        }
        steps.push(RecordStep {
            event: "handed back",
            commit: claim.hand_back(),
            begins: None,
            ends: Some(index),
        });
    }
    steps
}

fn start_steps(point: &Point, attempt: u32) -> Vec<RecordStep> {
    let number = point.started;
    let request = StartRequest {
        id: "t".try_into().unwrap(),
        attempt,
        generation: 0,
        run: format!("run{number}").as_str().into(),
        session: format!("session{number}").as_str().into(),
        worker: "w".into(),
        received_at: NOW,
        token: 0,
        alone: false,
        gathered: None,
    };
    let (commit, claim) = request.first(NOW);
    let mut steps = vec![RecordStep { event: "started", commit, begins: Some(claim), ends: None }];
    if let StartDecision::TakeOver(next) = decide_start(&point.facts, &request, |_, _| true, NOW)
        && point.facts.has(&name::start(attempt, 1))
    {
        let (commit, claim) = *next;
        steps.push(RecordStep { event: "taken over", commit, begins: Some(claim), ends: None });
    }
    steps
}

fn sent() -> Commit {
    let mut commit = Commit::new(TaskId::parse("t").unwrap());
    commit.facts = vec![(name::TASK.into(), "add".into())];
    commit.expiry = Expiry::AfterUnlessSet(UNFINISHED_TTL);
    commit
}

fn received(attempt: u32) -> Commit {
    let mut commit = Commit::new(TaskId::parse("t").unwrap());
    commit.unless = vec![name::END.into()];
    commit.facts = vec![(name::received(attempt), "1".into())];
    commit
}

fn retry() -> Verdict {
    Verdict::Retry {
        due: NOW,
        counters: Counters { retries: 1, postponements: 0 },
        kind: FailureKind::Error,
        error: ErrorText::from("again"),
    }
}

/// Searches everything that can happen, and returns the transitions between states.
fn search() -> BTreeSet<(String, String, String)> {
    let begin = Point { facts: Facts::new(), runs: Vec::new(), started: 0 };
    let mut seen = HashSet::from([begin.key()]);
    let mut todo = VecDeque::from([begin]);
    let mut transitions = BTreeSet::new();
    while let Some(point) = todo.pop_front() {
        for step in steps(&point) {
            let mut next = point.clone();
            let done = step.commit.apply(&mut next.facts);
            if done && let Some(claim) = &step.begins {
                next.runs.push(claim.clone());
                next.started += 1;
            }
            if let Some(index) = step.ends {
                next.runs.remove(index);
            }
            assert_invariants(&point, &next, &step, done);
            if done && next.state() != point.state() {
                let show = |state: Option<TaskState>| state.map_or_else(|| "–".to_owned(), |s| s.to_string());
                transitions.insert((show(point.state()), step.event.to_owned(), show(next.state())));
            }
            if seen.insert(next.key()) {
                todo.push_back(next);
            }
        }
    }
    assert!(seen.len() > 1_000, "the search found only {} points", seen.len());
    transitions
}

/// Checks the invariants that hold in every order of steps.
fn assert_invariants(before: &Point, after: &Point, step: &RecordStep, done: bool) {
    let was = before.state();
    let is = after.state();
    if was.is_some_and(TaskState::is_final) {
        assert_eq!(was, is, "a final state changed by {:?}", step.event);
        assert_eq!(before.facts.get(name::END), after.facts.get(name::END), "an end was rewritten");
        assert!(!done || step.begins.is_none(), "started after its end");
    }
    if done && let Some(claim) = &step.begins {
        assert!(!before.facts.has(&name::retried(claim.attempt)), "started after its outcome");
        let greatest = before.runs.iter().filter(|r| r.attempt == claim.attempt).map(|r| r.token).max();
        assert!(greatest.is_none_or(|token| claim.token > token), "a fencing token fell");
    }
    if step.event == "succeeded" && !was.is_some_and(TaskState::is_final) {
        assert!(done && is == Some(TaskState::Success), "a success was not recorded");
    }
    if let (Some(index), true) = (step.ends, done)
        && matches!(step.event, "failed" | "asked for another run")
    {
        let claim = &before.runs[index];
        assert_eq!(claim.standing(&before.facts), ClaimStatus::Current, "a stale run decided");
    }
}

#[test]
fn the_transitions_are_those_in_the_docs() {
    let docs = include_str!("../../../docs/state-machine.md");
    let rows: BTreeSet<_> = docs
        .lines()
        .skip_while(|line| !line.contains("transitions:begin"))
        .take_while(|line| !line.contains("transitions:end"))
        .filter_map(|line| {
            let cells: Vec<_> = line.trim().trim_matches('|').split('|').map(str::trim).collect();
            match cells[..] {
                [from, event, to] if event != "what happens" && !from.starts_with("--") => {
                    Some((from.to_owned(), event.to_owned(), to.to_owned()))
                }
                _ => None,
            }
        })
        .collect();
    let found = search();
    let table: String =
        found.iter().map(|(from, event, to)| format!("| {from} | {event} | {to} |\n")).collect();
    assert_eq!(rows, found, "docs/state-machine.md should say:\n{table}");
}

#[test]
fn an_outcome_decides_what_follows() {
    let policy = RetryPolicy::new(2).backoff(Backoff::fixed(TTL));
    let verdict = |outcome, spent| decide(outcome, &policy, spent, NOW, 0.5);
    let spent = |retries, postponements| Counters { retries, postponements };
    let failed = || RunOutcome::Failed(TaskError::new("no"));
    let is_retry = |verdict: &Verdict, due: Timestamp, counters: Counters| matches!(verdict, Verdict::Retry { due: d, counters: c, .. } if *d == due && *c == counters);
    let is_failure = |verdict: &Verdict, kind: FailureKind| matches!(verdict, Verdict::Failure { kind: k, .. } if *k == kind);

    assert_eq!(
        verdict(RunOutcome::Returned(EncodedResults::default()), spent(2, 0)),
        Verdict::Success(EncodedResults::default())
    );
    assert!(is_retry(&verdict(failed(), spent(0, 7)), NOW.plus(TTL), spent(1, 7)));
    assert!(is_failure(&verdict(failed(), spent(2, 0)), FailureKind::Error));
    assert!(is_failure(
        &verdict(RunOutcome::Failed(TaskError::permanent("no")), spent(0, 0)),
        FailureKind::Error
    ));
    assert!(is_failure(
        &verdict(RunOutcome::Failed(TaskError::malformed("no")), spent(0, 0)),
        FailureKind::Malformed
    ));
    assert!(is_failure(&verdict(RunOutcome::TimedOut(TTL), spent(0, 0)), FailureKind::Timeout));
    assert!(is_failure(&verdict(RunOutcome::Revoked, spent(0, 0)), FailureKind::Revoked));
    assert!(is_retry(&verdict(RunOutcome::Panicked("x".into()), spent(1, 0)), NOW.plus(TTL), spent(2, 0)));
    assert!(is_failure(&verdict(RunOutcome::Panicked("x".into()), spent(2, 0)), FailureKind::Panic));
    let later = || RunOutcome::Failed(TaskError::retry_in(TTL * 2));
    assert!(is_retry(&verdict(later(), spent(2, 999)), NOW.plus(TTL * 2), spent(2, 1000)));
    assert!(is_failure(&verdict(later(), spent(0, 1000)), FailureKind::Error));
}

#[test]
fn a_follow_up_is_recorded_until_it_is_done() {
    let mut facts = Facts::new();
    assert_eq!(recorded_follow_up(&facts, 1), None);
    let steps = start_steps(&Point { facts: facts.clone(), runs: vec![], started: 0 }, 1);
    let commit = steps[0].commit.clone();
    let claim = steps[0].begins.clone().unwrap();
    commit.apply(&mut facts);
    assert_eq!(recorded_follow_up(&facts, 1), None);

    let mut retried = facts.clone();
    outcome_commit(&claim, &retry(), String::new(), NOW, TTL).apply(&mut retried);
    let next = recorded_follow_up(&retried, 1).unwrap();
    assert_eq!(next, follow_up_of(&retry(), &claim), "the recorded fact has the follow-up of the verdict");
    next.done(&claim.id, 1).unwrap().apply(&mut retried);
    assert_eq!(recorded_follow_up(&retried, 1), Some(FollowUp::Nothing));

    let failure = Verdict::Failure { kind: FailureKind::Error, error: ErrorText::from("no") };
    outcome_commit(&claim, &failure, String::new(), NOW, TTL).apply(&mut facts);
    let letter = recorded_follow_up(&facts, 1).unwrap();
    assert_eq!(letter, follow_up_of(&failure, &claim));
    letter.done(&claim.id, 1).unwrap().apply(&mut facts);
    assert_eq!(recorded_follow_up(&facts, 1), Some(FollowUp::Nothing));
}

#[test]
fn old_attempts_leave_only_their_names() {
    let mut facts = Facts::new();
    for attempt in 1..=25 {
        let point = Point { facts: facts.clone(), runs: vec![], started: 0 };
        let step = start_steps(&point, attempt).remove(0);
        assert!(step.commit.apply(&mut facts));
        let claim = step.begins.unwrap();
        assert!(outcome_commit(&claim, &retry(), "a long log".to_owned(), NOW, TTL).apply(&mut facts));
    }
    assert!(!facts.has(&name::start(1, 1)) && facts.has(&name::retried(1)));
    assert_eq!(fold(&"t".try_into().unwrap(), &facts).unwrap().history.len(), 20);
    let again = start_steps(&Point { facts: facts.clone(), runs: vec![], started: 0 }, 1).remove(0);
    assert!(!again.commit.apply(&mut facts), "an attempt that was retried never starts again");
}
