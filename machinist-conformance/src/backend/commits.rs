//! The one primitive: facts, written once, atomically.

use std::sync::Arc;

use bytes::Bytes;
use machinist_core::{
    backend::{Commit, Committed},
    id::TaskId,
    record::Facts,
};

use super::{
    BackendHarness, DONE, commit, commit_all, expect_done, facts, names, pairs, put, read, read_all,
};

/// Existing facts stay; missing facts are added.
pub async fn facts_are_written_once_and_the_first_writer_wins(harness: &dyn BackendHarness) {
    let one = harness.connect().await;
    let two = harness.connect().await;
    let id = TaskId::fresh();
    expect_done(&*one, put(&id, &[("name", "add"), ("queue", "math")])).await;
    expect_done(&*two, put(&id, &[("name", "sub"), ("sent", "2")])).await;
    let both = facts(&[("name", "add"), ("queue", "math"), ("sent", "2")]);
    assert_eq!((read(&*one, &id).await, read(&*two, &id).await), (both.clone(), both.clone()));
    // Within one commit, too.
    expect_done(&*one, put(&id, &[("twice", "first"), ("twice", "second")])).await;
    assert_eq!(read(&*one, &id).await.get("twice"), Some(&Bytes::from_static(b"first")));
}

/// One fact of `unless` is enough to refuse, and the caller needs no second read to decide.
pub async fn unless_refuses_and_returns_the_whole_record(harness: &dyn BackendHarness) {
    let backend = harness.connect().await;
    let id = TaskId::fresh();
    let start = |unless: &[&str]| Commit { unless: names(unless), ..put(&id, &[("s:1:1", "a")]) };
    expect_done(&*backend, start(&["end", "rv", "s:1:1"])).await;
    expect_done(&*backend, put(&id, &[("rv", "{}")])).await;
    let whole = facts(&[("s:1:1", "a"), ("rv", "{}")]);
    for unless in [&["rv"][..], &["end", "s:1:1"], &["s:1:1", "rv", "o:1"]] {
        assert_eq!(commit(&*backend, start(unless)).await, Committed::Refused(whole.clone()));
    }
    expect_done(&*backend, start(&["end", "s:1", "s:1:11", "RV", ""])).await;
}

/// *Carry*: another value refuses, a missing one is written back, the same one is nothing.
pub async fn equal_or_absent_refuses_another_value_and_writes_back_what_is_missing(
    harness: &dyn BackendHarness,
) {
    let backend = harness.connect().await;
    let id = TaskId::fresh();
    let carry = |carried: &[(&str, &str)], fact| Commit {
        equal_or_absent: pairs(carried),
        ..put(&id, &[(fact, "x")])
    };
    expect_done(&*backend, put(&id, &[("s:1:1", "a")])).await;
    expect_done(&*backend, carry(&[("s:1:1", "a"), ("s:1:2", "b")], "s:1:3")).await;
    let whole = facts(&[("s:1:1", "a"), ("s:1:2", "b"), ("s:1:3", "x")]);
    assert_eq!(read(&*backend, &id).await, whole);
    for other in [&[("s:1:2", "c")][..], &[("s:1:9", "new"), ("s:1:1", "")], &[("s:1:1", "aa")]] {
        assert_eq!(commit(&*backend, carry(other, "s:1:4")).await, Committed::Refused(whole.clone()));
    }
    assert_eq!(read(&*backend, &id).await, whole);
    let lost = TaskId::fresh();
    let carry = Commit { id: (&lost).into(), ..carry(&[("s:1:1", "a")], "o:1") };
    expect_done(&*backend, carry).await;
    assert_eq!(read(&*backend, &lost).await, facts(&[("s:1:1", "a"), ("o:1", "x")]));
}

/// A dropped fact can be written again in the same commit; dropping a missing fact does nothing.
pub async fn drop_happens_before_the_write(harness: &dyn BackendHarness) {
    let backend = harness.connect().await;
    let id = TaskId::fresh();
    expect_done(&*backend, put(&id, &[("pg", "1"), ("old", "1"), ("kept", "1")])).await;
    let change = Commit { drop: names(&["pg", "old", "missing"]), ..put(&id, &[("pg", "2"), ("kept", "2")]) };
    expect_done(&*backend, change).await;
    assert_eq!(read(&*backend, &id).await, facts(&[("pg", "2"), ("kept", "1")]));
    // The guards look at the record as it was.
    let guarded = Commit { drop: names(&["pg"]), unless: names(&["pg"]), ..put(&id, &[("new", "1")]) };
    assert!(matches!(commit(&*backend, guarded).await, Committed::Refused(_)));
    let equal = Commit { drop: names(&["pg"]), equal_or_absent: pairs(&[("pg", "2")]), ..put(&id, &[]) };
    expect_done(&*backend, equal).await;
    assert_eq!(read(&*backend, &id).await, facts(&[("pg", "2"), ("kept", "1")]));
}

/// Refused is refused: no fact written, none written back, none dropped.
pub async fn a_refused_commit_changes_nothing(harness: &dyn BackendHarness) {
    let backend = harness.connect().await;
    let id = TaskId::fresh();
    let before = facts(&[("end", "won"), ("pg", "1")]);
    expect_done(&*backend, put(&id, &[("end", "won"), ("pg", "1")])).await;
    let change = Commit {
        equal_or_absent: pairs(&[("s:1:1", "a")]),
        drop: names(&["pg"]),
        ..put(&id, &[("o:1", "x"), ("f", "x")])
    };
    let by_name = Commit { unless: names(&["end"]), ..change.clone() };
    let by_value = Commit { equal_or_absent: pairs(&[("s:1:1", "a"), ("end", "lost")]), ..change };
    for change in [by_name, by_value] {
        assert_eq!(commit(&*backend, change).await, Committed::Refused(before.clone()));
        assert_eq!(read(&*backend, &id).await, before);
    }
}

/// Nothing written, nothing there: also after the last fact was dropped.
pub async fn a_record_without_facts_does_not_exist(harness: &dyn BackendHarness) {
    let backend = harness.connect().await;
    let id = TaskId::fresh();
    assert!(read(&*backend, &id).await.is_empty());
    expect_done(&*backend, put(&id, &[])).await;
    assert!(read(&*backend, &id).await.is_empty());
    expect_done(&*backend, put(&id, &[("name", "add")])).await;
    expect_done(&*backend, Commit { drop: names(&["name"]), ..put(&id, &[]) }).await;
    assert!(read(&*backend, &id).await.is_empty());
    expect_done(&*backend, Commit { unless: names(&["name"]), ..put(&id, &[("name", "sub")]) }).await;
    assert_eq!(read(&*backend, &id).await, facts(&[("name", "sub")]));
}

/// A batch is many commits: each atomic by itself, answered in its place, made in order where records are shared.
pub async fn commits_of_a_batch_are_answered_and_made_in_order(harness: &dyn BackendHarness) {
    let backend = harness.connect().await;
    let id = TaskId::fresh();
    let other = TaskId::fresh();
    let unless = |name, change| Commit { unless: names(&[name]), ..change };
    let answers = commit_all(
        &*backend,
        vec![
            unless("b", put(&id, &[("a", "1")])),
            put(&other, &[("a", "other")]),
            put(&id, &[("b", "2")]),
            unless("b", put(&id, &[("c", "3")])),
            Commit { drop: names(&["b"]), ..put(&id, &[]) },
            unless("b", put(&id, &[("d", "4")])),
            unless("a", put(&other, &[("e", "5")])),
        ],
    )
    .await;
    let refused = Committed::Refused;
    let expected = [
        DONE,
        DONE,
        DONE,
        refused(facts(&[("a", "1"), ("b", "2")])),
        DONE,
        DONE,
        refused(facts(&[("a", "other")])),
    ];
    assert_eq!(answers, expected);
    assert_eq!(read(&*backend, &id).await, facts(&[("a", "1"), ("d", "4")]));
    assert!(commit_all(&*backend, Vec::new()).await.is_empty());
}

/// A caller whose reply was lost asks again, and finds its own fact.
pub async fn a_commit_may_be_repeated(harness: &dyn BackendHarness) {
    let backend = harness.connect().await;
    let id = TaskId::fresh();
    let carry = Commit { equal_or_absent: pairs(&[("s:1:1", "me")]), ..put(&id, &[("rc:1", "me")]) };
    expect_done(&*backend, carry.clone()).await;
    let after = read(&*backend, &id).await;
    expect_done(&*backend, carry).await;
    assert_eq!(read(&*backend, &id).await, after);
    let end = Commit { unless: names(&["end"]), ..put(&id, &[("end", "me")]) };
    expect_done(&*backend, end.clone()).await;
    match commit(&*backend, end).await {
        Committed::Refused(record) => assert_eq!(record.get("end"), Some(&Bytes::from_static(b"me"))),
        Committed::Done { .. } => panic!("a fact was written a second time"),
    }
}

/// 64 writers over two connections want the same fact: one is told that it won, and its fact is the one there.
pub async fn one_of_many_concurrent_commits_wins(harness: &dyn BackendHarness) {
    let one = harness.connect().await;
    let two = harness.connect().await;
    for _ in 0..5 {
        let id = TaskId::fresh();
        let writers = (0..64).map(|number: usize| {
            let backend = Arc::clone(if number.is_multiple_of(2) { &one } else { &two });
            let value = number.to_string();
            let change = Commit { unless: names(&["end"]), ..put(&id, &[("end", &value)]) };
            tokio::spawn(async move { (value, commit(&*backend, change).await) })
        });
        let mut winners = Vec::new();
        let mut seen = Vec::new();
        for writer in writers.collect::<Vec<_>>() {
            match writer.await.expect("a commit never panics") {
                (value, Committed::Done { .. }) => winners.push(value),
                (_, Committed::Refused(record)) => seen.push(record),
            }
        }
        assert_eq!(winners.len(), 1, "winners: {winners:?}");
        let record = facts(&[("end", &winners[0])]);
        assert!(seen.iter().all(|seen| *seen == record), "losers see the winner");
        assert_eq!(read(&*one, &id).await, record);
    }
}

/// Values are bytes up to 1 MiB at least, names are text with colons, ids are any text.
pub async fn any_bytes_and_any_names_are_kept(harness: &dyn BackendHarness) {
    let backend = harness.connect().await;
    let every_byte = Bytes::from((0..=255).collect::<Vec<u8>>());
    let large = Bytes::from((0..1 << 20).map(|at: u32| (at % 251) as u8).collect::<Vec<u8>>());
    let values = [
        ("s:1:2", every_byte.clone()),
        ("empty", Bytes::new()),
        ("largest", large),
        ("line\nbreak 'quote\" %s {x} ü", Bytes::from_static(b"\0")),
        ("g:10:3", Bytes::from_static(b"\xff\xfe{\"not\":\"utf-8")),
    ];
    for id in ["task_4e57a8f0-ß:{slot}* ?", "'; drop table records; --", &"x".repeat(255)] {
        let id = TaskId::parse(id).expect("a good id");
        let written = values.iter().map(|(name, value)| ((*name).into(), value.clone()));
        let whole: Facts = written.clone().collect();
        expect_done(&*backend, Commit { facts: written.collect(), ..put(&id, &[]) }).await;
        assert!(read(&*backend, &id).await == whole, "what was written to {id} is read");
        let equal = Commit { equal_or_absent: vec![("s:1:2".into(), every_byte.clone())], ..put(&id, &[]) };
        expect_done(&*backend, equal).await;
        let guarded = Commit { unless: names(&["empty"]), ..put(&id, &[]) };
        assert!(commit(&*backend, guarded).await == Committed::Refused(whole), "an empty value is a fact");
    }
}

/// A batch far larger than any window, of records that differ.
pub async fn a_batch_of_a_thousand_is_written(harness: &dyn BackendHarness) {
    let backend = harness.connect().await;
    let ids: Vec<TaskId> = (0..1000).map(|_| TaskId::fresh()).collect();
    let batch = || ids.iter().map(|id| Commit { unless: names(&["n"]), ..put(id, &[("n", id.as_str())]) });
    assert!(commit_all(&*backend, batch().collect()).await.iter().all(|answer| *answer == DONE));
    let records: Vec<Facts> = ids.iter().map(|id| facts(&[("n", id.as_str())])).collect();
    assert_eq!(read_all(&*backend, &ids).await, records);
    let refused: Vec<Committed> = records.into_iter().map(Committed::Refused).collect();
    assert_eq!(commit_all(&*backend, batch().collect()).await, refused);
}

/// Records come in the order of the question, with an empty one for each that is missing.
pub async fn reading_keeps_the_order_and_knows_what_is_missing(harness: &dyn BackendHarness) {
    let backend = harness.connect().await;
    let a = TaskId::fresh();
    let b = TaskId::fresh();
    let missing = TaskId::fresh();
    commit_all(&*backend, vec![put(&a, &[("n", "a")]), put(&b, &[("n", "b")])]).await;
    let records = read_all(&*backend, &[b.clone(), missing.clone(), a, missing, b]).await;
    let a = facts(&[("n", "a")]);
    let b = facts(&[("n", "b")]);
    assert_eq!(records, [b.clone(), Facts::new(), a, Facts::new(), b]);
    assert!(read_all(&*backend, &[]).await.is_empty());
}
