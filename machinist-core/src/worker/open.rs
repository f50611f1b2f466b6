//! Opening a delivery: what it claims, and what of that is believed.
//!
//! Everything here happens before the body is parsed and before anything is written. Only the headers that are
//! ours are read, and they are flat and bounded.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    broker::Message,
    clock::Timestamp,
    envelope::{DeadReason, Envelope, Unreadable},
    id::QueueName,
    secrecy::Locked,
    sizes::MaxSizes,
    trust::{Doubt, Trust},
};

/// What a message turned out to be.
#[derive(Debug)]
pub(crate) enum Opened {
    /// A task for this queue, from somebody who may send it.
    Task(Envelope),
    /// Authentic, and not to be run: its record is asked first, and then says why.
    Rejected(Envelope, DeadReason, String),
    /// Authentic, and encrypted with a key that is not here: others may have it, or this worker later.
    Locked(Envelope, String),
    /// Perhaps for a program that knows more (a newer wire, another key ring).
    NotYet(DeadReason, String),
    /// Nothing in it is believed, or it belongs elsewhere: no record is written.
    Dead(DeadReason, String),
}

/// Opens a message that came from a queue.
pub(crate) fn open(
    trust: &Trust,
    sizes: &MaxSizes,
    queue: &QueueName,
    message: &Message,
    now: Timestamp,
) -> Opened {
    if let Some((what, size, limit)) = sizes.exceeded(message) {
        let error = format!("its {what}: {size} bytes, and {limit} are the limit here");
        return Opened::Dead(DeadReason::TooLarge, error);
    }
    let mut envelope = match Envelope::read(message) {
        Ok(envelope) => envelope,
        Err(Unreadable::Header(error)) => return Opened::Dead(DeadReason::Undecodable, error),
        Err(error @ Unreadable::Version(_)) => {
            return Opened::NotYet(DeadReason::Undecodable, error.to_string());
        }
    };
    let seal = match trust.verify(&mut envelope, message) {
        Ok(seal) => seal,
        Err(Doubt::Nothing(reason, error)) => return Opened::Dead(reason, error),
        Err(Doubt::UnknownKey(error)) => return Opened::NotYet(DeadReason::UnknownKey, error),
    };
    if envelope.queue != *queue {
        let error = format!("it was sent to queue {:?}", envelope.queue);
        return Opened::Dead(DeadReason::WrongQueue, error);
    }
    if let Some((reason, error)) = seal.and_then(|seal| trust.objection(&envelope, &seal, now)) {
        return Opened::Rejected(envelope, reason, error);
    }
    match trust.openable(&envelope) {
        Ok(()) => Opened::Task(envelope),
        Err(error @ Locked::NoKey(_)) => Opened::Locked(envelope, error.to_string()),
        Err(error @ Locked::Revoked(_)) => {
            Opened::Rejected(envelope, DeadReason::RevokedKey, error.to_string())
        }
        Err(error) => Opened::Rejected(envelope, DeadReason::Undecodable, error.to_string()),
    }
}

/// How often the same reason is logged.
const QUIET: Duration = Duration::from_secs(10);

/// Counts what was refused, and says so without letting whoever sends it fill the log.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    count: AtomicU64,
    said: Mutex<Vec<Said>>,
}

/// What was last said of one reason.
#[derive(Debug)]
struct Said {
    reason: DeadReason,
    at: Instant,
    silently: u64,
}

impl Refusals {
    /// How many messages were refused.
    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Notes one. The error names what its message claims, but never repeats its body.
    pub(super) fn note(&self, queue: &QueueName, reason: DeadReason, error: &str) {
        self.count.fetch_add(1, Ordering::Relaxed);
        if let Some(silently) = self.to_be_said(reason, Instant::now()) {
            let reason = reason.as_str();
            tracing::warn!(%queue, reason, error, silently, "a message was refused and is a dead letter now");
        }
    }

    /// How many were passed over since the last line, if it is time for another.
    fn to_be_said(&self, reason: DeadReason, now: Instant) -> Option<u64> {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        match said.iter_mut().find(|said| said.reason == reason) {
            Some(said) if now.saturating_duration_since(said.at) < QUIET => {
                said.silently += 1;
                None
            }
            Some(said) => {
                said.at = now;
                Some(std::mem::take(&mut said.silently))
            }
            None => {
                said.push(Said { reason, at: now, silently: 0 });
                Some(0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        broker::HeaderValue,
        fuzz::{NOW, full_envelope},
        sign::{Algorithm, Key, KeyState, Keyring},
    };

    /// Every bit of a text, flipped, as far as that leaves text.
    fn flips(text: &str) -> Vec<String> {
        let flip = |bit: usize| {
            let mut bytes = text.as_bytes().to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            String::from_utf8(bytes).ok()
        };
        (0..text.len() * 8).filter_map(flip).collect()
    }

    /// Every message that differs from this one in one bit.
    fn neighbours(message: &Message) -> Vec<Message> {
        let mut all = Vec::new();
        let text = |text: &Option<String>| flips(text.as_deref().unwrap());
        all.extend(text(&message.id).into_iter().map(|id| Message { id: Some(id), ..message.clone() }));
        all.extend(text(&message.kind).into_iter().map(|k| Message { kind: Some(k), ..message.clone() }));
        let content_types = text(&message.content_type).into_iter();
        all.extend(content_types.map(|t| Message { content_type: Some(t), ..message.clone() }));
        let priorities = (0..8).map(|bit| message.priority.unwrap() ^ (1 << bit));
        all.extend(priorities.map(|p| Message { priority: Some(p), ..message.clone() }));
        for bit in 0..message.body.len() * 8 {
            let mut body = message.body.to_vec();
            body[bit / 8] ^= 1 << (bit % 8);
            all.push(Message { body: body.into(), ..message.clone() });
        }
        for (name, value) in &message.headers {
            let values: Vec<HeaderValue> = match value {
                HeaderValue::Text(text) => flips(text).into_iter().map(Into::into).collect(),
                HeaderValue::Int(number) => (0..64).map(|bit| (number ^ (1 << bit)).into()).collect(),
                other => panic!("{other:?} is not ours"),
            };
            for value in values {
                let mut changed = message.clone();
                changed.headers.insert(name.clone(), value);
                all.push(changed);
            }
            for other in flips(name) {
                let mut changed = message.clone();
                let value = changed.headers.remove(name).unwrap();
                changed.headers.insert(other.into(), value);
                all.push(changed);
            }
        }
        all
    }

    #[test]
    fn no_bit_of_a_message_can_be_flipped() {
        for algorithm in [Algorithm::HmacSha256, Algorithm::Ed25519] {
            let own = Key::generate(algorithm, "own").unwrap();
            let web = Key::generate(algorithm, "web").unwrap().with_state(KeyState::Verify);
            let trust = Trust::new(Some(Keyring::new([own, web]).unwrap()), false, None);
            let queue = QueueName::parse("math").unwrap();
            let open = |message: &Message| open(&trust, &MaxSizes::default(), &queue, message, NOW);
            let message = trust.seal(&full_envelope(), NOW);
            assert!(matches!(open(&message), Opened::Task(envelope) if envelope == full_envelope()));
            let all = neighbours(&message);
            assert!(all.len() > 3000, "{}", all.len());
            for changed in &all {
                let opened = open(changed);
                assert!(
                    matches!(opened, Opened::Dead(..) | Opened::NotYet(..)),
                    "{changed:?} was opened: {opened:?}"
                );
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_one_line() {
        let refusals = Refusals::default();
        let say = |reason| refusals.to_be_said(reason, Instant::now());
        assert_eq!(say(DeadReason::Unsigned), Some(0));
        assert_eq!(say(DeadReason::Stale), Some(0));
        for _ in 0..1000 {
            assert_eq!(say(DeadReason::Unsigned), None);
        }
        tokio::time::advance(QUIET).await;
        assert_eq!(say(DeadReason::Unsigned), Some(1000));
    }
}
