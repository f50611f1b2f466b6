//! The promises of a backend.

pub mod agreement;
mod blocked;
mod commits;
mod expiry;
mod indexes;
mod periodic;
mod require;
mod roles;
mod spoiled;
mod stepped;
mod watching;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use machinist_core::{
    backend::{Backend, Commit, Committed, Expiry, Index},
    id::{RecordId, TaskId},
    record::{FactName, Facts},
};

pub use self::{
    agreement::backend_agrees_with_memory, blocked::*, commits::*, expiry::*, indexes::*, periodic::*,
    require::*, roles::*, spoiled::*, stepped::*, watching::*,
};
use crate::{
    eventually,
    service::say,
    wait::{ANSWER_TIMEOUT, RECOVERY_TIMEOUT, within},
};

/// Test environment of an adapter: one server and an empty namespace on it. Each test makes its own
/// harness, and harnesses must not see each other's indexes.
#[async_trait]
pub trait BackendHarness: Send + Sync + 'static {
    /// A connection to the harness's backend, as another process would make it: connections share nothing but the
    /// server and the namespace. Panics if that fails.
    async fn connect(&self) -> Arc<dyn Backend>;

    /// Cuts every connection that [`connect`](Self::connect) made, without a word to the adapter
    /// ([`Proxy::cut`](crate::Proxy::cut)). `false` where there is nothing to cut; the promises about it are then
    /// not tested.
    async fn interrupt(&self) -> bool;

    /// Writes something where this record is stored, or would be, that no backend writes: as another program would.
    /// `false` where nothing else can be written there; the promises about it are then not tested.
    async fn spoil(&self, _id: &RecordId) -> bool {
        false
    }

    /// The same for an index.
    async fn spoil_index(&self, _index: &Index) -> bool {
        false
    }

    /// Called at the end of each test, whatever became of it: delete what it left on the server.
    async fn clean_up(&self) {}
}

/// The capabilities are printed, so that a log of the suite says what was tested, and they agree among connections.
pub async fn the_capabilities_are_told(harness: &dyn BackendHarness) {
    let backend = harness.connect().await;
    say(&format!("{}: {:?}", backend.location(), backend.capabilities()));
    assert_eq!(harness.connect().await.capabilities(), backend.capabilities());
    assert!(!backend.diagnose().await.is_empty(), "a diagnosis says something");
}

/// Cut connections heal: commits, reads and new watches work again, and nothing committed is missing.
pub async fn the_backend_works_after_an_interruption(harness: &dyn BackendHarness) {
    let backend = harness.connect().await;
    let id = TaskId::fresh();
    expect_done(&*backend, put(&id, &[("name", "add")])).await;
    if !harness.interrupt().await {
        return;
    }
    let commit = Commit { wake: true, ..put(&id, &[("eta", "1")]) };
    let written = eventually(RECOVERY_TIMEOUT, async || {
        let answers =
            within(RECOVERY_TIMEOUT, "an answer", backend.commit(vec![commit.clone().into()])).await;
        matches!(answers.as_slice(), [Ok(Committed::Done { .. })])
    });
    assert!(written.await, "no commit succeeded after an interruption");
    assert_eq!(read(&*backend, &id).await, facts(&[("name", "add"), ("eta", "1")]));
    let mut watch = within(ANSWER_TIMEOUT, "a watch", backend.watch(&RecordId::from(&id)))
        .await
        .expect("the backend lets us watch");
    expect_done(&*harness.connect().await, commit).await;
    within(ANSWER_TIMEOUT, "a wake-up", watch.changed()).await;
}

/// The writer's connection ends, its facts do not.
pub async fn what_was_committed_outlives_the_connection(harness: &dyn BackendHarness) {
    let backend = harness.connect().await;
    let id = TaskId::fresh();
    expect_done(&*backend, put(&id, &[("name", "add")])).await;
    drop(backend);
    assert_eq!(read(&*harness.connect().await, &id).await, facts(&[("name", "add")]));
}

/// The answer to a commit that does not count.
const DONE: Committed = Committed::Done { count: None };
const HOUR: Duration = Duration::from_secs(3600);

fn pairs(pairs: &[(&str, &str)]) -> Vec<(FactName, Bytes)> {
    pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned().into(), Bytes::copy_from_slice(value.as_bytes())))
        .collect()
}

fn names(names: &[&str]) -> Vec<FactName> {
    names.iter().map(|name| (*name).to_owned().into()).collect()
}

fn facts(facts: &[(&str, &str)]) -> Facts {
    pairs(facts).into_iter().collect()
}

/// A commit of some facts, kept for an hour unless something else is set.
fn put(id: &TaskId, facts: &[(&str, &str)]) -> Commit {
    Commit { facts: pairs(facts), expiry: Expiry::AfterUnlessSet(HOUR), ..Commit::new(id) }
}

async fn commit_all(backend: &dyn Backend, batch: Vec<Commit>) -> Vec<Committed> {
    let asked = batch.len();
    let answers = within(
        3 * ANSWER_TIMEOUT,
        "a commit to be answered",
        backend.commit(batch.into_iter().map(Into::into).collect()),
    )
    .await;
    assert_eq!(answers.len(), asked, "one answer for each commit");
    answers.into_iter().map(|answer| answer.expect("the backend takes the commit")).collect()
}

async fn commit(backend: &dyn Backend, commit: Commit) -> Committed {
    commit_all(backend, vec![commit]).await.remove(0)
}

async fn expect_done(backend: &dyn Backend, change: Commit) {
    assert_eq!(commit(backend, change).await, DONE);
}

async fn read_all(backend: &dyn Backend, ids: &[TaskId]) -> Vec<Facts> {
    let ids: Vec<_> = ids.iter().map(RecordId::from).collect();
    read_records(backend, &ids).await
}

async fn read_records(backend: &dyn Backend, ids: &[RecordId]) -> Vec<Facts> {
    let records =
        within(3 * ANSWER_TIMEOUT, "a read", backend.read(ids)).await.expect("the backend lets us read");
    assert_eq!(records.len(), ids.len(), "one record for each id");
    records
}

async fn read(backend: &dyn Backend, id: &TaskId) -> Facts {
    read_all(backend, std::slice::from_ref(id)).await.remove(0)
}
