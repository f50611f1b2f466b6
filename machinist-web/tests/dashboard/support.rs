//! A dashboard with an application and a worker, and requests to it.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, Request, StatusCode},
};
use http_body_util::BodyExt as _;
use machinist::{
    App, TaskDef, TaskError, TaskId, Worker, WorkerBuilder,
    event_stream::PublishedEvents,
    memory::{MemoryBackend, MemoryBroker},
    sign::{Algorithm, Key},
};
use machinist_conformance::eventually;
use machinist_web::{Access, Dashboard};
use serde_json::Value;
use tokio_util::sync::{CancellationToken, DropGuard};
use tower::ServiceExt as _;

/// Maximum time of a wait, also on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(60);
/// Task that fails with its argument.
pub(crate) const FAIL: TaskDef<String, ()> = TaskDef::new("fail").queue("mail");
/// Task that returns its argument.
pub(crate) const ECHO: TaskDef<String, String> = TaskDef::new("echo").queue("mail");
/// Tokens of the roles, as lines of a token file.
pub(crate) const TOKENS: &str =
    "v:viewer:viewer-viewer-viewer\no:operator:operator-operator\na:admin:admin-admin-admin\n";

async fn fail(text: String) -> Result<(), TaskError> {
    Err(TaskError::permanent(text))
}

async fn echo(text: String) -> Result<String, TaskError> {
    Ok(text)
}

/// An application over the in-memory adapters, with a worker that ends with it.
pub(crate) struct House {
    pub(crate) app: App,
    _stop: DropGuard,
}

impl House {
    pub(crate) async fn open() -> Self {
        Self::with_worker("one").await
    }

    /// With a worker of this name.
    pub(crate) async fn with_worker(name: &str) -> Self {
        Self::with(|worker| worker.name(name)).await
    }

    /// With a worker that has more than the two tasks.
    pub(crate) async fn with(more: impl FnOnce(WorkerBuilder) -> WorkerBuilder) -> Self {
        let key = Key::generate(Algorithm::HmacSha256, "test").unwrap();
        let builder = App::builder(Arc::new(MemoryBroker::new()), Arc::new(MemoryBackend::new()));
        let app = builder.keyring(key).events(PublishedEvents::All).build().await.unwrap();
        let worker = Worker::builder(&app).queue("mail").task(FAIL, fail).task(ECHO, echo);
        let worker = more(worker).build().unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(worker.run_until(stop.clone().cancelled_owned()));
        Self { app, _stop: stop.drop_guard() }
    }

    /// Returns the dashboard of everybody on this host.
    pub(crate) fn local(&self) -> Site {
        Site::new(Dashboard::new(self.app.clone(), Access::local()).verifies_outcomes().router())
    }

    /// Returns a dashboard with tokens.
    pub(crate) fn with_tokens(&self, change: impl FnOnce(Dashboard) -> Dashboard) -> Site {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), TOKENS).unwrap();
        let access = Access::new().token_file(file.path()).unwrap();
        Site { _file: Some(file), ..Site::new(change(Dashboard::new(self.app.clone(), access)).router()) }
    }

    /// Sends a task that fails with this text, and waits for its end.
    pub(crate) async fn failed(&self, text: &str) -> TaskId {
        let sent = self.app.client().send(FAIL.call(text.to_owned())).await.unwrap();
        sent.wait_record(SOON).await.unwrap();
        self.app.flush_events().await;
        sent.id().clone()
    }
}

/// A dashboard that is asked without a network.
pub(crate) struct Site {
    pub(crate) router: Router,
    _file: Option<tempfile::NamedTempFile>,
}

/// Answer to a request.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
    }

    /// Fails the test unless the answer has this status.
    #[track_caller]
    pub(crate) fn is(self, status: u16) -> Self {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        self
    }

    /// Fails the test unless the text contains all of these.
    #[track_caller]
    pub(crate) fn has(self, words: &[&str]) -> Self {
        for word in words {
            assert!(self.text.contains(word), "{word:?} is missing: {self:?}");
        }
        self
    }
}

impl Site {
    pub(crate) fn new(router: Router) -> Self {
        Self { router, _file: None }
    }

    pub(crate) async fn ask(&self, request: Request<Body>) -> Answer {
        let answer = self.router.clone().oneshot(request).await.unwrap();
        let (head, body) = answer.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Answer {
            status: head.status,
            headers: head.headers,
            text: String::from_utf8_lossy(&bytes).into_owned(),
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.ask(request("GET", path, &[]).body(Body::empty()).unwrap()).await
    }

    /// Posts what a button of a page posts.
    pub(crate) async fn press(&self, path: &str, form: &str) -> Answer {
        let headers =
            [("sec-fetch-site", "same-origin"), ("content-type", "application/x-www-form-urlencoded")];
        self.ask(request("POST", path, &headers).body(Body::from(form.to_owned())).unwrap()).await
    }

    /// Waits until an answer fits.
    pub(crate) async fn until(&self, path: &str, fits: impl Fn(&Answer) -> bool) -> Answer {
        let found = eventually(SOON, async || fits(&self.get(path).await)).await;
        let last = self.get(path).await;
        assert!(found, "{last:?}");
        last
    }
}

/// Begins a request to this computer.
pub(crate) fn request(method: &str, path: &str, headers: &[(&str, &str)]) -> axum::http::request::Builder {
    let builder = Request::builder().method(method).uri(path);
    let has_host = headers.iter().any(|(name, _)| *name == "host");
    let builder = if has_host { builder } else { builder.header("host", "localhost:8780") };
    headers.iter().fold(builder, |builder, (name, value)| builder.header(*name, *value))
}
