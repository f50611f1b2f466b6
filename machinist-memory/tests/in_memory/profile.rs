//! A queue whose messages have the format of another program: consumed, retried, sent to and replayed in that format.

use std::{
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use machinist_core::{
    App, AppBuilder, Arg, Backoff, DeadFilter, Followed, Mirror, MirroredOutcome, MirroredState,
    MirroredTask, OwedMessage, PassingState, Profile, ProfileError, QueueOptions, SentGroup, SentTask,
    Signature, State, TaskContext, TaskDef, TaskError, TaskId, TaskMessage, Worker,
    backend::BackendError,
    broker::{Broker, Consume, Delivery, HeaderValue, Message, Publish, Settle, Target},
    id::QueueName,
    record::TaskState,
    sign::{Algorithm, Key, Keyring},
    worker::TaskOptions,
};
use machinist_memory::{MemoryBackend, MemoryBroker};
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::field::{Field, Visit};
use tracing_subscriber::{
    Layer,
    layer::{Context, SubscriberExt},
};

use crate::support::Running;

const SOON: Duration = Duration::from_secs(60);

/// The whole profile of a format that a program in another language might have: `{"task", "uuid", "positional"}`.
#[derive(Debug)]
struct Tiny;

impl Profile for Tiny {
    fn name(&self) -> &str {
        "tiny"
    }

    fn read(&self, message: &Message) -> Result<TaskMessage, ProfileError> {
        let wrong = |what: &str| ProfileError::Malformed(what.to_owned());
        if message.headers.get("tiny").is_some_and(|version| version.as_int() > Some(1)) {
            return Err(ProfileError::Newer("a newer tiny".to_owned()));
        }
        let body: Value = serde_json::from_slice(&message.body).map_err(|e| wrong(&e.to_string()))?;
        if body.get("task").is_some() && body.get("uuid").is_none() {
            return Err(ProfileError::Unidentified);
        }
        let text = |field: &str| body[field].as_str().ok_or_else(|| wrong(field));
        let id = text("uuid")?.try_into().map_err(|_| wrong("uuid"))?;
        let name = text("task")?.try_into().map_err(|_| wrong("task"))?;
        let mut task = TaskMessage::new(id, name);
        let args = body["positional"].as_array().ok_or_else(|| wrong("positional"))?;
        task.args = args.iter().cloned().map(Arg::from_value).collect();
        Ok(task)
    }

    fn write(&self, task: &TaskMessage, source: Option<&Message>) -> Result<Message, ProfileError> {
        if task.args.iter().any(|arg| !arg.name.is_empty()) {
            return Err(ProfileError::Inexpressible("tiny has no named arguments".to_owned()));
        }
        let mut message = source.cloned().unwrap_or_default();
        let mut body =
            source.map_or_else(|| json!({}), |source| serde_json::from_slice(&source.body).unwrap());
        body["uuid"] = task.id.as_str().into();
        body["task"] = task.name.as_str().into();
        body["positional"] = task.args.iter().map(|arg| arg.value.clone()).collect();
        message.body = serde_json::to_vec(&body).unwrap().into();
        Ok(message)
    }

    fn identify(&self, message: &Message, id: &TaskId) -> Option<Message> {
        let mut body: Value = serde_json::from_slice(&message.body).ok()?;
        body["uuid"] = format!("tiny-{id}").into();
        Some(Message { body: serde_json::to_vec(&body).ok()?.into(), ..message.clone() })
    }
}

/// What the handler saw: attempt, fencing token, argument.
type Seen = Arc<Mutex<Vec<(u32, u64, i64)>>>;

const FLAKY: TaskDef<(i64,), i64> = TaskDef::new("tiny.flaky");

async fn flaky(State(seen): State<Seen>, cx: TaskContext, number: i64) -> Result<i64, TaskError> {
    seen.lock().unwrap().push((cx.attempt(), cx.fencing_token(), number));
    if number < 0 || cx.attempt() == 1 { Err("the first time")? } else { Ok(2 * number) }
}

fn foreign() -> QueueName {
    "foreign".try_into().unwrap()
}

struct House {
    broker: MemoryBroker,
    backend: Arc<MemoryBackend>,
    seen: Seen,
}

impl House {
    fn new() -> Self {
        Self { broker: MemoryBroker::new(), backend: Arc::new(MemoryBackend::new()), seen: Seen::default() }
    }

    /// An application with a key, to whose queue `foreign` another program publishes.
    fn builder(&self, key: impl Into<Keyring>) -> AppBuilder {
        App::builder(Arc::new(self.broker.clone()), Arc::clone(&self.backend) as _).keyring(key)
    }

    async fn app(&self) -> App {
        let key = Key::generate(Algorithm::HmacSha256, "k").unwrap();
        let options = QueueOptions::default().profile(Tiny).allow_unsigned(["tiny.*"]);
        self.builder(key).queue(foreign(), options).build().await.unwrap()
    }

    fn work(&self, app: &App, retries: u32) -> CancellationToken {
        let stop = CancellationToken::new();
        let worker = Worker::builder(app)
            .queue("foreign")
            .queue("default")
            .task(FLAKY, flaky)
            // Long enough for the test to stop the worker before the next attempt.
            .options(
                "tiny.flaky",
                TaskOptions::new().retries(retries).backoff(Backoff::fixed(Duration::from_secs(10))),
            )
            .state(Arc::clone(&self.seen))
            .build()
            .unwrap();
        let until = stop.clone().cancelled_owned();
        tokio::spawn(async move { worker.run_until(until).await.unwrap() });
        stop
    }

    async fn publish(&self, message: Message) {
        let publish = Publish { target: Target::Queue(foreign()), message, delay: Duration::ZERO };
        self.broker.publish(vec![publish]).await.remove(0).unwrap();
    }

    async fn take(&self) -> Message {
        let what = Consume { queues: vec![foreign()], prefetch: 1 };
        let mut consumer = self.broker.consume(what).await.unwrap();
        let Delivery { message, receipt, .. } =
            tokio::time::timeout(Duration::from_secs(7200), consumer.next()).await.unwrap().unwrap();
        receipt.settle(Settle::Ack).await;
        consumer.stop().await;
        message
    }

    async fn dead(&self, count: usize) -> Vec<Message> {
        for _ in 0..7200 {
            let letters = self.broker.dead_letters(&foreign());
            if letters.len() >= count {
                return letters;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        panic!("there are not so many dead letters")
    }
}

fn tiny(id: &str, task: &str, number: i64) -> Message {
    let body = json!({"uuid": id, "task": task, "positional": [number], "extra": {"kept": true}});
    let mut message = Message { body: body.to_string().into(), ..Message::default() };
    message.correlation_id = Some("theirs".to_owned());
    message.headers.insert("theirs".into(), HeaderValue::List(vec![HeaderValue::Null]));
    message
}

fn body(message: &Message) -> Value {
    serde_json::from_slice(&message.body).unwrap()
}

fn reason(letter: &Message) -> &str {
    letter.headers["machinist-dead-reason"].as_text().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_foreign_message_runs_is_retried_in_its_format_and_succeeds() {
    let house = House::new();
    let app = house.app().await;
    house.publish(tiny("t-1", "tiny.flaky", 21)).await;
    let stop = house.work(&app, 3);
    let result = app.client().result("t-1".try_into().unwrap()).typed::<i64>();
    while house.seen.lock().unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    stop.cancel();
    // The next attempt, as any program finds it in the queue.
    let retry = house.take().await;
    assert_eq!(body(&retry), body(&tiny("t-1", "tiny.flaky", 21)), "with what a task has no place for");
    assert_eq!(retry.correlation_id.as_deref(), Some("theirs"));
    assert_eq!(retry.headers["theirs"], HeaderValue::List(vec![HeaderValue::Null]));
    assert_eq!(retry.headers["machinist-attempt"].as_int(), Some(2));
    assert_eq!(retry.headers["machinist-retries"].as_int(), Some(1));
    assert!(retry.headers["machinist-token"].as_int() > Some(0));
    assert!(!retry.headers.contains_key("machinist-signature"), "nobody vouches for it");

    house.publish(retry).await;
    house.work(&app, 3);
    assert_eq!(result.wait(SOON).await.unwrap(), 42);
    let record = result.record().await.unwrap();
    assert_eq!((record.state, record.name.as_deref()), (TaskState::Success, Some("tiny.flaky")));
    let seen = house.seen.lock().unwrap().clone();
    let attempts: Vec<_> = seen.iter().map(|(attempt, _, number)| (*attempt, *number)).collect();
    assert_eq!(attempts, [(1, 21), (2, 21)]);
    assert!(seen[0].1 < seen[1].1, "the fencing token grows");
}

#[tokio::test(start_paused = true)]
async fn a_task_is_sent_to_a_foreign_queue_in_its_format_and_comes_back() {
    let house = House::new();
    let app = house.app().await;
    let call = FLAKY.call((4,)).queue("foreign");
    let sent = app.client().send(call).await.unwrap();
    let message = house.take().await;
    let expected = json!({"uuid": sent.id().as_str(), "task": "tiny.flaky", "positional": [4]});
    assert_eq!(body(&message), expected);
    assert!(!message.headers.contains_key("machinist-signature"));
    house.publish(message).await;
    house.work(&app, 3);
    assert_eq!(sent.wait(SOON).await.unwrap(), 8);

    let named = Signature::new("tiny.flaky").named_arg("x", 1).queue("foreign");
    let refused = app.client().send(named).await.unwrap_err();
    assert!(!refused.is_unknown());
    let refused = format!("{:?}", refused);
    assert!(refused.contains("cannot be written as tiny: tiny has no named arguments"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn only_listed_tasks_of_the_right_format_and_queue_run() {
    let house = House::new();
    let app = house.app().await;
    house.work(&app, 0);
    let unlisted = tiny("t-1", "evil", 1);
    let mut elsewhere = tiny("t-2", "tiny.flaky", 1);
    elsewhere.headers.insert("machinist-queue".into(), "other".into());
    let garbage = Message { body: "{".into(), ..Message::default() };
    for (count, (message, why)) in
        [(unlisted, "not-allowed"), (elsewhere, "wrong-queue"), (garbage, "undecodable")]
            .into_iter()
            .enumerate()
    {
        house.publish(message).await;
        let letters = house.dead(count + 1).await;
        assert_eq!(reason(letters.last().unwrap()), why);
    }
    assert!(house.seen.lock().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_shared_queue_holds_no_guards_and_keeps_tasks_of_others() {
    let house = House::new();
    let key = Key::generate(Algorithm::HmacSha256, "k").unwrap();
    let options = QueueOptions::default().profile(Tiny).allow_unsigned(["tiny.*"]).shared();
    let app = house.builder(key).queue(foreign(), options).build().await.unwrap();
    // Longer than a broker lets a delivery be held: a guard takes its place meanwhile.
    let slow: TaskDef<(i64,), i64> = TaskDef::new("tiny.slow");
    let worker = Worker::builder(&app).queue("foreign").task(slow, |number: i64| async move {
        tokio::time::sleep(Duration::from_secs(1200)).await;
        Ok::<_, TaskError>(number)
    });
    let worker = worker.build().unwrap();
    let stop = CancellationToken::new();
    tokio::spawn(worker.run_until(stop.clone().cancelled_owned()));
    house.publish(tiny("t-1", "tiny.slow", 5)).await;
    let result = app.client().result("t-1".try_into().unwrap()).typed::<i64>();
    result.changed(None, SOON).await.unwrap();
    // A worker of the other program beside ours would run a guard.
    let mut theirs = house.broker.consume(Consume { queues: vec![foreign()], prefetch: 1 }).await.unwrap();
    let taken = tokio::time::timeout(Duration::from_secs(1100), theirs.next()).await;
    assert!(taken.is_err(), "{taken:?}");
    theirs.stop().await;
    drop(theirs);
    assert_eq!(result.wait(Duration::from_secs(3600)).await.unwrap(), 5);

    // Longer than a task of ours may be unknown.
    house.publish(tiny("t-2", "theirs", 1)).await;
    tokio::time::sleep(Duration::from_secs(4500)).await;
    assert!(house.broker.dead_letters(&foreign()).is_empty(), "it is for the other program");
    stop.cancel();
    let theirs = house.take().await;
    assert_eq!((&body(&theirs)["uuid"], &body(&theirs)["task"]), (&json!("t-2"), &json!("theirs")));
}

/// The ids that were logged.
#[derive(Debug, Clone, Default)]
struct LoggedIds(Arc<Mutex<Vec<String>>>);

impl<S: tracing::Subscriber> Layer<S> for LoggedIds {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        struct Id<'a>(&'a LoggedIds);
        impl Visit for Id<'_> {
            fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
                if field.name() == "id" {
                    self.0.0.lock().unwrap().push(format!("{value:?}"));
                }
            }
        }
        event.record(&mut Id(self));
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_without_an_id_is_logged_with_the_id_under_which_it_runs() {
    let logged = LoggedIds::default();
    let subscriber = tracing_subscriber::registry().with(logged.clone());
    let _guard = tracing::subscriber::set_default(subscriber);
    let house = House::new();
    let app = house.app().await;
    house.work(&app, 3);
    let nameless = json!({"task": "tiny.flaky", "positional": [21]}).to_string();
    house.publish(Message { body: nameless.into(), ..Message::default() }).await;
    while house.seen.lock().unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let id = logged.0.lock().unwrap()[0].clone();
    assert!(id.starts_with("tiny-"), "{id}");
    let result = app.client().result(id.as_str().try_into().unwrap()).typed::<i64>();
    assert_eq!(result.wait(SOON).await.unwrap(), 42);
}

/// The store of another program, which gives these answers, the last one first, and then owes nothing.
#[derive(Debug, Clone, Default)]
struct Store {
    answers: Arc<Mutex<Vec<Followed>>>,
    /// Answers about tasks that come again.
    since: Arc<Mutex<Vec<Followed>>>,
    /// What was to be shown.
    shown: Arc<Mutex<Vec<String>>>,
    /// The tasks of which a state that passes was to be shown.
    passing: Arc<Mutex<Vec<(String, PassingState)>>>,
}

impl Store {
    /// An application whose queue has this store, and a worker of it.
    async fn work(&self, house: &House) -> (App, CancellationToken) {
        let options = QueueOptions::default().profile(Tiny).allow_unsigned(["tiny.*"]).shared();
        let key = Key::generate(Algorithm::HmacSha256, "k").unwrap();
        let app = house.builder(key).queue(foreign(), options.mirror(self.clone())).build().await.unwrap();
        let slow: TaskDef<(i64,), i64> = TaskDef::new("tiny.slow");
        let worker = Worker::builder(&app).queue("foreign").state(Arc::clone(&house.seen));
        let worker = worker.task(FLAKY, flaky).task(slow, |seconds: i64| async move {
            tokio::time::sleep(Duration::from_secs(seconds.unsigned_abs())).await;
            Err::<i64, _>(TaskError::permanent("slow"))
        });
        let worker = worker.options("tiny.flaky", TaskOptions::new().retries(0)).build().unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(worker.run_until(stop.clone().cancelled_owned()));
        (app, stop)
    }

    fn note(&self, how: &str, task: &MirroredTask, outcome: MirroredOutcome<'_>) {
        let outcome = match outcome {
            MirroredOutcome::Success(_) => "success",
            MirroredOutcome::Failure(error) => error,
            _ => "retry",
        };
        self.shown.lock().unwrap().push(format!("{how} {}: {outcome}", task.id));
    }

    /// Waits until so many outcomes were to be shown.
    async fn shown(&self, count: usize) -> Vec<String> {
        let all = async {
            while self.shown.lock().unwrap().len() < count {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(3600), all).await.unwrap();
        self.shown.lock().unwrap().clone()
    }
}

#[async_trait]
impl Mirror for Store {
    async fn show(&self, task: &MirroredTask, state: PassingState) {
        self.passing.lock().unwrap().push((task.id.to_string(), state));
    }

    async fn owed_since(
        &self,
        task: &MirroredTask,
        outcome: MirroredOutcome<'_>,
    ) -> Result<Followed, BackendError> {
        assert!(task.followed);
        self.note("since", task, outcome);
        Ok(self.since.lock().unwrap().pop().unwrap_or(Followed::Owes(Vec::new())))
    }

    async fn follow(
        &self,
        task: &MirroredTask,
        outcome: MirroredOutcome<'_>,
    ) -> Result<Followed, BackendError> {
        self.note("followed", task, outcome);
        Ok(self.answers.lock().unwrap().pop().unwrap_or(Followed::Owes(Vec::new())))
    }

    async fn show_again(
        &self,
        task: &MirroredTask,
        outcome: MirroredOutcome<'_>,
    ) -> Result<(), BackendError> {
        self.note("again", task, outcome);
        Ok(())
    }

    async fn sending(&self, _: &[SentTask], _: &[SentGroup]) -> Result<(), BackendError> {
        Ok(())
    }

    async fn not_sent(&self, _: &[SentTask]) -> Result<(), BackendError> {
        Ok(())
    }

    async fn states(&self, ids: &[TaskId]) -> Result<Vec<Option<MirroredState>>, BackendError> {
        Ok(vec![None; ids.len()])
    }
}

#[tokio::test(start_paused = true)]
async fn what_follows_later_is_asked_for_by_a_guard_and_keeps_no_slot() {
    let (house, store) = (House::new(), Store::default());
    store.answers.lock().unwrap().push(Followed::Later);
    let options = QueueOptions::default().profile(Tiny).allow_unsigned(["tiny.*"]).shared();
    let key = Key::generate(Algorithm::HmacSha256, "k").unwrap();
    let app = house.builder(key).queue(foreign(), options.mirror(store.clone())).build().await.unwrap();
    let double: TaskDef<(i64,), i64> = TaskDef::new("tiny.double");
    let worker = Worker::builder(&app).queue("foreign").concurrency(1);
    let running =
        Running::start(worker.task(double, |number: i64| async move { Ok::<_, TaskError>(2 * number) }));
    let begun = Instant::now();
    house.publish(tiny("t-1", "tiny.double", 1)).await;
    store.shown(1).await;
    house.publish(tiny("t-2", "tiny.double", 2)).await;
    let shown = store.shown(2).await;
    assert_eq!(shown, ["followed t-1: success", "followed t-2: success"]);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(store.shown(3).await[2], "followed t-1: success");
    assert!(running.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn an_end_is_shown_again_when_its_message_comes_again() {
    let (house, store) = (House::new(), Store::default());
    let _worker = store.work(&house).await;
    house.publish(tiny("t-1", "tiny.flaky", -1)).await;
    house.dead(1).await;
    // The record tells that the dead letter was published.
    tokio::time::sleep(SOON).await;
    house.publish(tiny("t-1", "tiny.flaky", -1)).await;
    let shown = store.shown(3).await;
    let the_first_time = ["followed", "again", "since"].map(|how| format!("{how} t-1: the first time"));
    assert_eq!(shown, the_first_time);
    assert_eq!(house.dead(1).await.len(), 1, "nothing follows again");
}

#[tokio::test(start_paused = true)]
async fn a_guard_shows_no_end_again_and_hides_none() {
    let (house, store) = (House::new(), Store::default());
    let _worker = store.work(&house).await;
    // Longer than a broker lets a delivery be held: a guard takes its place meanwhile.
    house.publish(tiny("t-1", "tiny.slow", 1200)).await;
    house.dead(1).await;
    assert_eq!(store.shown(2).await, ["followed t-1: slow", "since t-1: slow"], "by the guard");
    // The other program had the first message in its hands, although a newer guard is known.
    house.publish(tiny("t-1", "tiny.slow", 1200)).await;
    assert_eq!(store.shown(4).await[2..], ["again t-1: slow", "since t-1: slow"]);
}

#[tokio::test(start_paused = true)]
async fn what_a_task_owes_since_is_published_once_and_under_a_guard() {
    let (house, store) = (House::new(), Store::default());
    let _worker = store.work(&house).await;
    let message = tiny("t-9", "tiny.flaky", -1);
    let owed = OwedMessage { message, queue: Ok(foreign()), delay: Duration::ZERO };
    house.publish(tiny("t-1", "tiny.flaky", -1)).await;
    house.dead(1).await;
    tokio::time::sleep(SOON).await;
    *store.since.lock().unwrap() = vec![Followed::Owes(vec![owed]), Followed::NeedsGuard, Followed::Later];
    house.publish(tiny("t-1", "tiny.flaky", -1)).await;
    let the_first_time = |shown: &[&str]| -> Vec<String> {
        shown.iter().map(|shown| format!("{shown}: the first time")).collect()
    };
    let shown = store.shown(3).await;
    assert_eq!(shown, the_first_time(&["followed t-1", "again t-1", "since t-1"]), "it says later");
    house.publish(tiny("t-1", "tiny.flaky", -1)).await;
    house.dead(2).await;
    let shown = store.shown(7).await;
    let expected = ["again t-1", "since t-1", "since t-1", "followed t-9"];
    assert_eq!(shown[3..], the_first_time(&expected), "under a guard, and then it is published");
    // The guards come back.
    tokio::time::sleep(Duration::from_secs(3600)).await;
    house.publish(tiny("t-1", "tiny.flaky", -1)).await;
    assert_eq!(store.shown(8).await[7..], the_first_time(&["again t-1"]), "nobody asks any more");
    tokio::time::sleep(SOON).await;
    assert_eq!((store.shown(8).await.len(), house.dead(2).await.len()), (8, 2));
}

#[tokio::test(start_paused = true)]
async fn a_run_that_ends_at_once_is_not_shown_to_have_started() {
    let (house, store) = (House::new(), Store::default());
    let _worker = store.work(&house).await;
    house.publish(tiny("t-1", "tiny.flaky", -1)).await;
    house.dead(1).await;
    house.publish(tiny("t-2", "tiny.slow", 10)).await;
    house.dead(2).await;
    assert_eq!(*store.passing.lock().unwrap(), [("t-2".to_owned(), PassingState::Started)]);
}

#[tokio::test(start_paused = true)]
async fn a_newer_foreign_message_waits_for_a_newer_worker() {
    let house = House::new();
    let app = house.app().await;
    house.work(&app, 0);
    let mut newer = tiny("t-1", "tiny.flaky", 1);
    newer.headers.insert("tiny".into(), 2.into());
    house.publish(newer).await;
    tokio::time::sleep(Duration::from_secs(1800)).await;
    assert!(house.broker.dead_letters(&foreign()).is_empty());
    assert_eq!(reason(&house.dead(1).await[0]), "undecodable");
}

#[tokio::test(start_paused = true)]
async fn a_failed_foreign_task_is_replayed_and_sent_again_in_its_format() {
    let house = House::new();
    let app = house.app().await;
    let stop = house.work(&app, 0);
    house.publish(tiny("t-1", "tiny.flaky", -1)).await;
    let letters = house.dead(1).await;
    assert_eq!(reason(&letters[0]), "failed");
    assert_eq!(body(&letters[0])["extra"]["kept"], true);
    stop.cancel();
    tokio::time::sleep(SOON).await;

    let again = app.client().retry(&"t-1".try_into().unwrap()).await.unwrap();
    let message = house.take().await;
    assert_eq!(body(&message)["uuid"], again.id().as_str());
    assert_eq!(
        (&body(&message)["positional"], &body(&message)["extra"]["kept"]),
        (&json!([-1]), &json!(true))
    );
    assert!(!message.headers.contains_key("machinist-attempt"), "a new task begins with attempt 1");

    let filter = DeadFilter { queue: Some(foreign()), ..DeadFilter::default() };
    let letters = app.client().dead_letters(&filter, 10).await.unwrap();
    assert_eq!(letters[0].task.as_ref().map(|id| id.as_str()), Some("t-1"), "it is listed by its id");
    assert_eq!(letters[0].name.as_ref().map(|name| name.as_str()), Some("tiny.flaky"));
    let mut outcomes = Vec::new();
    app.client()
        .replay_dead_letters(&letters, Duration::ZERO, |_, outcome| outcomes.push(outcome))
        .await
        .unwrap();
    assert_eq!(outcomes, [machinist_core::DeadLetterOutcome::Replayed(again.id().clone())]);
    assert_eq!(
        body(&house.take().await)["uuid"],
        again.id().as_str(),
        "the same successor, in the same format"
    );
}

#[tokio::test(start_paused = true)]
async fn a_queue_may_let_some_tasks_of_our_format_run_unsigned() {
    let house = House::new();
    let options = || QueueOptions::default().allow_unsigned(["tiny.flaky"]);
    let key = Key::generate(Algorithm::HmacSha256, "k").unwrap();
    let app = house.builder(key).queue(foreign(), options()).build().await.unwrap();
    let stranger = App::builder(Arc::new(house.broker.clone()), Arc::clone(&house.backend) as _);
    let stranger = stranger.build().await.unwrap();
    house.work(&app, 3);
    let other = Signature::new("evil").queue("foreign");
    stranger.client().send(other).await.unwrap();
    assert_eq!(reason(&house.dead(1).await[0]), "unsigned");
    let elsewhere = stranger.client().send(FLAKY.call((1,))).await.unwrap();
    let sent = stranger.client().send(FLAKY.call((2,)).queue("foreign")).await.unwrap();
    let result = app.client().result(sent.id().clone()).typed::<i64>();
    assert_eq!(result.wait(SOON).await.unwrap(), 4, "its retry runs unsigned too");
    assert_eq!(elsewhere.state().await.unwrap(), TaskState::Pending, "the list is for one queue");
}

#[tokio::test]
async fn options_that_contradict_each_other_are_errors_at_the_start() {
    let house = House::new();
    for (options, says) in [
        (QueueOptions::default().profile(Tiny), "list the tasks"),
        (QueueOptions::default().profile(Tiny).allow_unsigned::<&str>([]), "is empty"),
        (QueueOptions::default().allow_unsigned(["*.mail"]), "may have a `*` only at its end"),
        (QueueOptions::default().allow_unsigned(["*"]).shared(), "set the profile of the queue"),
    ] {
        let key = Key::generate(Algorithm::HmacSha256, "k").unwrap();
        let error = house.builder(key).queue(foreign(), options).build().await.unwrap_err().to_string();
        assert!(error.starts_with("queue foreign: ") && error.contains(says), "{error}");
    }
}

#[tokio::test]
async fn what_is_to_be_encrypted_is_not_sent_to_a_queue_that_cannot_hide_it() {
    let house = House::new();
    let keys = [Algorithm::HmacSha256, Algorithm::XChaCha20Poly1305]
        .map(|algorithm| Key::generate(algorithm, algorithm.as_str()).unwrap());
    let options = QueueOptions::default().profile(Tiny).allow_unsigned(["*"]);
    let app = house.builder(Keyring::new(keys).unwrap()).queue(foreign(), options).build().await.unwrap();
    let refused = app.client().send(FLAKY.call((1,)).queue("foreign")).await.unwrap_err().to_string();
    assert!(refused.contains("the format tiny, which cannot be encrypted"), "{refused}");
}
