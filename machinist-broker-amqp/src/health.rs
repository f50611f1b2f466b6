//! Health of a subscription: confirmed by the broker for every queue, on a connection that answers.
//!
//! Health checks most often miss a process that lives and consumes nothing. So a check here asks the broker; it takes
//! nothing from memory except which connection to ask.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use async_trait::async_trait;
use lapin::Channel;
use machinist_adapter::broker::SubscriptionHealth;
use tokio::sync::{Mutex, watch};

use crate::{error::error_chain, supervisor::LiveConnection};

/// Status of the subscription to one queue.
#[derive(Debug, Clone)]
pub(crate) enum SubscriptionStatus {
    /// The broker has confirmed the subscription, on this connection.
    Up(Arc<LiveConnection>),
    /// The subscription is being made, for the first time or again, for this reason.
    Down(String),
}

/// One queue of a consumer, with the status of its subscription.
#[derive(Debug, Clone)]
pub(crate) struct MonitoredQueue {
    /// Name of the queue on the broker.
    pub(crate) name: String,
    pub(crate) status: watch::Receiver<SubscriptionStatus>,
}

impl MonitoredQueue {
    /// Returns `true` if the broker has confirmed the subscription.
    pub(crate) fn is_up(&self) -> bool {
        self.status.has_changed().is_ok() && matches!(*self.status.borrow(), SubscriptionStatus::Up(_))
    }
}

/// Health of all subscriptions of one consumer.
#[derive(Debug)]
pub(crate) struct AmqpSubscriptionHealth {
    queues: Vec<MonitoredQueue>,
    disconnects: Arc<AtomicU64>,
    last_probe: Mutex<Option<LastProbe>>,
}

/// The last connection that was probed, and the channel of that probe.
#[derive(Debug)]
struct LastProbe {
    live: Arc<LiveConnection>,
    channel: Option<Channel>,
}

impl AmqpSubscriptionHealth {
    pub(crate) fn new(queues: Vec<MonitoredQueue>, disconnects: Arc<AtomicU64>) -> Self {
        Self { queues, disconnects, last_probe: Mutex::default() }
    }

    /// Connection of all subscriptions: the queues of a consumer share one. `None` if there are no queues.
    fn connection(&self) -> Result<Option<Arc<LiveConnection>>, String> {
        let mut connection = None;
        for MonitoredQueue { name, status } in &self.queues {
            // The sender is dropped with the subscription's task.
            if status.has_changed().is_err() {
                return Err(format!("the subscription to queue {name} has ended"));
            }
            match &*status.borrow() {
                SubscriptionStatus::Up(live) => connection = Some(Arc::clone(live)),
                SubscriptionStatus::Down(reason) => {
                    return Err(format!("not subscribed to queue {name}: {reason}"));
                }
            }
        }
        Ok(connection)
    }
}

#[async_trait]
impl SubscriptionHealth for AmqpSubscriptionHealth {
    async fn check(&self) -> Result<(), String> {
        let Some(live) = self.connection()? else { return Err("subscribed to no queue".to_owned()) };
        let mut last_probe = self.last_probe.lock().await;
        let mut channel = match last_probe.take() {
            Some(last) if Arc::ptr_eq(&last.live, &live) => last.channel,
            _ => None,
        };
        let answered = live.connection.probe(&mut channel).await;
        *last_probe = Some(LastProbe { live, channel });
        answered.map_err(|error| format!("RabbitMQ does not answer: {}", error_chain(&error)))
    }

    fn disconnects(&self) -> u64 {
        let is_down = |queue: &MonitoredQueue| matches!(*queue.status.borrow(), SubscriptionStatus::Down(_));
        if self.queues.iter().any(is_down) {
            self.disconnects.fetch_add(1, Ordering::Relaxed);
        }
        self.disconnects.load(Ordering::Relaxed)
    }
}
