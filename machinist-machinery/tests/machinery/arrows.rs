//! A worker of ours that dies at each arrow of the protocol, and at each await of what it owes to Go.

use std::{
    future::{pending, poll_fn},
    pin::pin,
    sync::Arc,
    task::Poll,
};

use async_trait::async_trait;
use futures_util::StreamExt;
use machinist::{
    Followed, Mirror, MirroredOutcome, MirroredState, MirroredTask, PassingState, QueueName, QueueOptions,
    SentGroup, SentTask, Servers, TaskId,
    backend::BackendError,
    redis::{RedisBackend, RedisOptions},
};
use machinist_conformance::{
    arrows::{ArrowStep, Side, Witness, Witnessed, WitnessedRuns},
    service_url,
};
use machinist_machinery::{MachineryMirror, MachineryProfile};
use serde_json::json;
use tokio::sync::watch;

use crate::{
    fleet::{Fleet, int, start},
    go::{fresh, signature},
};

/// Arrows that every run of [`outlive`] passes.
const PASSED: [ArrowStep; 8] = [
    ArrowStep::Receive,
    ArrowStep::Start,
    ArrowStep::Run,
    ArrowStep::Record,
    ArrowStep::Follow,
    ArrowStep::Mark,
    ArrowStep::PublishGuard,
    ArrowStep::Ack,
];
/// Number of the last await of the mirror at which a worker dies.
const LAST_AWAIT: usize = 14;
/// Number of scenarios at the same time. Each has a ladder of delays in a namespace that no other has, and the queues of ten
/// ladders at once keep the broker from answering other tests.
const AT_ONCE: usize = 4;

/// Where a worker dies.
#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    Arrow(ArrowStep, Side),
    /// At this await of the mirror, counted over all tasks.
    Await(usize),
}

/// Sees each step of a worker, and ends it at one of them.
#[derive(Debug)]
struct Fate {
    end: End,
    dead: watch::Sender<bool>,
}

impl Fate {
    fn kill(&self) {
        self.dead.send_replace(true);
    }

    /// A dead process does nothing more.
    async fn live_on(&self) {
        if *self.dead.borrow() {
            pending::<()>().await;
        }
    }
}

#[async_trait]
impl Witness for Fate {
    async fn at(&self, step: ArrowStep, side: Side) {
        if self.end == End::Arrow(step, side) {
            self.kill();
        }
        self.live_on().await;
    }
}

/// A mirror that dies with its process.
#[derive(Debug)]
struct MortalMirror {
    inner: MachineryMirror,
    fate: Arc<Fate>,
    awaits: std::sync::atomic::AtomicUsize,
}

#[async_trait]
impl Mirror for MortalMirror {
    async fn show(&self, task: &MirroredTask, state: PassingState) {
        self.fate.live_on().await;
        self.inner.show(task, state).await;
    }

    async fn follow(
        &self,
        task: &MirroredTask,
        outcome: MirroredOutcome<'_>,
    ) -> Result<Followed, BackendError> {
        self.fate.live_on().await;
        let mut following = pin!(self.inner.follow(task, outcome));
        poll_fn(|cx| {
            if *self.fate.dead.borrow() {
                return Poll::Pending;
            }
            let polled = following.as_mut().poll(cx);
            let passed = self.awaits.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            if self.fate.end == End::Await(passed) {
                self.fate.kill();
                return Poll::Pending;
            }
            polled
        })
        .await
    }

    async fn show_again(
        &self,
        task: &MirroredTask,
        outcome: MirroredOutcome<'_>,
    ) -> Result<(), BackendError> {
        self.fate.live_on().await;
        self.inner.show_again(task, outcome).await
    }

    async fn owed_since(
        &self,
        task: &MirroredTask,
        outcome: MirroredOutcome<'_>,
    ) -> Result<Followed, BackendError> {
        self.fate.live_on().await;
        self.inner.owed_since(task, outcome).await
    }

    async fn sending(&self, tasks: &[SentTask], groups: &[SentGroup]) -> Result<(), BackendError> {
        self.inner.sending(tasks, groups).await
    }

    async fn not_sent(&self, tasks: &[SentTask]) -> Result<(), BackendError> {
        self.inner.not_sent(tasks).await
    }

    async fn states(&self, ids: &[TaskId]) -> Result<Vec<Option<MirroredState>>, BackendError> {
        self.inner.states(ids).await
    }
}

/// Sends tasks to a worker that dies, and looks for their ends under another one. Returns `true` if the first one died.
async fn outlive(end: End) -> Option<bool> {
    let fleet = Fleet::new("[\"*\"]").await?;
    let go = &fleet.go;
    let (dead, mut died) = watch::channel(false);
    let fate = Arc::new(Fate { end, dead });
    let witness: Arc<dyn Witness> = fate.clone();
    let settings = fleet.settings();
    let mut servers = Servers::reach(&settings).await;
    let broker = servers.broker.unwrap();
    servers.broker = Ok(Arc::new(Witnessed::new(witness.clone(), broker.clone())));
    servers.backend = Ok(Arc::new(Witnessed::new(witness.clone(), servers.backend.unwrap())));
    let redis = service_url("MACHINIST_TEST_REDIS_URL")?;
    let redis = RedisBackend::connect(&redis, RedisOptions::default()).await.unwrap();
    let queue = QueueName::parse(&go.queue).unwrap();
    let inner = MachineryMirror::new(redis.values(), &go.queue).queue(&go.queue, queue.clone());
    let mirror = MortalMirror { inner, fate: fate.clone(), awaits: 0.into() };
    let options = QueueOptions::default()
        .profile(MachineryProfile::new(&go.queue))
        .allow_unsigned(["*"])
        .shared()
        .mirror(mirror);
    let app = servers.app_with(&settings, |app| app.queue(queue, options)).await.unwrap();
    let doomed = start(fleet.builder(&app).middleware(WitnessedRuns(witness)));

    let last = fresh("task");
    let mut chain = signature("add", &[int(1), int(3)]);
    let mut end_of_chain = signature("multiply", &[int(2)]);
    end_of_chain["UUID"] = last.as_str().into();
    chain["OnSuccess"] = json!([end_of_chain]);
    go.send(chain).await;
    let callback = fresh("chord");
    let mut sum = signature("add", &[int(100)]);
    sum["UUID"] = callback.as_str().into();
    let members = (1..=2).map(|n| signature("multiply", &[int(n), int(n)])).collect();
    go.send_group(members, Some(sum)).await;
    let caught = fresh("task");
    let mut failing = signature("fail", &[]);
    let mut on_error = signature("on_error", &[("string", "extra".into())]);
    on_error["UUID"] = caught.as_str().into();
    failing["OnError"] = json!([on_error]);
    let failed = go.send(failing).await;
    let mut retried = signature("flaky", &[]);
    retried["RetryCount"] = 2.into();
    let retried = go.send(retried).await;

    let ends =
        [(&last, json!(8)), (&callback, json!(105)), (&caught, json!("boom extra")), (&retried, json!(2))];
    let all = async {
        for (id, _) in &ends {
            go.wait(id).await;
        }
    };
    let has_died = tokio::select! {
        _ = died.wait_for(|dead| *dead) => true,
        () = all => false,
    };
    doomed.abort();
    broker.close().await;
    let second = fleet.work().await;
    for (id, value) in &ends {
        let state = go.wait(id).await;
        assert_eq!(state["State"], "SUCCESS", "{end:?}: {state}");
        // A run that the death has ended counts as none, so the attempt is the same.
        assert_eq!(state["Results"][0]["Value"], *value, "{end:?}: {state}");
    }
    assert_eq!(go.wait(&failed).await["Error"], "boom", "{end:?}");
    fleet.kill(second).await;
    fleet.clean_up().await;
    Some(has_died)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_may_die_at_any_arrow() {
    let arrows =
        PASSED.iter().flat_map(|step| [Side::Before, Side::After].map(|side| End::Arrow(*step, side)));
    let arrows = arrows.filter(|end| *end != End::Arrow(ArrowStep::Receive, Side::Before));
    let ends: Vec<End> = arrows.chain((0..=LAST_AWAIT).map(End::Await)).collect();
    let outcomes: Vec<_> = futures_util::stream::iter(ends)
        .map(|end| async move { (end, tokio::spawn(outlive(end)).await.unwrap()) })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    for (end, died) in outcomes {
        assert_ne!(died, Some(false), "the worker never came to {end:?}");
    }
}
