//! The arrows of the delivery protocol, and how a process ends exactly at one of them.
//!
//! Whatever a worker does to the world goes through the seams. So a wrapper around broker, backend and handlers sees
//! every step of a delivery in its order, and may end the process before or after it; the worker has no trace of it.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use machinist_core::{
    Arg, Middleware, Next, Results, TaskContext, TaskError,
    backend::{Backend, BackendCapabilities, BackendError, Commit, Committed, Index, IndexUpdate, Watch},
    broker::{
        Broker, BrokerCapabilities, BrokerError, Consume, Consumer, Delivery, Publish, PublishError,
        QueueDepth, Receipt, Settle, Settled, SideQueue, SubscriptionHealth, Target,
    },
    clock::Timestamp,
    diagnose::{Diagnose, Finding},
    id::{QueueName, RecordId, RecordKind},
    record::Facts,
};

macro_rules! steps {
    ($($(#[$doc:meta])* $step:ident $name:literal)*) => {
        /// A step of a delivery that somebody outside the process can see.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum ArrowStep { $($(#[$doc])* $step),* }

        impl ArrowStep {
            /// All of them, in the order of the protocol.
            pub const ALL: &[Self] = &[$(Self::$step),*];

            /// Its name, for people and command lines.
            pub fn name(self) -> &'static str {
                match self { $(Self::$step => $name),* }
            }
        }
    };
}

steps! {
    /// A delivery arrives.
    Receive "receive"
    /// `pN` is committed to the places of a limit.
    TakePlace "take-place"
    /// `s:M:E` is committed.
    Start "start"
    /// The handler runs.
    Run "run"
    /// `o:M` or `end` is committed.
    Record "record"
    /// The first message of a task that follows another in its workflow, or that a handler has spawned, is published.
    Continue "continue"
    /// `end` of a task that never runs, because another one of its workflow has failed, is committed.
    Never "never"
    /// `m:I` is committed to a join.
    Join "join"
    /// The next run or the dead letter is published.
    Follow "follow"
    /// `f:M` or `f` is committed.
    Mark "mark"
    /// A copy is published that comes back later.
    PublishGuard "publish-guard"
    /// `g:M:N` is committed.
    StoreGuard "store-guard"
    /// `r:M:E` is committed.
    HandBack "hand-back"
    /// `pN` is dropped from the places of a limit.
    FreePlace "free-place"
    /// The delivery is acknowledged.
    Ack "ack"
    /// The delivery goes back to its queue.
    GiveBack "give-back"
    /// The turn of a periodic task is taken or kept.
    TakeTurn "take-turn"
    /// A tick of a periodic task is published.
    PublishTick "publish-tick"
    /// The cursor of a periodic task is passed.
    PassCursor "pass-cursor"
}

impl ArrowStep {
    /// The step with this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|step| step.name() == name)
    }

    fn of_commit(commit: &Commit) -> Option<Self> {
        let has = |wanted: &str| commit.facts.iter().any(|(name, _)| &**name == wanted);
        match commit.id.kind() {
            RecordKind::Task => {}
            RecordKind::Limit if commit.id.id().starts_with("run/") => {
                return Some(if commit.facts.is_empty() { Self::FreePlace } else { Self::TakePlace });
            }
            RecordKind::Lock if commit.id.id().starts_with("periodic.") => return Some(Self::TakeTurn),
            RecordKind::Cursor => return has("cursor").then_some(Self::PassCursor),
            RecordKind::Join => {
                let is_member = commit.facts.iter().any(|(name, _)| name.starts_with("m:"));
                return is_member.then_some(Self::Join);
            }
            _ => return None,
        }
        // Only the end of a task without a message names the task.
        if has("end") && has("name") {
            return Some(Self::Never);
        }
        commit.facts.iter().find_map(|(name, _)| match name.split(':').next()? {
            "s" => Some(Self::Start),
            "o" | "end" => Some(Self::Record),
            "f" => Some(Self::Mark),
            "g" => Some(Self::StoreGuard),
            "r" => Some(Self::HandBack),
            _ => None,
        })
    }

    fn of_publish(publish: &Publish) -> Option<Self> {
        let number = |header: &str| publish.message.headers.get(header).and_then(|value| value.as_int());
        match publish.target {
            Target::DeadLetters(_) => Some(Self::Follow),
            _ if number("machinist-generation").is_some_and(|generation| generation > 0) => {
                Some(Self::PublishGuard)
            }
            _ if number("machinist-attempt").is_some_and(|attempt| attempt > 1) => Some(Self::Follow),
            _ if publish.message.id.as_ref().is_some_and(|id| id.starts_with("tick.")) => {
                Some(Self::PublishTick)
            }
            _ if publish.message.id.as_deref().is_some_and(is_of_another) => Some(Self::Continue),
            _ => None,
        }
    }
}

/// Returns `true` if the id is that of a task that follows from another one, unless a sender has chosen such an id.
fn is_of_another(id: &str) -> bool {
    id.contains(['.', '+'])
}

/// On which side of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// The step has not been done.
    Before,
    /// The step is done, and the worker has no answer yet.
    After,
}

/// Sees every step of the deliveries of one process.
#[async_trait]
pub trait Witness: fmt::Debug + Send + Sync + 'static {
    /// Called on each side of each step; after it only if it was done. A process that ends here does not return.
    async fn at(&self, step: ArrowStep, side: Side);
}

/// A broker or a backend before which a witness stands.
#[derive(Debug)]
pub struct Witnessed<T: ?Sized> {
    witness: Arc<dyn Witness>,
    inner: Arc<T>,
}

impl<T: ?Sized> Witnessed<T> {
    /// Puts the witness before it.
    pub fn new(witness: Arc<dyn Witness>, inner: Arc<T>) -> Self {
        Self { witness, inner }
    }

    async fn at(&self, steps: &[Option<ArrowStep>], side: Side) {
        for step in steps.iter().flatten() {
            self.witness.at(*step, side).await;
        }
    }
}

#[async_trait]
impl<T: Diagnose + ?Sized + Send + Sync> Diagnose for Witnessed<T> {
    fn location(&self) -> String {
        self.inner.location()
    }
    async fn diagnose(&self) -> Vec<Finding> {
        self.inner.diagnose().await
    }
}

#[async_trait]
impl Broker for Witnessed<dyn Broker> {
    fn capabilities(&self) -> BrokerCapabilities {
        self.inner.capabilities()
    }
    fn realm(&self) -> String {
        self.inner.realm()
    }
    async fn publish(&self, batch: Vec<Publish>) -> Vec<Result<(), PublishError>> {
        let steps: Vec<_> = batch.iter().map(ArrowStep::of_publish).collect();
        if batch.len() > 1 && steps.iter().any(Option::is_some) {
            // One after the other, so that a process can end between two.
            let mut answers = Vec::with_capacity(batch.len());
            for publish in batch {
                answers.extend(Broker::publish(self, vec![publish]).await);
            }
            return answers;
        }
        self.at(&steps, Side::Before).await;
        let answers = self.inner.publish(batch).await;
        let done = steps.iter().zip(&answers).map(|(step, answer)| step.filter(|_| answer.is_ok()));
        self.at(&done.collect::<Vec<_>>(), Side::After).await;
        answers
    }
    async fn consume(&self, what: Consume) -> Result<Box<dyn Consumer>, BrokerError> {
        let inner = self.inner.consume(what).await?;
        Ok(Box::new(WitnessedConsumer { witness: Arc::clone(&self.witness), inner }))
    }
    async fn consume_side_queue(
        &self,
        from: SideQueue,
        prefetch: u16,
    ) -> Result<Option<Box<dyn Consumer>>, BrokerError> {
        self.inner.consume_side_queue(from, prefetch).await
    }
    async fn depth(&self, queues: &[QueueName]) -> Result<Vec<QueueDepth>, BrokerError> {
        self.inner.depth(queues).await
    }
    async fn close(&self) {
        self.inner.close().await;
    }
}

#[derive(Debug)]
struct WitnessedConsumer {
    witness: Arc<dyn Witness>,
    inner: Box<dyn Consumer>,
}

#[async_trait]
impl Consumer for WitnessedConsumer {
    async fn next(&mut self) -> Option<Delivery> {
        let mut delivery = self.inner.next().await?;
        let inner = delivery.receipt;
        delivery.receipt = Box::new(WitnessedReceipt { witness: Arc::clone(&self.witness), inner });
        self.witness.at(ArrowStep::Receive, Side::After).await;
        Some(delivery)
    }
    async fn add_credit(&mut self, credit: u16) {
        self.inner.add_credit(credit).await;
    }
    async fn pause(&mut self) {
        self.inner.pause().await;
    }
    async fn stop(&mut self) {
        self.inner.stop().await;
    }
    fn health(&self) -> Box<dyn SubscriptionHealth> {
        self.inner.health()
    }
}

#[derive(Debug)]
struct WitnessedReceipt {
    witness: Arc<dyn Witness>,
    inner: Box<dyn Receipt>,
}

#[async_trait]
impl Receipt for WitnessedReceipt {
    async fn settle(self: Box<Self>, how: Settle) -> Settled {
        let Self { witness, inner } = *self;
        let step = match how {
            Settle::Ack => ArrowStep::Ack,
            Settle::Requeue => ArrowStep::GiveBack,
        };
        witness.at(step, Side::Before).await;
        let settled = inner.settle(how).await;
        if settled == Settled::Done {
            witness.at(step, Side::After).await;
        }
        settled
    }
}

#[async_trait]
impl Backend for Witnessed<dyn Backend> {
    fn capabilities(&self) -> BackendCapabilities {
        self.inner.capabilities()
    }
    async fn commit(&self, batch: Vec<Arc<Commit>>) -> Vec<Result<Committed, BackendError>> {
        let steps: Vec<_> = batch.iter().map(|commit| ArrowStep::of_commit(commit)).collect();
        self.at(&steps, Side::Before).await;
        let answers = self.inner.commit(batch).await;
        let is_done = |answer: &Result<_, _>| matches!(answer, Ok(Committed::Done { .. }));
        let done = steps.iter().zip(&answers).map(|(step, answer)| step.filter(|_| is_done(answer)));
        self.at(&done.collect::<Vec<_>>(), Side::After).await;
        answers
    }
    async fn read(&self, ids: &[RecordId]) -> Result<Vec<Facts>, BackendError> {
        self.inner.read(ids).await
    }
    async fn watch(&self, id: &RecordId) -> Result<Watch, BackendError> {
        self.inner.watch(id).await
    }
    async fn now(&self) -> Result<Timestamp, BackendError> {
        self.inner.now().await
    }
    async fn update_indexes(&self, updates: Vec<IndexUpdate>) -> Result<(), BackendError> {
        self.inner.update_indexes(updates).await
    }
    async fn list(
        &self,
        index: &Index,
        after: Option<(Timestamp, String)>,
        limit: usize,
    ) -> Result<Vec<(Timestamp, String)>, BackendError> {
        self.inner.list(index, after, limit).await
    }
}

/// Tells the witness of every run; for [`WorkerBuilder::middleware`](machinist_core::WorkerBuilder::middleware).
#[derive(Debug, Clone)]
pub struct WitnessedRuns(pub Arc<dyn Witness>);

#[async_trait]
impl Middleware for WitnessedRuns {
    async fn call(&self, cx: TaskContext, args: Vec<Arg>, next: Next) -> Result<Results, TaskError> {
        self.0.at(ArrowStep::Run, Side::Before).await;
        let outcome = next.run(cx, args).await;
        self.0.at(ArrowStep::Run, Side::After).await;
        outcome
    }
}
