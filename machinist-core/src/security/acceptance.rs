//! Acceptance of a delivery: the decision about a message before its body is parsed.
//!
//! Everything here happens before the body is parsed and before anything is written. Only the headers that are
//! ours are read, and they are flat and bounded.

use machinist_adapter::header;

use crate::{
    broker::{HeaderValue, Message},
    clock::Timestamp,
    id::QueueName,
    record::{DeadReason, MAX_DELAY},
    security::encryption::DecryptError,
    security::{QueueRules, Trust, VerifyError},
    wire::{Envelope, ForeignTask, MaxSizes, MessageSignature, Oversize, Profile, Unreadable, read_foreign},
};

/// The decision about a message.
#[derive(Debug)]
pub(crate) enum Acceptance {
    /// A task for this queue, from a sender that may send it, and its signature.
    Accepted(Envelope, Option<MessageSignature>),
    /// Authentic, but it must not run: its record is read first, and then states the reason.
    Rejected(Envelope, DeadReason, String),
    /// Authentic, and encrypted with a key that is not in the ring: other workers may have it, or this one later.
    Undecryptable(Envelope, String),
    /// Possibly for a program that knows more: a newer wire version, or another key ring.
    Deferred(DeadReason, String),
    /// In a format whose program runs messages without an id, and without one: it gets one, and comes again.
    Unidentified,
    /// In a queue that is shared with another program, and for that program alone.
    NotOurs(DeadReason, String),
    /// Not verified, or sent to another queue: no record is written.
    Refused(DeadReason, String),
}

/// Decides about a message that came from a queue.
pub(crate) fn accept(
    trust: &Trust,
    rules: &QueueRules,
    sizes: &MaxSizes,
    queue: &QueueName,
    message: &Message,
    now: Timestamp,
) -> Acceptance {
    let queue = rules.home(queue);
    if let Some(found) = message.headers.get(header::DAMAGED).and_then(HeaderValue::as_text) {
        return Acceptance::Refused(DeadReason::Undecodable, found.to_owned());
    }
    if let Err(Oversize { part, size, max }) = sizes.check(message) {
        let error = format!("its {part}: {size} bytes, and the maximum here is {max}");
        return Acceptance::Refused(DeadReason::TooLarge, error);
    }
    if let Some(profile) = rules.profile(queue) {
        return admit_foreign(profile, rules, sizes, queue, message, now);
    }
    let mut envelope = match Envelope::read(message) {
        Ok(envelope) => envelope,
        Err(unreadable) => return not_read(unreadable),
    };
    let unsigned = rules.allows_unsigned(queue, &envelope.name);
    let signed_message = match trust.verify(&mut envelope, message, unsigned) {
        Ok(signed_message) => signed_message,
        Err(VerifyError::Untrusted(reason, error)) => return Acceptance::Refused(reason, error),
        Err(VerifyError::UnknownKey(error)) => return Acceptance::Deferred(DeadReason::UnknownKey, error),
    };
    if envelope.queue != *queue {
        let error = format!("it was sent to queue {:?}", envelope.queue);
        return Acceptance::Refused(DeadReason::WrongQueue, error);
    }
    if let Some((reason, error)) =
        signed_message.as_ref().and_then(|signed_message| trust.rejection(&envelope, signed_message, now))
    {
        return Acceptance::Rejected(envelope, reason, error);
    }
    if let Some(error) = excessive(&envelope, now) {
        return Acceptance::Rejected(envelope, DeadReason::Malformed, error);
    }
    match trust.check_decryptable(&envelope) {
        Ok(()) => Acceptance::Accepted(envelope, signed_message),
        Err(error @ DecryptError::NoKey(_)) => Acceptance::Undecryptable(envelope, error.to_string()),
        Err(error @ DecryptError::Revoked(_)) => {
            Acceptance::Rejected(envelope, DeadReason::RevokedKey, error.to_string())
        }
        Err(error) => Acceptance::Rejected(envelope, DeadReason::Undecodable, error.to_string()),
    }
}

/// Returns the reason against a task that asks for more than any signer may ask for.
fn excessive(envelope: &Envelope, now: Timestamp) -> Option<String> {
    let eta = envelope.eta.filter(|eta| eta.since(now) > MAX_DELAY)?;
    Some(format!("its ETA {eta} is more than ten years away"))
}

fn not_read(unreadable: Unreadable) -> Acceptance {
    match unreadable {
        Unreadable::Header(error) => Acceptance::Refused(DeadReason::Undecodable, error),
        error @ Unreadable::Unidentified => Acceptance::Refused(DeadReason::Undecodable, error.to_string()),
        error @ (Unreadable::Version { .. } | Unreadable::Newer(_)) => {
            Acceptance::Deferred(DeadReason::Undecodable, error.to_string())
        }
    }
}

/// Decides about a message in another format. It has no signature: the list of its queue says what it may run.
fn admit_foreign(
    profile: &dyn Profile,
    rules: &QueueRules,
    sizes: &MaxSizes,
    queue: &QueueName,
    message: &Message,
    now: Timestamp,
) -> Acceptance {
    let ForeignTask { envelope, invalid } = match read_foreign(profile, queue, sizes, message, now) {
        Ok(task) => task,
        Err(Unreadable::Unidentified) => return Acceptance::Unidentified,
        Err(unreadable) => return not_read(unreadable),
    };
    if envelope.queue != *queue {
        let error = format!("it was sent to queue {:?}", envelope.queue);
        return Acceptance::Refused(DeadReason::WrongQueue, error);
    }
    if !rules.allows_unsigned(queue, &envelope.name) {
        let error = format!("task {} is not among those that run unsigned from queue {queue}", envelope.name);
        return match rules.guards_of(queue) {
            Some(_) => Acceptance::NotOurs(DeadReason::NotAllowed, error),
            None => Acceptance::Refused(DeadReason::NotAllowed, error),
        };
    }
    if let Some(error) = invalid {
        return Acceptance::Rejected(envelope, DeadReason::Malformed, error);
    }
    if let Some(error) = excessive(&envelope, now) {
        return Acceptance::Rejected(envelope, DeadReason::Malformed, error);
    }
    Acceptance::Accepted(envelope, None)
}

/// Opens a message that was kept, in a record or among dead letters, with every check of a delivery, as of this instant:
/// what no worker may run, nobody sends again. A message that cannot be decrypted here is opened all the same.
///
/// `queue` is the one it was kept for; a message of a record names it itself, in any format.
///
/// # Errors
/// The reason against running it, and the error.
pub(crate) fn open(
    trust: &Trust,
    rules: &QueueRules,
    sizes: &MaxSizes,
    queue: Option<&QueueName>,
    message: &Message,
    at: Timestamp,
) -> Result<Envelope, (DeadReason, String)> {
    let named = || {
        let name = message.headers.get(header::QUEUE).and_then(HeaderValue::as_text);
        name.and_then(|name| QueueName::parse(name).ok())
    };
    let Some(queue) = queue.cloned().or_else(named) else {
        return Err((DeadReason::Undecodable, format!("it has no queue in header `{}`", header::QUEUE)));
    };
    match accept(trust, rules, sizes, &queue, message, at) {
        Acceptance::Accepted(envelope, _) | Acceptance::Undecryptable(envelope, _) => Ok(envelope),
        Acceptance::Rejected(_, reason, error)
        | Acceptance::Deferred(reason, error)
        | Acceptance::NotOurs(reason, error)
        | Acceptance::Refused(reason, error) => Err((reason, error)),
        Acceptance::Unidentified => Err((DeadReason::Undecodable, Unreadable::Unidentified.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        fuzz::{NOW, full_envelope, full_envelope_with_pairs},
        sign::{Algorithm, Key, KeyState, Keyring},
        wire::FirstSigner,
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
    fn a_signed_message_asks_for_ten_years_at_most() {
        let trust = Trust::new(Some(Key::generate(Algorithm::HmacSha256, "k").unwrap().into()), false, None);
        let accepted = |eta: Timestamp| {
            let envelope = Envelope { eta: Some(eta), first: FirstSigner::Publisher, ..full_envelope() };
            let message = trust.signed_message(&envelope, NOW);
            let queue = &envelope.queue;
            accept(&trust, &QueueRules::default(), &MaxSizes::default(), queue, &message, NOW)
        };
        assert!(matches!(accepted(NOW.plus(MAX_DELAY)), Acceptance::Accepted(..)));
        for eta in [NOW.plus(MAX_DELAY + Duration::from_secs(1)), Timestamp::from_micros(i64::MAX)] {
            assert!(matches!(accepted(eta), Acceptance::Rejected(_, DeadReason::Malformed, _)));
        }
    }

    #[test]
    fn no_bit_of_a_message_can_be_flipped() {
        for algorithm in [Algorithm::HmacSha256, Algorithm::Ed25519] {
            let own = Key::generate(algorithm, "own").unwrap();
            let web = Key::generate(algorithm, "web").unwrap().with_state(KeyState::Verify);
            let trust = Trust::new(Some(Keyring::new([own, web]).unwrap()), false, None);
            let queue = QueueName::parse("math").unwrap();
            let rules = QueueRules::default();
            let accepted =
                |message: &Message| accept(&trust, &rules, &MaxSizes::default(), &queue, message, NOW);
            for signed in [full_envelope(), full_envelope_with_pairs()] {
                let message = trust.signed_message(&signed, NOW);
                assert!(
                    matches!(accepted(&message), Acceptance::Accepted(envelope, _) if envelope == signed)
                );
                let all = neighbours(&message);
                assert!(all.len() > 3000, "{}", all.len());
                for changed in &all {
                    let acceptance = accepted(changed);
                    assert!(
                        matches!(acceptance, Acceptance::Refused(..) | Acceptance::Deferred(..)),
                        "{changed:?} was accepted: {acceptance:?}"
                    );
                }
            }
        }
    }
}
