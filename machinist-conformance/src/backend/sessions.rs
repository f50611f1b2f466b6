//! Leases: who is alive.

use std::time::Duration;

use bytes::Bytes;
use machinist_core::{
    backend::{Backend, Renewed},
    id::{SessionId, TaskId},
    record::Facts,
};

use super::{BackendHarness, HOUR, expect_done, facts, put};
use crate::{
    eventually,
    wait::{ANSWER_TIMEOUT, within},
};

const SHORT: Duration = Duration::from_secs(2);
const SHORTEST: Duration = Duration::from_millis(300);

async fn open(backend: &dyn Backend, lease: Duration, info: &'static str) -> SessionId {
    let session = SessionId::fresh();
    let opened = backend.open_session(&session, lease, Bytes::from_static(info.as_bytes()));
    within(ANSWER_TIMEOUT, "a session", opened).await.expect("the backend opens a session");
    session
}

async fn renew(backend: &dyn Backend, session: &SessionId, info: &'static str, ids: &[TaskId]) -> Renewed {
    let renewed = backend.renew_session(session, HOUR, Bytes::from_static(info.as_bytes()), ids);
    within(ANSWER_TIMEOUT, "a renewal", renewed).await.expect("the backend renews")
}

async fn alive<const N: usize>(backend: &dyn Backend, sessions: [&SessionId; N]) -> [bool; N] {
    let alive = within(ANSWER_TIMEOUT, "an answer", backend.alive(&sessions.map(Clone::clone))).await;
    alive.expect("the backend tells").try_into().expect("one answer for each session")
}

async fn close(backend: &dyn Backend, session: &SessionId) {
    within(ANSWER_TIMEOUT, "a close", backend.close_session(session))
        .await
        .expect("the backend closes a session");
}

async fn expect_expired(backend: &dyn Backend, session: &SessionId) {
    assert!(
        eventually(ANSWER_TIMEOUT, async || alive(backend, [session]).await == [false]).await,
        "it never expired"
    );
}

/// Alive from open to close, for everybody, in the order of the question; closing twice is fine.
pub async fn a_session_lives_from_open_to_close(harness: &dyn BackendHarness) {
    let here = harness.connect().await;
    let there = harness.connect().await;
    let a = open(&*here, HOUR, "").await;
    let b = open(&*here, HOUR, "").await;
    let unknown = SessionId::fresh();
    assert_eq!(alive(&*there, [&unknown, &b, &a, &unknown, &b]).await, [false, true, true, false, true]);
    assert!(alive(&*there, []).await.is_empty());
    close(&*here, &a).await;
    close(&*here, &a).await;
    close(&*here, &unknown).await;
    assert_eq!(alive(&*there, [&a, &b]).await, [false, true]);
    assert!(!renew(&*here, &a, "", &[]).await.alive, "a closed session is not renewed");
    assert_eq!(alive(&*there, [&a]).await, [false]);
    // Opening it again, as after a lost reply, is a renewal.
    let again = here.open_session(&b, HOUR, Bytes::new());
    within(ANSWER_TIMEOUT, "a session", again).await.expect("the backend opens a session");
    assert_eq!(alive(&*there, [&b]).await, [true]);
    close(&*here, &b).await;
}

/// Other workers may have taken over: a late session must learn that it has expired, and must not live again.
pub async fn an_expired_session_never_comes_back_by_renewal(harness: &dyn BackendHarness) {
    let backend = harness.connect().await;
    let id = TaskId::fresh();
    expect_done(&*backend, put(&id, &[("name", "add")])).await;
    let session = open(&*backend, SHORTEST, "").await;
    expect_expired(&*backend, &session).await;
    for _ in 0..2 {
        let renewed = renew(&*backend, &session, "", std::slice::from_ref(&id)).await;
        assert!(!renewed.alive);
        assert_eq!(renewed.records, [facts(&[("name", "add")])], "the records are told all the same");
        assert_eq!(alive(&*backend, [&session]).await, [false]);
        let listed =
            within(ANSWER_TIMEOUT, "sessions", backend.sessions()).await.expect("the backend lists sessions");
        assert!(listed.iter().all(|entry| entry.id != session), "{listed:?}");
    }
}

/// A renewed session outlives its first lease, by opening it again too.
pub async fn a_renewal_prolongs_the_lease(harness: &dyn BackendHarness) {
    let backend = harness.connect().await;
    let renewed = open(&*backend, SHORT, "").await;
    let reopened = open(&*backend, SHORT, "").await;
    assert!(renew(&*backend, &renewed, "", &[]).await.alive);
    let again = backend.open_session(&reopened, HOUR, Bytes::new());
    within(ANSWER_TIMEOUT, "a session", again).await.expect("the backend opens a session");
    // Opened later with the same lease, it expires after theirs would have.
    let control = open(&*backend, SHORT, "").await;
    expect_expired(&*backend, &control).await;
    assert_eq!(alive(&*backend, [&renewed, &reopened]).await, [true, true]);
    close(&*backend, &renewed).await;
    close(&*backend, &reopened).await;
}

/// One round trip tells whether we live, what time it is, and what became of what we run.
pub async fn a_renewal_returns_records_and_publishes_info(harness: &dyn BackendHarness) {
    let here = harness.connect().await;
    let there = harness.connect().await;
    let a = TaskId::fresh();
    let b = TaskId::fresh();
    let missing = TaskId::fresh();
    expect_done(&*there, put(&a, &[("rv", "{}")])).await;
    expect_done(&*there, put(&b, &[("s:1:1", "b"), ("end", "x")])).await;
    let session = open(&*here, HOUR, "before").await;
    let before = within(ANSWER_TIMEOUT, "the time", here.now()).await.expect("the backend tells the time");
    let renewed = renew(&*here, &session, "after", &[b.clone(), missing, a, b]).await;
    assert!(renewed.alive);
    let b = facts(&[("s:1:1", "b"), ("end", "x")]);
    assert_eq!(renewed.records, [b.clone(), Facts::new(), facts(&[("rv", "{}")]), b]);
    assert!(renewed.now >= before && renewed.now.since(before) < 2 * ANSWER_TIMEOUT, "{}", renewed.now);
    let listed =
        within(ANSWER_TIMEOUT, "sessions", there.sessions()).await.expect("the backend lists sessions");
    let entry = listed.iter().find(|entry| entry.id == session).expect("a live session is listed");
    assert_eq!(entry.info, Bytes::from_static(b"after"));
    close(&*here, &session).await;
}

/// Live sessions are listed with their info; closed and expired ones are not.
pub async fn sessions_are_listed_with_their_info(harness: &dyn BackendHarness) {
    let here = harness.connect().await;
    let there = harness.connect().await;
    let a = open(&*here, HOUR, "{\"host\":\"a\"}").await;
    let b = open(&*here, HOUR, "").await;
    let closed = open(&*here, HOUR, "closed").await;
    let expired = open(&*here, SHORTEST, "expired").await;
    close(&*here, &closed).await;
    expect_expired(&*there, &expired).await;
    let listed =
        within(ANSWER_TIMEOUT, "sessions", there.sessions()).await.expect("the backend lists sessions");
    let info = |id: &SessionId| {
        let entries: Vec<_> = listed.iter().filter(|entry| entry.id == *id).collect();
        assert!(entries.len() < 2, "listed twice: {entries:?}");
        entries.first().map(|entry| &entry.info[..])
    };
    assert_eq!((info(&a), info(&b)), (Some(&b"{\"host\":\"a\"}"[..]), Some(&b""[..])));
    assert_eq!((info(&closed), info(&expired)), (None, None));
    close(&*here, &a).await;
    close(&*here, &b).await;
}
