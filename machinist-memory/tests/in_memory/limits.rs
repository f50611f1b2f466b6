//! Limits of rate and concurrency: what they let start, for all workers together, and what happens when a worker dies.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use crate::support::{Running, until};
use machinist_core::{
    App, AsyncResult, State, TaskDef, TaskError, Unique, Worker, WorkerBuilder,
    backend::{Backend, Commit},
    broker::Broker,
    clock::Timestamp,
    id::{RecordId, RecordKind},
    limit::{Limit, LimitKey, LimitTarget, Rate},
    record::TaskState,
    worker::TaskOptions,
};
use machinist_memory::{MemoryBackend, MemoryBroker};
use tokio::time::{Instant, sleep};

/// Runs for so many milliseconds under a key.
const CALL: TaskDef<(String, u64), ()> = TaskDef::new("call");
const OTHER: TaskDef<(), ()> = TaskDef::new("other");
/// Runs for so many milliseconds, without a limit.
const SLOW: TaskDef<(u64,), ()> = TaskDef::new("slow");
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// What runs, and what ran at once, by key.
#[derive(Debug, Clone, Default)]
struct Seen(Arc<Mutex<HashMap<String, OfKey>>>);

#[derive(Debug, Clone, Default)]
struct OfKey {
    running: usize,
    most: usize,
    starts: Vec<Instant>,
}

impl Seen {
    fn begin(&self, key: &str) {
        let mut seen = self.0.lock().unwrap();
        let of_key = seen.entry(key.to_owned()).or_default();
        of_key.running += 1;
        of_key.most = of_key.most.max(of_key.running);
        of_key.starts.push(Instant::now());
    }

    fn end(&self, key: &str) {
        self.0.lock().unwrap().get_mut(key).unwrap().running -= 1;
    }

    /// The most runs at once, and the starts.
    fn of(&self, key: &str) -> (usize, Vec<Instant>) {
        let OfKey { most, starts, .. } = self.0.lock().unwrap().get(key).cloned().unwrap_or_default();
        (most, starts)
    }
}

async fn call(key: String, millis: u64, State(seen): State<Seen>) -> Result<(), TaskError> {
    seen.begin(&key);
    sleep(Duration::from_millis(millis)).await;
    seen.end(&key);
    Ok(())
}

async fn slow(millis: u64) -> Result<(), TaskError> {
    sleep(Duration::from_millis(millis)).await;
    Ok(())
}

async fn nothing() -> Result<(), TaskError> {
    Ok(())
}

struct Servers {
    app: App,
    broker: Arc<MemoryBroker>,
    backend: Arc<MemoryBackend>,
    seen: Seen,
}

async fn servers() -> Servers {
    let (broker, backend) = (Arc::new(MemoryBroker::new()), Arc::new(MemoryBackend::new()));
    let app = App::builder(broker.clone(), backend.clone()).build().await.unwrap();
    Servers { app, broker, backend, seen: Seen::default() }
}

impl Servers {
    fn builder(&self, limit: Limit) -> WorkerBuilder {
        Worker::builder(&self.app)
            .concurrency(4)
            .state(self.seen.clone())
            .task(CALL, call)
            .task(OTHER, nothing)
            .options("call", TaskOptions::new().limit(limit))
    }

    fn worker(&self, limit: &Limit) -> Running {
        Running::start(self.builder(limit.clone()))
    }

    async fn send(&self, key: &str, millis: u64) -> AsyncResult<()> {
        self.app.client().send(CALL.call((key.to_owned(), millis))).await.unwrap()
    }

    async fn ready(&self) -> u64 {
        let queue = self.app.default_queue().clone();
        self.broker.depth(&[queue]).await.unwrap()[0].ready.unwrap_or_default()
    }
}

fn rate(text: &str) -> Limit {
    Limit::new().rate(Rate::parse(text).unwrap())
}

fn by_key(limit: Limit) -> Limit {
    limit.key(LimitKey::template("{0}").unwrap())
}

async fn started_at(task: &AsyncResult<()>) -> Timestamp {
    task.wait(2 * HOUR).await.unwrap();
    let record = task.record().await.unwrap();
    assert_eq!((record.attempt, record.history.len()), (1, 0), "a wait spends no attempt");
    record.started_at.unwrap()
}

#[tokio::test(start_paused = true)]
async fn workers_share_a_rate_and_other_tasks_pass() {
    let servers = servers().await;
    let workers = [servers.worker(&rate("5/s")), servers.worker(&rate("5/s"))];
    let mut tasks = Vec::new();
    for _ in 0..60 {
        tasks.push(servers.send("a", 0).await);
    }
    let other = servers.app.client().send(OTHER.call(())).await.unwrap();
    other.wait(Duration::from_secs(2)).await.unwrap();
    let mut starts = Vec::new();
    for task in &tasks {
        starts.push(started_at(task).await);
    }
    let sent_order = starts.clone();
    starts.sort_unstable();
    for window in starts.windows(7) {
        assert!(window[6].since(window[0]) >= Duration::from_millis(995), "seven starts in one second");
    }
    let whole = starts[59].since(starts[0]);
    assert!(whole >= Duration::from_millis(11_795) && whole < Duration::from_secs(14), "{whole:?}");
    // Those that wait start in the order of their arrival, up to what two workers take at once.
    for (place, start) in sent_order.iter().enumerate() {
        let rank = starts.binary_search(start).unwrap_or_else(|rank| rank);
        assert!(rank.abs_diff(place) <= 16, "the task sent at {place} was number {rank}");
    }
    sleep(HOUR).await;
    assert_eq!(servers.ready().await, 0);
    for worker in workers {
        assert!(worker.stop().await.is_clean());
    }
}

#[tokio::test(start_paused = true)]
async fn a_high_rate_is_used_and_never_exceeded() {
    let servers = servers().await;
    let workers = [servers.worker(&rate("200/s").burst(10)), servers.worker(&rate("200/s").burst(10))];
    let mut tasks = Vec::new();
    for _ in 0..1000 {
        tasks.push(servers.send("a", 0).await);
    }
    for task in &tasks {
        task.wait(HOUR).await.unwrap();
    }
    let (_, mut starts) = servers.seen.of("a");
    starts.sort_unstable();
    assert_eq!(starts.len(), 1000);
    let whole = starts[999] - starts[0];
    assert!(whole < Duration::from_millis(5260), "at least 95 % of it is used: {whole:?}");
    // In a second: the rate, the burst, and a block of each worker.
    let most = 200 + 10 + 2 * 20 + 1;
    for window in starts.windows(most) {
        assert!(window[most - 1] - window[0] >= Duration::from_secs(1));
    }
    for worker in workers {
        assert!(worker.stop().await.is_clean());
    }
}

/// Slow tasks hold every slot, and more of them wait in the queue. So tasks with a rate come late for the starts that they
/// have reserved.
#[tokio::test(start_paused = true)]
async fn a_limited_backlog_does_not_stand_still_behind_slow_tasks() {
    let servers = servers().await;
    let worker = Worker::builder(&servers.app)
        .concurrency(4)
        .state(servers.seen.clone())
        .task(CALL, call)
        .task(SLOW, slow)
        .options("call", TaskOptions::new().limit(rate("2/s")));
    let worker = Running::start(worker);
    let mut tasks = Vec::new();
    for _ in 0..60 {
        tasks.push(servers.send("a", 0).await);
    }
    let load = async {
        for number in 0.. {
            while servers.ready().await > 12 {
                sleep(Duration::from_millis(50)).await;
            }
            servers.app.client().send(SLOW.call((700 + number * 137 % 600,))).await.unwrap();
        }
    };
    let all = async {
        for task in &tasks {
            task.wait(2 * MINUTE).await.unwrap();
        }
    };
    tokio::select! {
        () = load => {}
        () = all => {}
    }
    let (_, mut starts) = servers.seen.of("a");
    starts.sort_unstable();
    let whole = starts[59] - starts[0];
    // Half a minute would be the whole rate, with a slot for each start at its time.
    assert!(whole < Duration::from_secs(100), "{whole:?}");
    for (first, from) in starts.iter().enumerate() {
        for (last, to) in starts.iter().enumerate().skip(first) {
            let most = 2.0 * ((*to - *from).as_secs_f64() + 0.6) + 3.0;
            assert!((last - first + 1) as f64 <= most, "{} in {:?}", last - first + 1, *to - *from);
        }
    }
    worker.stop().await;
}

/// Waits until the records of tasks have their reserved starts.
async fn reserved(servers: &Servers, tasks: &[AsyncResult<()>]) {
    let records: Vec<_> = tasks.iter().map(|task| RecordId::from(task.id())).collect();
    until(async || {
        let all = servers.backend.read(&records).await.unwrap();
        all.iter().all(|facts| facts.has("rs") || facts.has("pk"))
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_start_that_a_dead_worker_has_reserved_for_a_task_stays_with_the_task() {
    let servers = servers().await;
    let dead = servers.worker(&rate("2/s"));
    let mut tasks = Vec::new();
    for _ in 0..10 {
        tasks.push(servers.send("a", 0).await);
    }
    reserved(&servers, &tasks[1..]).await;
    dead.worker.abort();
    let live = servers.worker(&rate("2/s"));
    for task in &tasks {
        started_at(task).await;
    }
    let (_, mut starts) = servers.seen.of("a");
    starts.sort_unstable();
    let whole = starts[9] - starts[0];
    // Nine starts, half a second each. If they were lost, the next ones would be behind them.
    assert!(whole >= Duration::from_millis(4_000) && whole < Duration::from_millis(6_000), "{whole:?}");
    assert!(live.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn starts_that_are_reserved_under_a_faster_rate_wait_for_a_lower_one() {
    let servers = servers().await;
    let worker = servers.worker(&by_key(rate("10/s")));
    for _ in 0..100 {
        servers.send("a", 0).await;
    }
    sleep(Duration::from_secs(1)).await;
    let target = LimitTarget::parse("task:call").unwrap();
    servers.app.client().set_limit(&target, &by_key(rate("1/s"))).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    let before = servers.seen.of("a").1.len();
    sleep(Duration::from_secs(20)).await;
    let then = servers.seen.of("a").1.len() - before;
    assert!((18..=23).contains(&then), "{then} in twenty seconds");
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn each_key_has_its_own_rate_and_a_task_may_count_for_several() {
    let servers = servers().await;
    let worker = servers.worker(&by_key(rate("10/s").cost(5).burst(5)));
    let mut tasks = Vec::new();
    for key in ["a", "b", "a", "b", "a", "b"] {
        tasks.push(servers.send(key, 0).await);
    }
    for task in &tasks {
        task.wait(MINUTE).await.unwrap();
    }
    for key in ["a", "b"] {
        let (_, starts) = servers.seen.of(key);
        assert!(
            starts[1] - starts[0] >= Duration::from_millis(495)
                && starts[2] - starts[1] >= Duration::from_millis(495)
        );
        assert!(starts[2] - starts[0] < Duration::from_secs(3), "{key} does not wait for the other key");
    }
    assert!(worker.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_sender_chooses_for_how_many_starts_its_task_counts() {
    let servers = servers().await;
    let worker = servers.worker(&rate("10/s"));
    let client = servers.app.client();
    let mut tasks = Vec::new();
    for cost in [20, 1, 30, 1] {
        let signature = CALL.call(("a".to_owned(), 0)).limit_cost(cost);
        tasks.push(client.send(signature).await.unwrap());
        // They ask in this order.
        sleep(Duration::from_millis(300)).await;
    }
    let mut starts = Vec::new();
    for task in &tasks {
        starts.push(started_at(task).await);
    }
    let apart: Vec<_> = starts.windows(2).map(|pair| pair[1].since(pair[0]).as_millis()).collect();
    // Each one starts at once, and the next one when it is paid for.
    assert!(apart.iter().zip([2000, 100, 3000]).all(|(apart, least)| *apart + 5 >= least), "{apart:?}");
    let wrong = client.send(CALL.call(("a".to_owned(), 0)).limit_cost(0)).await.unwrap_err();
    assert!(wrong.to_string().contains("limit_cost 0 is not in 1 to 1000000"), "{wrong}");
    assert!(worker.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_cost_of_the_sender_does_not_write_the_bucket_for_each_start() {
    let servers = servers().await;
    let worker = Running::start(servers.builder(rate("2000/s")).concurrency(50));
    let client = servers.app.client();
    let mut tasks = Vec::new();
    for _ in 0..300 {
        tasks.push(client.send(CALL.call(("a".to_owned(), 0)).limit_cost(2)).await.unwrap());
    }
    let began = Instant::now();
    let bucket = [RecordId::new(RecordKind::Limit, "rate/task:call")];
    let mut seen = std::collections::BTreeSet::new();
    while servers.seen.of("a").1.len() < 300 {
        let facts = servers.backend.read(&bucket).await.unwrap().pop().unwrap();
        seen.extend(facts.iter().map(|(_, reserved)| reserved.clone()));
        sleep(Duration::from_millis(1)).await;
    }
    assert!(seen.len() < 20, "{} writes in {:?}", seen.len(), began.elapsed());
    assert!(worker.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_key_of_the_sender_goes_before_that_of_the_arguments() {
    let servers = servers().await;
    let worker = servers.worker(&by_key(Limit::new().max_running(1)));
    let mut tasks = Vec::new();
    for key in ["a", "b", "c"] {
        let signature = CALL.call((key.to_owned(), 1000)).limit_key("shared");
        tasks.push(servers.app.client().send(signature).await.unwrap());
    }
    for task in &tasks {
        task.wait(MINUTE).await.unwrap();
    }
    let mut starts: Vec<_> = ["a", "b", "c"].into_iter().flat_map(|key| servers.seen.of(key).1).collect();
    starts.sort_unstable();
    assert!(starts.windows(2).all(|pair| pair[1] - pair[0] >= Duration::from_secs(1)), "{starts:?}");
    assert!(worker.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn no_more_run_at_once_than_allowed_for_each_key() {
    let servers = servers().await;
    let limit = by_key(Limit::new().max_running(2));
    let workers = [servers.worker(&limit), servers.worker(&limit), servers.worker(&limit)];
    let mut tasks = Vec::new();
    for n in 0..60 {
        tasks.push(servers.send(["a", "b", "c"][n % 3], 700).await);
    }
    for task in &tasks {
        started_at(task).await;
    }
    for key in ["a", "b", "c"] {
        let (most, mut starts) = servers.seen.of(key);
        starts.sort_unstable();
        assert_eq!((most, starts.len()), (2, 20), "{key}");
        let whole = starts[19] - starts[0];
        assert!(whole < MINUTE, "{key} was idle while work waited: {whole:?}");
    }
    sleep(2 * HOUR).await;
    assert_eq!(servers.ready().await, 0);
    for worker in workers {
        assert!(worker.stop().await.is_clean());
    }
}

#[tokio::test(start_paused = true)]
async fn a_freed_place_lets_a_parked_task_start_at_once() {
    let servers = servers().await;
    let worker = servers.worker(&Limit::new().max_running(1));
    let long = servers.send("long", 40_000).await;
    until(async || long.state().await.unwrap() == TaskState::Started).await;
    let waits = servers.send("waits", 0).await;
    waits_for(&waits, "max_running:task:call").await;
    let why = servers.app.client().why(waits.id()).await.unwrap();
    assert_eq!(why.reason, machinist_core::WhyReason::Limited);
    long.wait(MINUTE).await.unwrap();
    let freed = Instant::now();
    waits.wait(HOUR).await.unwrap();
    assert!(freed.elapsed() < Duration::from_secs(1), "{:?}", freed.elapsed());
    assert!(worker.stop().await.is_clean());
}

/// Whoever waits in a process asks again after 1.5 s, 2.5 s, and every second then.
#[tokio::test(start_paused = true)]
async fn a_freed_place_wakes_the_tasks_that_wait_in_processes() {
    let servers = servers().await;
    let limit = Limit::new().max_running(1);
    let workers = [servers.worker(&limit), servers.worker(&limit)];
    let mut tasks = vec![servers.send("first", 2300).await];
    until(async || !servers.seen.of("first").1.is_empty()).await;
    for _ in 0..2 {
        tasks.push(servers.send("next", 1200).await);
    }
    for task in &tasks {
        task.wait(MINUTE).await.unwrap();
    }
    let first = servers.seen.of("first").1[0];
    let starts = servers.seen.of("next").1;
    let waits = [
        starts[0] - (first + Duration::from_millis(2300)),
        starts[1] - (starts[0] + Duration::from_millis(1200)),
    ];
    assert!(waits.iter().all(|wait| *wait < Duration::from_millis(50)), "{waits:?}");
    for worker in workers {
        assert!(worker.stop().await.is_clean());
    }
}

/// Returns when a task is parked for this reason.
async fn waits_for(task: &AsyncResult<()>, reason: &str) {
    for _ in 0..1000 {
        if task.record().await.is_ok_and(|record| record.parked.is_some_and(|parked| parked.reason == reason))
        {
            return;
        }
        sleep(Duration::from_millis(20)).await;
    }
    panic!("{} is not parked for {reason}", task.id());
}

#[tokio::test(start_paused = true)]
async fn the_place_of_a_dead_worker_is_free_when_its_tasks_are_taken_over_and_not_before() {
    let servers = servers().await;
    let limit = Limit::new().max_running(1);
    let dead = servers.worker(&limit);
    let lost = servers.send("lost", 3_600_000).await;
    until(async || lost.state().await.unwrap() == TaskState::Started).await;
    let died = Instant::now();
    dead.worker.abort();
    let live = servers.worker(&limit);
    let next = servers.send("next", 0).await;
    let second = servers.app.client();
    next.wait(3 * MINUTE).await.unwrap();
    let (_, starts) = servers.seen.of("next");
    let waited = starts[0] - died;
    assert!(waited > Duration::from_secs(5) && waited < Duration::from_secs(75), "{waited:?}");
    second.revoke(lost.id()).await.unwrap();
    assert!(live.stop().await.is_clean());
}

/// A run whose process has died after its task had ended, and before it freed its place: nobody takes it over.
#[tokio::test(start_paused = true)]
async fn the_place_of_a_dead_run_that_nobody_takes_over_wakes_parked_tasks() {
    let servers = servers().await;
    let places = RecordId::new(RecordKind::Limit, "run/task:call:a");
    let mut commit = Commit::new(places.clone());
    let holder = r#"{"session":"dead","run":"r","task":"ended","attempt":1}"#;
    commit.facts = vec![("p0".into(), holder.into())];
    servers.backend.commit(vec![commit.into()]).await;
    let limit = by_key(Limit::new().max_running(1));
    let workers = [servers.worker(&limit), servers.worker(&limit)];
    let began = Instant::now();
    let mut tasks = Vec::new();
    for _ in 0..6 {
        tasks.push(servers.send("a", 100).await);
    }
    waits_for(&tasks[5], "max_running:task:call:a").await;
    for task in &tasks {
        started_at(task).await;
    }
    let (most, starts) = servers.seen.of("a");
    let first = *starts.iter().min().unwrap() - began;
    // The session is known to be gone after its checks, and the first parked task comes back by itself after 20 s.
    assert!(most == 1 && first < Duration::from_secs(12), "{most} at once, the first after {first:?}");
    let facts = servers.backend.read(&[places]).await.unwrap().pop().unwrap();
    assert!(!facts.has("p0"));
    for worker in workers {
        assert!(worker.stop().await.is_clean());
    }
}

#[tokio::test(start_paused = true)]
async fn places_and_reservations_that_the_backend_has_lost_are_forgotten_and_nothing_is_stuck() {
    let servers = servers().await;
    let limit = by_key(rate("1/s").max_running(1));
    let worker = servers.worker(&limit);
    let mut tasks = Vec::new();
    for _ in 0..20 {
        tasks.push(servers.send("a", 300).await);
    }
    tasks[0].wait(MINUTE).await.unwrap();
    for id in ["rate/task:call:a", "run/task:call:a"] {
        let id = RecordId::new(RecordKind::Limit, id);
        let facts = servers.backend.read(std::slice::from_ref(&id)).await.unwrap().pop().unwrap();
        let drop = facts.iter().map(|(name, _)| name.to_owned().into()).collect();
        servers.backend.commit(vec![Commit { drop, ..Commit::new(id) }.into()]).await;
    }
    for task in &tasks {
        task.wait(HOUR).await.unwrap();
    }
    assert_eq!(servers.seen.of("a").1.len(), 20);
    assert!(worker.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_has_lost_everything_leaves_no_parked_task_behind() {
    let servers = servers().await;
    let worker = servers.worker(&Limit::new().max_running(1));
    let client = servers.app.client();
    let target = LimitTarget::parse("task:other").unwrap();
    client.set_limit(&target, &rate("1/m")).await.unwrap();
    // Workers hear of it within a second.
    sleep(Duration::from_secs(1)).await;
    let mut tasks = vec![servers.send("long", 40_000).await];
    until(async || !servers.seen.of("long").1.is_empty()).await;
    for _ in 0..3 {
        tasks.push(servers.send("waits", 100).await);
    }
    let once = || CALL.call(("once".to_owned(), 100)).unique(Unique::new());
    tasks.push(client.send(once()).await.unwrap());
    // The first one takes the only start of this minute.
    client.send(OTHER.call(())).await.unwrap().wait(MINUTE).await.unwrap();
    for _ in 0..2 {
        tasks.push(client.send(OTHER.call(())).await.unwrap());
    }
    waits_for(&tasks[3], "max_running:task:call").await;
    waits_for(&tasks[6], "rate:task:other").await;
    assert!(client.send(once()).await.unwrap().is_duplicate());
    servers.backend.lose_all();
    let again = client.send(once()).await.unwrap();
    assert!(!again.is_duplicate(), "the claim is lost");
    for task in tasks.iter().chain([&again]) {
        started_at(task).await;
    }
    let runs = ["long", "waits", "once"].map(|key| servers.seen.of(key).1.len());
    assert_eq!(runs, [1, 3, 2]);
    let limits = client.limits().await.unwrap();
    assert!(limits.iter().all(|limit| limit.source != "live"), "{limits:?}");
    sleep(2 * HOUR).await;
    assert_eq!(servers.ready().await, 0);
    assert!(worker.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_limit_of_zero_pauses_and_says_so() {
    let zeros = [(Limit::new().max_running(0), "max_running:task:call"), (rate("0/s"), "rate:task:call")];
    for (limit, reason) in zeros {
        let servers = servers().await;
        let paused = servers.worker(&limit);
        let task = servers.send("a", 0).await;
        waits_for(&task, reason).await;
        assert!(paused.stop().await.is_clean());
        let open = servers.worker(&Limit::new());
        task.wait(2 * HOUR).await.unwrap();
        assert!(open.stop().await.is_clean());
    }
}

#[tokio::test(start_paused = true)]
async fn what_runs_goes_on_when_its_limit_is_lowered_and_nothing_starts_until_it_fits() {
    let servers = servers().await;
    let worker = servers.worker(&Limit::new().max_running(3));
    let mut tasks = Vec::new();
    for _ in 0..6 {
        tasks.push(servers.send("a", 5000).await);
    }
    until(async || servers.seen.of("a").1.len() >= 3).await;
    let target = LimitTarget::parse("task:call").unwrap();
    servers.app.client().set_limit(&target, &Limit::new().max_running(1)).await.unwrap();
    for task in &tasks {
        started_at(task).await;
    }
    let (most, mut starts) = servers.seen.of("a");
    starts.sort_unstable();
    assert_eq!((most, starts.len()), (3, 6));
    // One after the other, and the first of them when the last of the three has ended.
    for pair in starts[2..].windows(2) {
        assert!(pair[1] - pair[0] >= Duration::from_secs(5), "{starts:?}");
    }
    assert!(worker.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_queue_has_a_limit_for_all_its_tasks() {
    let servers = servers().await;
    let builder = servers.builder(Limit::new()).limit_queue("default", rate("1/s"));
    let worker = Running::start(builder);
    let client = servers.app.client();
    let mut others = Vec::new();
    for _ in 0..3 {
        others.push(client.send(OTHER.call(())).await.unwrap());
    }
    let call = servers.send("a", 0).await;
    let mut starts = vec![started_at(&call).await];
    for other in &others {
        starts.push(started_at(other).await);
    }
    starts.sort_unstable();
    assert!(starts.windows(2).all(|pair| pair[1].since(pair[0]) >= Duration::from_millis(995)), "{starts:?}");
    assert!(worker.stop().await.is_clean());
}

/// Asks for a pause the first time.
async fn busy_service(key: String, _millis: u64, State(seen): State<Seen>) -> Result<(), TaskError> {
    seen.begin(&key);
    if seen.of("first").1.len() == 1 && key == "first" {
        return Err(TaskError::rate_limited(Duration::from_secs(30)));
    }
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_service_that_asks_for_a_pause_gets_it_from_all_tasks_of_the_limit() {
    let servers = servers().await;
    let worker = Worker::builder(&servers.app)
        .state(servers.seen.clone())
        .task(CALL, busy_service)
        .options("call", TaskOptions::new().limit(rate("10/s")));
    let worker = Running::start(worker);
    let first = servers.send("first", 0).await;
    until(async || !servers.seen.of("first").1.is_empty()).await;
    sleep(Duration::from_millis(200)).await;
    let asked = servers.seen.of("first").1[0];
    let second = servers.send("second", 0).await;
    second.wait(HOUR).await.unwrap();
    first.wait(HOUR).await.unwrap();
    assert!(servers.seen.of("second").1[0] - asked >= Duration::from_millis(29_990));
    assert!(servers.seen.of("first").1[1] - asked >= Duration::from_millis(29_990));
    assert!(worker.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn tasks_that_know_their_start_already_wait_for_the_service_too_and_keep_their_order() {
    let servers = servers().await;
    let worker = || {
        let builder = Worker::builder(&servers.app)
            .concurrency(4)
            .state(servers.seen.clone())
            .task(CALL, busy_service)
            .options("call", TaskOptions::new().limit(rate("2/s")));
        Running::start(builder)
    };
    let workers = [worker(), worker()];
    let mut tasks = Vec::new();
    for number in 0..20 {
        tasks.push(servers.send(&format!("t{number}"), 0).await);
    }
    let first = servers.send("first", 0).await;
    for number in 0..20 {
        tasks.push(servers.send(&format!("u{number}"), 0).await);
    }
    for task in tasks.iter().chain([&first]) {
        task.wait(HOUR).await.unwrap();
    }
    let asked = servers.seen.of("first").1[0];
    let mut after: Vec<Instant> = ["t", "u"]
        .into_iter()
        .flat_map(|kind| (0..20).map(move |number| format!("{kind}{number}")))
        .flat_map(|key| servers.seen.of(&key).1)
        .filter(|start| *start > asked)
        .collect();
    after.sort_unstable();
    assert!(after.len() >= 15, "the tasks behind it had reserved their starts: {}", after.len());
    // What another worker knows is at most 100 ms old, and a start is at most 500 ms late.
    let early = after.iter().filter(|start| **start - asked < Duration::from_secs(29)).count();
    assert!(early <= 1, "{early} of them did not wait");
    assert!(after[early] - asked >= Duration::from_millis(29_990));
    let last = *after.last().unwrap() - after[early];
    assert!(last < Duration::from_secs(15), "they keep the distances that they had: {last:?}");
    for worker in workers {
        assert!(worker.stop().await.is_clean());
    }
}

#[tokio::test]
async fn a_wrong_limit_is_told_before_the_worker_starts() {
    let servers = servers().await;
    let error = servers.builder(Limit::new().burst(3)).build().unwrap_err().to_string();
    assert_eq!(
        error,
        "the limit of task:call is wrong: burst needs a rate, such as rate = \"5/s\"; add it, or leave burst out"
    );
    let error =
        servers.builder(Limit::new()).limit_queue("q", Limit::new().max_running(5000)).build().unwrap_err();
    assert!(error.to_string().contains("queue:q"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_limit_is_set_and_reset_while_workers_run() {
    let servers = servers().await;
    let worker = servers.worker(&Limit::new().max_running(3));
    let client = servers.app.client();
    let target = LimitTarget::parse("task:call").unwrap();
    client.set_limit(&target, &Limit::new().max_running(0)).await.unwrap();
    // Workers hear of it within a second.
    sleep(Duration::from_secs(1)).await;
    let task = servers.send("a", 0).await;
    waits_for(&task, "max_running:task:call").await;
    let known = client.limits().await.unwrap();
    assert_eq!((known.len(), known[0].source.as_str(), known[0].waiting), (1, "live", Some(1)));
    assert_eq!(client.reset_limit(&target, None).await.unwrap(), 1);
    task.wait(MINUTE).await.unwrap();
    let known = client.limit(&target, None).await.unwrap();
    assert_eq!((known[0].limit.to_string().as_str(), known[0].running), ("max_running=3", Some(0)));
    assert!(client.set_limit(&target, &Limit::new().burst(1)).await.is_err());
    assert!(worker.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn tasks_that_a_limit_of_zero_has_parked_start_when_it_is_raised() {
    for (zero, raised, reason, within) in [
        (Limit::new().max_running(0), Limit::new().max_running(4), "max_running:task:call", 3),
        (rate("0/s"), rate("10/s"), "rate:task:call", 8),
        (by_key(rate("0/s")), by_key(rate("10/s")), "rate:task:call:a", 65),
    ] {
        let servers = servers().await;
        let worker = servers.worker(&Limit::new().max_running(3));
        let client = servers.app.client();
        let target = LimitTarget::parse("task:call").unwrap();
        client.set_limit(&target, &zero).await.unwrap();
        sleep(Duration::from_secs(1)).await;
        let task = servers.send("a", 0).await;
        waits_for(&task, reason).await;
        // By now it would stay away for a quarter of an hour.
        sleep(Duration::from_secs(1000)).await;
        waits_for(&task, reason).await;
        let asked = Instant::now();
        client.set_limit(&target, &raised).await.unwrap();
        task.wait(HOUR).await.unwrap();
        assert!(asked.elapsed() < Duration::from_secs(within), "{reason}: {:?}", asked.elapsed());
        assert!(worker.stop().await.is_clean());
    }
}

#[tokio::test(start_paused = true)]
async fn a_raised_limit_lets_parked_tasks_start_at_once() {
    let target = LimitTarget::parse("task:call").unwrap();
    let servers = servers().await;
    let worker = servers.worker(&rate("1/m"));
    let client = servers.app.client();
    let mut tasks = Vec::new();
    for _ in 0..70 {
        tasks.push(servers.send("a", 0).await);
    }
    waits_for(&tasks[69], "rate:task:call").await;
    let asked = Instant::now();
    client.set_limit(&target, &rate("100/s")).await.unwrap();
    tasks.push(servers.send("a", 0).await);
    for task in &tasks {
        task.wait(HOUR).await.unwrap();
    }
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());

    client.set_limit(&target, &Limit::new().max_running(1)).await.unwrap();
    let long: Vec<_> = ["b", "c", "d"].map(|key| servers.send(key, 100_000)).into_iter().collect();
    let long = futures_util::future::join_all(long).await;
    let running = || async { servers.app.client().runs_under_limit(&target, None).await.unwrap().len() };
    until(async || running().await > 0).await;
    let asked = Instant::now();
    // Some are parked by now.
    sleep(Duration::from_secs(7)).await;
    client.set_limit(&target, &Limit::new().max_running(3)).await.unwrap();
    until(async || running().await >= 3).await;
    assert!(asked.elapsed() < Duration::from_secs(9), "{:?}", asked.elapsed());
    for task in &long {
        task.wait(HOUR).await.unwrap();
    }
    assert!(worker.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_is_set_releases_each_waiting_task_once_and_takes_no_more_starts_than_tasks() {
    let target = LimitTarget::parse("task:call").unwrap();
    let servers = servers().await;
    let worker = servers.worker(&rate("1/m"));
    let mut tasks = Vec::new();
    for _ in 0..250 {
        tasks.push(servers.send("a", 0).await);
    }
    // Sixty have a start within the hour. The others ask again when it is over.
    waits_for(&tasks[249], "rate:task:call").await;
    let (client, faster) = (servers.app.client(), rate("1/s"));
    let set = client.set_limit(&target, &faster);
    tokio::time::timeout(MINUTE, set).await.expect("tasks are parked again, and released again").unwrap();
    let asked = Instant::now();
    for task in &tasks {
        task.wait(HOUR).await.unwrap();
    }
    assert!(asked.elapsed() < 6 * MINUTE, "{:?}", asked.elapsed());
    assert!(worker.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_task_that_waits_longer_for_one_rate_does_not_use_a_lapsed_start_of_another() {
    let servers = servers().await;
    let worker = Running::start(servers.builder(rate("1/s")).limit_queue("default", rate("10/s")));
    // The queue has no start for half a minute.
    servers.app.client().send(OTHER.call(()).limit_cost(300)).await.unwrap().wait(MINUTE).await.unwrap();
    let mut tasks = Vec::new();
    for _ in 0..10 {
        tasks.push(servers.send("a", 0).await);
    }
    for task in &tasks {
        task.wait(HOUR).await.unwrap();
    }
    let (_, mut starts) = servers.seen.of("a");
    starts.sort_unstable();
    for (first, from) in starts.iter().enumerate() {
        for (last, to) in starts.iter().enumerate().skip(first) {
            let most = (*to - *from).as_secs_f64() + 0.6 + 3.0;
            assert!((last - first + 1) as f64 <= most, "{} in {:?}", last - first + 1, *to - *from);
        }
    }
    assert!(worker.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_late_task_takes_no_start_of_one_rate_before_another_one_grants_it_too() {
    let servers = servers().await;
    let worker = servers.builder(rate("5/s")).limit_queue("default", rate("1/s"));
    let worker = Running::start(worker.task(SLOW, slow).concurrency(1).queue("default").queue("slow"));
    let mut tasks = Vec::new();
    for _ in 0..5 {
        tasks.push(servers.send("a", 0).await);
    }
    reserved(&servers, &tasks[1..]).await;
    // All starts lapse while it has the slot.
    let slow = servers.app.client().send(SLOW.call((20_000,)).queue("slow")).await.unwrap();
    slow.wait(MINUTE).await.unwrap();
    let bucket = [RecordId::new(RecordKind::Limit, "rate/task:call")];
    let mut seen = std::collections::BTreeSet::new();
    while servers.seen.of("a").1.len() < 5 {
        let facts = servers.backend.read(&bucket).await.unwrap().pop().unwrap();
        seen.extend(facts.iter().map(|(_, reserved)| reserved.clone()));
        sleep(Duration::from_millis(1)).await;
    }
    assert!(seen.len() <= 5, "{} writes for four tasks", seen.len());
    assert!(worker.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_task_that_becomes_a_guard_before_it_has_a_slot_keeps_its_start() {
    let servers = servers().await;
    let options = TaskOptions::new().limit(by_key(rate("1/3s"))).concurrency(1);
    let worker = servers.builder(Limit::new()).options("call", options);
    let worker = Running::start(worker);
    let mut tasks = Vec::new();
    for _ in 0..12 {
        tasks.push(servers.send("a", 0).await);
    }
    reserved(&servers, &tasks[1..]).await;
    // The second task waits for the only slot for longer than a task may wait.
    servers.send("b", 12_000).await.wait(MINUTE).await.unwrap();
    let record = RecordId::from(tasks[1].id());
    let facts = servers.backend.read(&[record]).await.unwrap().pop().unwrap();
    assert!(facts.has("g:1:1") && !facts.has("pk"), "it is a guard, and not parked");
    let second = started_at(&tasks[1]).await;
    let last = started_at(&tasks[11]).await;
    assert!(second < last, "another start would be behind all others");
    assert!(worker.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn two_configurations_of_one_limit_count_together_each_by_its_own_numbers_and_a_live_one_wins() {
    let servers = servers().await;
    let workers = [
        servers.worker(&by_key(Limit::new().max_running(1))),
        servers.worker(&by_key(Limit::new().max_running(3))),
    ];
    let mut tasks = Vec::new();
    for _ in 0..40 {
        tasks.push(servers.send("a", 500).await);
    }
    for task in &tasks {
        started_at(task).await;
    }
    let (most, starts) = servers.seen.of("a");
    assert_eq!((most, starts.len()), (3, 40), "both count in one record, the larger number is the bound");
    let client = servers.app.client();
    let target = LimitTarget::parse("task:call").unwrap();
    let known = client.limit(&target, Some("a")).await.unwrap();
    assert!(known.len() == 2 && known.iter().all(|limit| limit.differs), "{known:?}");
    client.set_limit(&target, &by_key(Limit::new().max_running(2))).await.unwrap();
    let known = client.limit(&target, Some("a")).await.unwrap();
    assert!(known.iter().any(|limit| limit.source == "live"), "{known:?}");
    sleep(2 * Duration::from_secs(1)).await;
    for _ in 0..40 {
        tasks.push(servers.send("b", 500).await);
    }
    for task in &tasks[40..] {
        started_at(task).await;
    }
    assert_eq!(servers.seen.of("b").0, 2, "the live one holds for both workers");
    for worker in workers {
        assert!(worker.stop().await.is_clean());
    }
}
