//! Settings of a worker and options of its tasks, from machinist.toml to a run.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use machinist::{
    AppBuilder, Arg, Backoff, Codec, Middleware, Next, PublishHook, QueuePattern, TaskId,
    prelude::*,
    settings::{Overrides, Settings},
    worker::{Tag, TaskOptions},
};

const FAILS: TaskDef<(), ()> = TaskDef::new("fails");

fn settings(file: &str) -> Settings {
    let file = format!("broker = \"memory://\"\nbackend = \"memory://\"\n{file}");
    Settings::resolve(Overrides::default(), &|_| None, Some((Path::new("machinist.toml"), &file))).unwrap()
}

/// Runs the task with these settings until it has failed, and returns the number of its runs.
async fn runs(file: &str) -> u32 {
    let settings = settings(file);
    let app = App::from_settings(&settings).await.unwrap();
    let runs = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&runs);
    let fails = move || {
        counted.fetch_add(1, Ordering::SeqCst);
        std::future::ready(Err::<(), _>(TaskError::new("no")))
    };
    let in_code = TaskOptions::new().retries(1).backoff(Backoff::fixed(Duration::from_millis(1)));
    let builder = settings.configure(Worker::builder(&app)).task(FAILS, fails).options("fails", in_code);
    let working = tokio::spawn(builder.build().unwrap().run_until(std::future::pending()));
    let sent = app.client().send(FAILS.call(())).await.unwrap();
    assert!(sent.wait(Duration::from_secs(30)).await.is_err());
    working.abort();
    runs.load(Ordering::SeqCst)
}

#[tokio::test]
async fn options_of_the_file_go_before_those_of_the_code() {
    assert_eq!(runs("").await, 2);
    // The wait of the code stays: with the default of one second this would take long.
    assert_eq!(runs("[tasks.fails]\nretries = 9\n[tasks.unknown]\nretries = 1").await, 10);
    assert_eq!(runs("[tasks.fails]\nretries = 0").await, 1);
}

#[tokio::test]
async fn a_worker_is_what_its_settings_say() {
    let settings = settings(
        "[worker]\nname = \"w\"\ntags = [\"zone:eu\", \"gpu\"]\nqueues = [\"images\"]\nlook_ahead = 0",
    );
    let app = App::from_settings(&settings).await.unwrap();
    let worker = settings.configure(Worker::builder(&app)).build().unwrap();
    assert_eq!(worker.name(), "w");
    assert_eq!(worker.tags().iter().map(Tag::as_str).collect::<Vec<_>>(), ["gpu", "zone:eu"]);
    assert_eq!(worker.queues()[0].as_str(), "images");
}

/// Names of the queues that a worker consumes.
fn queues(worker: &Worker) -> Vec<&str> {
    worker.queues().iter().map(QueuePattern::as_str).collect()
}

#[tokio::test]
async fn a_worker_takes_over_the_settings_of_its_application_where_its_code_sets_nothing() {
    let file = "[worker]\nname = \"w\"\ntags = [\"gpu\"]\nqueues = [\"images\"]\n\
                [periodic.nightly]\nevery = \"1d\"\ntask = \"fails\"";
    let settings = settings(file);
    let app = App::from_settings(&settings).await.unwrap();
    let worker = Worker::builder(&app).build().unwrap();
    assert_eq!((worker.name(), queues(&worker)), ("w", vec!["images"]));
    assert_eq!(worker.tags().iter().map(Tag::as_str).collect::<Vec<_>>(), ["gpu"]);
    let worker = Worker::builder(&app).name("mine").queue("mail").build().unwrap();
    assert_eq!((worker.name(), queues(&worker)), ("mine", vec!["images", "mail"]));
    // Applied twice, the periodic task would be defined twice.
    let worker = settings.configure(Worker::builder(&app)).build().unwrap();
    assert_eq!((worker.name(), queues(&worker)), ("w", vec!["images"]));
    let worker = Worker::builder(&app).without_defaults().build().unwrap();
    assert_eq!(queues(&worker), ["default"]);
}

#[tokio::test]
async fn variables_reach_the_worker_of_the_library() {
    let variables = |name: &str| match name {
        "MACHINIST_BROKER" | "MACHINIST_BACKEND" => Some("memory://".into()),
        "MACHINIST_QUEUES" => Some("a,b".into()),
        "MACHINIST_CONCURRENCY" => Some("1".into()),
        _ => None,
    };
    let settings = Settings::resolve(Overrides::default(), &variables, None).unwrap();
    let app = App::from_settings(&settings).await.unwrap();
    let running = Arc::new(AtomicU32::new(0));
    let most = Arc::new(AtomicU32::new(0));
    let (counted, maximum) = (Arc::clone(&running), Arc::clone(&most));
    let counts = move || {
        let (running, most) = (Arc::clone(&counted), Arc::clone(&maximum));
        async move {
            most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::task::yield_now().await;
            running.fetch_sub(1, Ordering::SeqCst);
            Ok::<_, TaskError>(())
        }
    };
    let worker = Worker::builder(&app).task(FAILS, counts).build().unwrap();
    assert_eq!(queues(&worker), ["a", "b"]);
    let working = tokio::spawn(worker.run_until(std::future::pending()));
    let all = (0..8).map(|_| FAILS.call(()).queue("a")).collect();
    for sent in app.client().send_all(all).await {
        sent.unwrap().wait(Duration::from_secs(30)).await.unwrap();
    }
    working.abort();
    assert_eq!(most.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn an_application_of_settings_has_hooks_a_codec_and_middleware() {
    struct Mark;
    impl PublishHook for Mark {
        fn before_publish(&self, _: &TaskId, _: &str, headers: &mut BTreeMap<String, String>) {
            headers.insert("tenant".into(), "acme".into());
        }
    }
    #[derive(Clone)]
    struct Count(Arc<AtomicU32>);
    #[async_trait::async_trait]
    impl Middleware for Count {
        async fn call(&self, cx: TaskContext, args: Vec<Arg>, next: Next) -> Result<Results, TaskError> {
            self.0.fetch_add(1, Ordering::SeqCst);
            next.run(cx, args).await
        }
    }
    const TENANT: TaskDef<(), Option<String>> = TaskDef::new("tenant");
    let tenant = |cx: TaskContext| async move { Ok::<_, TaskError>(cx.headers().get("tenant").cloned()) };
    let counted = Count(Arc::default());
    let middleware = counted.clone();
    let adjust = move |app: AppBuilder| app.on_publish(Mark).codec(Codec::Json).middleware(middleware);
    let app = App::from_settings_with(&settings(""), adjust).await.unwrap();
    let worker = Worker::builder(&app).task(TENANT, tenant).build().unwrap();
    let working = tokio::spawn(worker.run_until(std::future::pending()));
    let sent = app.client().send(TENANT.call(())).await.unwrap();
    assert_eq!(sent.wait(Duration::from_secs(30)).await.unwrap().as_deref(), Some("acme"));
    assert_eq!(counted.0.load(Ordering::SeqCst), 1);
    working.abort();
}
