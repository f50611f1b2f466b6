//! One test per arrow of the delivery protocol: the process ends exactly there, another takes over, and the task ends
//! as the protocol promises. Under paused time, over the adapters in memory.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod fate;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use machinist_conformance::{
    arrows::{ArrowStep, Side, Witness, Witnessed, WitnessedRuns},
    within,
};
use machinist_core::{
    App, Backoff, Signature, State, TaskContext, TaskDef, TaskError, Worker,
    admission::{AdmissionDecision, AdmissionRequest, AdmissionRule, WaitReason},
    backend::Backend,
    broker::{Broker, Message},
    id::{QueueName, TaskId},
    record::{Facts, Record, TaskState},
};
use machinist_memory::{MemoryBackend, MemoryBroker};
use tokio_util::sync::CancellationToken;

use self::{ArrowStep::*, Side::*, fate::Fate};

/// Longer than any lease, guard and retry of these tests.
const HOUR: Duration = Duration::from_secs(3600);
/// The lease of a session: a task of a process that died is not run again sooner.
const LEASE: Duration = Duration::from_secs(15);

/// Its argument says how it ends.
const TASK: TaskDef<(String,), ()> = TaskDef::new("task");

/// What the handlers did: attempt and fencing token of each run.
#[derive(Debug, Clone, Default)]
struct Runs {
    begun: Arc<Mutex<Vec<(u32, u64)>>>,
    /// Whether those that take long may end.
    released: Arc<AtomicBool>,
}

async fn task(cx: TaskContext, State(runs): State<Runs>, how: String) -> Result<(), TaskError> {
    runs.begun.lock().unwrap().push((cx.attempt(), cx.fencing_token()));
    match how.as_str() {
        "fails once" if cx.attempt() == 1 => Err("once".into()),
        "fails" => Err(TaskError::permanent("never")),
        "takes long" if !runs.released.load(Ordering::SeqCst) => std::future::pending().await,
        _ => Ok(()),
    }
}

/// Refuses every start.
#[derive(Debug)]
struct Refuses;

#[async_trait]
impl AdmissionRule for Refuses {
    async fn admit(&self, _: &AdmissionRequest<'_>) -> AdmissionDecision {
        AdmissionDecision::NotHere(WaitReason::new("test", "all"))
    }
}

/// The servers, and what everybody has seen.
struct House {
    broker: MemoryBroker,
    backend: MemoryBackend,
    runs: Runs,
}

/// A worker in a process of its own.
struct Process {
    fate: Arc<Fate>,
    stop: CancellationToken,
    worker: tokio::task::JoinHandle<bool>,
}

impl House {
    fn new() -> Self {
        Self { broker: MemoryBroker::new(), backend: MemoryBackend::new(), runs: Runs::default() }
    }

    async fn app(&self) -> App {
        App::builder(Arc::new(self.broker.connect()), Arc::new(self.backend.clone())).build().await.unwrap()
    }

    async fn start(&self, end: Option<(ArrowStep, Side)>) -> Process {
        self.start_with(end, None).await
    }

    /// Starts a process, perhaps with a rule that refuses every start.
    async fn start_with(&self, end: Option<(ArrowStep, Side)>, rule: Option<Refuses>) -> Process {
        let fate = Arc::new(Fate { end, ..Fate::default() });
        let witness: Arc<dyn Witness> = Arc::clone(&fate) as _;
        let broker: Arc<dyn Broker> = Arc::new(self.broker.connect());
        let backend: Arc<dyn Backend> = Arc::new(self.backend.clone());
        let broker = Witnessed::new(Arc::clone(&witness), broker);
        let backend = Witnessed::new(Arc::clone(&witness), backend);
        let app = App::builder(Arc::new(broker), Arc::new(backend)).build().await.unwrap();
        let mut worker = Worker::builder(&app)
            .session_lease(LEASE)
            .middleware(WitnessedRuns(witness))
            .state(self.runs.clone())
            .task(TASK, task);
        if let Some(rule) = rule {
            worker = worker.admission(rule);
        }
        let worker = worker.build().unwrap();
        let stop = CancellationToken::new();
        let until = stop.clone().cancelled_owned();
        let worker = async move { worker.run_until(until).await.unwrap().is_clean() };
        Process { fate, stop, worker: tokio::spawn(worker) }
    }

    async fn facts(&self, id: &TaskId) -> Facts {
        self.backend.read(&[id.into()]).await.unwrap().pop().unwrap()
    }

    fn dead_letters(&self) -> Vec<Message> {
        self.broker.dead_letters(&queue())
    }

    /// How many messages wait in the queue.
    async fn waiting(&self) -> u64 {
        self.broker.depth(&[queue()]).await.unwrap()[0].ready.unwrap()
    }
}

fn queue() -> QueueName {
    QueueName::parse("default").unwrap()
}

impl Process {
    /// Waits for its end at the step that it was meant to end at; nothing of it is left then.
    async fn ends(self) -> Vec<ArrowStep> {
        within(HOUR, "the process to come to its end", self.fate.ended.cancelled()).await;
        self.worker.abort();
        assert!(self.worker.await.unwrap_err().is_cancelled());
        let seen = self.fate.seen.lock().unwrap();
        seen.clone()
    }

    async fn stops(self) -> Vec<ArrowStep> {
        self.stop.cancel();
        assert!(within(HOUR, "a worker to stop", self.worker).await.unwrap(), "it left something behind");
        let seen = self.fate.seen.lock().unwrap();
        seen.clone()
    }
}

/// What became of a task.
struct Story {
    /// What the process saw that ended.
    first: Vec<ArrowStep>,
    /// What the other saw afterwards.
    second: Vec<ArrowStep>,
    /// The attempts of the runs.
    runs: Vec<u32>,
    facts: Facts,
    record: Record,
    dead: Vec<Message>,
    /// How long after the end of the first the second began to run it.
    again: Duration,
}

fn signature(how: &str) -> Signature {
    let retries = u32::from(how == "fails once");
    TASK.call((how.to_owned(),)).retries(retries).backoff(Backoff::fixed(Duration::from_secs(1))).untyped()
}

/// A process takes a task and ends there; then another takes over.
async fn ends(how: &str, step: ArrowStep, side: Side) -> Story {
    let house = House::new();
    let app = house.app().await;
    let sent = app.client().send(signature(how)).await.unwrap();
    let first = house.start(Some((step, side))).await.ends().await;
    takes_over(&house, &app, sent.id(), first).await
}

/// Another process does the rest, and what every such story must come to is checked.
async fn takes_over(house: &House, app: &App, id: &TaskId, first: Vec<ArrowStep>) -> Story {
    let ended_at_first = house.facts(id).await.get("end").cloned();
    let ended = tokio::time::Instant::now();
    let before = house.runs.begun.lock().unwrap().len();
    house.runs.released.store(true, Ordering::SeqCst);
    let second = house.start(None).await;
    let mut again = HOUR;
    while ended.elapsed() < HOUR {
        if again == HOUR && house.runs.begun.lock().unwrap().len() > before {
            again = ended.elapsed();
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let second = second.stops().await;
    let record = app.result(id.clone()).record().await.unwrap();
    assert!(matches!(record.state, TaskState::Success | TaskState::Failure), "stuck as {:?}", record.state);
    assert_eq!(house.waiting().await, 0, "nothing is left to do, and a message is left");
    let facts = house.facts(id).await;
    assert!(ended_at_first.is_none_or(|end| facts.get("end") == Some(&end)), "it ended twice");
    let runs = house.runs.begun.lock().unwrap().clone();
    assert!(runs.is_sorted_by(|a, b| a.0 <= b.0 && a.1 < b.1), "attempts or fencing tokens fell: {runs:?}");
    let runs = runs.into_iter().map(|(attempt, _)| attempt).collect();
    Story { first, second, runs, facts, record, dead: house.dead_letters(), again }
}

impl Story {
    fn has(&self, names: &[&str]) {
        for name in names {
            assert!(self.facts.has(name), "no {name} in {:?}", self.facts);
        }
    }

    fn has_not(&self, names: &[&str]) {
        for name in names {
            assert!(!self.facts.has(name), "{name} in {:?}", self.facts);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_fault_the_steps_are_in_the_order_of_the_protocol() {
    for (how, expected) in [
        ("succeeds", &[Receive, Start, Run, Record, Ack][..]),
        ("fails", &[Receive, Start, Run, Record, Follow, Mark, Ack]),
        ("fails once", &[Receive, Start, Run, Record, Follow, Mark, Ack, Receive, Start, Run, Record, Ack]),
    ] {
        let house = House::new();
        let app = house.app().await;
        let sent = app.client().send(signature(how)).await.unwrap();
        let story = takes_over(&house, &app, sent.id(), Vec::new()).await;
        assert_eq!(story.second, expected, "a task that {how}");
        assert_eq!(story.dead.len(), usize::from(how == "fails"));
    }
}

#[tokio::test(start_paused = true)]
async fn received_and_not_started_it_is_started_by_another() {
    for at in [(Receive, After), (Start, Before)] {
        let story = ends("succeeds", at.0, at.1).await;
        assert_eq!(story.first, [Receive]);
        assert_eq!(story.second, [Receive, Start, Run, Record, Ack]);
        assert_eq!(story.runs, [1]);
        assert!(story.again < LEASE, "nobody holds it, and it waited {:?}", story.again);
        story.has_not(&["s:1:2"]);
    }
}

#[tokio::test(start_paused = true)]
async fn started_and_not_run_it_is_taken_over_when_the_session_has_expired() {
    for at in [(Start, After), (Run, Before)] {
        let story = ends("succeeds", at.0, at.1).await;
        assert_eq!(story.first, [Receive, Start]);
        // Perhaps as a guard: the lease may last for longer than a busy delivery is held.
        assert!(story.second.ends_with(&[Receive, Start, Run, Record, Ack]), "{:?}", story.second);
        assert_eq!(story.runs, [1]);
        assert!(story.again >= LEASE, "its session was alive, and it was taken over in {:?}", story.again);
        story.has(&["s:1:1", "s:1:2"]);
    }
}

#[tokio::test(start_paused = true)]
async fn run_and_not_recorded_it_is_run_again_with_a_higher_token() {
    for at in [(Run, After), (Record, Before)] {
        for how in ["succeeds", "fails"] {
            let story = ends(how, at.0, at.1).await;
            assert_eq!(story.first, [Receive, Start, Run]);
            assert_eq!(story.runs, [1, 1]);
            assert!(story.again >= LEASE, "its session was alive, and it ran again in {:?}", story.again);
            story.has(&["s:1:1", "s:1:2", "end"]);
            assert_eq!(story.dead.len(), usize::from(how == "fails"));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_recorded_success_is_acknowledged_and_not_run_again() {
    for at in [(Record, After), (Ack, Before)] {
        let story = ends("succeeds", at.0, at.1).await;
        assert_eq!(story.first, [Receive, Start, Run, Record]);
        assert_eq!(story.second, [Receive, Ack]);
        assert_eq!((story.runs, story.record.state), (vec![1], TaskState::Success));
    }
}

#[tokio::test(start_paused = true)]
async fn a_recorded_retry_is_published_by_who_holds_the_message() {
    for at in [(Record, After), (Follow, Before)] {
        let story = ends("fails once", at.0, at.1).await;
        assert_eq!(story.first, [Receive, Start, Run, Record]);
        assert_eq!(story.second, [Receive, Follow, Mark, Ack, Receive, Start, Run, Record, Ack]);
        assert_eq!((story.runs, story.record.state), (vec![1, 2], TaskState::Success));
    }
}

#[tokio::test(start_paused = true)]
async fn a_recorded_failure_is_buried_by_who_holds_the_message() {
    for at in [(Record, After), (Follow, Before)] {
        let story = ends("fails", at.0, at.1).await;
        assert_eq!(story.first, [Receive, Start, Run, Record]);
        assert_eq!(story.second, [Receive, Follow, Mark, Ack]);
        assert_eq!((story.runs, story.dead.len()), (vec![1], 1));
        assert_eq!(story.record.state, TaskState::Failure);
    }
}

#[tokio::test(start_paused = true)]
async fn a_next_run_that_was_published_and_not_marked_is_published_once_more_and_runs_once() {
    for at in [(Follow, After), (Mark, Before)] {
        let story = ends("fails once", at.0, at.1).await;
        assert_eq!(story.first, [Receive, Start, Run, Record, Follow]);
        let published = story.second.iter().filter(|step| **step == Follow).count();
        let received = story.second.iter().filter(|step| **step == Receive).count();
        assert_eq!((published, received), (1, 3), "{:?}", story.second);
        assert_eq!((story.runs, story.record.state), (vec![1, 2], TaskState::Success));
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_that_was_published_and_not_marked_is_published_once_more_as_the_same() {
    for at in [(Follow, After), (Mark, Before)] {
        let story = ends("fails", at.0, at.1).await;
        assert_eq!(story.first, [Receive, Start, Run, Record, Follow]);
        assert_eq!(story.second, [Receive, Follow, Mark, Ack]);
        let ids: Vec<_> = story.dead.iter().map(|dead| &dead.headers["machinist-dead-id"]).collect();
        assert!(ids.len() == 2 && ids[0] == ids[1], "{ids:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_followed_and_not_acknowledged_is_not_followed_again() {
    for at in [(Mark, After), (Ack, Before)] {
        let story = ends("fails", at.0, at.1).await;
        assert_eq!(story.first, [Receive, Start, Run, Record, Follow, Mark]);
        assert_eq!((story.second, story.dead.len()), (vec![Receive, Ack], 1));
        let story = ends("fails once", at.0, at.1).await;
        assert!(!story.second.contains(&Follow), "{:?}", story.second);
        assert_eq!((story.runs, story.record.state), (vec![1, 2], TaskState::Success));
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_acknowledged_does_not_come_again() {
    for how in ["succeeds", "fails"] {
        let story = ends(how, Ack, After).await;
        assert_eq!((story.second, story.runs), (Vec::new(), vec![1]));
    }
}

#[tokio::test(start_paused = true)]
async fn at_every_step_of_a_guard_a_message_is_in_the_broker() {
    for at in [(PublishGuard, After), (StoreGuard, After), (Ack, After)] {
        let story = ends("takes long", at.0, at.1).await;
        let so_far = [Receive, Start, PublishGuard, StoreGuard, Ack];
        assert_eq!(story.first, so_far[..=so_far.iter().position(|step| *step == at.0).unwrap()]);
        assert_eq!((story.runs, story.record.state), (vec![1, 1], TaskState::Success), "{at:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn at_every_step_of_parking_a_message_is_in_the_broker() {
    for at in [(PublishGuard, Before), (PublishGuard, After), (StoreGuard, After), (Ack, After)] {
        let house = House::new();
        let app = house.app().await;
        let sent = app.client().send(signature("succeeds")).await.unwrap();
        let first = house.start_with(Some(at), Some(Refuses)).await.ends().await;
        // The step before which it ended was not taken.
        let steps = [Receive, PublishGuard, StoreGuard, Ack];
        let taken = steps.iter().position(|step| *step == at.0).unwrap() + usize::from(at.1 == After);
        assert_eq!(first, steps[..taken]);
        let story = takes_over(&house, &app, sent.id(), first).await;
        assert_eq!((story.runs, story.record.state), (vec![1], TaskState::Success), "{at:?}");
        let guard_is_back = Duration::from_secs(17);
        assert!(story.again <= guard_is_back, "nobody runs it, and it waited {:?}", story.again);
    }
}

#[tokio::test(start_paused = true)]
async fn at_every_step_of_a_release_a_message_is_in_the_broker() {
    for at in [(PublishGuard, Before), (PublishGuard, After), (StoreGuard, After)] {
        let house = House::new();
        let app = house.app().await;
        let sent = app.client().send(signature("succeeds")).await.unwrap();
        let parks = house.start_with(Some((Ack, After)), Some(Refuses)).await.ends().await;
        let fate = Arc::new(Fate { end: Some(at), ..Fate::default() });
        let witness: Arc<dyn Witness> = Arc::clone(&fate) as _;
        let broker: Arc<dyn Broker> = Arc::new(house.broker.connect());
        let backend: Arc<dyn Backend> = Arc::new(house.backend.clone());
        let broker = Witnessed::new(Arc::clone(&witness), broker);
        let releaser = App::builder(Arc::new(broker), Arc::new(Witnessed::new(witness, backend)));
        let releaser = releaser.build().await.unwrap().client();
        let releasing = tokio::spawn(async move {
            releaser.release_parked(&WaitReason::new("test", "all"), Duration::ZERO).await
        });
        within(HOUR, "the release to come to its end", fate.ended.cancelled()).await;
        releasing.abort();
        let story = takes_over(&house, &app, sent.id(), parks).await;
        assert_eq!((story.runs, story.record.state), (vec![1], TaskState::Success), "{at:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_handed_back_runs_again_at_once_and_is_not_held_against_it() {
    for at in [(HandBack, After), (GiveBack, Before), (GiveBack, After)] {
        let house = House::new();
        let app = house.app().await;
        let sent = app.client().send(signature("takes long")).await.unwrap();
        let first = house.start(Some(at)).await;
        let begun = || !house.runs.begun.lock().unwrap().is_empty();
        while !begun() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        first.stop.cancel();
        let first = first.ends().await;
        let story = takes_over(&house, &app, sent.id(), first).await;
        assert_eq!(story.first[..3], [Receive, Start, HandBack]);
        assert_eq!(story.second, [Receive, Start, Run, Record, Ack]);
        assert!(story.again < LEASE, "it was handed back, and waited {:?}", story.again);
        story.has(&["r:1:1", "s:1:2"]);
    }
}
