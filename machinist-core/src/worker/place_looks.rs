//! Looks at the places for which this worker has parked tasks.
//!
//! A place that is freed wakes one parked task. A process that dies just before leaves a free place and nobody who wakes a task,
//! and a run that had ended when its process died is taken over by nobody. So a worker looks whenever a session is found gone,
//! and once in each interval between renewals.

use super::WorkerContext;
use crate::{
    backend::Committed,
    id::{RecordId, RunId, SessionId},
    limit::places::{UnusedPlaces, unused_places},
};

/// Number of records that are read at once.
const RECORDS_PER_READ: usize = 256;

/// Looks at the places for which this worker has parked tasks, until the future is dropped.
pub(super) async fn look_forever(worker: &WorkerContext) {
    let peers = &worker.sessions.peers;
    let mut gone_before = peers.gone_count();
    loop {
        let found_gone = tokio::select! {
            () = tokio::time::sleep(worker.sessions.lease().renewal()) => false,
            () = peers.gone_after(gone_before) => true,
        };
        gone_before = peers.gone_count();
        let all = worker.place_waits.to_look_at();
        for some in all.chunks(RECORDS_PER_READ) {
            worker.look_at_places(some, found_gone).await;
        }
    }
}

impl WorkerContext {
    /// Frees the places of runs that are known not to run any more, and wakes parked tasks for them and for places that nobody
    /// holds. What fails is left to the next look.
    async fn look_at_places(&self, limits: &[(RecordId, u32)], found_gone: bool) {
        let ids: Vec<_> = limits.iter().map(|(record, _)| record.clone()).collect();
        let records = match self.app.backend().read_each(&ids).await {
            Ok(records) => records,
            Err(error) => return tracing::debug!(%error, "the places of limits were not looked at"),
        };
        for ((record, max), facts) in limits.iter().zip(records) {
            let Ok(facts) = facts else { continue };
            let gone = |session: &SessionId, run: &RunId| self.sessions.is_gone(session, run);
            let UnusedPlaces { abandoned, free } = unused_places(&facts, record, *max, gone);
            let mut to_wake = 0;
            for place in abandoned {
                // Of the workers that look, one frees it.
                if let Ok(Committed::Done { .. }) = self.sessions.commit(place.free()).await {
                    to_wake += 1;
                }
            }
            if !found_gone {
                to_wake += self.place_waits.to_wake(record, facts, free);
            }
            for _ in 0..to_wake {
                if !self.release_for(record).await {
                    self.place_waits.forget(record);
                    break;
                }
            }
        }
    }
}
