//! Requirements, counts and kinds: leases, cursors and joins are built on them.

use std::{sync::Arc, time::Duration};

use machinist_core::{
    backend::{Backend, Commit, Committed, Expiry},
    id::{RecordId, RecordKind, TaskId},
};

use super::{
    BackendHarness, DONE, HOUR, commit, commit_all, expect_done, facts, names, pairs, put, read, read_records,
};
use crate::{eventually, wait::ANSWER_TIMEOUT};

const SHORT: Duration = Duration::from_secs(2);
const SHORTEST: Duration = Duration::from_millis(300);

/// A commit that requires these facts and writes others.
fn requiring(id: &TaskId, required: &[(&str, &str)], written: &[(&str, &str)]) -> Commit {
    Commit { require: pairs(required), ..put(id, written) }
}

/// Replaces one value by another.
fn swap(id: &TaskId, from: &str, to: &str) -> Commit {
    Commit { drop: names(&["cursor"]), ..requiring(id, &[("cursor", from)], &[("cursor", to)]) }
}

/// A missing fact refuses, another value refuses, and the caller is told the whole record.
pub async fn require_refuses_unless_the_record_holds_exactly_this(harness: &dyn BackendHarness) {
    let backend = harness.connect().await;
    let id = TaskId::fresh();
    let missing = commit(&*backend, requiring(&id, &[("lease", "1")], &[("runs", "x")])).await;
    assert_eq!(missing, Committed::Refused(facts(&[])));
    expect_done(&*backend, put(&id, &[("lease", "1"), ("empty", "")])).await;
    let whole = facts(&[("lease", "1"), ("empty", "")]);
    for other in [&[("lease", "2")][..], &[("lease", "")], &[("empty", "1")], &[("lease", "1"), ("none", "")]]
    {
        let answer = commit(&*backend, requiring(&id, other, &[("runs", "x")])).await;
        assert_eq!(answer, Committed::Refused(whole.clone()), "{other:?}");
    }
    expect_done(&*backend, requiring(&id, &[("lease", "1"), ("empty", "")], &[("runs", "x")])).await;
    assert_eq!(read(&*backend, &id).await, facts(&[("lease", "1"), ("empty", ""), ("runs", "x")]));
    // Together with the other guards: each alone refuses.
    let guarded = Commit { unless: names(&["runs"]), ..requiring(&id, &[("lease", "1")], &[("y", "y")]) };
    assert!(matches!(commit(&*backend, guarded).await, Committed::Refused(_)));
    let carried = Commit {
        equal_or_absent: pairs(&[("runs", "z")]),
        ..requiring(&id, &[("lease", "1")], &[("y", "y")])
    };
    assert!(matches!(commit(&*backend, carried).await, Committed::Refused(_)));
    assert!(!read(&*backend, &id).await.has("y"));
}

/// A required fact that is dropped is written again by the same commit, and a commit that comes late is refused.
pub async fn a_required_fact_is_replaced_in_one_step(harness: &dyn BackendHarness) {
    let backend = harness.connect().await;
    let id = TaskId::fresh();
    expect_done(&*backend, put(&id, &[("cursor", "1"), ("name", "nightly")])).await;
    expect_done(&*backend, swap(&id, "1", "2")).await;
    let whole = facts(&[("cursor", "2"), ("name", "nightly")]);
    assert_eq!(commit(&*backend, swap(&id, "1", "3")).await, Committed::Refused(whole.clone()));
    assert_eq!(read(&*backend, &id).await, whole);
    let answers =
        commit_all(&*backend, vec![swap(&id, "2", "3"), swap(&id, "3", "4"), swap(&id, "3", "5")]).await;
    let last = facts(&[("cursor", "4"), ("name", "nightly")]);
    assert_eq!(answers, [DONE, DONE, Committed::Refused(last)]);
}

/// 32 writers over two connections count to 64 with nothing but replacements: none is lost, none counts twice.
pub async fn concurrent_replacements_lose_nothing(harness: &dyn BackendHarness) {
    let one = harness.connect().await;
    let two = harness.connect().await;
    let id = TaskId::fresh();
    expect_done(&*one, put(&id, &[("cursor", "0")])).await;
    let writers = (0..32).map(|number: usize| {
        let backend = Arc::clone(if number.is_multiple_of(2) { &one } else { &two });
        let id = id.clone();
        tokio::spawn(async move {
            for _ in 0..2 {
                increment(&*backend, &id).await;
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.expect("a writer never panics");
    }
    assert_eq!(read(&*one, &id).await, facts(&[("cursor", "64")]));
}

async fn increment(backend: &dyn Backend, id: &TaskId) {
    let mut known: u32 = 0;
    while let Committed::Refused(record) =
        commit(backend, swap(id, &known.to_string(), &(known + 1).to_string())).await
    {
        known = record.text("cursor").and_then(|text| text.parse().ok()).expect("the cursor is a number");
    }
}

/// A lease: a commit that requires it and writes nothing extends the record, and never brings back one that is gone.
pub async fn a_requirement_extends_a_record_and_never_revives_it(harness: &dyn BackendHarness) {
    let backend = harness.connect().await;
    let [renewed, expired, closed] = [TaskId::fresh(), TaskId::fresh(), TaskId::fresh()];
    let open = |id: &TaskId, lease| Commit { expiry: Expiry::After(lease), ..put(id, &[("lease", "1")]) };
    let renew = |id: &TaskId| Commit { expiry: Expiry::After(HOUR), ..requiring(id, &[("lease", "1")], &[]) };
    expect_done(&*backend, open(&renewed, SHORT)).await;
    expect_done(&*backend, renew(&renewed)).await;
    expect_done(&*backend, open(&expired, SHORTEST)).await;
    expect_done(&*backend, open(&closed, HOUR)).await;
    expect_done(&*backend, Commit { drop: names(&["lease"]), ..Commit::new(&closed) }).await;
    // Opened later with the same lease, it expires after the first lease of the renewed one would have.
    let control = TaskId::fresh();
    expect_done(&*backend, open(&control, SHORT)).await;
    for gone in [&expired, &control] {
        let gone = eventually(ANSWER_TIMEOUT, async || read(&*backend, gone).await.is_empty());
        assert!(gone.await, "it never expired");
    }
    for gone in [&expired, &control, &closed] {
        for _ in 0..2 {
            assert_eq!(commit(&*backend, renew(gone)).await, Committed::Refused(facts(&[])));
        }
        let with_facts = requiring(gone, &[("lease", "1")], &[("runs", "x")]);
        assert_eq!(commit(&*backend, with_facts).await, Committed::Refused(facts(&[])));
        assert!(read(&*backend, gone).await.is_empty(), "it came back");
    }
    assert_eq!(read(&*backend, &renewed).await, facts(&[("lease", "1")]));
}

/// A commit that asks is told how many facts the record has now: each of many writers another number.
pub async fn a_commit_that_counts_tells_the_size_of_the_record(harness: &dyn BackendHarness) {
    let one = harness.connect().await;
    let two = harness.connect().await;
    let id = TaskId::fresh();
    let counting = |commit: Commit| Commit { count: true, ..commit };
    let counted = |count| Committed::Done { count: Some(count) };
    assert_eq!(commit(&*one, counting(put(&id, &[]))).await, counted(0));
    assert_eq!(commit(&*one, counting(put(&id, &[("j", "x"), ("j", "y")]))).await, counted(1));
    let members = (0..50).map(|number: usize| {
        let backend = Arc::clone(if number.is_multiple_of(2) { &one } else { &two });
        let member = counting(put(&id, &[("j", "x"), (&format!("m:{number}"), "ended")]));
        tokio::spawn(async move { commit(&*backend, member).await })
    });
    let mut counts = Vec::new();
    for member in members.collect::<Vec<_>>() {
        match member.await.expect("a commit never panics") {
            Committed::Done { count: Some(count) } => counts.push(count),
            other => panic!("no count: {other:?}"),
        }
    }
    counts.sort_unstable();
    assert_eq!(counts, (2..=51).collect::<Vec<_>>());
    // Written once: a member that says it again adds nothing.
    assert_eq!(commit(&*one, counting(put(&id, &[("m:0", "again")]))).await, counted(51));
    let fewer = Commit { drop: names(&["m:0", "m:1"]), ..put(&id, &[("m:50", "ended")]) };
    assert_eq!(commit(&*one, counting(fewer)).await, counted(50));
    let refused = Commit { unless: names(&["j"]), ..put(&id, &[("x", "x")]) };
    assert_eq!(commit(&*one, counting(refused)).await, Committed::Refused(read(&*one, &id).await));
    let other = TaskId::fresh();
    let batch =
        vec![put(&other, &[("a", "1")]), counting(put(&other, &[("b", "1")])), put(&id, &[("c", "1")])];
    assert_eq!(commit_all(&*one, batch).await, [DONE, counted(2), DONE]);
}

/// One id names a record of each kind, whatever the id is.
pub async fn records_of_different_kinds_are_apart(harness: &dyn BackendHarness) {
    let here = harness.connect().await;
    let there = harness.connect().await;
    let unique = TaskId::fresh();
    for id in [unique.to_string(), format!("session:{unique}"), format!("{{{unique}}}:task:x y!3")] {
        let records = RecordKind::ALL.map(|kind| RecordId::new(kind, &id));
        let mut watches = Vec::new();
        for record in &records {
            watches.push(there.watch(record).await.expect("the backend lets us watch"));
        }
        for record in &records {
            let kind = pairs(&[("kind", record.kind().as_str())]);
            let change = Commit { facts: kind, wake: true, ..Commit::new(record.clone()) };
            expect_done(&*here, Commit { expiry: Expiry::After(HOUR), ..change }).await;
        }
        let found = read_records(&*there, &records).await;
        let expected: Vec<_> =
            records.iter().map(|record| facts(&[("kind", record.kind().as_str())])).collect();
        assert_eq!(found, expected);
        for watch in &mut watches {
            crate::wait::within(ANSWER_TIMEOUT, "a wake-up", watch.changed()).await;
        }
        let drop = |record: &RecordId| Commit { drop: names(&["kind"]), ..Commit::new(record.clone()) };
        expect_done(&*here, drop(&records[0])).await;
        assert!(read_records(&*there, &records[..1]).await[0].is_empty());
        assert_eq!(read_records(&*there, &records[1..]).await, expected[1..]);
        let rest: Vec<_> = records.iter().map(drop).collect();
        commit_all(&*here, rest).await;
    }
}
