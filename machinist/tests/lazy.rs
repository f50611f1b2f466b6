//! Senders that start before their broker.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use machinist::{
    Connector, Connectors, LazyApp, LazySendError, NotConnected,
    broker::{Broker, BrokerError},
    connector::{ConnectRequest, ConnectorError},
    memory::MemoryBroker,
    prelude::*,
    settings::{Overrides, Settings},
    url::{Reach, Scheme},
};

const GREET: TaskDef<String, ()> = TaskDef::new("greet");

/// A broker that is away until it is switched on.
#[derive(Debug, Clone, Default)]
struct Late {
    here: Arc<AtomicBool>,
}

#[async_trait]
impl Connector for Late {
    fn schemes(&self) -> Vec<Scheme> {
        vec![Scheme::broker("late", Reach::Process)]
    }

    async fn broker(&self, _: &ConnectRequest<'_>) -> Result<Arc<dyn Broker>, ConnectorError> {
        match self.here.load(Ordering::SeqCst) {
            true => Ok(Arc::new(MemoryBroker::new())),
            false => Err(BrokerError::Unavailable("it is away".into()).into()),
        }
    }
}

fn settings(late: &Late, file: &str) -> Settings {
    let connectors = Connectors::default().with(late.clone());
    let file = format!("broker = \"late://\"\nbackend = \"memory://\"\n{file}");
    let file = Some((Path::new("machinist.toml"), &*file));
    Settings::resolve_with(&connectors, Overrides::default(), &|_| None, file).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_sender_starts_while_the_broker_is_away_and_its_first_sends_wait_or_fail() {
    let late = Late::default();
    let app = LazyApp::from_settings(settings(&late, "")).unwrap();
    let refused = app.send(GREET.call("Ada")).await.unwrap_err();
    let LazySendError::NotConnected(NotConnected::Failed { source, .. }) = refused else {
        panic!("{refused}")
    };
    assert!(source.to_string().contains("late://"), "{source}");
    assert!(!app.is_connected());

    let waiting = app.clone().patience(Duration::from_secs(3600));
    let waiting =
        tokio::spawn(async move { waiting.send(GREET.call("Ada")).await.map(|sent| sent.id().clone()) });
    tokio::task::yield_now().await;
    late.here.store(true, Ordering::SeqCst);
    let sent = waiting.await.unwrap().unwrap();
    assert!(app.is_connected());
    let app = app.app().await.unwrap();
    assert!(app.client().result(sent).record().await.is_ok());
}

#[tokio::test]
async fn a_key_that_cannot_be_used_is_an_error_at_once() {
    let error =
        LazyApp::from_settings(settings(&Late::default(), "key_file = \"/nowhere/key\"")).unwrap_err();
    assert!(error.to_string().contains("/nowhere/key"), "{error}");
}
