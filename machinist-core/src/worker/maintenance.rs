//! Maintenance that a worker does in addition to its tasks: delayed messages whose queue did not exist, dead letters that
//! a broker made by itself, and sessions that ended without a goodbye.
//!
//! Any worker does this for all workers, and several at once do no harm. Maintenance never keeps a worker from its tasks:
//! work that it is not allowed to do (because of a broker's permissions, for example) is logged once and left to other
//! workers.

use std::{sync::Arc, time::Duration};

use super::{WorkerContext, measurement, overdue, place_looks, recording};
use crate::{
    backend::{BackendError, Index, IndexUpdate},
    broker::{Consumer, SideQueue},
    clock::Timestamp,
    control::ControlError,
    diagnose::Finding,
    ended::unlist_expired,
    id::{QueueName, RecordId, SessionId},
    record::is_alive,
};

/// Interval between counts of dead letters, and wait before a failed step is tried again.
const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(60);
/// Time after its start at which a worker first looks after the broker.
const FIRST_LOOK_AFTER: Duration = Duration::from_secs(3);
/// Number of listed sessions that are checked at once.
const SESSIONS_PER_CHECK: usize = 16;
/// Maximum number of undelivered messages that are held at once.
const UNDELIVERED_PREFETCH: u16 = 16;

/// Does maintenance until the worker drains.
pub(super) async fn run(worker: Arc<WorkerContext>, queues: Vec<QueueName>) {
    let stages = worker.stages.clone();
    let work = async {
        tokio::join!(
            undelivered(&worker, &queues),
            dead_letters(&worker, &queues),
            sessions(&worker),
            ended_tasks(&worker),
            broker(&worker),
            overdue::publish_forever(&worker),
            measurement::measure_forever(&worker),
            recording::record_forever(&worker),
            place_looks::look_forever(&worker),
            worker.refused.keep_adding(&worker.app)
        );
    };
    tokio::select! {
        () = work => {}
        () = stages.reached_drain() => {}
    }
}

/// Moves delayed messages that came due without a queue to that queue, or ends their tasks.
async fn undelivered(worker: &Arc<WorkerContext>, queues: &[QueueName]) {
    let mut logged = false;
    loop {
        match worker.app.broker().consume_side_queue(SideQueue::Undelivered, UNDELIVERED_PREFETCH).await {
            Ok(None) => return,
            Ok(Some(mut consumer)) => {
                redirect_all(worker, consumer.as_mut(), queues).await;
                // The consumer ends with the worker's connection to the broker, which is closed permanently.
                return;
            }
            Err(error) if !logged => {
                logged = true;
                let error = &error as &dyn std::error::Error;
                tracing::warn!(
                    error,
                    "this worker cannot take delayed messages whose queue did not exist: other workers have to"
                );
            }
            Err(error) => {
                tracing::debug!(%error, "delayed messages whose queue did not exist are left to other workers")
            }
        }
        tokio::time::sleep(MAINTENANCE_INTERVAL).await;
    }
}

async fn redirect_all(worker: &Arc<WorkerContext>, consumer: &mut dyn Consumer, queues: &[QueueName]) {
    // Messages in progress are delivered again if this function is dropped.
    let mut under_way = tokio::task::JoinSet::new();
    while let Some(delivery) = consumer.next().await {
        let worker = Arc::clone(worker);
        // A worker has at least one queue.
        let own = queues.first().unwrap_or(&delivery.queue).clone();
        under_way.spawn(async move { worker.redirect(delivery, &own).await });
        while under_way.try_join_next().is_some() {}
    }
}

/// Removes sessions that are gone from the index of sessions, a few at a time: many workers share the work.
async fn sessions(worker: &WorkerContext) {
    let mut after = None;
    loop {
        tokio::time::sleep(MAINTENANCE_INTERVAL).await;
        match unlist_sessions(worker, after.clone()).await {
            Ok(last) => after = last,
            Err(error) => tracing::debug!(%error, "the index of sessions was not checked"),
        }
    }
}

/// Checks a few sessions of the index after this one. Returns the last, or `None` at the end of the index.
async fn unlist_sessions(
    worker: &WorkerContext,
    after: Option<(Timestamp, String)>,
) -> Result<Option<(Timestamp, String)>, BackendError> {
    let backend = worker.app.backend();
    let page = backend.list(&Index::Sessions, after, SESSIONS_PER_CHECK).await?;
    let ids: Vec<_> =
        page.iter().map(|(_, member)| RecordId::from(SessionId::from(member.as_str()))).collect();
    let records = backend.read_each(&ids).await?;
    let gone = page.iter().zip(records).filter(|(_, facts)| !facts.as_ref().is_ok_and(is_alive));
    let remove = |member: &String| IndexUpdate::Remove { index: Index::Sessions, member: member.clone() };
    let updates: Vec<_> = gone.map(|((_, member), _)| remove(member)).collect();
    if !updates.is_empty() {
        backend.update_indexes(updates).await?;
    }
    Ok(page.into_iter().nth(SESSIONS_PER_CHECK - 1))
}

/// Removes from the list of ended tasks what processes have left there that no longer exist.
async fn ended_tasks(worker: &WorkerContext) {
    if !worker.app.0.published_events.is_on() {
        return;
    }
    loop {
        tokio::time::sleep(MAINTENANCE_INTERVAL).await;
        match unlist_expired(worker.app.backend().as_ref(), worker.now()).await {
            Ok(true) => tracing::debug!("the list of ended tasks has more that is over"),
            Ok(false) => {}
            Err(error) => tracing::debug!(%error, "the list of ended tasks was not checked"),
        }
    }
}

/// Looks after the broker: once the worker has begun with its tasks, and after that one worker at a time, because each look
/// asks for a hundred queues.
async fn broker(worker: &WorkerContext) {
    let mut logged = Vec::new();
    tokio::time::sleep(FIRST_LOOK_AFTER).await;
    look_after_broker(worker, &mut logged).await;
    loop {
        tokio::time::sleep(MAINTENANCE_INTERVAL).await;
        // Without a backend the broker is looked after all the same.
        if worker.takes_turn("broker").await.unwrap_or(true) {
            look_after_broker(worker, &mut logged).await;
        }
    }
}

/// Has the broker keep what messages need, and logs what threatens them, each finding once as long as it lasts.
async fn look_after_broker(worker: &WorkerContext, logged: &mut Vec<Finding>) {
    match worker.app.broker().maintain().await {
        Ok(findings) => {
            for Finding { subject, found, remedy, .. } in findings.iter().filter(|it| !logged.contains(it)) {
                tracing::warn!(subject, remedy, "tasks on the broker are in danger: {found}");
            }
            *logged = findings;
        }
        Err(error) => tracing::debug!(%error, "the broker was not looked after"),
    }
}

/// Tends the dead letters of the queues.
async fn dead_letters(worker: &WorkerContext, queues: &[QueueName]) {
    let client = worker.app.client();
    loop {
        tokio::time::sleep(MAINTENANCE_INTERVAL).await;
        for queue in queues {
            let tended = match client.tend_dead_letters(queue, worker.name.held()).await {
                Err(ControlError::Backend(error)) => {
                    worker.passed_over("the turn of dead letters", Err(error)).map_err(ControlError::Backend)
                }
                tended => tended,
            };
            match tended {
                Ok(0) => {}
                Ok(added) => {
                    tracing::warn!(%queue, added, "dead letters were missing from the index, or had no mark");
                }
                Err(error) => {
                    tracing::debug!(%queue, %error, "dead letters were not added to the index");
                }
            }
        }
    }
}
