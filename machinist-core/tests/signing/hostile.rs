//! What somebody with access to the broker can try, and what comes of it: a dead letter with a reason.

use std::{collections::BTreeMap, sync::atomic::Ordering, time::Duration};

use machinist_core::{
    broker::{HeaderValue, Message, Publish, Target},
    record::State,
    sign::{Key, KeyState, Keyring},
};

use crate::{
    recipe::sign_by_hand,
    support::{ADD, EVIL, HOUR, House, SOON, hmac, queue},
};

/// Of a key that is trusted, so that hostile messages can be signed as well.
const SECRET: [u8; 32] = [42; 32];

fn header(mut message: Message, name: &str, value: impl Into<HeaderValue>) -> Message {
    message.headers.insert(name.to_owned(), value.into());
    message
}

fn without(mut message: Message, name: &str) -> Message {
    assert!(message.headers.remove(name).is_some(), "{name} was there");
    message
}

#[tokio::test(start_paused = true)]
async fn a_replay_of_an_ended_task_does_nothing() {
    let house = House::new();
    let app = house.app(hmac("k")).await;
    let sum = app.client().send(ADD.call((2, 3))).await.unwrap();
    let message = house.take("math").await;
    let _running = house.work(&app);
    for _ in 0..20 {
        house.publish("math", message.clone()).await;
    }
    assert_eq!(sum.wait(SOON).await.unwrap(), 5);
    for _ in 0..20 {
        house.publish("math", message.clone()).await;
    }
    house.settle().await;
    assert_eq!((house.added(), house.broker.dead_letters(&queue("math")).len()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn nothing_that_decides_can_be_changed_or_taken_away() {
    let house = House::new();
    let app = house.app(hmac("k")).await;
    let late = ADD.call((2, 3)).queue("stolen").countdown(HOUR).expires_in(24 * HOUR).priority(3);
    app.client().send(late).await.unwrap();
    let message = house.take("stolen").await;
    let worker = house.worker(&app).queue("stolen").queue("math");
    let _running = crate::support::Running::start(worker);
    let hostile = [
        without(message.clone(), "machinist-eta"),
        header(message.clone(), "machinist-eta", 1),
        without(message.clone(), "machinist-expires"),
        header(message.clone(), "machinist-attempt", 2),
        header(message.clone(), "machinist-generation", 1),
        header(message.clone(), "machinist-retries", 1),
        header(message.clone(), "machinist-postponements", 1),
        header(message.clone(), "machinist-token", 1),
        header(message.clone(), "machinist-unknown-since", 1),
        header(message.clone(), "machinist-issued", 1),
        header(message.clone(), "machinist-signed-at", 1),
        header(message.clone(), "machinist-first-key", "other"),
        without(message.clone(), "machinist-signed-at"),
        without(message.clone(), "machinist-key-id"),
        without(message.clone(), "traceparent"),
        Message { kind: Some("evil".to_owned()), ..message.clone() },
        Message { id: Some("another".to_owned()), ..message.clone() },
        Message { priority: None, ..message.clone() },
        Message { content_type: Some("application/json".to_owned()), ..message.clone() },
        Message { body: message.body.slice(1..), ..message.clone() },
    ];
    let count = hostile.len();
    for hostile in hostile {
        house.publish("stolen", hostile).await;
    }
    assert_eq!(house.dead("stolen", count).await, vec!["bad-signature"; count]);
    // Signed, but for another queue; and with that changed too.
    house.publish("math", message.clone()).await;
    house.publish("math", header(message.clone(), "machinist-queue", "math")).await;
    assert_eq!(house.dead("math", 2).await, ["wrong-queue", "bad-signature"]);
    assert_eq!((house.added(), house.ran.evil.load(Ordering::SeqCst)), (0, 0));
    // The message itself is untouched by all of that.
    house.publish("stolen", message.clone()).await;
    let id = message.id.clone().unwrap();
    let sum = app.result(id.try_into().unwrap()).typed::<i64>();
    assert_eq!(sum.wait(2 * HOUR).await.unwrap(), 5);
}

/// The attacker has the broker, a revoked key, and a key for other tasks.
struct Corpus {
    /// Evil tasks that this application would run, out of the queue.
    valid: Vec<Message>,
    unsigned: Message,
    strange: Message,
    revoked: Message,
    limited: Vec<Message>,
}

impl Corpus {
    /// The n-th hostile message, and the reason under which it is to be found.
    fn message(&self, n: usize) -> (Message, &'static str) {
        let valid = self.valid[n % self.valid.len()].clone();
        let round = n / 16;
        let flip = |bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            let bit = (round * 37) % (bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            bytes
        };
        let template = || {
            let mut message = without(without(valid.clone(), "machinist-key-id"), "machinist-signed-at");
            message.id = Some(format!("by-hand-{n}"));
            message
        };
        match n % 16 {
            0 => (Message { body: flip(&valid.body).into(), ..valid }, "bad-signature"),
            1 => (Message { body: valid.body.slice(..round % valid.body.len()), ..valid }, "bad-signature"),
            2 => {
                let bit = 1i64 << (round % 62);
                let issued = valid.headers["machinist-issued"].as_int().unwrap();
                (header(valid, "machinist-issued", issued ^ bit), "bad-signature")
            }
            3 => {
                let signature = valid.headers["machinist-signature"].as_text().unwrap();
                let flipped = String::from_utf8_lossy(&flip(signature.as_bytes())).into_owned();
                (header(valid, "machinist-signature", flipped), "bad-signature")
            }
            4 => (header(valid, "machinist-queue", "other"), "bad-signature"),
            5 => (Message { kind: Some("add".to_owned()), ..valid }, "bad-signature"),
            6 => (self.unsigned.clone(), "unsigned"),
            7 if n < 2000 => (self.strange.clone(), "unknown-key"),
            7 | 8 => (self.revoked.clone(), "revoked-key"),
            9 => (self.limited[round % self.limited.len()].clone(), "not-allowed"),
            10 => (header(valid, "machinist-attempt", "one"), "undecodable"),
            11 => (Message { id: None, ..valid }, "undecodable"),
            12 if n < 2000 => (Message { body: vec![0; (1 << 20) + 1].into(), ..valid }, "too-large"),
            12 => (header(valid, "x-large", "x".repeat(17 * 1024)), "too-large"),
            // Signed with a key that is trusted, by somebody who writes messages by hand.
            13 => {
                let bomb = [&b"\x81\xa4args"[..], &[0x91; 5000], b"\x01"].concat();
                (sign_by_hand(Message { body: bomb.into(), ..template() }, "hand", &SECRET), "malformed")
            }
            14 => {
                let text = Message {
                    body: b"{\"args\": [\"\xff\xfe\"]}"[..].into(),
                    content_type: Some("application/json".to_owned()),
                    ..template()
                };
                (sign_by_hand(text, "hand", &SECRET), "malformed")
            }
            _ => {
                let text = Message { content_type: Some("text/html".to_owned()), ..template() };
                (sign_by_hand(text, "hand", &SECRET), "malformed")
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_hostile_messages_do_no_harm_to_two_thousand_tasks() {
    const HOSTILE: usize = 10_000;
    const GOOD: i64 = 2_000;
    let house = House::new();
    let (own, revoked, mailer) = (hmac("own"), hmac("revoked"), hmac("mailer"));
    let verify = |key: Key| key.with_state(KeyState::Verify);
    let hand = Key::with_secret(machinist_core::sign::Algorithm::HmacSha256, "hand", &SECRET).unwrap();
    let ring = [
        own,
        Key::revoked("revoked").unwrap(),
        verify(mailer.clone()).for_tasks(["mail.*"]).unwrap(),
        verify(hand),
    ];
    let app = house.app(Keyring::new(ring).unwrap()).await;
    let evil = || EVIL.call(("x".to_owned(),));
    let by = async |key: Option<Key>, queue: &str| {
        let app = match key {
            Some(key) => house.app(key).await,
            None => house.builder().build().await.unwrap(),
        };
        app.client().send(evil().queue(queue)).await.unwrap();
        house.take(queue).await
    };
    // Signed for the queue in which they will lie, and taken out before anybody works there.
    let mut corpus = Corpus {
        valid: Vec::new(),
        unsigned: by(None, "math").await,
        strange: by(Some(hmac("strange")), "math").await,
        revoked: by(Some(revoked), "math").await,
        limited: Vec::new(),
    };
    for _ in 0..50 {
        app.client().send(evil()).await.unwrap();
        corpus.valid.push(house.take("math").await);
    }
    // Each under an id of its own: a record tells what became of an id only once.
    for _ in 0..HOSTILE / 16 {
        corpus.limited.push(by(Some(mailer.clone()), "math").await);
    }
    let good: Vec<_> = (0..GOOD).map(|n| ADD.call((n, 1))).collect();
    let good = app.client().send_all(good).await;
    let replayed = house.take("math").await;
    house.publish("math", replayed.clone()).await;
    let mut expected: BTreeMap<&str, usize> = BTreeMap::new();
    let target = Target::Queue(queue("math"));
    let mut batch = Vec::with_capacity(HOSTILE);
    for n in 0..HOSTILE {
        let (message, reason) = corpus.message(n);
        *expected.entry(reason).or_default() += 1;
        batch.push(Publish { target: target.clone(), message, delay: Duration::ZERO });
        if n % 10 == 0 {
            let message = replayed.clone();
            batch.push(Publish { target: target.clone(), message, delay: Duration::ZERO });
        }
    }
    machinist_core::broker::Broker::publish(&house.broker, batch).await;
    let running = house.work(&app);
    for (n, sent) in good.into_iter().enumerate() {
        let sent = sent.unwrap();
        assert_eq!(sent.wait(HOUR).await.unwrap(), i64::try_from(n).unwrap() + 1);
        assert_eq!(sent.state().await.unwrap(), State::Success);
    }
    tokio::time::sleep(2 * HOUR).await;
    let mut found: BTreeMap<String, usize> = BTreeMap::new();
    for reason in house.dead("math", HOSTILE).await {
        *found.entry(reason).or_default() += 1;
    }
    let expected: BTreeMap<String, usize> = expected.into_iter().map(|(r, n)| (r.to_owned(), n)).collect();
    assert_eq!(found, expected);
    assert_eq!(house.ran.evil.load(Ordering::SeqCst), 0, "hostile runs");
    let mut added = house.ran.added.lock().unwrap().clone();
    added.sort_unstable();
    assert_eq!(added, (0..GOOD).collect::<Vec<_>>(), "each once");
    assert!(running.stop().await.is_clean());
}
