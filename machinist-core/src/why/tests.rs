//! Tests of the decision and of every sentence, from situations that are made up.

use std::time::Duration;

use super::{
    Why, WhyClass, WhyReason,
    situation::{Letter, QueueSituation, TaskSituation, WorkflowPart},
};
use crate::{
    broker::QueueDepth,
    clock::Timestamp,
    fleet::WorkerInfo,
    id::{QueueName, TaskId},
    record::{
        ErrorText, Facts, FailureKind, Parked, PresenceState, Record, TaskState, WorkerHealth, fold, json,
        name,
    },
};

const NOW: Timestamp = Timestamp::from_micros(1_700_000_000_000_000);

fn before(seconds: u64) -> Timestamp {
    NOW.minus(Duration::from_secs(seconds))
}

fn after(seconds: u64) -> Timestamp {
    NOW.plus(Duration::from_secs(seconds))
}

fn record() -> Record {
    let mut facts = Facts::new();
    facts.put(name::TASK, "add");
    facts.put(name::QUEUE, "math");
    facts.put(name::SENT, json(&before(100)));
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
        patterns: Vec::new(),
        shapes: Default::default(),
        asleep: None,
        wakes: false,
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

fn queue(workers: Vec<WorkerInfo>) -> QueueSituation {
    let name = QueueName::parse("math").unwrap();
    QueueSituation {
        depth: Ok(QueueDepth { queue: name.clone(), ready: Some(3), consumers: None, dead: None }),
        name,
        workers,
        running: Vec::new(),
        paused: false,
        known: vec!["maths".into()],
        unread: None,
    }
}

fn situation(record: Record, workers: Vec<WorkerInfo>) -> TaskSituation {
    TaskSituation {
        id: TaskId::parse("t").unwrap(),
        record: Some(record),
        session_lives: true,
        parked_last: None,
        overdue: false,
        disabled: false,
        limit_source: None,
        limit_is_zero: false,
        letter: None,
        waits_unread: None,
        workflow: None,
        queue: Some(queue(workers)),
        now: NOW,
    }
}

fn awake() -> Vec<WorkerInfo> {
    vec![worker(PresenceState::Awake)]
}

fn full() -> Vec<WorkerInfo> {
    vec![WorkerInfo { running: 2, ..worker(PresenceState::Awake) }]
}

fn ended(kind: Option<FailureKind>, text: &str) -> Record {
    Record {
        state: if kind.is_some() { TaskState::Failure } else { TaskState::Success },
        kind,
        error: kind.map(|_| ErrorText::from(text)),
        ..record()
    }
}

fn parked(reason: &str) -> Parked {
    serde_json::from_value(serde_json::json!({
        "attempt": 1, "generation": 1, "reason": reason, "since": before(90), "until": after(5),
    }))
    .unwrap()
}

#[track_caller]
fn says(why: &Why, reason: WhyReason, also: &[WhyReason], words: &[&str]) {
    assert_eq!((why.reason, &*why.also), (reason, also), "{why:?}");
    assert_eq!(why.class, reason.class());
    let text = format!("{}\n{}", why.sentence, why.advice);
    for word in words {
        assert!(text.contains(word), "{word:?} is not in {text:?}");
    }
    assert!(!text.contains('?') || text.contains("did you mean") || text.contains("running there"), "{text}");
}

#[test]
fn the_workers_of_the_queue_decide() {
    let one = worker(PresenceState::Awake);
    let elsewhere = WorkerInfo { queues: vec!["mail".into()], ..one.clone() };
    let ignorant = WorkerInfo { tasks: vec!["ad".into()], ..one.clone() };
    let many = WorkerInfo { tasks: vec!["x".into(); 500], ..one.clone() };
    let asleep = worker(PresenceState::Asleep);
    let drains = worker(PresenceState::Draining);
    let busy = full().remove(0);
    for (workers, reason, words) in [
        (
            vec![],
            WhyReason::NoConsumer,
            "no live worker takes tasks from queue math; there is no live worker at all",
        ),
        (vec![elsewhere], WhyReason::NoConsumer, "the 1 live workers take from mail"),
        (vec![drains], WhyReason::NoConsumer, "1 of its workers drain"),
        (
            vec![ignorant],
            WhyReason::UnknownTask,
            "no live worker of queue math knows the task add; did you mean ad?",
        ),
        (vec![many], WhyReason::Queued, "waits for its turn"),
        (
            vec![asleep.clone()],
            WhyReason::Paused,
            "every worker of queue math that knows the task add is asleep",
        ),
        (
            vec![busy.clone(), asleep],
            WhyReason::Busy,
            "no worker of queue math that knows the task add has a free slot",
        ),
        (
            vec![busy, one],
            WhyReason::Queued,
            "it waits for its turn in queue math with 3 messages, which has 2 workers",
        ),
    ] {
        says(&Why::of_task(&situation(record(), workers)), reason, &[], &[words]);
    }
}

#[test]
fn a_task_without_a_record_is_unknown_or_a_step_that_is_not_sent() {
    let mut absent = TaskSituation { record: None, queue: None, ..situation(record(), vec![]) };
    says(&Why::of_task(&absent), WhyReason::UnknownId, &[], &["there is no record", "--namespace"]);
    absent.workflow = Some(part(false));
    says(
        &Why::of_task(&absent),
        WhyReason::WaitsForSteps,
        &[],
        &["7 of 10 tasks have ended, missing b, c", "machinist status root"],
    );
}

fn part(incomplete: bool) -> WorkflowPart {
    WorkflowPart {
        root: TaskId::parse("root").unwrap(),
        done: 7,
        total: 10,
        missing: vec!["b".into(), "c".into()],
        incomplete,
        ended: false,
    }
}

#[test]
fn a_root_that_has_ended_waits_for_its_steps() {
    let mut root = situation(ended(None, ""), awake());
    root.workflow = Some(part(false));
    let why = Why::of_task(&root);
    says(&why, WhyReason::WaitsForSteps, &[WhyReason::Ended], &["missing b, c"]);
    assert_eq!((why.evidence.steps_done, why.evidence.missing.len()), (Some(7), 2));
    root.workflow = Some(part(true));
    let words = ["not all first steps of the workflow are certainly sent"];
    says(&Why::of_task(&root), WhyReason::IncompleteSend, &[WhyReason::Ended], &words);
    root.workflow = Some(WorkflowPart { ended: true, ..part(false) });
    says(&Why::of_task(&root), WhyReason::Ended, &[], &["SUCCESS"]);
}

#[test]
fn a_run_is_told_from_one_whose_worker_is_gone() {
    let started = Record {
        state: TaskState::Started,
        worker: Some("w".into()),
        started_at: Some(before(65)),
        ..record()
    };
    let mut runs = situation(started, awake());
    says(&Why::of_task(&runs), WhyReason::Running, &[], &["worker w runs attempt 1 since 1m 5s"]);
    runs.session_lives = false;
    says(
        &Why::of_task(&runs),
        WhyReason::WorkerGone,
        &[],
        &["worker w ran it", "takes it over within half a minute"],
    );
    runs.queue = Some(queue(vec![]));
    let why = Why::of_task(&runs);
    says(
        &why,
        WhyReason::NoConsumer,
        &[WhyReason::WorkerGone],
        &["no live worker takes tasks from queue math"],
    );
    assert_eq!(why.class, WhyClass::Act, "nobody takes it over");
}

#[test]
fn a_revoked_run_and_its_progress_are_told() {
    let progress =
        serde_json::from_value(serde_json::json!({"attempt": 1, "done": 3, "total": 9, "at": NOW}));
    let started = Record {
        state: TaskState::Started,
        worker: Some("w".into()),
        started_at: Some(before(5)),
        revoked: true,
        progress: progress.ok(),
        ..record()
    };
    let words = ["it was revoked, and the run was asked to end", "progress 3 of 9"];
    says(&Why::of_task(&situation(started, awake())), WhyReason::Running, &[], &words);
}

#[test]
fn the_end_of_a_task_says_why() {
    let of = |kind, text: &str| Why::of_task(&situation(ended(kind, text), awake()));
    says(&of(None, ""), WhyReason::Ended, &[], &["it has ended in SUCCESS", "machinist status t"]);
    let failed = of(Some(FailureKind::Error), "boom");
    says(&failed, WhyReason::Ended, &[], &["FAILURE/error: boom", "machinist retry t"]);
    let also = [WhyReason::Ended];
    says(&of(Some(FailureKind::NoWorker), "none"), WhyReason::NotSent, &also, &["it was not sent: none"]);
    let words = ["another task has its unique key: of x"];
    says(&of(Some(FailureKind::Duplicate), "of x"), WhyReason::Duplicate, &also, &words);
    let words = ["a later task took its place: by y"];
    says(&of(Some(FailureKind::Replaced), "by y"), WhyReason::Duplicate, &also, &words);
    for kind in [FailureKind::Rejected, FailureKind::Malformed, FailureKind::Unregistered] {
        says(&of(Some(kind), "no"), WhyReason::Refused, &also, &["the workers did not accept it: no"]);
    }
    let mut dead = situation(ended(Some(FailureKind::Error), "boom"), awake());
    dead.letter = Some(letter());
    let why = Why::of_task(&dead);
    says(&why, WhyReason::Ended, &[WhyReason::DeadLetter], &["machinist dead replay t!1"]);
    assert_eq!(why.evidence.dead_letter.as_deref(), Some("t!1"));
}

fn letter() -> Letter {
    Letter { id: "t!1".into(), reason: "bad-signature".into(), error: "forged".into() }
}

#[test]
fn the_time_of_an_ended_task_is_divided() {
    let started = Record {
        state: TaskState::Success,
        sent_at: Some(before(1000)),
        eta: Some(before(900)),
        received_at: Some(before(60)),
        started_at: Some(before(40)),
        ended_at: Some(before(30)),
        ..record()
    };
    let mut whole = situation(started, awake());
    whole.parked_last = Some(parked("rate:task:add"));
    let why = Why::of_task(&whole);
    let words =
        "it waited 14m 20s (13m 30s for a worker, 30s for rate:task:add, 20s for a slot); its run took 10s";
    says(&why, WhyReason::Ended, &[], &[words]);
    let spent: Vec<_> = why.evidence.time_spent.iter().map(|part| (&*part.on, part.seconds)).collect();
    let parts = [("delay", 100.0), ("queue", 810.0), ("rate:task:add", 30.0), ("slot", 20.0), ("run", 10.0)];
    assert_eq!(spent, parts);
}

#[test]
fn what_waits_for_its_time_says_when() {
    let due = |seconds| Record { eta: Some(after(seconds)), ..record() };
    let words = ["in 1h 1m: until then the broker keeps its message", "machinist scheduled --now t"];
    says(&Why::of_task(&situation(due(3_660), awake())), WhyReason::Delayed, &[], &words);
    let retry = Record { state: TaskState::Retry, error: Some(ErrorText::from("boom")), ..due(9) };
    let words = ["attempt 1 has failed (boom)", "in 9s"];
    says(&Why::of_task(&situation(retry, awake())), WhyReason::Retry, &[], &words);
    let mut late = situation(Record { eta: Some(before(90)), ..record() }, awake());
    late.overdue = true;
    says(
        &Why::of_task(&late),
        WhyReason::Overdue,
        &[],
        &["no worker has received it since", "publishes it again"],
    );
    late.queue = Some(queue(vec![]));
    says(&Why::of_task(&late), WhyReason::NoConsumer, &[], &["no live worker"]);
}

#[test]
fn what_nothing_continues_is_told_after_half_an_hour() {
    let empty = |record| {
        let mut situation = situation(record, awake());
        if let Some(QueueSituation { depth: Ok(depth), .. }) = &mut situation.queue {
            depth.ready = Some(0);
        }
        situation
    };
    let sent = |seconds| Record { sent_at: Some(before(seconds)), ..record() };
    says(&Why::of_task(&empty(sent(1_799))), WhyReason::Queued, &[], &[]);
    let words = ["nothing has happened to it for 30m", "may have run", "machinist revoke t"];
    says(&Why::of_task(&empty(sent(1_800))), WhyReason::Stranded, &[], &words);
    says(&Why::of_task(&situation(sent(1_800), awake())), WhyReason::Queued, &[], &["3 messages"]);
    let received = Record { state: TaskState::Received, received_at: Some(before(7_200)), ..sent(90_000) };
    says(&Why::of_task(&empty(received)), WhyReason::Stranded, &[], &["for 2h", "the backend has lost"]);
    let retry = Record { state: TaskState::Retry, eta: Some(before(3_600)), ..sent(90_000) };
    let mut retry = empty(retry);
    retry.overdue = true;
    says(&Why::of_task(&retry), WhyReason::Stranded, &[WhyReason::Overdue], &["for 1h"]);

    // It is elsewhere, or nobody would take it.
    says(
        &Why::of_task(&empty(Record { eta: Some(after(60)), ..sent(90_000) })),
        WhyReason::Delayed,
        &[],
        &[],
    );
    let parked = Record { parked: Some(parked("rate:task:add")), ..sent(90_000) };
    says(&Why::of_task(&empty(parked)), WhyReason::Limited, &[], &[]);
    let mut nobody = empty(sent(90_000));
    nobody.queue.as_mut().unwrap().workers.clear();
    says(&Why::of_task(&nobody), WhyReason::NoConsumer, &[], &[]);

    let worker = Some("w".into());
    let started = Record { state: TaskState::Started, started_at: Some(before(65)), worker, ..sent(90_000) };
    let mut started = empty(started);
    started.session_lives = false;
    let words = ["its session is gone, and its queue is empty", "six minutes", "the backend has lost"];
    says(&Why::of_task(&started), WhyReason::WorkerGone, &[], &words);
}

#[test]
fn what_holds_a_start_back_is_told() {
    let mut held = situation(record(), awake());
    held.disabled = true;
    says(
        &Why::of_task(&held),
        WhyReason::Disabled,
        &[],
        &["the task add is disabled", "registered enable add"],
    );
    let limited = Record { parked: Some(parked("rate:task:add")), ..record() };
    let mut limited = situation(limited, awake());
    for (source, words) in [("live", "for rate:task:add, set live"), ("one, two", "set by worker one, two")] {
        limited.limit_source = Some(source.to_owned());
        says(&Why::of_task(&limited), WhyReason::Limited, &[], &["it has waited 1m 30s", words]);
    }
    limited.limit_is_zero = true;
    let why = Why::of_task(&limited);
    assert_eq!((why.reason, why.class), (WhyReason::Limited, WhyClass::Act));
    assert!(why.sentence.contains("that limit is zero") && why.advice.contains("limits set"), "{why:?}");
    let refused = Record { parked: Some(parked("circuit:add")), ..record() };
    let words = ["a worker failed the task add again and again", "machinist workers show"];
    says(&Why::of_task(&situation(refused, awake())), WhyReason::CircuitOpen, &[], &words);
    let mut paused = situation(record(), awake());
    if let Some(queue) = &mut paused.queue {
        queue.paused = true;
    }
    says(&Why::of_task(&paused), WhyReason::Paused, &[], &["queue math is paused", "queues resume math"]);
}

#[test]
fn a_worker_that_holds_the_task_has_no_free_slot() {
    let received = Record { state: TaskState::Received, ..record() };
    let mut held = situation(received, full());
    if let Some(queue) = &mut held.queue {
        queue.running = vec!["slow".into(), "add".into(), "slow".into()];
    }
    let why = Why::of_task(&held);
    says(&why, WhyReason::Busy, &[], &["holds it and has no free slot; they run slow (2), add (1)"]);
    // The session tells of the run only with its next renewal.
    held.queue = Some(queue(awake()));
    says(&Why::of_task(&held), WhyReason::Busy, &[], &["holds it and has no free slot"]);
}

#[test]
fn a_message_that_workers_do_not_believe_is_told() {
    let mut refused = situation(record(), awake());
    refused.waits_unread = Some("unknown-key: k2".into());
    says(&Why::of_task(&refused), WhyReason::Refused, &[], &["claims to be this task", "unknown-key: k2"]);
    let mut dead = situation(record(), awake());
    dead.letter = Some(letter());
    let words = ["its message is the dead letter t!1 (bad-signature): forged", "machinist dead show t!1"];
    says(&Why::of_task(&dead), WhyReason::DeadLetter, &[], &words);
}

#[test]
fn servers_that_are_away_come_first() {
    let mut cut = situation(record(), vec![]);
    if let Some(queue) = &mut cut.queue {
        queue.depth = Err("connection refused".into());
    }
    let words = ["the broker cannot be asked, so nothing is sent or delivered: connection refused"];
    says(&Why::of_task(&cut), WhyReason::BrokerAway, &[WhyReason::NoConsumer], &words);
    let id = TaskId::parse("t").unwrap();
    let why = Why::away(Some(&id), None, true, "timed out");
    says(
        &why,
        WhyReason::BackendAway,
        &[],
        &["the backend cannot be asked", "timed out", "machinist doctor"],
    );
    assert_eq!((why.class, why.id.as_deref()), (WhyClass::Broken, Some("t")));
}

#[test]
fn the_decisive_reason_comes_first_and_the_others_follow() {
    let later = Record { eta: Some(after(9)), ..record() };
    let mut all = situation(later, vec![worker(PresenceState::Asleep)]);
    all.disabled = true;
    let also = [WhyReason::Disabled, WhyReason::Paused];
    says(&Why::of_task(&all), WhyReason::Delayed, &also, &["its time is"]);
}

#[test]
fn a_queue_says_what_is_in_the_way_of_its_tasks() {
    says(&Why::of_queue(&queue(vec![])), WhyReason::NoConsumer, &[], &["machinist worker --queue math"]);
    says(&Why::of_queue(&queue(full())), WhyReason::Busy, &[], &["no worker of queue math has a free slot"]);
    says(
        &Why::of_queue(&queue(awake())),
        WhyReason::Queued,
        &[],
        &["nothing is wrong with queue math with 3 messages"],
    );
    let mut cut = queue(awake());
    cut.depth = Err("refused".into());
    says(&Why::of_queue(&cut), WhyReason::BrokerAway, &[], &["the broker cannot be asked"]);
    let mut paused = queue(vec![worker(PresenceState::Asleep)]);
    paused.paused = true;
    says(&Why::of_queue(&paused), WhyReason::Paused, &[], &["queues resume math"]);
    let mut unread = queue(awake());
    unread.unread = Some(("undecodable: version 9".into(), 12));
    says(
        &Why::of_queue(&unread),
        WhyReason::Refused,
        &[],
        &["can read wait, 12 so far: undecodable: version 9"],
    );
    let mut absent = queue(vec![]);
    if let Ok(depth) = &mut absent.depth {
        depth.ready = None;
    }
    says(
        &Why::of_queue(&absent),
        WhyReason::UnknownId,
        &[],
        &["there is no queue math", "did you mean maths?"],
    );
}
