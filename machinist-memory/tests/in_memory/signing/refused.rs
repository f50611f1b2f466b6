//! Messages that workers do not accept: seen at once, counted, and bounded everywhere.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use machinist_core::{
    DeadFilter, Signature,
    backend::{Backend, Index},
    broker::{HeaderValue, Message},
    event::{Event, EventKind},
    record::TaskState,
    sign::Keyring,
};

use super::support::{ADD, HOUR, Harness, SOON, hmac, queue};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Message that no key has signed.
fn unsigned(n: usize) -> Message {
    Message {
        id: Some(format!("forged-{n}")),
        kind: Some("add".to_owned()),
        headers: [("machinist-queue".into(), HeaderValue::from("math"))].into(),
        ..Message::default()
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_of_an_unknown_key_is_seen_at_once_and_costs_little() {
    let harness = Harness::new();
    let offered: Arc<Mutex<u32>> = Arc::default();
    let seen = Arc::clone(&offered);
    let observer = move |event: &Event<'_>| {
        if let EventKind::Deferred { reason, .. } = event.kind {
            assert_eq!(reason, "unknown-key");
            *seen.lock().unwrap() += 1;
        }
    };
    let app = harness.builder().keyring(hmac("own")).observer(observer).build().await.unwrap();
    let _running = harness.work(&app);
    let sender = harness.app(hmac("new")).await;
    let sum = sender.client().send(ADD.call((2, 3))).await.unwrap();
    let begins = tokio::time::Instant::now();
    harness.eventually(async || !app.client().refused_messages().await.unwrap().is_empty()).await;
    assert!(begins.elapsed() < SOON);
    let refused = app.client().refused_messages().await.unwrap();
    assert_eq!((refused[0].reason.as_str(), refused[0].waiting, refused[0].count), ("unknown-key", true, 1));
    assert!(refused[0].error.contains("no key new") && refused[0].remedy().contains("verify"), "{refused:?}");
    let reason = sender.client().waiting_reason(sum.id(), &queue("math")).await.unwrap().unwrap();
    assert!(reason.contains("no key new"), "{reason}");
    let other = machinist_core::TaskId::parse("other").unwrap();
    assert_eq!(sender.client().waiting_reason(&other, &queue("math")).await.unwrap(), None);

    tokio::time::sleep_until(begins + Duration::from_secs(59)).await;
    assert_eq!(*offered.lock().unwrap(), 1, "once in the first minute");
    assert_eq!(harness.dead("math", 1).await, ["unknown-key"]);
    assert!(*offered.lock().unwrap() <= 61);
    harness.settle().await;
    let refused = app.client().refused_messages().await.unwrap();
    let counts: Vec<_> = refused.iter().map(|r| (r.reason.as_str(), r.waiting, r.count)).collect();
    assert_eq!(counts, [("unknown-key", false, 1), ("unknown-key", true, 1)]);
    assert_eq!(sum.state().await.unwrap(), TaskState::Pending);
    tokio::time::sleep(HOUR).await;
    assert_eq!(sender.client().waiting_reason(sum.id(), &queue("math")).await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_a_key_is_bounded_and_nothing_of_it_is_lost() {
    let harness = Harness::new();
    let (own, new) = (hmac("own"), hmac("new"));
    let sender = harness.app(new.clone()).await;
    let numbers: Vec<Signature> = (0..1100i64).map(|n| ADD.call((n, 0)).untyped()).collect();
    for sent in sender.client().send_all(numbers).await {
        sent.unwrap();
    }
    let app = harness.app(own.clone()).await;
    let _running = harness.work(&app);
    assert_eq!(harness.dead("math", 100).await, vec!["unknown-key"; 100]);
    harness.settle().await;
    assert_eq!(harness.broker.dead_letters(&queue("math")).len(), 100, "the others wait");
    app.replace_keyring(Keyring::new([own, new.with_state(machinist_core::sign::KeyState::Verify)]).unwrap())
        .unwrap();
    harness.eventually(async || harness.added() == 1000).await;
    let which = DeadFilter { reason: Some("unknown-key".to_owned()), ..DeadFilter::default() };
    let letters = app.client().dead_letters(&which, usize::MAX).await.unwrap();
    let mut replayed = 0;
    let tell = |_: &_, outcome| {
        assert!(matches!(outcome, machinist_core::DeadLetterOutcome::Replayed(_)), "{outcome:?}");
        replayed += 1;
    };
    app.client().replay_dead_letters(&letters, Duration::ZERO, tell).await.unwrap();
    assert!(replayed >= 90, "{replayed}: some share a place in the index, and are found later");
    harness.eventually(async || harness.added() == 1000 + replayed).await;
}

#[tokio::test(start_paused = true)]
async fn refused_messages_are_counted_and_their_entries_expire() {
    let harness = Harness::new();
    let app = harness.app(hmac("k")).await;
    let running = harness.work(&app);
    for n in 0..500 {
        harness.publish("math", unsigned(n)).await;
        // The same message again is the same letter.
        harness.publish("math", unsigned(0)).await;
    }
    assert_eq!(harness.dead("math", 1000).await, vec!["unsigned"; 1000]);
    running.stop().await;
    let refused = app.client().refused_messages().await.unwrap();
    assert_eq!((refused.len(), refused[0].count, refused[0].waiting), (1, 1000, false));
    let letters = app.client().dead_letters(&DeadFilter::default(), usize::MAX).await.unwrap();
    assert!(
        (450..=500).contains(&letters.len()),
        "{}: one for each message, unless two share a place",
        letters.len()
    );
    assert!(harness.backend.list(&Index::DeadLetters, None, 9).await.unwrap().is_empty());
    tokio::time::sleep(8 * DAY).await;
    assert!(app.client().dead_letters(&DeadFilter::default(), 9).await.unwrap().is_empty());
    assert!(harness.backend.list(&Index::Refused, None, 9).await.unwrap().is_empty(), "a reader tidies up");
    tokio::time::sleep(40 * DAY).await;
    assert!(app.client().refused_messages().await.unwrap().is_empty());
}
