//! How a subscription is: confirmed by the broker for every queue, on a connection that answers.
//!
//! A process that lives and consumes nothing is the failure that health checks miss most often, so nothing is taken
//! from memory here but which connection to ask.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use async_trait::async_trait;
use lapin::Channel;
use machinist_core::broker::SubscriptionHealth;
use tokio::sync::{Mutex, watch};

use crate::{
    subscription::SubscriptionStatus,
    supervisor::{LiveConnection, ask, chain},
};

#[derive(Debug)]
pub(crate) struct AmqpSubscriptionHealth {
    standings: Vec<(String, watch::Receiver<SubscriptionStatus>)>,
    disconnects: Arc<AtomicU64>,
    /// The channel on which the last question was asked, and its connection.
    probe: Mutex<Option<(Arc<LiveConnection>, Option<Channel>)>>,
}

impl AmqpSubscriptionHealth {
    pub(crate) fn new(
        standings: Vec<(String, watch::Receiver<SubscriptionStatus>)>,
        disconnects: Arc<AtomicU64>,
    ) -> Self {
        Self { standings, disconnects, probe: Mutex::default() }
    }

    /// The connection on which everything is subscribed. All queues of a consumer share one.
    fn connection(&self) -> Result<Option<Arc<LiveConnection>>, String> {
        let mut connection = None;
        for (queue, standing) in &self.standings {
            // The other end is dropped with the subscription's task.
            if standing.has_changed().is_err() {
                return Err(format!("the subscription to queue {queue} has ended"));
            }
            match &*standing.borrow() {
                SubscriptionStatus::Up(live) => connection = Some(Arc::clone(live)),
                SubscriptionStatus::Down(why) => {
                    return Err(format!("not subscribed to queue {queue}: {why}"));
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
        let mut probe = self.probe.lock().await;
        let mut channel = match probe.take() {
            Some((of, channel)) if Arc::ptr_eq(&of, &live) => channel,
            _ => None,
        };
        let answered = ask(&live, &mut channel).await;
        *probe = Some((live, channel));
        answered.map_err(|trouble| format!("RabbitMQ does not answer: {}", chain(&trouble)))
    }

    fn disconnects(&self) -> u64 {
        let is_down = |(_, standing): &(String, watch::Receiver<SubscriptionStatus>)| {
            matches!(*standing.borrow(), SubscriptionStatus::Down(_))
        };
        if self.standings.iter().any(is_down) {
            self.disconnects.fetch_add(1, Ordering::Relaxed);
        }
        self.disconnects.load(Ordering::Relaxed)
    }
}
