//! Expiry of records.
//!
//! Time is never measured: an expiry is awaited, and a record that must stay is read after a record with the
//! same or a later short expiry (the control) is gone.

use std::time::Duration;

use machinist_core::{
    backend::{Backend, Commit, Expiry},
    id::TaskId,
};

use super::{BackendHarness, HOUR, commit, expect_done, facts, names, put, read};
use crate::{eventually, wait::ANSWER_TIMEOUT};

/// Long enough for the next commit to come in time on a busy machine.
const SHORT: Duration = Duration::from_millis(1500);
const SHORTEST: Duration = Duration::from_millis(300);

fn expiring(id: &TaskId, fact: &str, expiry: Expiry) -> Commit {
    Commit { expiry, ..put(id, &[(fact, "x")]) }
}

async fn expect_gone(backend: &dyn Backend, id: &TaskId) {
    let gone = eventually(ANSWER_TIMEOUT, async || read(backend, id).await.is_empty()).await;
    assert!(gone, "the record never expired");
}

/// Returns when whatever was to expire within `SHORT` until now has expired.
async fn control(backend: &dyn Backend) {
    let id = TaskId::fresh();
    expect_done(backend, expiring(&id, "control", Expiry::After(SHORT))).await;
    expect_gone(backend, &id).await;
}

/// Forgotten is forgotten: it is not read and refuses nothing.
pub async fn an_expired_record_is_gone(harness: &dyn BackendHarness) {
    let backend = harness.connect().await;
    for expiry in [Expiry::After(SHORTEST), Expiry::AfterUnlessSet(SHORTEST)] {
        let id = TaskId::fresh();
        expect_done(&*backend, expiring(&id, "end", expiry)).await;
        expect_gone(&*backend, &id).await;
        expect_done(&*backend, Commit { unless: names(&["end"]), ..put(&id, &[("name", "again")]) }).await;
        assert_eq!(read(&*harness.connect().await, &id).await, facts(&[("name", "again")]));
    }
}

/// `After` counts, whatever was set before, longer or shorter.
pub async fn a_new_expiry_replaces_the_old_one(harness: &dyn BackendHarness) {
    let backend = harness.connect().await;
    let longer = TaskId::fresh();
    let shorter = TaskId::fresh();
    expect_done(&*backend, expiring(&longer, "a", Expiry::After(SHORT))).await;
    expect_done(&*backend, expiring(&longer, "b", Expiry::After(HOUR))).await;
    expect_done(&*backend, expiring(&shorter, "a", Expiry::After(HOUR))).await;
    expect_done(&*backend, expiring(&shorter, "b", Expiry::After(SHORTEST))).await;
    expect_gone(&*backend, &shorter).await;
    control(&*backend).await;
    assert_eq!(read(&*backend, &longer).await, facts(&[("a", "x"), ("b", "x")]));
}

/// `AfterUnlessSet`, `Keep` and a refused commit leave a set expiry where it was; `Keep` alone sets none.
pub async fn an_expiry_that_is_set_stays_where_it_was_asked_to(harness: &dyn BackendHarness) {
    let backend = harness.connect().await;
    let [unless_set, kept] = [TaskId::fresh(), TaskId::fresh()];
    for (id, second) in [(&unless_set, Expiry::AfterUnlessSet(HOUR)), (&kept, Expiry::Keep)] {
        expect_done(&*backend, expiring(id, "a", Expiry::After(SHORT))).await;
        expect_done(&*backend, expiring(id, "b", second)).await;
    }
    expect_gone(&*backend, &unless_set).await;
    expect_gone(&*backend, &kept).await;

    let [long, refused, never] = [TaskId::fresh(), TaskId::fresh(), TaskId::fresh()];
    expect_done(&*backend, expiring(&long, "a", Expiry::After(HOUR))).await;
    expect_done(&*backend, expiring(&long, "b", Expiry::AfterUnlessSet(SHORTEST))).await;
    expect_done(&*backend, expiring(&refused, "a", Expiry::After(HOUR))).await;
    let change = Commit { unless: names(&["a"]), ..expiring(&refused, "b", Expiry::After(SHORTEST)) };
    commit(&*backend, change).await;
    expect_done(&*backend, expiring(&never, "a", Expiry::Keep)).await;
    control(&*backend).await;
    for id in [&long, &refused, &never] {
        assert!(!read(&*backend, id).await.is_empty(), "it was to stay");
    }
    // Nothing would ever forget it.
    expect_done(&*backend, Commit { drop: names(&["a"]), ..Commit::new(never) }).await;
}

/// In one commit the old facts may all go and new ones come: it is the same record, and its expiry stays as it
/// was. An adapter that ties the expiry to its facts would keep this record forever.
pub async fn an_expiry_survives_the_drop_of_every_fact_in_the_same_commit(harness: &dyn BackendHarness) {
    let backend = harness.connect().await;
    let short = TaskId::fresh();
    let long = TaskId::fresh();
    let exchange = |id: &TaskId, expiry| Commit { drop: names(&["a"]), ..expiring(id, "b", expiry) };
    expect_done(&*backend, expiring(&short, "a", Expiry::After(SHORT))).await;
    expect_done(&*backend, exchange(&short, Expiry::Keep)).await;
    expect_done(&*backend, expiring(&long, "a", Expiry::After(HOUR))).await;
    expect_done(&*backend, exchange(&long, Expiry::AfterUnlessSet(SHORTEST))).await;
    expect_gone(&*backend, &short).await;
    control(&*backend).await;
    assert_eq!(read(&*backend, &long).await, facts(&[("b", "x")]));
}

/// A record that lost its last fact is forgotten together with its expiry: what is written next is a new record.
pub async fn a_forgotten_record_leaves_no_expiry_behind(harness: &dyn BackendHarness) {
    let (backend, long, short, empty) =
        (harness.connect().await, TaskId::fresh(), TaskId::fresh(), TaskId::fresh());
    let forget = |id: &TaskId| Commit { drop: names(&["a"]), ..Commit::new(id.clone()) };
    expect_done(&*backend, expiring(&long, "a", Expiry::After(HOUR))).await;
    expect_done(&*backend, forget(&long)).await;
    expect_done(&*backend, expiring(&long, "b", Expiry::AfterUnlessSet(SHORTEST))).await;
    expect_gone(&*backend, &long).await;

    expect_done(&*backend, expiring(&short, "a", Expiry::After(SHORT))).await;
    expect_done(&*backend, forget(&short)).await;
    expect_done(&*backend, expiring(&short, "b", Expiry::AfterUnlessSet(HOUR))).await;
    // An expiry without a record sets nothing.
    expect_done(&*backend, Commit { expiry: Expiry::After(SHORTEST), ..Commit::new(empty.clone()) }).await;
    expect_done(&*backend, expiring(&empty, "b", Expiry::AfterUnlessSet(HOUR))).await;
    control(&*backend).await;
    assert_eq!(read(&*backend, &short).await, facts(&[("b", "x")]));
    assert_eq!(read(&*backend, &empty).await, facts(&[("b", "x")]));
}
