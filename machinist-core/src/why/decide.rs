//! Decision why a task does not run: from what the stores say to reasons, the decisive one first. Pure.

use serde::Serialize;

use crate::{
    clock::Timestamp,
    fleet::WorkerInfo,
    record::{PresenceState, Record, TaskState},
};

/// Reason that a task does not run, or what it does instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum WhyReason {
    /// The task has no record.
    UnknownId,
    /// It has ended.
    Ended,
    /// A worker runs it.
    Running,
    /// The worker that ran it is not live.
    WorkerGone,
    /// Its time has not come.
    Delayed,
    /// It waits for its next run.
    Retry,
    /// Its name is disabled for all workers.
    Disabled,
    /// A worker that failed its name again and again has left it to others.
    CircuitOpen,
    /// Another rule of admission refuses its start.
    Limited,
    /// No live worker takes tasks from its queue.
    NoConsumer,
    /// No live worker of its queue knows its name.
    UnknownTask,
    /// Its queue is paused for all workers, or every worker that could run it is asleep.
    Paused,
    /// Every worker that could run it has no free slot.
    Busy,
    /// A worker takes it when its turn comes.
    Queued,
}

/// Need for people to act.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum WhyClass {
    /// Nothing: it goes on by itself, or is over.
    Wait,
    /// People have to act: otherwise nothing changes.
    Act,
}

impl WhyReason {
    /// Returns what the reason asks of people.
    pub const fn class(self) -> WhyClass {
        match self {
            Self::UnknownId | Self::Disabled | Self::NoConsumer | Self::UnknownTask | Self::Paused => {
                WhyClass::Act
            }
            _ => WhyClass::Wait,
        }
    }

    /// Returns the advice to people.
    pub const fn advice(self) -> &'static str {
        match self {
            Self::UnknownId => "check the id, and that --backend and --namespace are those of the sender",
            Self::Ended => "`machinist status ID` shows its outcome",
            Self::Running => "`machinist workers show WORKER` shows its worker",
            Self::WorkerGone => {
                "wait: another worker takes it over when the session of that worker has expired"
            }
            Self::Delayed | Self::Retry => "wait, or run it at once: `machinist scheduled --now ID`",
            Self::Disabled => "`machinist registered enable NAME` lets its tasks run",
            Self::CircuitOpen => "see why its name fails: `machinist dead list`, and the logs of the workers",
            Self::Limited => "wait: it starts when no rule refuses it any more",
            Self::NoConsumer => "start a worker with `machinist worker --queue QUEUE`",
            Self::UnknownTask => "start a worker of this queue that knows the task, or check its name",
            Self::Paused => "`machinist workers resume --all` wakes them",
            Self::Busy => "wait, or start more workers",
            Self::Queued => "wait",
        }
    }
}

/// Content of the stores about a task.
pub(super) struct Situation<'a> {
    pub(super) record: &'a Record,
    /// Workers that are live.
    pub(super) workers: &'a [WorkerInfo],
    pub(super) disabled: bool,
    pub(super) queue_paused: bool,
    pub(super) now: Timestamp,
}

/// Returns the reasons that hold, the decisive one first; at least one.
pub(super) fn reasons(situation: &Situation<'_>) -> Vec<WhyReason> {
    let Situation { record, workers, disabled, queue_paused, now } = situation;
    match record.state {
        TaskState::Success | TaskState::Failure => return vec![WhyReason::Ended],
        TaskState::Started => {
            let lives =
                record.worker.as_ref().is_none_or(|ran| workers.iter().any(|w| is_named(&w.name, ran)));
            return vec![if lives { WhyReason::Running } else { WhyReason::WorkerGone }];
        }
        TaskState::Pending | TaskState::Received | TaskState::Retry => {}
    }
    let mut found = Vec::new();
    if record.parked.is_none() && record.eta.is_some_and(|eta| eta > *now) {
        found.push(if record.state == TaskState::Retry { WhyReason::Retry } else { WhyReason::Delayed });
    }
    if *disabled {
        found.push(WhyReason::Disabled);
    }
    match record.parked.as_ref().and_then(|parked| parked.reason.split(':').next()) {
        None | Some("disabled") => {}
        Some("circuit") => found.push(WhyReason::CircuitOpen),
        Some(_) => found.push(WhyReason::Limited),
    }
    if *queue_paused {
        found.push(WhyReason::Paused);
    }
    found.extend(lack_of_workers(record, workers).filter(|lack| !found.contains(lack)));
    if found.is_empty() {
        found.push(WhyReason::Queued);
    }
    found
}

/// Returns the reason that no worker takes a task now, if there is one.
fn lack_of_workers(record: &Record, workers: &[WorkerInfo]) -> Option<WhyReason> {
    let queue = record.queue.as_deref()?;
    let consumers: Vec<_> =
        workers.iter().filter(|worker| worker.queues.iter().any(|name| name == queue)).collect();
    if consumers.is_empty() {
        return Some(WhyReason::NoConsumer);
    }
    let knows = |worker: &&&WorkerInfo| record.name.as_ref().is_none_or(|name| worker.tasks.contains(name));
    let able: Vec<_> = consumers.iter().filter(knows).collect();
    if able.is_empty() {
        return Some(WhyReason::UnknownTask);
    }
    if able.iter().all(|worker| worker.state == PresenceState::Asleep) {
        return Some(WhyReason::Paused);
    }
    let full =
        |worker: &&&&WorkerInfo| worker.state != PresenceState::Awake || worker.running >= worker.concurrency;
    able.iter().all(|worker| full(&worker)).then_some(WhyReason::Busy)
}

/// Returns `true` if a live worker has this name, perhaps with a number.
fn is_named(live: &str, name: &str) -> bool {
    live.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('#'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        id::TaskId,
        record::{Facts, WorkerHealth, fold, json, name},
    };

    const NOW: Timestamp = Timestamp::from_micros(1_000_000);

    fn record(eta: Option<Timestamp>) -> Record {
        let mut facts = Facts::new();
        facts.put(name::TASK, "add");
        facts.put(name::QUEUE, "math");
        facts.put(name::SENT, json(&NOW));
        if let Some(eta) = eta {
            facts.put(name::ETA, json(&eta));
        }
        fold(&TaskId::parse("t").unwrap(), &facts).unwrap()
    }

    fn worker(state: PresenceState) -> WorkerInfo {
        WorkerInfo {
            name: "w".into(),
            incarnation: "s".into(),
            state,
            health: WorkerHealth::Green,
            health_reason: None,
            host: None,
            pid: 1,
            version: None,
            started_at: NOW,
            queues: vec!["math".into()],
            tasks: vec!["add".into()],
            tags: Vec::new(),
            limits: Default::default(),
            concurrency: 2,
            running: 0,
            processed: 0,
            failed: 0,
            retried: 0,
            memory: None,
            open_circuits: Vec::new(),
            runs: Vec::new(),
            roles: Vec::new(),
        }
    }

    fn of(record: &Record, workers: &[WorkerInfo], disabled: bool) -> Vec<WhyReason> {
        reasons(&Situation { record, workers, disabled, queue_paused: false, now: NOW })
    }

    #[test]
    fn the_workers_of_the_queue_decide() {
        let awake = worker(PresenceState::Awake);
        let elsewhere = WorkerInfo { queues: vec!["mail".into()], ..awake.clone() };
        let ignorant = WorkerInfo { tasks: vec!["mul".into()], ..awake.clone() };
        let full = WorkerInfo { running: 2, ..awake.clone() };
        let asleep = worker(PresenceState::Asleep);
        for (workers, reason) in [
            (vec![], WhyReason::NoConsumer),
            (vec![elsewhere], WhyReason::NoConsumer),
            (vec![ignorant], WhyReason::UnknownTask),
            (vec![asleep.clone()], WhyReason::Paused),
            (vec![full.clone(), asleep], WhyReason::Busy),
            (vec![full, awake], WhyReason::Queued),
        ] {
            assert_eq!(of(&record(None), &workers, false), [reason], "{workers:?}");
        }
    }

    #[test]
    fn the_decisive_reason_comes_first_and_the_others_follow() {
        let asleep = [worker(PresenceState::Asleep)];
        let later = record(Some(NOW.plus(std::time::Duration::from_secs(9))));
        let found = of(&later, &asleep, true);
        assert_eq!(found, [WhyReason::Delayed, WhyReason::Disabled, WhyReason::Paused]);
        assert_eq!(WhyReason::Disabled.class(), WhyClass::Act);
        let awake = [worker(PresenceState::Awake)];
        for workers in [&awake, &asleep] {
            let record = record(None);
            let situation =
                Situation { record: &record, workers, disabled: false, queue_paused: true, now: NOW };
            assert_eq!(reasons(&situation), [WhyReason::Paused], "the queue is paused");
        }
    }

    #[test]
    fn a_run_whose_worker_is_not_live_is_told() {
        let started = Record { state: TaskState::Started, worker: Some("w".into()), ..record(None) };
        assert_eq!(of(&started, &[worker(PresenceState::Awake)], false), [WhyReason::Running]);
        assert_eq!(of(&started, &[], false), [WhyReason::WorkerGone]);
        let ended = Record { state: TaskState::Success, ..started };
        assert_eq!(of(&ended, &[], false), [WhyReason::Ended]);
    }
}
