//! The queues of one worker: which of their tasks get slots first and how many, and which queues a worker follows.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use crate::support::Running;
use machinist_core::{
    App, AsyncResult, Signature, State, TaskContext, TaskDef, TaskError, TaskId, WhyReason, Worker,
    WorkerAction, WorkerBuilder, WorkerChange, WorkerFilter, Workflow,
    broker::Broker,
    limit::Limit,
    worker::{BuildError, TaskOptions},
    workflow::StepPlan,
};
use machinist_memory::{MemoryBackend, MemoryBroker};
use tokio::time::{Instant, sleep};

/// Runs for so many milliseconds.
const WORK: TaskDef<u64, ()> = TaskDef::new("work");
const HEAVY: TaskDef<u64, ()> = TaskDef::new("heavy");
const HOUR: Duration = Duration::from_secs(3600);

/// Queues of the runs, in their order, and what ran at once.
#[derive(Debug, Clone, Default)]
struct Seen(Arc<Mutex<SeenRuns>>);

#[derive(Debug, Default)]
struct SeenRuns {
    order: Vec<String>,
    running: BTreeMap<String, usize>,
    most: BTreeMap<String, usize>,
}

impl Seen {
    fn begin(&self, what: &str) {
        let mut seen = self.0.lock().unwrap();
        let running = seen.running.entry(what.to_owned()).or_default();
        *running += 1;
        let running = *running;
        let most = seen.most.entry(what.to_owned()).or_default();
        *most = running.max(*most);
    }

    fn end(&self, what: &str) {
        *self.0.lock().unwrap().running.get_mut(what).unwrap() -= 1;
    }

    fn most(&self, what: &str) -> usize {
        self.0.lock().unwrap().most.get(what).copied().unwrap_or(0)
    }

    fn order(&self) -> Vec<String> {
        self.0.lock().unwrap().order.clone()
    }
}

async fn work(cx: TaskContext, State(seen): State<Seen>, millis: u64) -> Result<(), TaskError> {
    let queue = cx.queue().to_string();
    seen.0.lock().unwrap().order.push(queue.clone());
    seen.begin(&queue);
    sleep(Duration::from_millis(millis)).await;
    seen.end(&queue);
    Ok(())
}

async fn heavy(State(seen): State<Seen>, millis: u64) -> Result<(), TaskError> {
    seen.begin("heavy");
    sleep(Duration::from_millis(millis)).await;
    seen.end("heavy");
    Ok(())
}

/// Fails twice, and succeeds in its third attempt.
const FAIL_TWICE: TaskDef<(), ()> = TaskDef::new("fail_twice").requires(&["gpu"]).queue("render").retries(2);

async fn fail_twice(cx: TaskContext, State(seen): State<Seen>) -> Result<(), TaskError> {
    seen.0.lock().unwrap().order.push(cx.queue().to_string());
    if cx.attempt() < 3 { Err("not yet".into()) } else { Ok(()) }
}

struct House {
    app: App,
    broker: Arc<MemoryBroker>,
    seen: Seen,
}

impl House {
    async fn new() -> Self {
        let broker = Arc::new(MemoryBroker::new());
        let app = App::builder(broker.clone(), Arc::new(MemoryBackend::new())).build().await.unwrap();
        Self { app, broker, seen: Seen::default() }
    }

    fn builder(&self, queues: &[&str]) -> WorkerBuilder {
        let builder = Worker::builder(&self.app).concurrency(2).state(self.seen.clone());
        let builder = builder.task(WORK, work).task(HEAVY, heavy).task(FAIL_TWICE, fail_twice);
        queues.iter().fold(builder, |builder, queue| builder.queue(*queue))
    }

    async fn send(&self, queue: &str, number: usize, millis: u64) -> Vec<AsyncResult<()>> {
        let signatures = (0..number).map(|_| WORK.call(millis).queue(queue)).collect();
        self.app.client().send_all(signatures).await.into_iter().map(Result::unwrap).collect()
    }
}

async fn all_end(tasks: impl IntoIterator<Item = AsyncResult<()>>) {
    for task in tasks {
        task.wait(HOUR).await.unwrap();
        let record = task.record().await.unwrap();
        assert_eq!((record.attempt, record.history.len()), (1, 0), "a wait spends no attempt");
    }
}

#[tokio::test(start_paused = true)]
async fn queues_get_slots_by_their_weights() {
    let house = House::new().await;
    let mut tasks = Vec::new();
    for queue in ["critical", "default", "low"] {
        tasks.extend(house.send(queue, 100, 50).await);
    }
    let builder = house.builder(&["critical", "default", "low"]);
    let worker = Running::start(builder.queue_weight("critical", 6).queue_weight("default", 3));
    all_end(tasks).await;
    let order = house.seen.order();
    let number = |queue: &str| order[..100].iter().filter(|one| *one == queue).count();
    let numbers = [number("critical"), number("default"), number("low")];
    assert!(numbers[0].abs_diff(60) <= 5 && numbers[1].abs_diff(30) <= 5 && numbers[2] >= 5, "{numbers:?}");
    assert!(worker.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_strict_order_loses_nothing_of_the_queue_that_waits() {
    let house = House::new().await;
    let low = house.send("low", 20, 10).await;
    let critical = house.send("critical", 200, 1000).await;
    let builder = house.builder(&["critical", "low"]).queue_weight("critical", 2).strict_order(true);
    let worker = Running::start(builder);
    all_end(critical).await;
    // Slots that were free at the beginning may have gone to what was there.
    let early = house.seen.order()[..198].iter().filter(|queue| *queue == "low").count();
    assert!(early <= 2, "{early} tasks of the lower queue ran before");
    // They waited for minutes, as copies that come back.
    all_end(low).await;
    let queues = ["low", "critical"].map(|queue| queue.try_into().unwrap());
    let depths = house.broker.depth(&queues).await.unwrap();
    assert!(depths.iter().all(|depth| depth.dead.unwrap_or(0) == 0), "{depths:?}");
    assert_eq!(house.seen.order().len(), 220);
    assert!(worker.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_slow_queue_leaves_slots_to_a_quick_one_and_a_heavy_task_to_others() {
    let house = House::new().await;
    let slow = house.send("slow", 20, 60_000).await;
    let heavy: Vec<_> = (0..20).map(|_| HEAVY.call(1000).queue("quick")).collect();
    let heavy = house.app.client().send_all(heavy).await.into_iter().map(Result::unwrap);
    let heavy: Vec<AsyncResult<()>> = heavy.collect();
    let builder = house
        .builder(&["slow", "quick"])
        .concurrency(4)
        .queue_concurrency("slow", 2)
        .options("heavy", TaskOptions::new().concurrency(1));
    let worker = Running::start(builder);
    sleep(Duration::from_secs(1)).await;
    let before = Instant::now();
    all_end(house.send("quick", 20, 10).await).await;
    assert!(before.elapsed() < Duration::from_secs(30), "{:?}", before.elapsed());
    all_end(heavy).await;
    all_end(slow).await;
    assert_eq!((house.seen.most("slow"), house.seen.most("heavy")), (2, 1));
    assert!(worker.stop().await.is_clean());
}

impl House {
    /// Waits until no worker follows one of these queues, or until some worker follows each of them.
    async fn followed(&self, queues: &[&str], followed: bool) {
        let client = self.app.client();
        let come = async {
            loop {
                let workers = client.workers(&WorkerFilter::new()).await.unwrap();
                let has =
                    |queue: &&str| workers.iter().any(|worker| worker.queues.iter().any(|own| own == queue));
                if queues.iter().all(|queue| has(queue) == followed) {
                    return;
                }
                sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(HOUR, come).await.expect("the worker follows");
    }

    async fn change(&self, add: &[&str], drop: &[&str]) -> Option<String> {
        let mut change = WorkerChange::default();
        change.add_queues = add.iter().map(|queue| (*queue).try_into().unwrap()).collect();
        change.drop_queues = drop.iter().map(|queue| (*queue).try_into().unwrap()).collect();
        let client = self.app.client();
        let workers = client.workers(&WorkerFilter::new()).await.unwrap();
        let (_, results) = client.order_workers(&workers, WorkerAction::Set(change), false).await.unwrap();
        results[0].reason.clone()
    }

    async fn reason(&self, id: &TaskId) -> WhyReason {
        self.app.client().why(id).await.unwrap().reason
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_follows_the_queues_that_its_pattern_fits_as_they_appear() {
    let house = House::new().await;
    let first = house.send("tenant-a", 2, 10).await;
    let worker = Running::start(house.builder(&["tenant-*"]));
    all_end(first).await;
    // A queue that is used for the first time, and one that does not fit.
    let other = house.send("other", 1, 10).await;
    all_end(
        house.send("tenant.b", 1, 10).await.into_iter().chain(house.send("tenant-b", 1, 10).await).skip(1),
    )
    .await;
    assert_eq!(house.reason(other[0].id()).await, WhyReason::NoConsumer);
    assert_eq!(house.change(&["other"], &[]).await, None);
    all_end(other).await;
    let refused = house.change(&[], &["tenant-a"]).await.unwrap();
    assert!(refused.contains("tenant-*"), "{refused}");
    assert_eq!(house.change(&[], &["tenant-*"]).await, None);
    house.followed(&["tenant-a", "tenant-b"], false).await;
    assert!(worker.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_paused_queue_is_not_taken_from_though_it_is_followed() {
    let house = House::new().await;
    let client = house.app.client();
    client.pause_queue(&"tenant-a".try_into().unwrap()).await.unwrap();
    let paused = house.send("tenant-a", 1, 10).await;
    let worker = Running::start(house.builder(&["*"]));
    all_end(house.send("tenant-b", 1, 10).await).await;
    assert_eq!(house.reason(paused[0].id()).await, WhyReason::Paused);
    client.resume_queue(&"tenant-a".try_into().unwrap()).await.unwrap();
    all_end(paused).await;
    assert!(worker.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_task_that_requires_tags_waits_for_a_worker_that_has_them() {
    let house = House::new().await;
    let client = house.app.client();
    let plain = Running::start(house.builder(&["render", "*"]).tags(["big"]));
    let work = || WORK.call(10).queue("render").requires(["zone:eu", "gpu"]);
    let task = client.send(work()).await.unwrap();
    house.followed(&["render"], true).await;
    sleep(Duration::from_secs(30)).await;
    let why = client.why(task.id()).await.unwrap();
    assert_eq!(why.reason, WhyReason::NoTag);
    assert!(why.sentence.contains("lacks gpu, zone:eu"), "{}", why.sentence);
    assert!(why.advice.contains("--queue render --tag gpu --tag zone:eu"), "{}", why.advice);
    let tagged = Running::start(house.builder(&["render"]).tags(["gpu", "zone:eu", "big"]));
    task.wait(HOUR).await.unwrap();
    assert_eq!(task.record().await.unwrap().queue.as_deref(), Some("render+gpu+zone:eu"));
    // Retries, delays and steps keep the tags.
    client.send(FAIL_TWICE.call(())).await.unwrap().wait(HOUR).await.unwrap();
    client.send(work().countdown(Duration::from_secs(20))).await.unwrap().wait(HOUR).await.unwrap();
    let first = StepPlan::new("first", Signature::new("work").arg(1).queue("render"));
    let second = StepPlan::new("second", work()).after(["first"]).immutable();
    client.send(Workflow::of_steps(vec![first, second]).unwrap()).await.unwrap().wait(HOUR).await.unwrap();
    let order = house.seen.order();
    assert_eq!(order.iter().filter(|queue| *queue == "render+gpu").count(), 3, "{order:?}");
    assert_eq!(order.iter().filter(|queue| *queue == "render+gpu+zone:eu").count(), 3, "{order:?}");
    assert!(plain.stop().await.is_clean() && tagged.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn tasks_that_require_tags_are_tasks_of_their_queue() {
    let house = House::new().await;
    let client = house.app.client();
    let builder = house.builder(&["render"]).concurrency(8).tags(["gpu"]);
    let worker = Running::start(builder.limit_queue("render", Limit::new().max_running(1)));
    let work = |tags: &[&str]| WORK.call(1000).queue("render").requires(tags.iter().copied());
    let all = client.send_all((0..6).map(|one| work(&["gpu"][one % 2..])).collect()).await;
    all_end(all.into_iter().map(Result::unwrap)).await;
    assert!(house.seen.most("render") <= 1 && house.seen.most("render+gpu") <= 1);
    client.pause_queue(&"render".try_into().unwrap()).await.unwrap();
    let task = client.send(work(&["gpu"])).await.unwrap();
    assert_eq!(house.reason(task.id()).await, WhyReason::Paused);
    client.resume_queue(&"render".try_into().unwrap()).await.unwrap();
    task.wait(HOUR).await.unwrap();
    let wrong = client.send(work(&["GPU"])).await.unwrap_err().to_string();
    assert!(wrong.contains("\"GPU\""), "{wrong}");
    assert!(worker.stop().await.is_clean());
}

#[tokio::test]
async fn a_share_of_nothing_is_told_before_the_worker_starts() {
    let house = House::new().await;
    let builder = || house.builder(&["a"]);
    for wrong in [
        builder().queue_weight("a", 0),
        builder().queue_concurrency("a", 0),
        builder().options("work", TaskOptions::new().concurrency(0)),
    ] {
        assert!(matches!(wrong.build().unwrap_err(), BuildError::Zero(_)));
    }
}
