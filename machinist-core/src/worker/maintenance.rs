//! What a worker puts in order beside its tasks: messages that came due for a queue that was gone, and dead letters
//! that a broker made by itself.
//!
//! Any worker does it for all, several at once do no harm, and none of it keeps a worker from its tasks: what it may
//! not do (a broker's permissions, say) is said once and left to others.

use std::{collections::HashMap, sync::Arc, time::Duration};

use super::WorkerContext;
use crate::{
    broker::{Consumer, SideQueue},
    id::QueueName,
};

/// How often dead letters are counted, and how long until what failed is tried again.
const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(60);
/// How many messages that came due for no queue are held at once.
const UNDELIVERED_PREFETCH: u16 = 16;

/// Puts things in order until the worker drains.
pub(super) async fn run(worker: Arc<WorkerContext>, queues: Vec<QueueName>) {
    let stages = worker.stages.clone();
    let work = async {
        tokio::join!(undelivered(&worker), dead_letters(&worker, &queues));
    };
    tokio::select! {
        () = work => {}
        () = stages.reached_drain() => {}
    }
}

/// Brings what came due for a queue that was gone to that queue, or to its end.
async fn undelivered(worker: &Arc<WorkerContext>) {
    let mut told = false;
    loop {
        match worker.app.broker().consume_side_queue(SideQueue::Undelivered, UNDELIVERED_PREFETCH).await {
            Ok(None) => return,
            Ok(Some(mut consumer)) => {
                redirect_all(worker, consumer.as_mut()).await;
                // It ends with the broker's connection to us, which is closed for good.
                return;
            }
            Err(error) if !told => {
                told = true;
                let error = &error as &dyn std::error::Error;
                tracing::warn!(
                    error,
                    "this worker cannot take what came due for a queue that was gone: others have to"
                );
            }
            Err(error) => {
                tracing::debug!(%error, "what came due for a queue that was gone is left to others")
            }
        }
        tokio::time::sleep(MAINTENANCE_INTERVAL).await;
    }
}

async fn redirect_all(worker: &Arc<WorkerContext>, consumer: &mut dyn Consumer) {
    // Dropped with it, what is under way comes again.
    let mut under_way = tokio::task::JoinSet::new();
    while let Some(delivery) = consumer.next().await {
        let worker = Arc::clone(worker);
        under_way.spawn(async move { worker.redirect(delivery).await });
        while under_way.try_join_next().is_some() {}
    }
}

/// Puts dead letters on the list that are not on it.
async fn dead_letters(worker: &WorkerContext, queues: &[QueueName]) {
    let client = worker.app.client();
    let mut counted: HashMap<QueueName, u64> = HashMap::new();
    loop {
        tokio::time::sleep(MAINTENANCE_INTERVAL).await;
        let depths = match worker.app.broker().depth(queues).await {
            Ok(depths) => depths,
            Err(error) => {
                tracing::debug!(%error, "dead letters were not counted");
                continue;
            }
        };
        for depth in depths {
            let lie = depth.dead.unwrap_or_default();
            // The list is read only where something has changed.
            if lie == 0 || counted.get(&depth.queue) == Some(&lie) {
                continue;
            }
            match client.index_dead_letters(&depth.queue).await {
                Ok(0) => drop(counted.insert(depth.queue, lie)),
                Ok(added) => {
                    tracing::warn!(queue = %depth.queue, added, "dead letters were not on the list");
                    counted.insert(depth.queue, lie);
                }
                Err(error) => {
                    tracing::debug!(queue = %depth.queue, %error, "dead letters are not put on the list");
                }
            }
        }
    }
}
