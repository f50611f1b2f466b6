//! The intake of deliveries, and its end while the worker can do nothing with them.
//!
//! A worker without a backend keeps its deliveries for ten minutes: most outages are shorter, and its handlers continue.
//! After that it hands the messages to other workers, which may be able to reach the backend.

use std::{collections::BTreeSet, convert::Infallible, panic::resume_unwind, sync::Arc};

use tokio::{task::JoinError, time::Instant};
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};

use super::{
    Health,
    cut::Cut,
    look_ahead::CreditChange,
    maintenance,
    processor::TaskProcessor,
    server_calls::{AWAY_TIMEOUT, pause},
};
use machinist_adapter::error::chain;

use crate::{
    broker::{BrokerError, Consumer, SubscriptionHealth},
    event::WorkerState,
    id::QueueName,
    record::PresenceState,
};

/// Takes deliveries and passes them to the processor.
pub(super) struct Intake {
    pub(super) processor: Arc<TaskProcessor>,
    pub(super) health: Health,
    pub(super) tracker: TaskTracker,
    /// Ends all deliveries in progress at once.
    pub(super) cut: Cut,
}

/// A running intake. It runs in a separate task: otherwise the thread that waits for the worker's end might be woken for
/// each delivery. It ends when this value is dropped.
pub(super) struct RunningIntake {
    task: AbortOnDropHandle<Option<Box<dyn Consumer>>>,
    stop: CancellationToken,
    closed: CancellationToken,
}

impl RunningIntake {
    /// Completes when no more deliveries arrive, because the broker was closed.
    pub(super) async fn closed(&self) {
        self.closed.cancelled().await;
    }

    /// Stops taking deliveries. Returns the consumer, unless its runtime has ended.
    pub(super) async fn end(self) -> Option<Box<dyn Consumer>> {
        self.stop.cancel();
        match self.task.await.map_err(JoinError::try_into_panic) {
            Ok(consumer) => consumer,
            Err(Ok(panic)) => resume_unwind(panic),
            Err(Err(_cancelled)) => None,
        }
    }
}

impl Intake {
    /// Starts to take deliveries from a subscription to these queues, or to sleep if there is none.
    pub(super) fn start(
        self,
        mut consumer: Option<Box<dyn Consumer>>,
        queues: BTreeSet<QueueName>,
    ) -> RunningIntake {
        let stop = CancellationToken::new();
        let closed = CancellationToken::new();
        let stopped = stop.clone();
        let closed_on_drop = closed.clone().drop_guard();
        let task = tokio::spawn(async move {
            let _closed_on_drop = closed_on_drop;
            tokio::select! {
                biased;
                () = stopped.cancelled() => {}
                () = self.run(&mut consumer, queues) => {}
            }
            consumer
        });
        RunningIntake { task: AbortOnDropHandle::new(task), stop, closed }
    }

    /// Takes deliveries forever, from one subscription after another. Ends only when the broker was closed.
    async fn run(&self, consumer: &mut Option<Box<dyn Consumer>>, mut queues: BTreeSet<QueueName>) {
        let worker = &self.processor.worker;
        let presence = &worker.sessions.presence;
        let mut maintenance = Some(self.maintain());
        loop {
            match consumer {
                None => self.sleep(None).await,
                Some(consumer) => {
                    self.health.subscribed(consumer.health().into());
                    presence.set_subscribed(queues.clone());
                    // What the last subscription has told is over.
                    self.tell_of_connection(false);
                    presence.show(PresenceState::Awake);
                    let health = consumer.health();
                    let tell = |lost| self.tell_of_connection(lost);
                    let withdraws = tokio::select! {
                        biased;
                        () = presence.wants_other_than(&queues) => false,
                        () = self.take(consumer) => return,
                        () = worker.calls.backend_is_away_for_long() => true,
                        never = self.cancel_when_cut_off(health, tell) => match never {},
                    };
                    if withdraws {
                        drop(maintenance.take());
                        self.withdraw(consumer).await;
                    } else {
                        self.sleep(Some(consumer)).await;
                    }
                }
            }
            *consumer = loop {
                queues = presence.subscription();
                while queues.is_empty() {
                    self.sleep(None).await;
                    queues = presence.subscription();
                }
                worker.sessions.alive().await;
                worker.calls.give_up(false);
                self.health.subscribing();
                presence.set_subscribing(true);
                let subscribed = tokio::select! {
                    biased;
                    () = presence.wants_other_than(&queues) => None,
                    subscribed = self.subscribe(&queues) => Some(subscribed),
                };
                presence.set_subscribing(false);
                if subscribed.is_some() {
                    break subscribed;
                }
            };
            worker.look_ahead.resubscribed();
            let subscribed: Vec<_> = queues.iter().cloned().collect();
            worker.list_queues(&subscribed).await;
            worker.calls.emit_state(WorkerState::Resubscribed { queues: &subscribed });
            // Of the queues that are the worker's now.
            maintenance = Some(self.maintain());
        }
    }

    /// Starts the maintenance, which goes on while the worker sleeps. It ends when the returned value is dropped.
    fn maintain(&self) -> AbortOnDropHandle<()> {
        let worker = Arc::clone(&self.processor.worker);
        let queues = worker.sessions.presence.queues();
        AbortOnDropHandle::new(tokio::spawn(maintenance::run(worker, queues)))
    }

    /// Unsubscribes because the backend is away for long, and waits until it answers.
    async fn withdraw(&self, consumer: &mut Box<dyn Consumer>) {
        let worker = &self.processor.worker;
        let running = worker.sessions.running();
        worker.calls.emit_state(WorkerState::Withdrawn { running, away: AWAY_TIMEOUT });
        self.health.withdrawn();
        worker.sessions.presence.show(PresenceState::Asleep);
        // Stopped first, or the broker would deliver the returned messages here again at once.
        consumer.stop().await;
        worker.calls.give_up(true);
        tokio::select! {
            () = worker.calls.backend_is_there() => {}
            never = self.cancel_when_not_held() => match never {},
        }
    }

    /// Unsubscribes because people want the worker to sleep or to take tasks from other queues, and waits while they want it
    /// to take tasks from none. What runs goes on.
    async fn sleep(&self, consumer: Option<&mut Box<dyn Consumer>>) {
        let worker = &self.processor.worker;
        let presence = &worker.sessions.presence;
        let health = consumer.as_ref().map(|consumer| consumer.health());
        self.health.asleep();
        // Stopped first, or the broker would deliver the returned messages here again at once.
        if let Some(consumer) = consumer {
            consumer.stop().await;
        }
        worker.calls.give_up(true);
        if !presence.subscription().is_empty() {
            return;
        }
        worker.calls.emit_state(WorkerState::Asleep { running: worker.sessions.running() });
        presence.show(PresenceState::Asleep);
        presence.set_subscribed(BTreeSet::new());
        let cut_off = async {
            // The subscription has ended, and tells nothing new of the connection.
            let asked = self.ask_for_broker();
            match health {
                Some(health) => tokio::join!(asked, self.cancel_when_cut_off(health, |_| {})).0,
                None => asked.await,
            }
        };
        let nothing = BTreeSet::new();
        tokio::select! {
            () = presence.wants_other_than(&nothing) => {}
            never = cut_off => match never {},
        }
    }

    /// Cancels all runs when neither server protects them any more: the lease has expired, and the connection that held
    /// the messages was lost since the last renewal. Other workers may then run the tasks. One of the two alone is no
    /// reason to cancel, nor is a backend that refuses writes and shows in its records that nobody has taken the runs. `tell`
    /// is called with each check, and with `true` if the connection was lost since the last one.
    async fn cancel_when_cut_off(
        &self,
        health: Box<dyn SubscriptionHealth>,
        tell: impl Fn(bool),
    ) -> Infallible {
        let sessions = &self.processor.worker.sessions;
        let mut known_held_until = sessions.held_until();
        let mut disconnects_at_renewal = health.disconnects();
        let mut last_disconnects = disconnects_at_renewal;
        loop {
            tokio::time::sleep(sessions.lease().check_interval()).await;
            let held_until = sessions.held_until();
            let disconnects = health.disconnects();
            let previous_disconnects = std::mem::replace(&mut last_disconnects, disconnects);
            tell(disconnects != previous_disconnects);
            if held_until != known_held_until {
                // A connection lost since the last check may have been lost after the renewal.
                known_held_until = held_until;
                disconnects_at_renewal = previous_disconnects;
            } else if disconnects != disconnects_at_renewal
                && Instant::now() >= held_until
                && self.processor.worker.calls.is_backend_away()
            {
                let running = sessions.running();
                if running > 0 {
                    self.processor.worker.calls.emit_state(WorkerState::CutOff { running });
                    sessions.cut_off_all();
                }
                disconnects_at_renewal = disconnects;
            }
        }
    }

    /// Cancels all runs, as soon as the backend does not even tell that they are still this worker's: their messages go
    /// to other workers. Never completes.
    async fn cancel_when_not_held(&self) -> Infallible {
        let sessions = &self.processor.worker.sessions;
        loop {
            tokio::time::sleep_until(sessions.held_until()).await;
            if Instant::now() >= sessions.held_until() {
                sessions.cut_off_all();
                tokio::time::sleep(sessions.lease().check_interval()).await;
            }
        }
    }

    /// Asks the broker for as long as it counts as away, because no subscription tells that it is back. Never completes.
    async fn ask_for_broker(&self) -> Infallible {
        let worker = &self.processor.worker;
        let presence = &worker.sessions.presence;
        loop {
            tokio::time::sleep(worker.sessions.lease().check_interval()).await;
            if !presence.broker_is_away() {
                continue;
            }
            let answer = worker.app.broker().depth(&presence.queues()).await;
            // A broker that refuses is there.
            if !matches!(answer, Err(BrokerError::Unavailable(_))) {
                self.tell_of_connection(false);
            }
        }
    }

    /// Emits that the connection to the broker was lost, or is up again. `lost` is `true` if it was lost since the last
    /// check.
    fn tell_of_connection(&self, lost: bool) {
        let presence = &self.processor.worker.sessions.presence;
        let state = match (presence.broker_is_away(), lost) {
            (false, true) => WorkerState::BrokerAway,
            (true, false) => WorkerState::BrokerBack,
            _ => return,
        };
        presence.set_broker_away(lost);
        self.processor.worker.calls.emit_state(state);
    }

    /// Subscribes, and tries again until it succeeds.
    async fn subscribe(&self, queues: &BTreeSet<QueueName>) -> Box<dyn Consumer> {
        let worker = &self.processor.worker;
        let mut tries = 0;
        loop {
            match worker.consume(queues).await {
                Ok(consumer) => return consumer,
                Err(error) => {
                    let error = chain(&error).join(": ");
                    tracing::error!(
                        error,
                        tries,
                        "the worker could not subscribe to its queues; trying again"
                    );
                }
            }
            pause(tries).await;
            tries += 1;
        }
    }

    /// Takes deliveries and processes each in a separate task. Ends only when the broker was closed.
    async fn take(&self, consumer: &mut Box<dyn Consumer>) {
        let look_ahead = &self.processor.worker.look_ahead;
        let mut change = Box::pin(look_ahead.next_change());
        loop {
            // While the backend is away nothing is taken: deliveries stay unacknowledged, and prefetch bounds them.
            self.processor.worker.calls.backend_is_there().await;
            // Nor while nothing can be signed: no outcome could be recorded.
            self.processor.worker.app.0.trust.signs().await;
            let delivery = tokio::select! {
                biased;
                change_now = &mut change => {
                    match change_now {
                        CreditChange::Add(more) => consumer.add_credit(more).await,
                        CreditChange::Pause => consumer.pause().await,
                    }
                    look_ahead.made(change_now);
                    change.set(look_ahead.next_change());
                    continue;
                }
                delivery = consumer.next() => delivery,
            };
            let Some(delivery) = delivery else { return };
            let cut = self.cut.clone();
            // On the heap at once: a spawned future is moved several times.
            let process = Box::pin(Arc::clone(&self.processor).process(delivery, look_ahead.pauses()));
            self.tracker.spawn(cut.bound(process));
        }
    }
}
