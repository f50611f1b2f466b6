//! Shares of the keys of a queue: a backlog of one key does not delay the few tasks of another.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use machinist_core::{
    App, FairShare, QueueName, Signature, State, TaskDef, TaskError, Worker,
    limit::{LimitKey, Rate},
    wait_all,
};
use machinist_memory::{MemoryBackend, MemoryBroker};
use tokio::time::Instant;

const WORK: TaskDef<(String,), ()> = TaskDef::new("work");
const MINUTE: Duration = Duration::from_secs(60);

/// The tenants whose tasks ran, in their order.
type Ran = Arc<Mutex<Vec<String>>>;

async fn work(State(ran): State<Ran>, tenant: String) -> Result<(), TaskError> {
    tokio::time::sleep(Duration::from_millis(100)).await;
    ran.lock().unwrap().push(tenant);
    Ok(())
}

async fn app(rate: &str, burst: u32) -> App {
    let share = FairShare::by(LimitKey::template("{0}").unwrap());
    let share = FairShare { rate: Rate::parse(rate).unwrap(), burst, ..share };
    let builder = App::builder(Arc::new(MemoryBroker::new()), Arc::new(MemoryBackend::new()));
    builder.fair_queue("default".try_into().unwrap(), share).build().await.unwrap()
}

fn call(tenant: &str) -> Signature<()> {
    WORK.call((tenant.to_owned(),))
}

async fn depths(app: &App) -> [u64; 2] {
    let queues = ["default+fair:share", "default"].map(|name| QueueName::parse(name).unwrap());
    let depths = app.broker().depth(&queues).await.unwrap();
    [depths[0].ready.unwrap_or(0), depths[1].ready.unwrap_or(0)]
}

#[tokio::test(start_paused = true)]
async fn one_tenant_with_a_backlog_does_not_delay_another() {
    let app = app("1/s", 10).await;
    let client = app.client();
    let many = client.send_all((0..1000).map(|_| call("many")).collect()).await;
    assert_eq!(depths(&app).await, [10, 990]);
    let ran = Ran::default();
    let worker = Worker::builder(&app).concurrency(2).task(WORK, work).state(ran.clone()).build().unwrap();
    let ready = worker.ready();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(worker.run_until(async { drop(stopped.await) }));
    ready.cancelled().await;
    let mut longest = Duration::ZERO;
    for _ in 0..20 {
        let sent = Instant::now();
        client.send(call("few")).await.unwrap().wait(MINUTE).await.unwrap();
        longest = longest.max(sent.elapsed());
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(ran.lock().unwrap().len() < 600, "the backlog was there all the time");
    // The share of the other, and what the worker had taken before.
    assert!(longest < Duration::from_secs(3), "{longest:?}");
    let many: Vec<_> = many.into_iter().map(Result::unwrap).collect();
    wait_all(&many, 10 * MINUTE).await.into_iter().for_each(|ended| ended.unwrap());
    assert_eq!(ran.lock().unwrap().len(), 1020);
    drop(stop);
    running.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_key_of_the_sender_goes_before_that_of_the_arguments() {
    let app = app("1/h", 2).await;
    let client = app.client();
    for tenant in ["a", "b", "c"] {
        client.send(call(tenant).fair_key("one")).await.unwrap();
    }
    assert_eq!(depths(&app).await, [2, 1]);
    let sent = client.send(call("d")).await.unwrap();
    assert_eq!(sent.queue().map(QueueName::as_str), Some("default+fair:share"));
}
