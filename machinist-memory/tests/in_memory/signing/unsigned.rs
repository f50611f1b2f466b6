//! Without keys: what is refused, what is allowed on request, and what others write into the backend.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use machinist_core::{
    App, AppError, MaxSizes, ResultError, SendError, Signature, TaskDef, TaskError,
    backend::{Backend, Commit, Expiry},
    broker::{
        Broker, BrokerCapabilities, BrokerError, Consume, Consumer, Publish, PublishError, QueueDepth,
        SideQueue,
    },
    diagnose::{Diagnose, Finding},
    id::QueueName,
    record::{FailureKind, TaskState},
};
use machinist_memory::{MemoryBackend, MemoryBroker};

use super::support::{ADD, FLAKY, Harness, Running, SOON, hmac};

#[tokio::test(start_paused = true)]
async fn with_keys_the_unsigned_is_refused_unless_allowed() {
    let harness = Harness::new();
    let stranger = harness.builder().build().await.unwrap();
    let strict = harness.app(hmac("k")).await;
    let running = harness.work(&strict);
    let refused = stranger.client().send(ADD.call((1, 1))).await.unwrap();
    assert_eq!(harness.dead("math", 1).await, ["unsigned"]);
    assert_eq!((harness.added(), refused.state().await.unwrap()), (0, TaskState::Pending));
    assert_eq!(running.stop().await.refused, 1);
    let lenient = harness.builder().keyring(hmac("k")).allow_unsigned().build().await.unwrap();
    let _running = harness.work(&lenient);
    let allowed = stranger.client().send(ADD.call((1, 1))).await.unwrap();
    assert_eq!(allowed.wait(SOON).await.unwrap(), 2);
    // What is signed is still verified.
    let forged = harness.app(hmac("k")).await;
    forged.client().send(ADD.call((1, 1))).await.unwrap();
    assert_eq!(harness.dead("math", 2).await[1], "bad-signature");
}

#[tokio::test(start_paused = true)]
async fn letting_a_task_pass_does_not_make_it_look_trusted() {
    let harness = Harness::new();
    let key = hmac("k");
    let stranger = harness.builder().build().await.unwrap();
    let lenient = harness.builder().keyring(key.clone()).allow_unsigned().build().await.unwrap();
    let backoff = machinist_core::Backoff::fixed(SOON);
    let flaky = stranger.client().send(FLAKY.call(()).retries(3).backoff(backoff)).await.unwrap();
    let running = harness.work(&lenient);
    harness.eventually(async || flaky.state().await.unwrap() == TaskState::Retry).await;
    running.stop().await;
    let strict = harness.app(key).await;
    let _running = harness.work(&strict);
    assert_eq!(harness.dead("math", 1).await, ["unsigned"]);
}

#[tokio::test(start_paused = true)]
async fn a_shared_broker_asks_for_a_key() {
    let builder = || App::builder(Arc::new(Shared(MemoryBroker::new())), Arc::new(MemoryBackend::new()));
    let error = builder().build().await.unwrap_err();
    assert!(matches!(error, AppError::NoKey { .. }));
    let text = error.to_string();
    for word in ["machinist keygen", "machinist init", "--key-file", "--allow-unsigned", "shared.example"] {
        assert!(text.contains(word), "{text}");
    }
    assert!(builder().allow_unsigned().build().await.is_ok());
    assert!(builder().keyring(hmac("k")).build().await.is_ok());
    let too_long = builder().keyring(hmac("k")).freshness(Duration::from_secs(1 << 20)).build().await;
    assert!(matches!(too_long, Err(AppError::Freshness { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_result_that_no_worker_signed_is_not_believed() {
    let harness = Harness::new();
    let app = harness.app(hmac("k")).await;
    let sum = app.client().send(ADD.call((2, 3))).await.unwrap();
    let other = app.client().send(ADD.call((1, 1))).await.unwrap();
    let write = async |id: &machinist_core::TaskId, end: Vec<u8>| {
        let mut commit = Commit::new(id.clone());
        commit.facts = vec![("end".into(), end.into())];
        commit.expiry = Expiry::After(SOON);
        harness.backend.commit(vec![commit.into()]).await.pop().unwrap().unwrap();
    };
    let forged = br#"{"at":5,"state":"SUCCESS","results":[{"type":"int64","value":666}]}"#;
    write(sum.id(), forged.to_vec()).await;
    let refused = sum.wait(SOON).await;
    assert!(matches!(refused, Err(ResultError::Forged { .. })), "{refused:?}");
    // The end of another task, copied.
    let running = harness.work(&app);
    assert_eq!(other.wait(SOON).await.unwrap(), 2);
    running.stop().await;
    let facts = harness.backend.read(&[other.id().into()]).await.unwrap().pop().unwrap();
    let end = facts.get("end").unwrap();
    let copied = app.client().send(ADD.call((4, 4))).await.unwrap();
    write(copied.id(), end.to_vec()).await;
    assert!(matches!(copied.record().await, Err(ResultError::Forged { .. })));
    // One bit of a true one.
    for at in 0..end.len() {
        let changed = app.client().send(ADD.call((4, 4))).await.unwrap();
        let mut bytes = end.to_vec();
        bytes[at] ^= 1;
        write(changed.id(), bytes).await;
        assert!(matches!(changed.record().await, Err(ResultError::Forged { .. })), "byte {at}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_too_large_is_an_error_to_its_sender_and_a_dead_letter_where_it_arrives() {
    const ECHO: TaskDef<String, String> = TaskDef::new("echo");
    const FILL: TaskDef<u32, String> = TaskDef::new("fill");
    let echo = async |text: String| -> Result<String, TaskError> { Ok(text) };
    let fill = async |size: u32| -> Result<String, TaskError> { Ok("x".repeat(size as usize)) };
    let harness = Harness::new();
    let key = hmac("k");
    let sizes = MaxSizes::default().body(1000).headers(2000).args(3).results(100);
    let small = harness.builder().keyring(key.clone()).max_sizes(sizes).build().await.unwrap();
    let large = harness.app(key).await;
    let _running = Running::start(harness.worker(&small).task(ECHO, echo).task(FILL, fill));
    let sent = small.client().send(ECHO.call("x".repeat(1000))).await;
    assert!(matches!(sent, Err(SendError::TooLarge { what: "body", limit: 1000, .. })), "{sent:?}");
    let many = (0..4).fold(Signature::new("add"), |signature, n| signature.arg(i64::from(n)));
    let sent = small.client().send(many).await;
    assert!(matches!(sent, Err(SendError::TooLarge { what: "arguments", size: 4, .. })), "{sent:?}");
    let sent = large.client().send(ECHO.call("x".repeat(1000))).await.unwrap();
    assert_eq!(harness.dead("math", 1).await, ["too-large"]);
    assert_eq!(sent.state().await.unwrap(), TaskState::Pending);
    let many = (0..4).fold(Signature::new("add"), |signature, n| signature.arg(i64::from(n)));
    let many = large.client().send(many).await.unwrap();
    let Err(ResultError::Failed { kind, message, .. }) = many.wait(SOON).await else { panic!("it fails") };
    assert_eq!(
        (kind, message.as_str()),
        (FailureKind::Malformed, "it has 4 arguments, and the maximum here is 3")
    );
    let big = large.client().send(FILL.call(101)).await.unwrap();
    let Err(ResultError::Failed { kind, message, .. }) = big.wait(SOON).await else { panic!("it fails") };
    assert_eq!(kind, FailureKind::Error);
    assert!(message.contains("more than 100 bytes"), "{message}");
}

/// The memory broker, pretending that others reach it too.
#[derive(Debug)]
struct Shared(MemoryBroker);

#[async_trait]
impl Broker for Shared {
    fn capabilities(&self) -> BrokerCapabilities {
        BrokerCapabilities { shared: true, ..self.0.capabilities() }
    }
    async fn publish(&self, batch: Vec<Publish>) -> Vec<Result<(), PublishError>> {
        self.0.publish(batch).await
    }
    async fn consume(&self, what: Consume) -> Result<Box<dyn Consumer>, BrokerError> {
        self.0.consume(what).await
    }
    async fn consume_side_queue(
        &self,
        from: SideQueue,
        prefetch: u16,
    ) -> Result<Option<Box<dyn Consumer>>, BrokerError> {
        self.0.consume_side_queue(from, prefetch).await
    }
    async fn depth(&self, queues: &[QueueName]) -> Result<Vec<QueueDepth>, BrokerError> {
        self.0.depth(queues).await
    }
    async fn close(&self) {
        self.0.close().await;
    }
}

#[async_trait]
impl Diagnose for Shared {
    fn location(&self) -> String {
        "amqp://shared.example/".to_owned()
    }
    async fn diagnose(&self) -> Vec<Finding> {
        self.0.diagnose().await
    }
}
