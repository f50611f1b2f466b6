//! The worker: takes deliveries, runs handlers, and loses nothing on the way.
//!
//! | file | duty |
//! |---|---|
//! | `builder`, `defaults`, `options`, `task_failure` | the parts of a worker, as the code sets them; defaults of its application; options of one task; error types that the worker asks |
//! | `build`, `build_error` | the checks of these parts, before the worker starts |
//! | `parts`, `reload` | the parts that a configuration gives, and their replacement while the worker runs |
//! | `intake`, `look_ahead` | taking deliveries, as many as help, and stopping during a long outage of the backend |
//! | `processor` | the pipeline: one delivery from its arrival to its settlement |
//! | `worker_context` | the parts that all steps of the pipeline share |
//! | `time_check`, `start`, `run`, `outcome`, `follow_up`, `settlement` | the steps of the pipeline, in their order |
//! | `refusal`, `undelivered` | messages that are not run here |
//! | `continuation`, `callback`, `gathered`, `revoked_roots` | workflows: what follows an end, and the tasks that wait for others |
//! | `admissions`, `parking` | rules that refuse a start, and the wait of refused tasks |
//! | `admit`, `limits`, `places`, `held_places` | limits of rate and concurrency |
//! | `circuits` | tasks that this worker fails again and again |
//! | `left_to_others` | tasks whose handler has asked for another worker |
//! | `guard` | copies that come back later |
//! | `exclusive` | running a suspect alone in the process |
//! | `lease`, `session`, `renewal` | this worker's lease on what it runs |
//! | `presence`, `shown_work`, `orders`, `order_book`, `switches` | the state and the work that the session shows, and the orders of people |
//! | `capacity`, `slot_order`, `queue_consumers` | the slots for handlers that run at once; the queues that get them first, each with a separate subscription |
//! | `recycling` | the end of a worker that has done enough |
//! | `peers` | what this worker knows of other sessions |
//! | `server_calls` | calls to backend and broker, repeated until they answer |
//! | `wake_up` | wake-ups for a record that the worker also looks at in intervals |
//! | `maintenance`, `overdue` | undelivered messages, unlisted dead letters, delayed tasks that the broker has lost |
//! | `measurement`, `last_taken` | depth and age of the queues, for observers and for the history |
//! | `recording` | writes of the history |
//! | `periodic` | the ticks of periodic tasks |
//! | `fleet`, `roles` | leaders and shards: roles that workers share |
//! | `progress` | the progress that handlers report |
//! | `drain`, `cut` | the stages of shutdown; the end of everything when the worker is dropped |
//! | `events`, `event_log`, `tally`, `dead_letter_counts` | events, and their first users |
//! | `memory` | the memory that the session shows |
//! | `health` | checks for operators |

mod admissions;
mod admit;
mod build;
mod build_error;
mod builder;
mod callback;
mod capacity;
mod circuits;
mod continuation;
mod cut;
mod dead_letter_counts;
mod defaults;
mod described;
mod drain;
mod event_log;
mod events;
mod exclusive;
mod fleet;
mod follow_up;
mod followed_queues;
mod gate;
mod gathered;
mod guard;
mod health;
mod held_places;
mod intake;
mod last_taken;
mod lease;
mod left_to_others;
mod limits;
mod look_ahead;
mod maintenance;
mod measurement;
mod memory;
mod mirroring;
mod options;
mod order_book;
mod orders;
mod outcome;
mod overdue;
mod parking;
mod parts;
mod peers;
mod periodic;
mod place_looks;
mod place_waits;
mod places;
mod presence;
mod processor;
mod progress;
mod queue_consumers;
mod recording;
mod recycling;
mod refusal;
mod reload;
mod renewal;
mod revoked_roots;
mod roles;
mod run;
mod server_calls;
mod session;
mod settlement;
mod shown_work;
mod slot_order;
mod start;
mod switches;
mod tally;
mod task_failure;
mod task_log;
mod time_check;
mod timetable;
mod undelivered;
mod wake_up;
mod worker_context;
mod worker_name;

use std::{
    fmt,
    pin::pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::FutureExt as _;
use tokio::sync::watch;
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};

pub use crate::{
    consequence::{ErrorClass, TaskFailure},
    tag::{InvalidTag, MAX_TAGS, Tag},
};
pub use build_error::BuildError;
pub use builder::WorkerBuilder;
pub use dead_letter_counts::DeadLetterCounts;
pub use drain::{Drained, Stages};
pub use fleet::{Fleet, HeldSlot, RoleBuilder, RunningRole};
pub use gate::{Gate, GateContext};
pub use health::{Health, HealthReport};
pub use options::{ErrorClassifier, TaskOptions};
pub use reload::Reloader;
pub use timetable::{SleepHours, SleepHoursError};

use crate::{
    affinity::takes,
    app::App,
    backend::BackendError,
    broker::BrokerError,
    event::{EventKind, WorkerState},
    id::{QueueName, QueuePattern, TaskName},
    periodic::Periodic,
    record::PresenceState,
    slot::RoleError,
};
use cut::Cut;
use fleet::TakePart;
use followed_queues::QueueFollower;
use gate::{AskGate, GateKeeper};
use intake::Intake;
use parts::ReplaceableParts;
use processor::TaskProcessor;
use renewal::Renewals;
use settlement::{ActiveDelivery, Settlement};
use worker_context::WorkerContext;

/// Time that handlers have to end after their cancellation, before they are cut off.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum time for settling deliveries after all runs were cut off.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(2);

/// Runs tasks from queues until it is stopped.
///
/// # Examples
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use machinist_core::{App, TaskDef, TaskError, Worker};
/// use machinist_memory::{MemoryBackend, MemoryBroker};
/// use std::{sync::Arc, time::Duration};
///
/// const ADD: TaskDef<(i64, i64), i64> = TaskDef::new("add");
///
/// async fn add(a: i64, b: i64) -> Result<i64, TaskError> {
///     Ok(a + b)
/// }
///
/// let app = App::builder(Arc::new(MemoryBroker::new()), Arc::new(MemoryBackend::new())).build().await?;
/// let worker = Worker::builder(&app).queue("math").task(ADD, add).build()?;
///
/// let sum = app.client().send(ADD.call((2, 3)).queue("math")).await?;
/// let result = async { sum.wait(Duration::from_secs(30)).await };
/// let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
/// let (five, drained) = tokio::join!(
///     async { let five = result.await; drop(stop); five },
///     worker.run_until(async { drop(stopped.await) }),
/// );
/// assert_eq!(five?, 5);
/// assert!(drained?.is_clean());
/// # Ok(())
/// # }
/// ```
pub struct Worker {
    processor: Arc<TaskProcessor>,
    /// Names of the tasks, sorted.
    tasks: Vec<TaskName>,
    queues: Vec<QueuePattern>,
    tags: Vec<Tag>,
    sleep: Arc<watch::Sender<Vec<SleepHours>>>,
    gate: Option<AskGate>,
    grace: Duration,
    stages: Stages,
    ready: CancellationToken,
    health: Health,
    /// Parts that a reload replaces.
    parts: Arc<Mutex<ReplaceableParts>>,
    periodic: Arc<watch::Sender<Vec<Periodic>>>,
    roles: Vec<TakePart>,
}

/// Error of a worker that could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerError {
    /// The backend did not open a session.
    #[error("the worker could not open its session in the backend")]
    Backend(#[from] BackendError),
    /// The system could not start the thread that renews the session.
    #[error("the worker could not start the thread that renews its session")]
    Thread(#[source] std::io::Error),
    /// A role cannot be taken part in.
    #[error("the worker could not take part in a role")]
    Role(#[from] RoleError),
    /// The broker did not confirm the subscription.
    #[error("the worker could not subscribe to its queues")]
    Broker(#[from] BrokerError),
}

impl Worker {
    /// Returns a builder of a worker for this application.
    pub fn builder(app: &App) -> WorkerBuilder {
        WorkerBuilder::new(app.clone())
    }

    /// The name that the worker was given. [`Health::worker`] is the one that its session holds.
    pub fn name(&self) -> &str {
        self.processor.worker.name.given()
    }

    /// Names of the tasks that the worker runs, sorted.
    pub fn tasks(&self) -> Vec<&TaskName> {
        self.tasks.iter().collect()
    }

    /// Queues from which the worker takes tasks when it starts, and the patterns of those that it follows.
    pub fn queues(&self) -> &[QueuePattern] {
        &self.queues
    }

    /// Returns `true` if the worker takes tasks from this queue when it starts, or follows it as soon as it is used.
    pub fn takes_from(&self, queue: &QueueName) -> bool {
        let has_tag = |tag: &str| self.tags.iter().any(|own| own.as_str() == tag);
        takes(self.queues.iter().map(QueuePattern::as_str), has_tag, queue.as_str())
    }

    /// Tags of the worker when it starts, sorted. Its session shows them to other processes.
    pub fn tags(&self) -> &[Tag] {
        &self.tags
    }

    /// Token that fires once the broker has confirmed the subscription: tasks run from then on.
    pub fn ready(&self) -> CancellationToken {
        self.ready.clone()
    }

    /// Returns a handle that replaces what the worker has from its configuration, while it runs.
    pub fn reloader(&self) -> Reloader {
        Reloader {
            processor: Arc::clone(&self.processor),
            parts: Arc::clone(&self.parts),
            periodic: Arc::clone(&self.periodic),
            sleep: Arc::clone(&self.sleep),
        }
    }

    /// Sets the function that obeys an order to read the configuration of the program again. It returns a remark for people,
    /// or the reason that nothing has changed, which is the answer to the order. The last one that is set counts; without
    /// one, and when it panics, such orders are refused. A future that takes longer than half of the lease of the session, or than
    /// 10 s, is dropped, and must have changed nothing then: [`Reloader::reload`] keeps to that.
    pub fn on_reload<F, A>(&self, reload: F)
    where
        F: Fn() -> A + Send + Sync + 'static,
        A: Future<Output = Result<Option<String>, String>> + Send + 'static,
    {
        self.processor.worker.orders.on_reload(Some(Arc::new(move || Box::pin(reload()))));
    }

    /// Returns a handle that checks the worker's health while it runs.
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    /// Returns a handle with which this worker takes part in roles: leaders and shards. The roles begin when the worker runs,
    /// and end when it drains.
    pub fn fleet(&self) -> Fleet {
        Fleet::new(Arc::clone(&self.processor.worker))
    }

    /// Stages of the worker's shutdown, which other code may advance (on a second signal).
    pub fn stages(&self) -> Stages {
        self.stages.clone()
    }

    /// Counts, by reason, of the dead letters that this worker publishes. They can be read until its end and after it.
    pub fn dead_letter_counts(&self) -> DeadLetterCounts {
        self.processor.worker.events.dead_letter_counts.clone()
    }

    /// Works until `shutdown` completes, then drains: takes no more deliveries, hands back those that have not started,
    /// gives running handlers the grace period, then cancels them, then hands their deliveries back.
    ///
    /// A worker that has started does not fail: it waits for a broker or backend that is away.
    ///
    /// # Errors
    /// [`WorkerError`] if the broker or the backend cannot be reached at the start.
    ///
    /// # Cancel safety
    /// Dropped before its end, the worker stops like a killed process: nothing is lost, and unfinished tasks run again
    /// elsewhere when the session has expired.
    pub async fn run_until(self, shutdown: impl Future<Output = ()>) -> Result<Drained, WorkerError> {
        let Self {
            processor,
            tasks,
            queues: _,
            grace,
            stages,
            ready,
            health,
            parts: _,
            periodic,
            roles,
            tags: _,
            sleep,
            gate,
        } = self;
        let worker = Arc::clone(&processor.worker);
        let roles_over = worker.roles.over_on_drop();
        let fleet = Fleet::new(Arc::clone(&worker));
        let roles = roles.into_iter().map(|take_part| take_part(&fleet)).collect::<Result<Vec<_>, _>>()?;
        let mut shutdown = pin!(shutdown.fuse());
        if !worker.await_paused_name(&mut shutdown).await? {
            stages.drain();
            worker.orders.on_reload(None);
            return Ok(worker.events.tally.drained());
        }
        worker.sessions.open().await?;
        worker.sessions.read_control().await?;
        let renewals = Renewals::begin(&worker).map_err(WorkerError::Thread)?;
        // What is to be written back is read again.
        let _again = worker.apply_wanted_state();
        let mut follower = QueueFollower::new(Arc::clone(&worker));
        follower.look().await;
        timetable::look(&worker, &sleep.borrow());
        let mut gate = gate.map(|gate| GateKeeper::new(Arc::clone(&worker), gate));
        if let Some(gate) = &mut gate {
            gate.look().await;
        }
        let subscribed = worker.sessions.presence.subscription();
        let consumer = match subscribed.is_empty() {
            true => None,
            false => Some(worker.consume(&subscribed).await?),
        };
        match &consumer {
            Some(consumer) => health.subscribed(consumer.health().into()),
            None => health.asleep(),
        }
        let queues = worker.sessions.presence.queues();
        worker.list_queues(&queues).await;
        worker.warn_of_other_limits().await;
        worker.emit(EventKind::WorkerStarted { queues: &queues, tasks: &tasks });
        ready.cancel();
        let tracker = TaskTracker::new();
        // Dropped before its end, this future must not leave handlers behind that run without a session.
        let cut = Cut::default();
        let _cut_on_drop = cut.on_drop();
        let intake = Intake { processor: Arc::clone(&processor), health, tracker: tracker.clone(), cut };
        let intake = intake.start(consumer, subscribed);
        let ticking =
            AbortOnDropHandle::new(tokio::spawn(periodic::run(Arc::clone(&worker), periodic.subscribe())));
        let _following = AbortOnDropHandle::new(tokio::spawn(follower.run()));
        let _gate = gate.map(|gate| AbortOnDropHandle::new(tokio::spawn(gate.run())));
        let _sleeping =
            AbortOnDropHandle::new(tokio::spawn(timetable::follow(Arc::clone(&worker), sleep.subscribe())));
        tokio::select! {
            () = intake.closed() => {}
            () = shutdown => stages.advance(),
            () = stages.reached_drain() => {}
        }
        stages.drain();
        worker.sessions.presence.show(PresenceState::Draining);
        let state = WorkerState::Draining { running: worker.sessions.running() };
        worker.emit(EventKind::WorkerState { state });
        if let Some(mut consumer) = intake.end().await {
            consumer.stop().await;
        }
        // It ends when the worker drains. A turn that it could not give up expires.
        let _in_time = tokio::time::timeout(SETTLE_TIMEOUT, ticking).await;
        tracker.close();
        let roles_left = tokio::time::timeout(CANCEL_TIMEOUT + SETTLE_TIMEOUT, worker.roles.left());
        let ((), roles_left) = tokio::join!(drain::wait_through(&tracker, &stages, grace), roles_left);
        drop((roles, roles_over));
        let drained = Drained { restart_exit_code: worker.orders.restart(), ..worker.events.tally.drained() };
        // Best effort: the letters are in the broker.
        let _in_time = tokio::time::timeout(SETTLE_TIMEOUT, worker.refused.flush(&worker.app)).await;
        renewals.end().await;
        worker.orders.on_reload(None);
        // What still runs for a slot is protected until the session expires.
        if drained.unfinished == 0 && roles_left.is_ok() {
            worker.sessions.close().await;
        }
        let Drained { handed_back, unfinished, refused, .. } = drained;
        let dead_letters = &worker.events.dead_letter_counts.by_reason();
        worker.emit(EventKind::WorkerEnded { handed_back, unfinished, refused, dead_letters });
        // Best effort: events are notifications.
        let _in_time = tokio::time::timeout(SETTLE_TIMEOUT, worker.app.flush_events()).await;
        Ok(drained)
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker")
            .field("name", &self.name())
            .field("queues", &self.queues)
            .finish_non_exhaustive()
    }
}
