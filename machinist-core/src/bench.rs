//! Doors for `benches/decisions.rs` into what is nobody's API: what every delivery goes through, each as a closure that
//! does it once. Compiled with the feature `bench` alone.

use std::{hint::black_box, time::Duration};

use crate::{
    args::Arg,
    backend::Commit,
    clock::Timestamp,
    error::TaskError,
    id::TaskId,
    record::{
        Claim, Counters, EncodedResults, Facts, RunOutcome, StartRequest, decide, decide_start, fold,
        outcome_commit,
    },
    retry::RetryPolicy,
    security::Trust,
    sign::{Algorithm, Key},
    wire::{Body, Codec, Envelope, FirstSigner, MaxSizes, Pairs},
};

const NOW: Timestamp = Timestamp::from_micros(1_764_547_200_000_000);
const TTL: Duration = Duration::from_secs(3600);

fn body() -> Body {
    Body { args: vec![Arg::from_value("x".repeat(100)), Arg::from_value(7)], ..Body::default() }
}

fn envelope(codec: Codec) -> Envelope {
    Envelope {
        id: TaskId::fresh(),
        name: "add".try_into().expect("a name"),
        queue: "math".try_into().expect("a name"),
        attempt: 1,
        generation: 0,
        eta: None,
        expires: None,
        issued: NOW,
        counters: Counters::default(),
        token: 0,
        unknown_since: None,
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned()),
        tracestate: None,
        priority: None,
        pairs: Pairs::default(),
        content_type: codec.content_type().to_owned(),
        body: codec.encode(&body()).expect("a body"),
        first: FirstSigner::Publisher,
        source: None,
    }
}

/// A small task's body into bytes.
pub fn encode(codec: Codec) -> impl FnMut() {
    let body = body();
    move || drop(black_box(codec.encode(black_box(&body))))
}

/// And back.
pub fn decode(codec: Codec) -> impl FnMut() {
    let envelope = envelope(codec);
    let sizes = MaxSizes::default();
    move || drop(black_box(black_box(&envelope).decode(&sizes)))
}

/// An envelope into a message's headers.
pub fn write_headers() -> impl FnMut() {
    let envelope = envelope(Codec::MessagePack);
    move || drop(black_box(black_box(&envelope).message()))
}

/// And back.
pub fn read_headers() -> impl FnMut() {
    let message = envelope(Codec::MessagePack).message();
    move || drop(black_box(Envelope::read(black_box(&message))))
}

fn trust() -> Trust {
    let key = Key::with_secret(Algorithm::HmacSha256, "bench", &[7; 32]).expect("32 bytes");
    Trust::new(Some(key.into()), false, None)
}

/// Writes headers, signed with HMAC.
pub fn sign_headers() -> impl FnMut() {
    let envelope = envelope(Codec::MessagePack);
    let trust = trust();
    move || drop(black_box(trust.signed_message(black_box(&envelope), NOW)))
}

/// Reads headers and verifies them.
pub fn verify_headers() -> impl FnMut() {
    let trust = trust();
    let message = trust.signed_message(&envelope(Codec::MessagePack), NOW);
    move || {
        let mut envelope = Envelope::read(black_box(&message)).expect("its own");
        assert!(
            trust.verify(&mut envelope, &message, false).is_ok_and(|signed_message| signed_message.is_some()),
            "its own"
        );
        drop(black_box(envelope));
    }
}

/// The end of a task, signed.
pub fn attest_end() -> impl FnMut() {
    let claim = started().1;
    let policy = RetryPolicy::default();
    let trust = trust();
    let ended = end(&claim, RunOutcome::Returned(EncodedResults::default()), &policy);
    move || drop(black_box(trust.sign_end(black_box(&ended).clone())))
}

fn starting() -> StartRequest {
    StartRequest {
        id: TaskId::fresh(),
        attempt: 1,
        generation: 0,
        run: "01934567-89ab-7def-8123-456789abcdef".into(),
        session: "01934567-89ab-7def-8123-0123456789ab".into(),
        worker: "bench".into(),
        received_at: NOW,
        token: 0,
        alone: false,
        gathered: None,
    }
}

fn started() -> (Facts, Claim) {
    let mut facts = Facts::new();
    let (commit, claim) = starting().first(NOW);
    assert!(commit.apply(&mut facts), "nobody else has started it");
    (facts, claim)
}

/// The commit of a first start.
pub fn first_start() -> impl FnMut() {
    let starting = starting();
    move || drop(black_box(black_box(&starting).first(NOW)))
}

/// Decides the start of a second delivery of a running task.
pub fn judge_busy() -> impl FnMut() {
    let facts = started().0;
    let asking = StartRequest { run: "another".into(), ..starting() };
    move || drop(black_box(decide_start(black_box(&facts), &asking, |_, _| false, NOW)))
}

/// Decides a failure and makes its commit.
pub fn fail() -> impl FnMut() {
    let claim = started().1;
    let policy = RetryPolicy::new(3);
    move || {
        let outcome = RunOutcome::Failed(TaskError::new("no answer"));
        drop(black_box(end(&claim, outcome, &policy)));
    }
}

/// Decides a success and makes its commit.
pub fn succeed() -> impl FnMut() {
    let claim = started().1;
    let policy = RetryPolicy::default();
    move || drop(black_box(end(&claim, RunOutcome::Returned(EncodedResults::default()), &policy)))
}

fn end(claim: &Claim, outcome: RunOutcome, policy: &RetryPolicy) -> Commit {
    let verdict = decide(outcome, policy, Counters::default(), NOW, 0.5);
    outcome_commit(claim, &verdict, String::new(), NOW, TTL)
}

/// A record of a task that ended as people see it.
pub fn fold_ended() -> impl FnMut() {
    let (mut facts, claim) = started();
    let ended = end(&claim, RunOutcome::Returned(EncodedResults::default()), &RetryPolicy::default());
    assert!(ended.apply(&mut facts), "it is the holder's");
    move || drop(black_box(fold(&claim.id, black_box(&facts))))
}
