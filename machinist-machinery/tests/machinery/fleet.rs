//! Mixed fleets on real servers: clients and workers of Go, and workers of ours.

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use machinist::{
    App, AppExt, Arg, Middleware, Next, Rest, Results, TaskContext, TaskDef, TaskError, Worker,
    WorkerBuilder,
    settings::{Overrides, Settings},
    worker::WorkerError,
};
use machinist_conformance::service_url;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::go::{Go, Handler, fresh, signature};
use crate::namespace::delete_delays;

const ADD: TaskDef<Rest<i64>, i64> = TaskDef::new("add");
const MULTIPLY: TaskDef<Rest<i64>, i64> = TaskDef::new("multiply");
const FAIL: TaskDef<(), ()> = TaskDef::new("fail");
const FLAKY: TaskDef<(), i64> = TaskDef::new("flaky");
const ON_ERROR: TaskDef<(String, String), String> = TaskDef::new("on_error");

async fn add(Rest(numbers): Rest<i64>) -> Result<i64, TaskError> {
    Ok(numbers.iter().sum())
}

async fn multiply(Rest(numbers): Rest<i64>) -> Result<i64, TaskError> {
    Ok(numbers.iter().product())
}

async fn fail() -> Result<(), TaskError> {
    Err(TaskError::new("boom"))
}

async fn flaky(cx: TaskContext) -> Result<i64, TaskError> {
    if cx.attempt() == 1 { Err("the first time")? } else { Ok(i64::from(cx.attempt())) }
}

async fn on_error(error: String, extra: String) -> Result<String, TaskError> {
    Ok(format!("{error} {extra}"))
}

/// A fleet with a queue, an exchange and a namespace of its own.
pub(crate) struct Fleet {
    pub(crate) go: Go,
    pub(crate) toml: String,
    namespace: String,
    _key: tempfile::TempDir,
}

impl Fleet {
    /// `None` without test servers.
    pub(crate) async fn new(tasks: &str) -> Option<Self> {
        let (amqp, redis) =
            (service_url("MACHINIST_TEST_AMQP_URL")?, service_url("MACHINIST_TEST_REDIS_URL")?);
        let namespace = format!("m{:08x}", rand::random::<u32>());
        let go = Go::start(&amqp, &redis, &format!("{namespace}-tasks")).await;
        let key = tempfile::tempdir().unwrap();
        let file = key.path().join("key");
        let made = machinist::sign::Key::generate(machinist::sign::Algorithm::HmacSha256, "test").unwrap();
        made.write_new(&file).unwrap();
        let toml = format!(
            "broker = \"{amqp}\"\nbackend = \"{redis}\"\nnamespace = \"{namespace}\"\nkey_file = \"{}\"\n\
             [queues.{queue}]\nprofile = \"machinery\"\nallow_unsigned = true\ntasks = {tasks}\n\
             exchange = \"{exchange}\"\n",
            file.display(),
            queue = go.queue,
            exchange = go.exchange,
        );
        Some(Self { go, toml, namespace, _key: key })
    }

    /// Removes everything from RabbitMQ.
    pub(crate) async fn clean_up(&self) {
        let amqp = service_url("MACHINIST_TEST_AMQP_URL").unwrap();
        let guards = format!("{}:{}.guards", self.namespace, self.go.queue);
        self.go.clean_up(&[guards.clone(), format!("{guards}.dead")]).await;
        delete_delays(&amqp, &self.namespace).await.unwrap();
    }

    pub(crate) async fn app(&self) -> App {
        App::from_settings(&self.settings()).await.unwrap()
    }

    pub(crate) fn settings(&self) -> Settings {
        let file = Some((Path::new("machinist.toml"), &*self.toml));
        Settings::resolve(Overrides::default(), &|_| None, file).unwrap()
    }

    /// Starts a worker of ours.
    pub(crate) async fn work(&self) -> (App, JoinHandle<Result<(), WorkerError>>) {
        let app = self.app().await;
        let running = start(self.builder(&app));
        (app, running)
    }

    /// A worker of ours with all tasks.
    pub(crate) fn builder(&self, app: &App) -> WorkerBuilder {
        Worker::builder(app)
            .queue(&*self.go.queue)
            .session_lease(Duration::from_secs(3))
            .task(ADD, add)
            .task(MULTIPLY, multiply)
            .task(FAIL, fail)
            .task(FLAKY, flaky)
            .task(ON_ERROR, on_error)
    }

    /// Kills a worker of ours: nothing that it holds is settled.
    pub(crate) async fn kill(&self, (app, running): (App, JoinHandle<Result<(), WorkerError>>)) {
        running.abort();
        app.broker().close().await;
    }
}

/// Runs a worker until it is aborted.
pub(crate) fn start(worker: WorkerBuilder) -> JoinHandle<Result<(), WorkerError>> {
    let worker = worker.build().unwrap();
    tokio::spawn(async move { worker.run_until(std::future::pending()).await.map(drop) })
}

pub(crate) fn int(number: i64) -> (&'static str, Value) {
    ("int64", number.into())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_of_ours_serves_a_client_of_go() {
    let Some(fleet) = Fleet::new("[\"*\"]").await else { return };
    let go = &fleet.go;
    let worker = fleet.work().await;

    let mut parent = signature("add", &[int(1), int(1)]);
    let (first, last) = (fresh("task"), fresh("task"));
    let mut step = signature("multiply", &[int(4)]);
    step["UUID"] = first.as_str().into();
    step["Headers"] = Value::Null;
    let mut end = signature("add", &[int(100)]);
    end["UUID"] = last.as_str().into();
    step["OnSuccess"] = json!([end]);
    parent["OnSuccess"] = json!([step]);
    let id = go.send(parent).await;
    let state = go.wait(&id).await;
    let expected = json!({
        "TaskUUID": id, "TaskName": "add", "State": "SUCCESS", "Results": [{"Type": "int64", "Value": 2}],
        "Error": "", "CreatedAt": "2026-11-20T23:37:14.5Z", "TTL": 0,
    });
    assert_eq!(state, expected);
    assert_eq!(go.wait(&first).await["Results"][0]["Value"], 8);
    assert_eq!(go.wait(&last).await["Results"][0]["Value"], 108);

    let called = fresh("task");
    let mut failing = signature("fail", &[]);
    let mut on_error = signature("on_error", &[("string", "extra".into())]);
    on_error["UUID"] = called.as_str().into();
    failing["OnError"] = json!([on_error]);
    let state = go.wait(&go.send(failing).await).await;
    assert_eq!(
        (&state["State"], &state["Error"], &state["Results"]),
        (&json!("FAILURE"), &json!("boom"), &Value::Null)
    );
    assert_eq!(go.wait(&called).await["Results"][0], json!({"Type": "string", "Value": "boom extra"}));

    let mut retried = signature("flaky", &[]);
    retried["RetryCount"] = 2.into();
    assert_eq!(go.wait(&go.send(retried).await).await["Results"][0]["Value"], 2, "the second attempt");

    let callback = fresh("chord");
    let mut sum = signature("add", &[int(1000)]);
    sum["UUID"] = callback.as_str().into();
    let members = (1..=3).map(|n| signature("add", &[int(n), int(n)])).collect();
    go.send_group(members, Some(sum)).await;
    assert_eq!(go.wait(&callback).await["Results"][0]["Value"], 1012);

    let wrong = go.wait(&go.send(signature("add", &[("decimal", 1.into())])).await).await;
    let error = wrong["Error"].as_str().unwrap();
    assert!(error.contains("Reflect task args error: decimal is not one of supported types"), "{error}");

    // A task without an id runs too, under one of ours.
    let queue = go.queue.clone();
    let mut nameless = signature("on_error", &[("string", "no".into()), ("string", "id".into())]);
    let known = fresh("task");
    let mut after = signature("add", &[int(7)]);
    after["UUID"] = known.as_str().into();
    nameless["OnSuccess"] = json!([after]);
    nameless["Immutable"] = true.into();
    go.publish(&queue, nameless.to_string().as_bytes()).await;
    assert_eq!(go.wait(&known).await["Results"][0]["Value"], 7);

    fleet.kill(worker).await;
    fleet.clean_up().await;
}

pub(crate) fn handlers() -> HashMap<&'static str, Handler> {
    HashMap::from([
        (
            "add",
            (|args| Ok(vec![("int64", args.iter().filter_map(Value::as_i64).sum::<i64>().into())]))
                as Handler,
        ),
        ("multiply", |args| {
            Ok(vec![("int64", args.iter().filter_map(Value::as_i64).product::<i64>().into())])
        }),
        ("flaky", |_| Err("never here".to_owned())),
        ("fail", |_| Err("boom".to_owned())),
        ("theirs", |_| Ok(Vec::new())),
    ])
}

/// Counts the runs that came to their end in workers of ours, by task.
#[derive(Debug, Clone, Default)]
struct EndedRuns(Arc<Mutex<HashMap<String, u32>>>);

#[async_trait]
impl Middleware for EndedRuns {
    async fn call(&self, cx: TaskContext, args: Vec<Arg>, next: Next) -> Result<Results, TaskError> {
        let id = cx.task_id().to_string();
        let outcome = next.run(cx, args).await;
        *self.0.lock().unwrap().entry(id).or_default() += 1;
        outcome
    }
}

/// Sends rounds of chains, groups with a callback, groups of which a member fails, retries and tasks of Go alone to a mixed
/// fleet, and kills the worker of ours after each.
async fn mixed(rounds: i64, per_round: i64) {
    let tasks = "[\"add\", \"multiply\", \"flaky\", \"fail\"]";
    let Some(fleet) = Fleet::new(tasks).await else { return };
    let go = &fleet.go;
    let theirs = tokio::spawn(go.clone().work(handlers()));
    let ended = EndedRuns::default();
    let work = async || {
        let app = fleet.app().await;
        let running = start(fleet.builder(&app).middleware(ended.clone()));
        (app, running)
    };
    let mut ours = work().await;
    let mut ends: Vec<(String, i64)> = Vec::new();
    let (mut failing, mut never) = (Vec::new(), Vec::new());
    let mut others = Vec::new();
    for round in 0..rounds {
        for n in 0..per_round {
            let last = fresh("task");
            let mut chain = signature("add", &[int(n), int(round)]);
            let mut end = signature("multiply", &[int(2)]);
            end["UUID"] = last.as_str().into();
            chain["OnSuccess"] = json!([end]);
            go.send(chain).await;
            ends.push((last, 2 * (n + round)));
            let callback = fresh("chord");
            let mut sum = signature("add", &[int(n)]);
            sum["UUID"] = callback.as_str().into();
            let members = (1..=3).map(|n| signature("multiply", &[int(n), int(n)])).collect();
            go.send_group(members, Some(sum)).await;
            ends.push((callback, n + 14));
        }
        let mut uncalled = signature("add", &[]);
        let id = fresh("chord");
        uncalled["UUID"] = id.as_str().into();
        never.push(id);
        let members = vec![signature("add", &[int(round)]), signature("fail", &[])];
        failing.extend(go.send_group(members, Some(uncalled)).await.pop());
        let mut retried = signature("flaky", &[]);
        retried["RetryCount"] = 3.into();
        others.push((go.send(retried).await, true));
        others.push((go.send(signature("theirs", &[])).await, false));
        fleet.kill(std::mem::replace(&mut ours, work().await)).await;
    }
    for (id, value) in &ends {
        let state = go.wait(id).await;
        assert_eq!(
            (&state["State"], &state["Results"][0]["Value"]),
            (&json!("SUCCESS"), &json!(value)),
            "{id}"
        );
    }
    for (id, may_fail) in &others {
        let state = go.wait(id).await;
        assert!(state["State"] == "SUCCESS" || *may_fail, "{state}");
    }
    for id in &failing {
        let state = go.wait(id).await;
        assert_eq!((&state["State"], &state["Error"]), (&json!("FAILURE"), &json!("boom")), "{id}");
    }
    // What the records of Go say is what a client of ours reads.
    let client = ours.0.client();
    let result = |id: &String| client.result(id.as_str().try_into().unwrap());
    for (id, value) in &ends {
        let result = result(id).typed::<i64>();
        assert_eq!(result.wait(Duration::from_secs(600)).await.unwrap(), *value, "{id}");
    }
    let failing = failing.iter().map(|id| (id, false));
    for (id, may_differ) in others.iter().map(|(id, may_fail)| (id, *may_fail)).chain(failing) {
        let (state, record) = (go.wait(id).await, result(id).record().await.unwrap());
        // A worker of Go that gets the message of one of ours that died shows the end of its own run.
        let same = state["State"] == record.state.as_str();
        assert!(same || may_differ && record.state.is_final(), "{state} {record:?}");
    }
    let (theirs_ran, ours_ran) = (go.ran.lock().unwrap().clone(), ended.0.lock().unwrap().clone());
    let count = |runs: &HashMap<String, u32>, id: &String| runs.get(id).copied().unwrap_or(0);
    let twice = theirs_ran.values().filter(|runs| **runs > 1).count();
    let of_callbacks = |chosen: fn(u32, u32) -> bool| {
        ends.iter().filter(|(id, _)| chosen(count(&theirs_ran, id), count(&ours_ran, id))).count()
    };
    let sent_twice = of_callbacks(|theirs, ours| theirs > 1 || theirs > 0 && ours > 0);
    let ran_twice = of_callbacks(|theirs, ours| theirs == 0 && ours > 1);
    let never_ran = of_callbacks(|theirs, ours| theirs + ours == 0);
    assert!(!theirs_ran.is_empty() && !ours_ran.is_empty(), "both had a part");
    println!(
        "{} tasks, {rounds} kills: lost 0, stuck 0; {} ran in Go, {twice} more than once, and {} in workers of ours; of {} \
         callbacks {sent_twice} ran twice with a part of Go, {ran_twice} in workers of ours, {never_ran} never; namespace {}",
        rounds * (per_round * 6 + 4),
        theirs_ran.len(),
        ours_ran.len(),
        ends.len(),
        fleet.namespace
    );
    assert_eq!(never_ran, 0);
    // A crash between a publish and its mark sends a callback once more, unless somebody has it already; a crash between the end
    // of a run and its record repeats the run. Retries keep their id.
    assert!(sent_twice as i64 <= rounds, "{sent_twice}");
    assert!(ran_twice as i64 <= rounds, "{ran_twice}");
    assert!(twice as i64 <= rounds * 8, "{twice}");
    fleet.kill(ours).await;
    theirs.abort();
    for id in &never {
        assert_eq!(go.state(id).await, None, "a member has failed");
    }
    fleet.clean_up().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mixed_fleet_loses_nothing_while_our_workers_are_killed() {
    // `cargo xtask nightly machinery` asks for ten thousand tasks.
    let rounds = std::env::var("MACHINIST_MACHINERY_ROUNDS").ok().and_then(|rounds| rounds.parse().ok());
    mixed(rounds.unwrap_or(6), 20).await;
}
