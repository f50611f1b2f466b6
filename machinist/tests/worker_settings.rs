//! Settings of a worker and options of its tasks, from machinist.toml to a run.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use machinist::{
    Backoff,
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
