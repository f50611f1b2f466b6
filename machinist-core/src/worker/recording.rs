//! Recording of the history of this process on a timer, and the worker's look at itself.

use std::time::Duration;

use tokio::time::Instant;

use super::WorkerContext;
use crate::{event::EventKind, history::mark_version};

/// Interval between two writes: the length of the shortest bucket.
const INTERVAL: Duration = Duration::from_secs(10);
/// Maximum time of a write.
const LIMIT: Duration = Duration::from_secs(8);

/// Marks the version of the worker, and writes what the process has counted, as long as the worker lives. What is counted
/// after that is written when the worker ends.
pub(super) async fn record_forever(worker: &WorkerContext) {
    let history = &worker.app.0.history;
    let observed = worker.app.0.observers.measure_queues();
    if !history.is_on() && !observed {
        return;
    }
    let backend = worker.app.backend().as_ref();
    let mut is_marked = !history.is_on();
    let mut lag_since: Option<Instant> = None;
    loop {
        if !is_marked {
            match mark_version(backend, worker.now(), env!("CARGO_PKG_VERSION")).await {
                Ok(()) => is_marked = true,
                Err(error) => tracing::debug!(%error, "the version was not marked in the history"),
            }
        }
        // On the bounds of the buckets, so that most of a part belongs to one bucket.
        let into = Duration::from_micros(
            worker.now().as_micros().rem_euclid(INTERVAL.as_micros() as i64).unsigned_abs(),
        );
        tokio::time::sleep(INTERVAL.saturating_sub(into)).await;
        let written = tokio::time::timeout(LIMIT, history.flush(backend, worker.now())).await;
        let lag = match written {
            Ok(lag) => {
                lag_since = None;
                lag
            }
            Err(_) => lag_since.get_or_insert_with(Instant::now).elapsed() + LIMIT,
        };
        if observed {
            worker.emit(EventKind::WorkerMeasured {
                history_lag: lag,
                events_dropped: worker.app.0.published_events.take_dropped(),
                hook_failures: worker.app.0.observers.take_hook_failures(),
            });
        }
    }
}
