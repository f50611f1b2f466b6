//! Definitions and wire forms that macros write, and errors that say what follows from them, over a worker in memory.
#![cfg(feature = "macros")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use machinist::{
    ResultError, TaskFailure,
    memory::{MemoryBackend, MemoryBroker},
    prelude::*,
};
use serde_json::json;

/// Longer than any test may take.
const LONG: Duration = Duration::from_secs(30);

#[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize, WireArg)]
struct Image {
    path: String,
    width: u32,
}

/// Documented by its author.
#[machinist::task(queue = "images", timeout = "30s")]
async fn resize(image: Image, cx: TaskContext, factor: u32) -> Result<Image, TaskError> {
    assert_eq!((cx.queue().as_str(), cx.task_name().as_str()), ("images", "resize"));
    Ok(Image { width: image.width * factor, ..image })
}

#[derive(Debug, TaskFailure)]
enum MailError {
    #[task_error(permanent)]
    NoSuchAddress,
    #[task_error(retry_in = "1ms")]
    Busy,
}

impl fmt::Display for MailError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

impl std::error::Error for MailError {}

#[machinist::task(retries = 9)]
async fn send_mail(State(calls): State<Arc<AtomicU32>>, wrapped: bool) -> Result<(), TaskError> {
    match calls.fetch_add(1, Ordering::SeqCst) {
        0 => Err(MailError::Busy)?,
        _ if wrapped => Err(anyhow::Error::from(MailError::NoSuchAddress).context("cannot send"))?,
        _ => Err(MailError::NoSuchAddress)?,
    }
    Ok(())
}

async fn app() -> App {
    App::builder(Arc::new(MemoryBroker::new()), Arc::new(MemoryBackend::new())).build().await.unwrap()
}

#[tokio::test]
async fn a_struct_travels_by_itself_through_a_defined_task() {
    let app = app().await;
    let worker = Worker::builder(&app).task(RESIZE, resize).build().unwrap();
    let working = tokio::spawn(worker.run_until(std::future::pending()));
    let image = || Image { path: "cat.png".into(), width: 20 };
    let sent = app.client().send(RESIZE.call((image(), 2))).await.unwrap();
    assert_eq!(sent.wait(LONG).await.unwrap(), Image { width: 40, ..image() });
    let by_name =
        Signature::new("resize").arg(json!({"path": "cat.png", "width": 20})).arg(3).queue("images");
    let results = app.client().send(by_name).await.unwrap().wait(LONG).await.unwrap();
    assert_eq!((results.0[0].kind.as_str(), &results.0[0].value["width"]), ("json", &json!(60)));
    working.abort();
}

#[tokio::test]
async fn an_error_type_says_what_follows_also_as_a_cause() {
    for wrapped in [false, true] {
        let app = app().await;
        let calls = Arc::new(AtomicU32::new(0));
        let worker = Worker::builder(&app).task(SEND_MAIL, send_mail).state(Arc::clone(&calls));
        let working =
            tokio::spawn(worker.failure::<MailError>().build().unwrap().run_until(std::future::pending()));
        let ended = app.client().send(SEND_MAIL.call(wrapped)).await.unwrap().wait(LONG).await;
        let Err(ResultError::Failed { chain, .. }) = ended else { panic!("{ended:?}") };
        assert_eq!(chain.last().unwrap(), "NoSuchAddress");
        assert_eq!(calls.load(Ordering::SeqCst), 2);
        working.abort();
    }
}
