//! The state that people, a timetable and a gate want of a worker. Of orders that are written back to the backend after later
//! ones, a worker goes by the newest, and restores it. A worker reads its configuration again.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use crate::support::Running;
use bytes::Bytes;
use machinist_core::{
    App, Arg, Client, QueuePattern, Results, Signature, State, TaskContext, TaskDef, TaskError, WhyClass,
    WhyReason, Worker, WorkerAction, WorkerChange, WorkerFilter,
    backend::{Backend, Commit},
    id::{RecordId, RecordKind, TaskName},
    limit::{Limit, LimitTarget},
    periodic::{Periodic, Schedule},
    record::{PresenceState, TaskState},
    sign::{Algorithm, Key},
    worker::{BuildError, Gate, SleepHours, TaskOptions},
};
use machinist_memory::{MemoryBackend, MemoryBroker};

const WORK: TaskDef<(), ()> = TaskDef::new("work");
/// Its first run ends when it is told to; the next one ends at once.
const HOLD: TaskDef<(), ()> = TaskDef::new("hold");
const MINUTE: Duration = Duration::from_secs(60);

async fn work() -> Result<(), TaskError> {
    Ok(())
}

async fn hold(cx: TaskContext, State(runs): State<Arc<AtomicU32>>) -> Result<(), TaskError> {
    if runs.fetch_add(1, Ordering::SeqCst) == 0 {
        cx.cancellation().cancelled().await;
        return Err(TaskError::new("told to end"));
    }
    Ok(())
}

struct Servers {
    app: App,
    backend: Arc<MemoryBackend>,
}

async fn servers() -> Servers {
    let backend = Arc::new(MemoryBackend::new());
    let key = Key::generate(Algorithm::HmacSha256, "k").unwrap();
    let app = App::builder(Arc::new(MemoryBroker::new()), Arc::<MemoryBackend>::clone(&backend))
        .keyring(key)
        .build()
        .await
        .unwrap();
    Servers { app, backend }
}

impl Servers {
    fn worker(&self) -> Running {
        Running::start(Worker::builder(&self.app).name("w").task(WORK, work))
    }

    async fn fact(&self, record: &RecordId, fact: &str) -> Option<Bytes> {
        self.backend.read(std::slice::from_ref(record)).await.unwrap()[0].get(fact).cloned()
    }

    /// Replaces a fact, as someone can who may write to the backend.
    async fn put(&self, record: &RecordId, fact: &'static str, value: Option<&Bytes>) {
        let mut commit = Commit::new(record.clone());
        commit.drop = vec![fact.into()];
        commit.facts = value.iter().map(|value| (fact.into(), Bytes::clone(value))).collect();
        commit.wake = true;
        self.backend.commit(vec![commit.into()]).await.pop().unwrap().unwrap();
    }

    /// Waits until a fact has this value again.
    async fn restored(&self, record: &RecordId, fact: &str, value: &Bytes) {
        let restored = async {
            while self.fact(record, fact).await.as_ref() != Some(value) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(MINUTE, restored).await.expect("it is written back");
    }
}

async fn order(client: &Client, action: WorkerAction) {
    let workers = client.workers(&WorkerFilter::new()).await.unwrap();
    let (_, results) = client.order_workers(&workers, action, false).await.unwrap();
    assert!(results.len() == 1 && results[0].done, "{results:?}");
}

async fn state(client: &Client) -> PresenceState {
    client.workers(&WorkerFilter::new()).await.unwrap()[0].state
}

async fn awake(client: &Client) {
    let awake = async {
        while client.workers(&WorkerFilter::new()).await.unwrap().first().map(|w| w.state)
            != Some(PresenceState::Awake)
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(MINUTE, awake).await.expect("it is awake");
}

#[tokio::test(start_paused = true)]
async fn an_earlier_order_that_is_written_back_changes_nothing() {
    let servers = servers().await;
    let client = servers.app.client();
    let worker = servers.worker();
    awake(&client).await;
    let record = RecordId::new(RecordKind::Worker, "w");
    order(&client, WorkerAction::Pause).await;
    let paused = servers.fact(&record, "wanted").await.unwrap();
    order(&client, WorkerAction::Resume).await;
    let resumed = servers.fact(&record, "wanted").await.unwrap();
    servers.put(&record, "wanted", Some(&paused)).await;
    servers.restored(&record, "wanted", &resumed).await;
    assert_eq!(state(&client).await, PresenceState::Awake);
    client.send(WORK.call(())).await.unwrap().wait(MINUTE).await.unwrap();
    // Nor does its loss: a worker that sleeps goes on sleeping, and so does the next of its name.
    order(&client, WorkerAction::Pause).await;
    let paused = servers.fact(&record, "wanted").await.unwrap();
    servers.put(&record, "wanted", None).await;
    servers.restored(&record, "wanted", &paused).await;
    worker.stop().await;
    let again = servers.worker();
    let asleep = async {
        while client.workers(&WorkerFilter::new()).await.unwrap().first().map(|w| w.state)
            != Some(PresenceState::Asleep)
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(MINUTE, asleep).await.expect("it is asleep");
    again.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_task_stays_disabled_when_someone_writes_the_earlier_setting_back() {
    let servers = servers().await;
    let client = servers.app.client();
    let worker = servers.worker();
    awake(&client).await;
    let name = TaskName::parse("work").unwrap();
    let record = RecordId::new(RecordKind::Control, "tasks");
    client.enable_task(&name).await.unwrap();
    let enabled = servers.fact(&record, "off:work").await.unwrap();
    client.disable_task(&name).await.unwrap();
    let disabled = servers.fact(&record, "off:work").await.unwrap();
    // The worker has read it.
    order(&client, WorkerAction::Ping).await;
    servers.put(&record, "off:work", Some(&enabled)).await;
    servers.restored(&record, "off:work", &disabled).await;
    let task = client.send(WORK.call(())).await.unwrap();
    let parked = async {
        while task.record().await.unwrap().parked.is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(MINUTE, parked).await.expect("it waits");
    client.enable_task(&name).await.unwrap();
    task.wait(MINUTE).await.unwrap();
    worker.stop().await;
}

async fn comes(what: &str, mut ask: impl AsyncFnMut() -> bool) {
    let come = async {
        while !ask().await {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(60 * MINUTE, come).await.unwrap_or_else(|_| panic!("{what}"));
}

async fn is_in(client: &Client, state: PresenceState) {
    comes(state.as_str(), async || {
        client
            .workers(&WorkerFilter::new())
            .await
            .unwrap()
            .first()
            .is_some_and(|worker| worker.state == state)
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_sleeps_while_its_gate_is_closed_and_says_why() {
    let servers = servers().await;
    let client = servers.app.client();
    let (open, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
    let asked = Arc::clone(&open);
    let gate = move |_| {
        let open = asked.load(Ordering::Relaxed);
        async move { if open { Gate::Open } else { Gate::closed("the disk is away") } }
    };
    let worker = Worker::builder(&servers.app).name("w").task(WORK, work).gate(gate).build().unwrap();
    let (health, reports) = (worker.health(), Arc::clone(&seen));
    let told = tokio::spawn(async move {
        health.on_change(|report| reports.lock().unwrap().push(report.state)).await;
    });
    let stages = worker.stages();
    let running = tokio::spawn(worker.run_until(std::future::pending()));
    is_in(&client, PresenceState::Asleep).await;
    let task = client.send(WORK.call(())).await.unwrap();
    tokio::time::sleep(MINUTE).await;
    let why = client.why(task.id()).await.unwrap();
    assert_eq!((why.reason, why.class), (WhyReason::Asleep, WhyClass::Wait));
    assert!(why.sentence.contains("w: its gate is closed: the disk is away"), "{}", why.sentence);
    open.store(true, Ordering::Relaxed);
    task.wait(MINUTE).await.unwrap();
    is_in(&client, PresenceState::Awake).await;
    tokio::time::sleep(MINUTE).await;
    open.store(false, Ordering::Relaxed);
    is_in(&client, PresenceState::Asleep).await;
    tokio::time::sleep(MINUTE).await;
    stages.advance();
    running.await.unwrap().unwrap();
    told.await.unwrap();
    let seen = seen.lock().unwrap().clone();
    assert!(
        seen.ends_with(&[PresenceState::Asleep, PresenceState::Awake, PresenceState::Asleep]),
        "{seen:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_gate_that_has_not_answered_yet_is_closed() {
    let servers = servers().await;
    let client = servers.app.client();
    let works = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&works);
    let gate = move |_| {
        let works = asked.load(Ordering::Relaxed);
        async move { if works { Gate::Open } else { panic!("the gate") } }
    };
    let worker = Running::start(Worker::builder(&servers.app).name("w").task(WORK, work).gate(gate));
    is_in(&client, PresenceState::Asleep).await;
    let asleep = client.workers(&WorkerFilter::new()).await.unwrap()[0].asleep.clone().unwrap();
    assert_eq!(asleep, "its gate has not answered yet");
    let task = client.send(WORK.call(())).await.unwrap();
    tokio::time::sleep(MINUTE).await;
    assert!(task.record().await.unwrap().started_at.is_none());
    works.store(true, Ordering::Relaxed);
    task.wait(MINUTE).await.unwrap();
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_sleeps_by_its_timetable() {
    let servers = servers().await;
    let client = servers.app.client();
    let minutes = |minutes: i64| {
        let at = jiff::Timestamp::now() + jiff::SignedDuration::from_mins(minutes);
        at.to_zoned(jiff::tz::TimeZone::UTC).strftime("%H:%M").to_string()
    };
    let hours = SleepHours::new("mon-sun", &minutes(3), &minutes(30), "UTC").unwrap();
    let worker = Running::start(Worker::builder(&servers.app).name("w").task(WORK, work).sleep(hours));
    is_in(&client, PresenceState::Awake).await;
    is_in(&client, PresenceState::Asleep).await;
    let asleep = client.workers(&WorkerFilter::new()).await.unwrap()[0].asleep.clone().unwrap();
    assert!(asleep.contains("its timetable lets it sleep until"), "{asleep}");
    // A pause is another will: to resume the worker does not end its hours.
    order(&client, WorkerAction::Pause).await;
    order(&client, WorkerAction::Resume).await;
    assert_eq!(state(&client).await, PresenceState::Asleep);
    let task = client.send(WORK.call(())).await.unwrap();
    let before = tokio::time::Instant::now();
    task.wait(60 * MINUTE).await.unwrap();
    assert!(before.elapsed() > 20 * MINUTE, "{:?}", before.elapsed());
    worker.stop().await;
}

async fn echo(_: TaskContext, args: Vec<Arg>) -> Result<Results, TaskError> {
    Ok(Results(args))
}

#[tokio::test(start_paused = true)]
async fn a_reload_replaces_the_configuration_and_keeps_what_the_code_says() {
    let servers = servers().await;
    let client = servers.app.client();
    let builder = || Worker::builder(&servers.app);
    let old = || {
        builder()
            .concurrency(2)
            .task_dyn("old", echo)
            .adjust_options("work", |options| *options.unwrap() = TaskOptions::new().concurrency(1))
            .limit_queue("default", Limit::new().max_running(5))
    };
    let worker =
        old().name("w").task(WORK, work).limit_queue("coded", Limit::new().max_running(1)).build().unwrap();
    let reloader = worker.reloader();
    let answers =
        Arc::new(Mutex::new(vec![Err("line 3 is wrong".to_owned()), Ok(Some("a remark".to_owned()))]));
    worker.on_reload(move || std::future::ready(answers.lock().unwrap().remove(0)));
    let stages = worker.stages();
    let running = tokio::spawn(worker.run_until(std::future::pending()));
    awake(&client).await;
    let every = Schedule::every(Duration::from_secs(1)).unwrap();
    let periodic = || Periodic::new("often", every.clone(), Signature::new("new")).unwrap();
    let new =
        || builder().concurrency(3).task_dyn("new", echo).limit_queue("other", Limit::new().max_running(7));
    let twice = reloader.reload(old(), new().task_dyn("work", echo), None).await;
    assert!(matches!(twice, Err(BuildError::Twice(_))), "{twice:?}");
    let wrong = reloader.reload(old(), new().limit_queue("x", Limit::new().burst(3)), None).await;
    assert!(matches!(wrong, Err(BuildError::Limit { .. })), "{wrong:?}");
    client.send(Signature::new("old").arg(1)).await.unwrap().wait(MINUTE).await.unwrap();
    reloader.reload(old(), new().periodic(periodic()), None).await.unwrap();
    client.send(Signature::new("new").arg(1)).await.unwrap().wait(MINUTE).await.unwrap();
    client.send(WORK.call(())).await.unwrap().wait(MINUTE).await.unwrap();
    comes("the session shows it", async || {
        let worker = client.workers(&WorkerFilter::new()).await.unwrap().remove(0);
        worker.tasks == ["new", "work"] && worker.concurrency == 3
    })
    .await;
    let limits = client.workers(&WorkerFilter::new()).await.unwrap().remove(0).limits;
    assert_eq!(limits.keys().collect::<Vec<_>>(), ["queue:coded", "queue:other"]);
    comes("it ticks", async || {
        let ticking = client.periodic_task("often").await;
        ticking.is_ok_and(|task| task.is_some_and(|task| !task.ticks.is_empty()))
    })
    .await;
    let workers = client.workers(&WorkerFilter::new()).await.unwrap();
    let (_, refused) = client.order_workers(&workers, WorkerAction::Reload, false).await.unwrap();
    assert_eq!((refused[0].done, refused[0].reason.as_deref()), (false, Some("line 3 is wrong")));
    let (_, done) = client.order_workers(&workers, WorkerAction::Reload, false).await.unwrap();
    assert_eq!((done[0].done, done[0].reason.as_deref()), (true, Some("a remark")));
    let zero = LimitTarget::parse("queue:default").unwrap();
    client.set_limit(&zero, &Limit::new().max_running(0)).await.unwrap();
    order(&client, WorkerAction::Ping).await;
    let task = client.send(WORK.call(())).await.unwrap();
    comes("it is parked", async || task.record().await.unwrap().parked.is_some()).await;
    let why = client.why(task.id()).await.unwrap();
    assert_eq!((why.reason, why.class), (WhyReason::Limited, WhyClass::Act), "{}", why.sentence);
    stages.advance();
    running.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_reload_replaces_queues_tags_and_hours_and_takes_back_what_orders_have_set() {
    let servers = servers().await;
    let client = servers.app.client();
    let most = |runs| Limit::new().max_running(runs);
    let configured = || Worker::builder(&servers.app).limit_queue("coded", most(5));
    let old = || configured().queue("old").tags(["big"]).concurrency(2);
    let new = || configured().queue("new").tags(["gpu"]).concurrency(3);
    let coded = old().name("w").task(WORK, work).queue("coded").tags(["own"]).concurrency(4);
    let worker = coded.limit_queue("coded", most(1)).build().unwrap();
    let (reloader, health, stages) = (worker.reloader(), worker.health(), worker.stages());
    let running = tokio::spawn(worker.run_until(std::future::pending()));
    awake(&client).await;
    let mut change = WorkerChange::default();
    change.concurrency = Some(9);
    change.add_queues = vec![QueuePattern::parse("added").unwrap()];
    order(&client, WorkerAction::Set(change)).await;

    let wrong = reloader.reload(old(), new().queue("amq.direct"), None).await;
    assert!(matches!(wrong, Err(BuildError::Name(_))), "{wrong:?}");
    let wrong = reloader.reload(old(), new().tags(["Zone"]), None).await;
    assert!(matches!(wrong, Err(BuildError::Tag(_))), "{wrong:?}");
    let names = || health.queues().iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(names(), ["added", "coded", "old"]);
    reloader.reload(old(), new(), None).await.unwrap();
    assert_eq!(names(), ["coded", "new"]);
    comes("the session shows it", async || {
        let worker = client.workers(&WorkerFilter::new()).await.unwrap().remove(0);
        worker.queues == ["coded", "new"] && worker.tags == ["gpu", "own"] && worker.concurrency == 4
    })
    .await;
    // That of the code, before and after the reload.
    let limits = client.workers(&WorkerFilter::new()).await.unwrap().remove(0).limits;
    assert_eq!(limits.get("queue:coded"), Some(&most(1)));
    client.send(WORK.call(()).queue("new")).await.unwrap().wait(MINUTE).await.unwrap();
    let tagged = WORK.call(()).queue("new").requires(["gpu"]);
    client.send(tagged).await.unwrap().wait(MINUTE).await.unwrap();

    let hours = || SleepHours::new("mon-sun", "00:00", "24:00", "UTC").unwrap();
    reloader.reload(new(), new().sleep(hours()), None).await.unwrap();
    is_in(&client, PresenceState::Asleep).await;
    reloader.reload(new().sleep(hours()), new(), None).await.unwrap();
    is_in(&client, PresenceState::Awake).await;
    // Tags that are gone attract no tasks.
    reloader.reload(new(), configured().queue("new").concurrency(3), None).await.unwrap();
    comes("it follows nothing", async || {
        let worker = client.workers(&WorkerFilter::new()).await.unwrap().remove(0);
        worker.queues == ["coded", "new"] && worker.tags == ["own"]
    })
    .await;
    let unlimited = || Worker::builder(&servers.app).queue("new").concurrency(3);
    reloader.reload(configured().queue("new").concurrency(3), unlimited(), None).await.unwrap();
    comes("the limit of the code is left", async || {
        let worker = client.workers(&WorkerFilter::new()).await.unwrap().remove(0);
        worker.limits.get("queue:coded") == Some(&most(1)) && worker.concurrency == 4
    })
    .await;
    stages.advance();
    running.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_order_to_a_process_that_has_gone_is_not_done_and_says_why() {
    let servers = servers().await;
    let client = servers.app.client();
    let worker = Worker::builder(&servers.app).name("w").task(WORK, work).build().unwrap();
    let running = tokio::spawn(worker.run_until(std::future::pending()));
    awake(&client).await;
    // As a killed process: its session has not expired yet.
    running.abort();
    assert!(running.await.unwrap_err().is_cancelled());
    let workers = client.workers(&WorkerFilter::new()).await.unwrap();
    let asked = async |action| client.order_workers(&workers, action, false).await.unwrap().1.remove(0);
    let ping = asked(WorkerAction::Ping).await;
    let reason = ping.reason.unwrap();
    assert!(!ping.done && reason.ends_with("its process has gone"), "{reason}");
    let paused = asked(WorkerAction::Pause).await;
    let reason = paused.reason.unwrap();
    assert!(!paused.done && reason.contains("the next one of its name obeys"), "{reason}");
    let next = servers.worker();
    is_in(&client, PresenceState::Asleep).await;
    next.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_paused_worker_that_is_killed_is_asleep_after_its_restart_under_its_name() {
    let servers = servers().await;
    let client = servers.app.client();
    let worker = Worker::builder(&servers.app).name("w").task(WORK, work).build().unwrap();
    let running = tokio::spawn(worker.run_until(std::future::pending()));
    awake(&client).await;
    order(&client, WorkerAction::Pause).await;
    is_in(&client, PresenceState::Asleep).await;
    let killed = client.workers(&WorkerFilter::new()).await.unwrap().remove(0);
    running.abort();
    assert!(running.await.unwrap_err().is_cancelled());
    let task = client.send(WORK.call(())).await.unwrap();
    let next = Running::start(Worker::builder(&servers.app).name("w").task(WORK, work));
    comes("it takes the name", async || {
        let workers = client.workers(&WorkerFilter::new()).await.unwrap();
        let [worker] = &*workers else { return false };
        worker.incarnation != killed.incarnation && worker.state == PresenceState::Asleep
    })
    .await;
    let workers = client.workers(&WorkerFilter::new()).await.unwrap();
    assert_eq!(workers[0].name, "w");
    assert_eq!(task.state().await.unwrap(), TaskState::Pending, "nobody has taken the task meanwhile");
    order(&client, WorkerAction::Resume).await;
    task.wait(MINUTE).await.unwrap();
    next.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_paused_second_process_of_a_name_that_is_killed_is_asleep_after_its_restart() {
    let servers = servers().await;
    let client = servers.app.client();
    let first = servers.worker();
    awake(&client).await;
    let worker = Worker::builder(&servers.app).name("w").task(WORK, work).build().unwrap();
    let second = tokio::spawn(worker.run_until(std::future::pending()));
    let listed = async || client.workers(&WorkerFilter::new()).await.unwrap();
    comes("both are awake", async || {
        let workers = listed().await;
        workers.len() == 2 && workers.iter().all(|worker| worker.state == PresenceState::Awake)
    })
    .await;
    let killed = listed().await.remove(1);
    let paused =
        client.order_workers(std::slice::from_ref(&killed), WorkerAction::Pause, false).await.unwrap().1;
    assert!(paused[0].done && paused[0].worker == "w#2", "{paused:?}");
    second.abort();
    assert!(second.await.unwrap_err().is_cancelled());
    let next = servers.worker();
    comes("it takes the name", async || {
        let workers = listed().await;
        let [_, worker] = &*workers else { return false };
        worker.incarnation != killed.incarnation && worker.state != PresenceState::Starting
    })
    .await;
    let states: Vec<_> = listed().await.into_iter().map(|worker| (worker.name, worker.state)).collect();
    assert_eq!(states, [("w".to_owned(), PresenceState::Awake), ("w#2".to_owned(), PresenceState::Asleep)]);
    next.stop().await;
    first.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_waits_for_its_paused_name_ends_as_soon_as_it_is_told_to() {
    let servers = servers().await;
    let client = servers.app.client();
    let build = || Worker::builder(&servers.app).name("w").task(WORK, work).build().unwrap();
    let first = tokio::spawn(build().run_until(std::future::pending()));
    awake(&client).await;
    order(&client, WorkerAction::Pause).await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    let second = Duration::from_secs(1);
    let by_signal = build();
    let stages = by_signal.stages();
    let (by_future, by_signal, ()) = tokio::join!(
        tokio::time::timeout(5 * second, build().run_until(tokio::time::sleep(second))),
        tokio::time::timeout(5 * second, by_signal.run_until(std::future::pending())),
        async {
            tokio::time::sleep(second).await;
            stages.advance();
        }
    );
    for ended in [by_future, by_signal] {
        assert!(ended.expect("it does not wait for the name").unwrap().is_clean());
    }
    let workers = client.workers(&WorkerFilter::new()).await.unwrap();
    assert_eq!(workers.len(), 1, "only the killed one has a session");
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_is_paused_already_hands_back_what_still_runs_there() {
    let servers = servers().await;
    let client = servers.app.client();
    let runs = Arc::new(AtomicU32::new(0));
    let worker = |name: &str| {
        Running::start(Worker::builder(&servers.app).name(name).state(Arc::clone(&runs)).task(HOLD, hold))
    };
    let one = worker("one");
    let task = client.send(HOLD.call(())).await.unwrap();
    comes("it runs", async || task.state().await.unwrap() == TaskState::Started).await;
    order(&client, WorkerAction::Pause).await;
    let paused = client.workers(&WorkerFilter::new()).await.unwrap();
    let two = worker("two");
    tokio::time::sleep(MINUTE).await;
    assert_eq!(task.state().await.unwrap(), TaskState::Started, "what runs goes on");
    let (_, results) = client.order_workers(&paused, WorkerAction::Pause, true).await.unwrap();
    assert!(results[0].done, "{results:?}");
    task.wait(MINUTE).await.unwrap();
    let record = task.record().await.unwrap();
    assert_eq!((record.attempt, record.worker.as_deref()), (1, Some("two")));
    one.stop().await;
    two.stop().await;
}

#[tokio::test(start_paused = true)]
async fn orders_that_take_long_cost_a_worker_no_session() {
    let servers = servers().await;
    let client = servers.app.client();
    let worker = Worker::builder(&servers.app).name("w").task(WORK, work).build().unwrap();
    worker.on_reload(std::future::pending);
    let stages = worker.stages();
    let running = tokio::spawn(worker.run_until(std::future::pending()));
    awake(&client).await;
    let workers = client.workers(&WorkerFilter::new()).await.unwrap();
    let reload =
        async || client.order_workers(&workers, WorkerAction::Reload, false).await.unwrap().1.remove(0);
    for answer in <[_; 2]>::from(tokio::join!(reload(), reload())) {
        let reason = answer.reason.unwrap();
        assert!(reason.contains("could not be applied within 7.5s"), "{reason}");
    }
    let now = client.workers(&WorkerFilter::new()).await.unwrap();
    assert_eq!(now[0].incarnation, workers[0].incarnation, "its session has expired");
    stages.advance();
    running.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_name_is_remembered_for_thirty_days_and_while_its_worker_lives() {
    const DAY: Duration = Duration::from_secs(24 * 3600);
    let servers = servers().await;
    let client = servers.app.client();
    // Few renewals in a month.
    let worker =
        || Running::start(Worker::builder(&servers.app).name("w").session_lease(4 * DAY).task(WORK, work));
    // The worker runs between two of them.
    let days = async |number: u32| {
        for _ in 0..number {
            tokio::time::advance(DAY).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let first = worker();
    awake(&client).await;
    order(&client, WorkerAction::Pause).await;
    days(35).await;
    let second = worker();
    // It waits until it is clear that the first was not killed.
    days(6).await;
    let both = [("w".to_owned(), PresenceState::Asleep), ("w#2".to_owned(), PresenceState::Awake)];
    comes("the first keeps its name", async || {
        let workers = client.workers(&WorkerFilter::new()).await.unwrap();
        workers.into_iter().map(|worker| (worker.name, worker.state)).eq(both.clone())
    })
    .await;
    second.stop().await;
    first.stop().await;
    tokio::time::advance(27 * DAY).await;
    let next = worker();
    is_in(&client, PresenceState::Asleep).await;
    next.stop().await;
    tokio::time::advance(31 * DAY).await;
    let forgotten = worker();
    is_in(&client, PresenceState::Awake).await;
    forgotten.stop().await;
}

/// The order is answered by the renewals of the session, which go on.
#[tokio::test(start_paused = true)]
async fn an_order_that_makes_the_program_panic_is_refused_and_harms_nothing_else() {
    let servers = servers().await;
    let client = servers.app.client();
    let broken = |_: &str| -> Result<(), String> { panic!("no level") };
    let worker =
        Worker::builder(&servers.app).name("w").task(WORK, work).set_log_level(broken).build().unwrap();
    worker.on_reload(|| -> std::future::Ready<_> { panic!("no configuration") });
    let stages = worker.stages();
    let running = tokio::spawn(worker.run_until(std::future::pending()));
    awake(&client).await;
    let mut change = WorkerChange::default();
    change.log_level = Some("debug".to_owned());
    let workers = client.workers(&WorkerFilter::new()).await.unwrap();
    for action in [WorkerAction::Set(change), WorkerAction::Reload] {
        let (_, answers) = client.order_workers(&workers, action, false).await.unwrap();
        let reason = answers[0].reason.as_deref().unwrap();
        assert!(!answers[0].done && reason.ends_with("panicked"), "{reason}");
    }
    tokio::time::sleep(5 * MINUTE).await;
    assert_eq!(client.workers(&WorkerFilter::new()).await.unwrap()[0].incarnation, workers[0].incarnation);
    client.send(WORK.call(())).await.unwrap().wait(MINUTE).await.unwrap();
    stages.advance();
    running.await.unwrap().unwrap();
}
