//! The recipe of `docs/signing.md`, by hand, by Python and by a real worker.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use machinist_conformance::producer;
use machinist_core::{
    App,
    broker::{HeaderValue, Message},
    sign::{Algorithm, Key, KeyState, Keyring},
};
use serde_json::{Value, json};

use super::support::{Harness, SOON};

const NAMESPACE: &str = "machinist";
const VHOST: &str = "/";

fn docs() -> String {
    std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/signing.md")).unwrap()
}

/// The first block of code in this language.
fn block(docs: &str, language: &str) -> String {
    let start = format!("```{language}\n");
    let (_, rest) = docs.split_once(&start).expect("the docs have such a block");
    rest.split_once("```").expect("the block ends").0.to_owned()
}

fn vectors() -> Vec<Value> {
    let Value::Array(vectors) = serde_json::from_str(&block(&docs(), "json")).unwrap() else {
        panic!("a list")
    };
    vectors
}

fn message(vector: &Value) -> Message {
    let text = |name: &str| vector["message"][name].as_str().map(str::to_owned);
    let value = |value: &Value| match value {
        Value::String(text) => HeaderValue::from(text.as_str()),
        other => HeaderValue::from(other.as_i64().unwrap()),
    };
    let headers = vector["message"]["headers"].as_object().unwrap();
    Message {
        id: text("message_id"),
        kind: text("type"),
        content_type: text("content_type"),
        priority: vector["message"]["priority"].as_u64().map(|p| u8::try_from(p).unwrap()),
        headers: headers.iter().map(|(name, v)| (name.clone().into(), value(v))).collect(),
        body: text("body").unwrap().into(),
        ..Message::default()
    }
}

fn key(vector: &Value) -> Key {
    let text = |name: &str| vector["key"][name].as_str().unwrap();
    let algorithm: Algorithm = text("alg").parse().unwrap();
    Key::with_secret(algorithm, text("id"), &BASE64.decode(text("secret")).unwrap()).unwrap()
}

/// Every key of the vectors; one of them signs what the worker publishes.
fn ring(vectors: &[Value]) -> Keyring {
    let keys = vectors.iter().map(key).enumerate();
    let one_signs = |(n, key): (usize, Key)| if n == 0 { key } else { key.with_state(KeyState::Verify) };
    Keyring::new(keys.map(one_signs)).unwrap()
}

/// An application in the namespace and the vhost of the vectors.
async fn app(harness: &Harness, vectors: &[Value]) -> App {
    for vector in vectors {
        assert_eq!((&vector["namespace"], &vector["vhost"]), (&json!(NAMESPACE), &json!(VHOST)));
    }
    harness.builder().namespace(NAMESPACE).realm(VHOST).keyring(ring(vectors)).build().await.unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[tokio::test(start_paused = true)]
async fn the_vectors_of_the_docs_hold_and_run() {
    let vectors = vectors();
    assert_eq!(vectors.len(), 4);
    let harness = Harness::new();
    let app = app(&harness, &vectors).await;
    let _running = harness.work(&app);
    for vector in &vectors {
        let message = message(vector);
        let signed_at = vector["signed_at"].as_i64().unwrap();
        let found = hex(&producer::signing_input(&message, NAMESPACE, VHOST, &key(vector), signed_at));
        assert_eq!(found, vector["input"].as_str().unwrap(), "{}", vector["what"]);
        let id = message.id.clone().unwrap();
        harness.publish("math", message).await;
        let result = app.result(id.try_into().unwrap()).typed::<i64>();
        harness.eventually(async || result.state().await.is_ok_and(|s| s.is_final())).await;
        assert_eq!(result.wait(SOON).await.unwrap(), 5, "{}", vector["what"]);
    }
}

#[tokio::test(start_paused = true)]
async fn python_signs_what_a_worker_runs() {
    let vectors: Vec<_> = vectors().into_iter().filter(|v| v["key"]["alg"] == json!("hmac-sha256")).collect();
    let recipe = block(&docs(), "python");
    let python =
        Command::new("python3").args(["-c", &recipe]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut python = match python {
        Ok(python) => python,
        Err(error) => {
            let required = std::env::var_os("MACHINIST_REQUIRE_SERVICES").is_some_and(|v| v == "1");
            assert!(!required, "python3 is needed: {error}");
            eprintln!("SKIPPED: python_signs_what_a_worker_runs: python3 cannot be started: {error}");
            return;
        }
    };
    let mut unsigned = vectors.clone();
    for vector in &mut unsigned {
        vector["message"]["headers"].as_object_mut().unwrap().remove("machinist-signature");
        vector.as_object_mut().unwrap().remove("input");
    }
    let question = serde_json::to_vec(&unsigned).unwrap();
    python.stdin.take().unwrap().write_all(&question).unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success());
    let signatures: Vec<String> = serde_json::from_slice(&output.stdout).unwrap();
    let harness = Harness::new();
    let app = app(&harness, &vectors).await;
    let _running = harness.work(&app);
    for (vector, signature) in vectors.iter().zip(signatures) {
        let mut message = message(vector);
        message.headers.insert("machinist-signature".into(), signature.into());
        let id = message.id.clone().unwrap();
        harness.publish("math", message).await;
        let result = app.result(id.try_into().unwrap()).typed::<i64>();
        harness.eventually(async || result.state().await.is_ok_and(|s| s.is_final())).await;
        assert_eq!(result.wait(SOON).await.unwrap(), 5);
    }
}
