//! Messages of an attacker who has access to the broker, old messages of others, a revoked key, and a key for other tasks.

use std::sync::Arc;

use machinist::{
    App, Signature,
    broker::{Broker, Consume, HeaderValue, Message, Settle},
    sign::{Algorithm, Key, KeyState, Keyring},
};
use machinist_conformance::{header, producer, without};
use machinist_memory::{MemoryBackend, MemoryBroker};

use crate::{ADD, EVIL, MAIL, queue};

/// Number of tasks that are replayed in every round.
const REPLAYED: i64 = 60;

pub(crate) struct Corpus {
    keys: Vec<Key>,
    /// Trusted key that signs messages which our programs would not write.
    hand: Key,
    /// Signed messages of the evil task.
    valid: Vec<Message>,
    delayed: Message,
    elsewhere: Message,
    unsigned: Message,
    strange: Message,
    impostor: Message,
    revoked: Message,
    limited: Vec<Message>,
    mail: Message,
    pub(crate) replayed: Vec<Message>,
}

/// Returns the message of a task as its sender would publish it, without a server.
async fn sealed<R>(key: Option<&Key>, signature: Signature<R>) -> Message {
    let broker = MemoryBroker::new();
    let app = App::builder(Arc::new(broker.clone()), Arc::new(MemoryBackend::new())).default_queue(queue());
    let app = match key {
        Some(key) => app.keyring(key.clone()),
        None => app,
    };
    let app = app.build().await.unwrap();
    app.client().send(signature).await.unwrap();
    let mut consumer = broker
        .consume(Consume { queues: vec![queue(), "other".try_into().unwrap()], prefetch: 1 })
        .await
        .unwrap();
    let delivery = consumer.next().await.unwrap();
    delivery.receipt.settle(Settle::Ack).await;
    delivery.message
}

fn flip(bytes: &[u8], round: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let bit = (round * 37) % (bytes.len() * 8);
    bytes[bit / 8] ^= 1 << (bit % 8);
    bytes
}

impl Corpus {
    pub(crate) async fn new() -> Self {
        let hmac = |id| Key::generate(Algorithm::HmacSha256, id).unwrap();
        let own = hmac("own");
        let revoked = hmac("revoked");
        let mailer = hmac("mailer");
        let hand = hmac("hand");
        let verify = |key: &Key| key.clone().with_state(KeyState::Verify);
        let keys = vec![
            own.clone(),
            Key::revoked("revoked").unwrap(),
            verify(&mailer).for_tasks(["mail.*"]).unwrap(),
            verify(&hand),
        ];
        let evil = || EVIL.call(("x".to_owned(),));
        let mut valid = Vec::new();
        for n in 0..50 {
            valid.push(sealed(Some(&own), evil().priority(n % 10)).await);
        }
        // Each has a separate id: a record holds one outcome.
        let mut limited = Vec::new();
        for _ in 0..=crate::HOSTILE / KINDS {
            limited.push(sealed(Some(&mailer), evil()).await);
        }
        let mut replayed = Vec::new();
        for n in 0..REPLAYED {
            replayed.push(sealed(Some(&own), ADD.call((crate::GOOD + n, 1))).await);
        }
        let soon = std::time::Duration::from_millis(1);
        Self {
            delayed: sealed(Some(&own), evil().countdown(soon)).await,
            elsewhere: sealed(Some(&own), evil().queue("other")).await,
            unsigned: sealed(None, evil()).await,
            strange: sealed(Some(&hmac("strange")), evil()).await,
            impostor: sealed(Some(&hmac("own")), evil()).await,
            revoked: sealed(Some(&revoked), evil()).await,
            mail: sealed(Some(&mailer), MAIL.call(("a@b".to_owned(),))).await,
            keys,
            hand,
            valid,
            limited,
            replayed,
        }
    }

    /// Returns the key ring of the worker.
    pub(crate) fn ring(&self) -> Keyring {
        Keyring::new(self.keys.clone()).unwrap()
    }

    /// Returns the numbers that the replayed tasks add.
    pub(crate) fn replayed_numbers(&self) -> impl Iterator<Item = i64> {
        crate::GOOD..crate::GOOD + REPLAYED
    }

    /// Returns the body of a valid message, for hand-written frames.
    pub(crate) fn body(&self) -> &[u8] {
        &self.valid[0].body
    }

    /// Returns a hand-written message with a new id, signed by a trusted key.
    fn by_hand(&self, n: usize, content_type: &str, body: impl Into<Vec<u8>>) -> Message {
        let message = Message {
            id: Some(format!("by-hand-{n}")),
            content_type: Some(content_type.to_owned()),
            body: body.into().into(),
            ..self.valid[0].clone()
        };
        producer::sign(message, &self.hand)
    }

    /// Returns an allowed task whose body contains another task, which its key may not send.
    pub(crate) fn hiding(&self, n: usize) -> Message {
        let body = br#"{"args":[{"type":"string","value":"a@b"}],
            "on_success":[{"name":"evil","args":[{"type":"string","value":"x"}]}],
            "callbacks":[{"name":"evil"}],"chord_callback":{"name":"evil"}}"#;
        let message = Message {
            id: Some(format!("hiding-{n}")),
            content_type: Some("application/json".to_owned()),
            body: body.as_slice().into(),
            ..self.mail.clone()
        };
        producer::sign(message, &self.hand)
    }

    /// Returns the n-th hostile message, and the expected reason of its dead letter.
    pub(crate) fn message(&self, n: usize) -> (Message, &'static str) {
        let kind = n % KINDS;
        let round = n / KINDS;
        let valid = self.valid[round % self.valid.len()].clone();
        let text = |name: &str| valid.headers[name].as_text().unwrap().to_owned();
        let json = "application/json";
        let msgpack = "application/msgpack";
        match kind {
            0 => (Message { body: flip(&valid.body, round).into(), ..valid }, "bad-signature"),
            1 => (Message { body: valid.body.slice(..round % valid.body.len()), ..valid }, "bad-signature"),
            2 => {
                let issued = valid.headers["machinist-issued"].as_int().unwrap();
                (header(valid, "machinist-issued", issued ^ (1i64 << (round % 62))), "bad-signature")
            }
            3 => {
                let seal = text("machinist-signature");
                let (signer, signature) = seal.rsplit_once(' ').unwrap();
                let flipped = flip(signature.as_bytes(), round);
                let flipped = format!("{signer} {}", String::from_utf8_lossy(&flipped));
                (header(valid, "machinist-signature", flipped), "bad-signature")
            }
            4 => (header(valid, "machinist-queue", "other"), "bad-signature"),
            5 => (Message { kind: Some("add".to_owned()), ..valid }, "bad-signature"),
            6 => {
                let other = &self.valid[(round + 1) % self.valid.len()].headers["machinist-signature"];
                (header(valid, "machinist-signature", other.clone()), "bad-signature")
            }
            7 => (header(self.elsewhere.clone(), "machinist-queue", "math"), "bad-signature"),
            8 => (without(self.delayed.clone(), "machinist-eta"), "bad-signature"),
            9 => (self.impostor.clone(), "bad-signature"),
            10 => (header(valid, "machinist-first-key", "mailer"), "bad-signature"),
            11 => (self.unsigned.clone(), "unsigned"),
            // As if it had waited for its key for a long time: anyone can write that header.
            12 => (header(self.strange.clone(), "machinist-unread-since", 1), "unknown-key"),
            13 => (self.revoked.clone(), "revoked-key"),
            14 => (self.limited[round].clone(), "not-allowed"),
            15 => (header(valid, "machinist-attempt", "one"), "undecodable"),
            16 => (Message { id: None, ..valid }, "undecodable"),
            17 => {
                let bytes = HeaderValue::Bytes(b"math\xff\xfe".as_slice().into());
                (header(valid, "machinist-queue", bytes), "undecodable")
            }
            18 if round < 8 => (Message { body: vec![0; (1 << 20) + 1].into(), ..valid }, "too-large"),
            18 => (header(valid, "x-large", "x".repeat(17 * 1024)), "too-large"),
            19 => (self.elsewhere.clone(), "wrong-queue"),
            // From here on messages are hand-written, and signed with a trusted key.
            20 => {
                let bomb = [&b"\x81\xa4args"[..], &[0x91; 5000], b"\x01"].concat();
                (self.by_hand(n, msgpack, bomb), "malformed")
            }
            21 => {
                let bomb = format!("{{\"args\":{}{}}}", "[".repeat(5000), "]".repeat(5000));
                (self.by_hand(n, json, bomb), "malformed")
            }
            22 => (self.by_hand(n, json, &b"{\"args\": [\"\xff\xfe\"]}"[..]), "malformed"),
            23 => (self.by_hand(n, "text/html", valid.body), "malformed"),
            24 => {
                let args = vec![r#"{"type":"int64","value":1}"#; 1025].join(",");
                (self.by_hand(n, json, format!("{{\"args\":[{args}]}}")), "malformed")
            }
            _ => {
                let wrong = r#"{"args":[{"type":"int64","value":7},{"type":"int64","value":7}]}"#;
                (self.by_hand(n, json, wrong), "malformed")
            }
        }
    }
}

/// Number of kinds of hostile messages.
const KINDS: usize = 26;
