//! The tasks and connections that broker and backend share.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use machinist_adapter::broker::Target;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::{
    claim_request::ClaimRequest,
    claims::Claims,
    commits::{self, AwaitedCommit},
    connect::ServerConnector,
    error::PostgresError,
    link::Link,
    listener::{self, Woken},
    messages,
    notifier::Notifier,
    publisher::{self, AwaitedPublish},
    records,
    runtime::StoreRuntime,
    text::quoted,
    watches::Watches,
};

/// Time between two searches for records whose time is over.
const SWEEP_INTERVAL: Duration = Duration::from_secs(30);
/// Maximum number of records that one statement deletes.
const MAX_SWEPT: i64 = 1_000;

/// Tasks and connections that broker and backend share. They end when it is dropped.
pub(crate) struct Store {
    pub(crate) location: String,
    /// Name of the schema between quotes.
    pub(crate) schema: String,
    /// Identity of the schema, which no other has.
    pub(crate) identity: String,
    pub(crate) watches: Arc<Watches>,
    /// Connection for questions and small changes.
    pub(crate) queries: Arc<Link>,
    claims: mpsc::UnboundedSender<ClaimRequest>,
    publishes: mpsc::UnboundedSender<AwaitedPublish>,
    commits: mpsc::UnboundedSender<AwaitedCommit>,
    listens: Arc<Notify>,
    losses: Arc<AtomicU64>,
    broker_closed: AtomicBool,
    runtime: StoreRuntime,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { location, schema, .. } = self;
        f.debug_struct("Store").field("location", location).field("schema", schema).finish_non_exhaustive()
    }
}

impl Store {
    pub(crate) fn start(
        connector: &Arc<ServerConnector>,
        runtime: StoreRuntime,
        identity: String,
    ) -> Result<Self, PostgresError> {
        let link = || Arc::new(Link::new(Arc::clone(connector)));
        let queries = link();
        let watches = Arc::new(Watches::default());
        let losses = Arc::new(AtomicU64::new(0));
        let listens = Arc::new(Notify::new());
        let (claims, claim_requests) = mpsc::unbounded_channel();
        let (publishes, published) = mpsc::unbounded_channel();
        let (commits, committed) = mpsc::unbounded_channel();
        let notifier = Notifier::new(Arc::clone(&watches), claims.clone());
        let woken = Woken { watches: Arc::clone(&watches), claims: claims.clone() };
        let schema = connector.target.schema.clone();
        let tasks = runtime.handle()?;
        tasks.spawn(Claims::new(link(), notifier.clone(), Arc::clone(&losses)).work(claim_requests));
        tasks.spawn(publisher::work(link(), notifier.clone(), published));
        tasks.spawn(commits::work(link(), notifier.clone(), committed));
        tasks.spawn(notifier.work(Arc::clone(&queries), schema.clone()));
        tasks.spawn(listener::work(Arc::clone(connector), woken, Arc::clone(&listens)));
        tasks.spawn(sweep(Arc::clone(&queries)));
        Ok(Self {
            location: connector.target.location.clone(),
            schema: quoted(&schema),
            identity,
            watches,
            queries,
            claims,
            publishes,
            commits,
            listens,
            losses,
            broker_closed: AtomicBool::new(false),
            runtime,
        })
    }

    /// Asks a question on the thread of the store.
    pub(crate) async fn ask<T: Send + 'static, F>(
        &self,
        question: impl FnOnce(Arc<Link>) -> F,
    ) -> Result<T, PostgresError>
    where
        F: Future<Output = Result<T, PostgresError>> + Send + 'static,
    {
        self.runtime.run(question(Arc::clone(&self.queries))).await
    }

    /// Lets this process hear the wake-ups of the others from now on.
    pub(crate) fn listen(&self) {
        self.listens.notify_one();
    }

    /// Sends a request to the claiming task, unless the broker is closed.
    pub(crate) fn claim(&self, request: ClaimRequest) -> Result<(), PostgresError> {
        if self.is_broker_closed() {
            return Err(PostgresError::closed());
        }
        self.settle(request)
    }

    /// Sends a request to the claiming task, also after the broker was closed.
    pub(crate) fn settle(&self, request: ClaimRequest) -> Result<(), PostgresError> {
        self.claims.send(request).map_err(|_| PostgresError::closed())
    }

    pub(crate) fn publish(&self, publish: AwaitedPublish) -> Result<(), PostgresError> {
        self.publishes.send(publish).map_err(|_| PostgresError::closed())
    }

    pub(crate) fn commit(&self, commit: AwaitedCommit) -> Result<(), PostgresError> {
        self.commits.send(commit).map_err(|_| PostgresError::closed())
    }

    /// Creates queues that do not exist.
    pub(crate) async fn declare(&self, targets: Vec<Target>) -> Result<(), PostgresError> {
        self.ask(|link| async move { messages::declare(&link, &targets).await }).await
    }

    /// Number of times that the claims of this process were lost.
    pub(crate) fn losses(&self) -> u64 {
        self.losses.load(Ordering::Relaxed)
    }

    pub(crate) fn is_broker_closed(&self) -> bool {
        self.broker_closed.load(Ordering::Acquire)
    }

    /// Closes the broker: ends all consumers of this store and hands back what they hold.
    pub(crate) async fn close_broker(&self) {
        self.broker_closed.store(true, Ordering::Release);
        let (caller, ended) = oneshot::channel();
        if self.settle(ClaimRequest::End(caller)).is_ok() {
            // Nobody answers if the thread has ended.
            let _ = ended.await;
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let (caller, ended) = oneshot::channel();
        if self.settle(ClaimRequest::End(caller)).is_ok() {
            self.runtime.end_after(async move {
                // Nobody answers if the thread has ended.
                let _ = ended.await;
            });
        }
    }
}

/// Deletes records whose time is over, for as long as the store exists. Until then they count as absent.
async fn sweep(link: Arc<Link>) {
    loop {
        tokio::time::sleep(SWEEP_INTERVAL.mul_f64(rand::random_range(0.8..1.2))).await;
        loop {
            match records::sweep(&link, MAX_SWEPT).await {
                Ok(swept) if i64::try_from(swept).is_ok_and(|swept| swept >= MAX_SWEPT) => {}
                Ok(_) => break,
                Err(error) => {
                    tracing::debug!(%error, "records whose time is over cannot be deleted now");
                    break;
                }
            }
        }
    }
}
