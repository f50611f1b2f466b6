//! Indexes: ordered, paged, repeatable.

use machinist_core::{
    backend::{Backend, Index, IndexUpdate},
    clock::Timestamp,
};

use super::BackendHarness;
use crate::wait::{ANSWER_TIMEOUT, within};

/// An instant of our days with all its microseconds: no digit of it may be lost.
const BASE: i64 = 1_763_681_834_474_677;

fn entry(at: i64, member: &str) -> (Timestamp, String) {
    (Timestamp::from_micros(BASE + at), member.to_owned())
}

fn put(index: &Index, at: i64, member: &str) -> IndexUpdate {
    let (at, member) = entry(at, member);
    IndexUpdate::Put { index: index.clone(), at, member }
}

fn remove(index: &Index, member: &str) -> IndexUpdate {
    IndexUpdate::Remove { index: index.clone(), member: member.to_owned() }
}

async fn update(backend: &dyn Backend, updates: Vec<IndexUpdate>) {
    within(ANSWER_TIMEOUT, "an index update", backend.update_indexes(updates))
        .await
        .expect("the backend takes the note");
}

async fn list(
    backend: &dyn Backend,
    index: &Index,
    after: Option<(Timestamp, String)>,
    limit: usize,
) -> Vec<(Timestamp, String)> {
    within(ANSWER_TIMEOUT, "a list", backend.list(index, after, limit)).await.expect("the backend lists")
}

/// From the earliest, members of one instant by name, in pages that join without a gap, also after an entry that
/// has gone in between.
pub async fn indexes_are_ordered_and_paged(harness: &dyn BackendHarness) {
    let writer = harness.connect().await;
    let backend = harness.connect().await;
    let index = &Index::Scheduled;
    let updates = [(5, "e"), (1, "b"), (1, "a:ü"), (3, "d"), (1, "c"), (2, "z z")];
    update(&*writer, updates.iter().map(|(at, member)| put(index, *at, member)).collect()).await;
    let all = [(1, "a:ü"), (1, "b"), (1, "c"), (2, "z z"), (3, "d"), (5, "e")].map(|(at, m)| entry(at, m));
    assert_eq!(list(&*backend, index, None, 100).await, all);
    assert_eq!(list(&*backend, index, None, 4).await, all[..4]);
    assert_eq!(list(&*backend, index, None, 0).await, []);
    for size in 1..=6 {
        let mut read: Vec<(Timestamp, String)> = Vec::new();
        loop {
            let page = list(&*backend, index, read.last().cloned(), size).await;
            assert!(page.len() <= size);
            if page.is_empty() {
                break;
            }
            read.extend(page);
        }
        assert_eq!(read, all, "in pages of {size}");
    }
    update(&*writer, vec![remove(index, "b")]).await;
    assert_eq!(list(&*backend, index, Some(entry(1, "b")), 2).await, all[2..4], "after one that is gone");
    assert_eq!(list(&*backend, index, Some(entry(4, "never there")), 9).await, all[5..]);
    assert_eq!(list(&*backend, index, Some(entry(5, "e")), 9).await, []);
}

/// Updates may be repeated; a member is in an index once.
pub async fn a_note_may_be_repeated_and_moves_its_member(harness: &dyn BackendHarness) {
    let backend = harness.connect().await;
    let index = &Index::DeadLetters;
    for _ in 0..3 {
        update(&*backend, vec![put(index, 2, "b"), put(index, 1, "a")]).await;
        assert_eq!(list(&*backend, index, None, 9).await, [entry(1, "a"), entry(2, "b")]);
    }
    update(&*backend, vec![put(index, 3, "a")]).await;
    assert_eq!(list(&*backend, index, None, 9).await, [entry(2, "b"), entry(3, "a")], "later");
    update(&*backend, vec![put(index, 0, "a")]).await;
    assert_eq!(list(&*backend, index, None, 9).await, [entry(0, "a"), entry(2, "b")], "earlier");
    for _ in 0..2 {
        update(&*backend, vec![remove(index, "a"), remove(index, "unknown")]).await;
        assert_eq!(list(&*backend, index, None, 9).await, [entry(2, "b")]);
    }
    // In order within one call.
    update(&*backend, vec![remove(index, "b"), put(index, 7, "b"), put(index, 8, "c"), remove(index, "c")])
        .await;
    assert_eq!(list(&*backend, index, None, 9).await, [entry(7, "b")]);
    update(&*backend, Vec::new()).await;
}

/// A member of one index is not in another, and each reason to wait has an index.
pub async fn indexes_are_apart(harness: &dyn BackendHarness) {
    let backend = harness.connect().await;
    let reasons =
        ["disabled:a", "disabled:A", "limit:{x} y:ü", ""].map(|reason| Index::Parked(reason.into()));
    let all: Vec<Index> = Index::ALL.into_iter().chain(reasons).collect();
    let updates = all.iter().enumerate().map(|(at, index)| put(index, at as i64, &index.name()));
    update(&*backend, updates.collect()).await;
    for (at, index) in all.iter().enumerate() {
        assert_eq!(list(&*backend, index, None, 9).await, [entry(at as i64, &index.name())]);
    }
    update(&*backend, vec![remove(&Index::Queues, "scheduled")]).await;
    assert_eq!(list(&*backend, &Index::Scheduled, None, 9).await, [entry(1, "scheduled")]);
    update(&*backend, all.iter().map(|index| remove(index, &index.name())).collect()).await;
    for index in &all {
        assert_eq!(list(&*backend, index, None, 9).await, []);
    }
}
