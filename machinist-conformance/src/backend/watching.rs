//! Wake-ups and time.
//!
//! A wake-up may be missed, says the seam; on a quiet server without faults it is not, or waiting would always be
//! polling.

use std::time::Duration;

use machinist_core::{
    backend::{Backend, Commit, Watch},
    id::TaskId,
};

use super::{BackendHarness, expect_done, put};
use crate::wait::{ANSWER_TIMEOUT, within};

/// Difference within which two processes tell the same time, however late one of them asks.
const SAME_TIME: Duration = Duration::from_secs(10);

async fn watch(backend: &dyn Backend, id: &TaskId) -> Watch {
    within(ANSWER_TIMEOUT, "a watch", backend.watch(&id.into())).await.expect("the backend lets us watch")
}

fn waking(id: &TaskId, fact: &str) -> Commit {
    Commit { wake: true, ..put(id, &[(fact, "x")]) }
}

/// A waiter is woken by what another process commits, again and again.
pub async fn a_watch_wakes_on_a_commit_of_another_connection(harness: &dyn BackendHarness) {
    let waiter = harness.connect().await;
    let writer = harness.connect().await;
    let id = TaskId::fresh();
    let mut watch = watch(&*waiter, &id).await;
    for fact in ["s:1:1", "o:1", "s:2:1", "end"] {
        let waiting = tokio::spawn(async move {
            watch.changed().await;
            watch
        });
        tokio::task::yield_now().await;
        expect_done(&*writer, waking(&id, fact)).await;
        watch = within(ANSWER_TIMEOUT, "a wake-up", waiting).await.expect("no panic");
    }
}

/// Between `watch` and `changed` lies the read that makes waiting sound.
pub async fn a_wake_up_between_watch_and_the_first_changed_is_kept(harness: &dyn BackendHarness) {
    let waiter = harness.connect().await;
    let writer = harness.connect().await;
    for _ in 0..10 {
        let id = TaskId::fresh();
        let mut watch = watch(&*waiter, &id).await;
        expect_done(&*writer, waking(&id, "end")).await;
        within(ANSWER_TIMEOUT, "a wake-up that came before the wait", watch.changed()).await;
    }
}

/// Several waiters for one record, and one that gave up.
pub async fn every_watch_of_a_record_wakes(harness: &dyn BackendHarness) {
    let one = harness.connect().await;
    let two = harness.connect().await;
    let id = TaskId::fresh();
    let mut watches = vec![watch(&*one, &id).await, watch(&*one, &id).await, watch(&*two, &id).await];
    drop(watch(&*one, &id).await);
    expect_done(&*one, waking(&id, "end")).await;
    for watch in &mut watches {
        within(ANSWER_TIMEOUT, "each watch to wake", watch.changed()).await;
    }
    watches.remove(0);
    expect_done(&*two, waking(&id, "f")).await;
    for watch in &mut watches {
        within(ANSWER_TIMEOUT, "the others to wake after one is dropped", watch.changed()).await;
    }
}

/// Backend time is one time.
pub async fn time_agrees_and_never_goes_back(harness: &dyn BackendHarness) {
    let connections = [harness.connect().await, harness.connect().await];
    let mut last = [None; 2];
    for _ in 0..200 {
        for (backend, last) in connections.iter().zip(&mut last) {
            let now =
                within(ANSWER_TIMEOUT, "the time", backend.now()).await.expect("the backend tells the time");
            assert!(*last <= Some(now), "{now} after {last:?}");
            *last = Some(now);
        }
    }
    let [Some(a), Some(b)] = last else { panic!("both were asked") };
    assert!(a.since(b).max(b.since(a)) < SAME_TIME, "{a} here and {b} there");
}
