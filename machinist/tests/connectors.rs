//! Connectors from elsewhere: a made-up scheme, `toy://`, over the in-memory adapters, from settings to a result.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use machinist::{
    ConnectError, Connector, Connectors, Servers,
    backend::{Backend, BackendError},
    broker::{Broker, BrokerError},
    connector::{ConnectRequest, ConnectorError},
    memory::{MemoryBackend, MemoryBroker},
    prelude::*,
    settings::{Overrides, Settings, SettingsError},
    url::{Reach, Scheme, ServerUrl},
};

const ADD: TaskDef<(i64, i64), i64> = TaskDef::new("add");

async fn add(a: i64, b: i64) -> Result<i64, TaskError> {
    Ok(a + b)
}

/// Servers that live in this process, by the rest of their URL.
#[derive(Debug, Clone, Default)]
struct Toys(Arc<Mutex<BTreeMap<String, (MemoryBroker, MemoryBackend)>>>);

impl Toys {
    fn server(&self, request: &ConnectRequest<'_>) -> Option<(MemoryBroker, MemoryBackend)> {
        let url = request.url.expose();
        if url.contains("broken") {
            return None;
        }
        let mut servers = self.0.lock().unwrap();
        Some(servers.entry(format!("{url} {}", request.namespace)).or_default().clone())
    }
}

#[async_trait]
impl Connector for Toys {
    fn schemes(&self) -> Vec<Scheme> {
        let plain = Reach::Network { over_tls: Some("toys") };
        vec![Scheme::both("toy", plain), Scheme::both("toys", Reach::Tls)]
    }

    fn check(&self, url: &ServerUrl) -> Result<(), String> {
        match url.expose().ends_with("://") {
            true => Err("names no host; write toy://HOST".to_owned()),
            false => Ok(()),
        }
    }

    async fn broker(&self, request: &ConnectRequest<'_>) -> Result<Arc<dyn Broker>, ConnectorError> {
        let broken = || BrokerError::Unavailable("no such toy".into());
        Ok(Arc::new(self.server(request).ok_or_else(broken)?.0.connect()))
    }

    async fn backend(&self, request: &ConnectRequest<'_>) -> Result<Arc<dyn Backend>, ConnectorError> {
        let broken = || BackendError::Unavailable("no such toy".into());
        Ok(Arc::new(self.server(request).ok_or_else(broken)?.1))
    }
}

fn settings(toys: &Toys, file: &str) -> Result<Settings, SettingsError> {
    let connectors = Connectors::default().with(toys.clone());
    let file = (Path::new("machinist.toml"), file);
    Settings::resolve_with(&connectors, Overrides::default(), &|_| None, Some(file))
}

fn toys(file: &str) -> Result<Settings, SettingsError> {
    settings(&Toys::default(), file)
}

#[tokio::test]
async fn a_task_runs_over_the_servers_of_another_crate() {
    let toys = Toys::default();
    let file = "broker = \"toy://shelf\"\nbackend = \"toy://shelf\"\nallow_unsigned = true";
    let settings = settings(&toys, file).unwrap();
    let (sender, app) =
        (App::from_settings(&settings).await.unwrap(), App::from_settings(&settings).await.unwrap());
    let worker = Worker::builder(&app).task(ADD, add).build().unwrap();
    let working = tokio::spawn(worker.run_until(std::future::pending()));
    let sum = sender.client().send(ADD.call((2, 3))).await.unwrap();
    assert_eq!(sum.wait(Duration::from_secs(30)).await.unwrap(), 5);
    working.abort();
}

#[test]
fn its_urls_are_settings_like_any_other() {
    let rows = toys("broker = \"toy://u:geheim@shelf\"\nbackend = \"TOYS://shelf\"").unwrap().entries();
    assert_eq!((rows[0].value.as_str(), rows[1].value.as_str()), ("toy://u:***@shelf", "TOYS://shelf"));
    let error = toys("broker = \"toy://\"").unwrap_err().to_string();
    assert_eq!(error, "machinist.toml:1:10: broker: \"toy://\" names no host; write toy://HOST");
    let error = toys("\nbackend = \"toi://shelf\"").unwrap_err().to_string();
    assert!(
        error.starts_with("machinist.toml:2:11: backend: \"toi://shelf\" has an unknown scheme"),
        "{error}"
    );
    assert!(error.ends_with("sqlite://, memory://, toy://, toys://"), "{error}");
}

#[tokio::test]
async fn the_protection_of_a_network_holds_for_it_too() {
    let error = App::from_settings(&toys("broker = \"toy://shelf\"").unwrap()).await.unwrap_err();
    assert!(matches!(error, ConnectError::NoKey { .. }), "{error}");
    let servers = Servers::reach(&toys("broker = \"toy://u:geheim@shelf\"").unwrap()).await;
    let error = servers.broker.unwrap_err().to_string();
    assert!(error.contains("to shelf in plain text; use toys://") && !error.contains("geheim"), "{error}");
    let file = "broker = \"toys://shelf\"\n[tls]\ncert_file = \"c.pem\"";
    let error = Servers::reach(&toys(file).unwrap()).await.broker.unwrap_err().to_string();
    assert_eq!(error, "machinist.toml:3: tls.cert_file needs its private key: set tls.key_file");
}

#[tokio::test]
async fn errors_name_the_server() {
    let servers =
        Servers::reach(&toys("broker = \"toy://broken\"\nbackend = \"toy://broken\"").unwrap()).await;
    assert_eq!(servers.broker.unwrap_err().to_string(), "broker toy://broken");
    let error = servers.backend.unwrap_err().to_string();
    assert_eq!(error, "backend toy://broken: the same server is the broker, and cannot be used");
}
