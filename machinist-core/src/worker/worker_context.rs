//! The parts of a worker that every step of a delivery shares: its session, its calls to the servers, its
//! events.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use super::{
    Stages,
    admissions::Admissions,
    capacity::SlotPool,
    circuits::Circuits,
    events::WorkerEvents,
    left_to_others::LeftToOthers,
    limits::Limits,
    look_ahead::LookAhead,
    order_book::OrderBook,
    place_waits::PlaceWaits,
    queue_consumers::{QueueConsumer, QueueConsumers},
    recycling::Recycling,
    revoked_roots::RevokedRoots,
    roles::Roles,
    server_calls::ServerCalls,
    session::Sessions,
    worker_name::WorkerName,
};
use crate::{
    app::App,
    backend::{BackendError, Committed},
    broker::{BrokerError, Consume, Consumer},
    clock::Timestamp,
    event::EventKind,
    id::QueueName,
    queue_list::list_queues,
    record::take_turn,
    refused::RefusedTally,
};

/// Time for which one worker has the turn of work that it does for all.
const TURN: Duration = Duration::from_secs(50);

/// State that a worker shares between deliveries, renewals and maintenance.
pub(super) struct WorkerContext {
    pub(super) app: App,
    /// Name of the worker, for people.
    pub(super) name: Arc<WorkerName>,
    /// Maximum time that a delivery is held: half of the broker's `consumer_timeout`.
    pub(super) max_hold: Duration,
    pub(super) sessions: Arc<Sessions>,
    pub(super) calls: Arc<ServerCalls>,
    pub(super) stages: Stages,
    pub(super) admissions: Admissions,
    pub(super) limits: Arc<Limits>,
    pub(super) place_waits: PlaceWaits,
    pub(super) capacity: Arc<SlotPool>,
    pub(super) circuits: Circuits,
    pub(super) left_to_others: LeftToOthers,
    pub(super) orders: OrderBook,
    pub(super) look_ahead: Arc<LookAhead>,
    pub(super) events: Arc<WorkerEvents>,
    pub(super) refused: RefusedTally,
    pub(super) revoked_roots: RevokedRoots,
    pub(super) roles: Roles,
    pub(super) recycling: Recycling,
}

impl WorkerContext {
    /// Backend time.
    pub(super) fn now(&self) -> Timestamp {
        self.app.clock().now()
    }

    /// Emits an event of this worker.
    #[inline]
    pub(super) fn emit(&self, kind: EventKind<'_>) {
        self.events.emit(kind);
    }

    /// Subscribes to these queues, with credit for what can run at once. The look-ahead is added when the runs are known to
    /// be short. Where the queues have an order, each has a separate subscription, so that some of its tasks are there to
    /// choose from.
    pub(super) async fn consume(
        &self,
        queues: &BTreeSet<QueueName>,
    ) -> Result<Box<dyn Consumer>, BrokerError> {
        let prefetch = u16::try_from(self.capacity.limit()).unwrap_or(u16::MAX);
        let broker = self.app.broker();
        let guards = queues.iter().filter_map(|queue| self.app.0.rules.guards_of(queue));
        let queues: BTreeSet<_> = queues.iter().chain(guards).cloned().collect();
        if !self.capacity.is_ordered() {
            return broker.consume(Consume { queues: queues.into_iter().collect(), prefetch }).await;
        }
        let mut consumers = Vec::new();
        for queue in &queues {
            let slots = self.capacity.most_of(queue).and_then(|most| u16::try_from(most).ok());
            let most = QueueConsumer::credit_of(slots.unwrap_or(u16::MAX));
            let first = QueueConsumer::credit_of(prefetch).min(most);
            let consume = Consume { queues: vec![queue.clone()], prefetch: first };
            consumers.push(QueueConsumer::new(broker.consume(consume).await?, most, first));
        }
        Ok(Box::new(QueueConsumers::new(consumers)))
    }

    /// Lists the queues that the worker consumes in the backend. Best effort: they are listed again when it subscribes.
    pub(super) async fn list_queues(&self, queues: &[QueueName]) {
        let named: Vec<_> = queues.iter().collect();
        list_queues(self.app.backend().as_ref(), self.now(), &named).await;
    }

    /// Takes the turn of work that one worker does for all. Returns `false` if another worker has it. A turn whose
    /// record cannot be used is said once, and every worker has it: several at once do no harm.
    pub(super) async fn takes_turn(&self, work: &str) -> Result<bool, BackendError> {
        let commit = take_turn(work, self.name.held(), TURN);
        let turn = commit.id.clone();
        let taken = self.app.client().commit(commit).await;
        let taken = self.sessions.usable(&turn, taken)?;
        Ok(taken.is_none_or(|taken| matches!(taken, Committed::Done { .. })))
    }

    /// Returns the answer; nothing if another program has spoilt the record or the index that was asked for. That is
    /// said once a minute, and does not keep the worker from the others.
    pub(super) fn passed_over<T: Default>(
        &self,
        what: &'static str,
        answer: Result<T, BackendError>,
    ) -> Result<T, BackendError> {
        match answer {
            Err(error) if error.is_of_one_record() => {
                if let Some(suppressed) = self.app.0.log_lines.due("spoilt", what) {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(error, suppressed, "{what}: cannot be used");
                }
                Ok(T::default())
            }
            answer => answer,
        }
    }

    /// Completes when deliveries that have not started must go back to the broker.
    pub(super) async fn must_hand_back(&self) {
        tokio::select! {
            () = self.stages.reached_drain() => {}
            () = self.calls.given_up() => {}
        }
    }
}
