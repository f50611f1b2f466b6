//! The trust of this application: signing with its key ring, verifying against it, and refusing.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use serde::Deserialize;
use tokio::sync::watch;

use crate::{
    backend::Commit,
    broker::Message,
    clock::Timestamp,
    id::{QueueName, TaskId, TaskName},
    record::{DeadReason, Facts, name},
    security::encryption::{self, DecryptError},
    sign::{Key, KeyError, KeyId, KeyRejection, Keyring, SigningScope, input::SigningInput},
    wire::{Envelope, FirstSigner, MessageSignature, Unreadable},
};

/// The version of what is signed under a result.
const RESULT_VERSION: i64 = 1;

/// The key ring, and the rules for using it.
#[derive(Debug)]
pub(crate) struct Trust {
    in_use: watch::Sender<RingInUse>,
    /// Number of rings before the one in use, and whether that can sign. They repeat what `in_use` says: every task asks
    /// several times, and a lock would be one that all threads share.
    generation: AtomicU64,
    can_sign: AtomicBool,
    allow_unsigned: bool,
    window: Option<Duration>,
    scope: SigningScope,
    told_of_unsigned: AtomicBool,
}

/// The ring in use.
#[derive(Debug, Default)]
struct RingInUse {
    /// None: nothing is signed and everything believed. Replaced as a whole, never changed.
    ring: Option<Arc<Keyring>>,
}

impl RingInUse {
    /// Returns `true` unless what has to be signed cannot be.
    fn can_sign(&self) -> bool {
        self.ring.as_ref().is_none_or(|ring| ring.signing_key().is_some())
    }
}

/// Error of a verification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum VerifyError {
    /// Nothing in the message is trusted.
    Untrusted(DeadReason, String),
    /// Another process, or this one with another ring, may know the key.
    UnknownKey(String),
}

impl Trust {
    pub(crate) fn new(ring: Option<Keyring>, allow_unsigned: bool, window: Option<Duration>) -> Self {
        let in_use = RingInUse { ring: ring.map(Arc::new) };
        Self {
            generation: AtomicU64::new(0),
            can_sign: AtomicBool::new(in_use.can_sign()),
            in_use: watch::Sender::new(in_use),
            allow_unsigned,
            window,
            scope: SigningScope::default(),
            told_of_unsigned: AtomicBool::new(false),
        }
    }

    /// Signs and verifies for this installation.
    pub(crate) fn within(self, scope: SigningScope) -> Self {
        Self { scope, ..self }
    }

    pub(super) fn scope(&self) -> &SigningScope {
        &self.scope
    }

    pub(super) fn allows_unsigned(&self) -> bool {
        self.allow_unsigned
    }

    pub(super) fn ring(&self) -> Option<Arc<Keyring>> {
        self.in_use.borrow().ring.clone()
    }

    /// Puts another ring in the place of this one. One that cannot sign does not replace one that can, but what it revokes
    /// is revoked.
    pub(crate) fn replace(&self, ring: Keyring) -> Result<(), KeyError> {
        let before = self.ring();
        let signed = before.as_deref().filter(|before| before.signing_key().is_some());
        let Some(before) = signed.filter(|_| ring.signing_key().is_none()) else {
            self.put(ring);
            return Ok(());
        };
        self.put(before.with_revocations(&ring));
        Err(KeyError::NoneActive)
    }

    fn put(&self, ring: Keyring) {
        self.in_use.send_modify(|in_use| {
            in_use.ring = Some(Arc::new(ring));
            // Under the lock: who reads the new generation gets the new ring, or waits for it.
            self.can_sign.store(in_use.can_sign(), Ordering::Release);
            self.generation.fetch_add(1, Ordering::Release);
        });
    }

    /// Returns the number of times that the ring was replaced.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Returns `true` unless the only key that signed was revoked, and no other has taken its place.
    pub(crate) fn can_sign(&self) -> bool {
        self.can_sign.load(Ordering::Acquire)
    }

    /// Completes as soon as this application can sign what it has to sign.
    pub(crate) async fn signs(&self) {
        if !self.can_sign() {
            // The sender lives in self, so waiting cannot fail.
            drop(self.in_use.subscribe().wait_for(RingInUse::can_sign).await);
        }
    }

    /// The envelope as it goes to the broker: its body encrypted, if this application encrypts.
    pub(crate) fn encrypt(&self, envelope: Envelope) -> Envelope {
        match self.ring().as_deref().and_then(Keyring::encrypting_key) {
            Some(key) => encryption::encrypted(envelope, key),
            None => envelope,
        }
    }

    /// The envelope of a task that follows another: its body encrypted if that of the other is, or if this application
    /// encrypts.
    pub(crate) fn encrypt_like(&self, other: &Envelope, envelope: Envelope) -> Envelope {
        match self.outcome_key(other) {
            Some(key) => encryption::encrypted(envelope, &key),
            None => envelope,
        }
    }

    /// Returns `true` if this application encrypts what it sends.
    pub(crate) fn encrypts(&self) -> bool {
        self.ring().is_some_and(|ring| ring.encrypting_key().is_some())
    }

    /// Returns a hash of a text that only holders of the signing key can compute; `None` without a key that signs.
    pub(crate) fn keyed_hash(&self, kind: &'static str, text: &str) -> Option<Vec<u8>> {
        let ring = self.ring()?;
        let key = ring.signing_key()?;
        let scope = self.scope();
        key.sign(&SigningInput::new(kind, 256).text(&scope.namespace).text(&scope.realm).text(text).finish())
    }

    /// Another envelope with the body of this one, which, if it is encrypted, is bound to the names of this one, and
    /// stays encrypted.
    pub(crate) fn renamed(
        &self,
        envelope: &Envelope,
        rename: impl FnOnce(Envelope) -> Envelope,
    ) -> Result<Envelope, DecryptError> {
        let key = self.outcome_key(envelope);
        let renamed = rename(self.decrypt(envelope)?);
        match key {
            Some(key) => Ok(encryption::encrypted(renamed, &key)),
            None => Ok(renamed),
        }
    }

    /// The envelope with its body readable.
    pub(crate) fn decrypt(&self, envelope: &Envelope) -> Result<Envelope, DecryptError> {
        encryption::decrypted(envelope, self.ring().as_deref())
    }

    /// Checks that the body can be decrypted, as far as its envelope tells.
    pub(crate) fn check_decryptable(&self, envelope: &Envelope) -> Result<(), DecryptError> {
        if encryption::is_encrypted(envelope) {
            encryption::check_decryptable(envelope, self.ring().as_deref())
        } else {
            Ok(())
        }
    }

    /// Returns the key that encrypts the outcome of this task, if it is encrypted. A run asks once: a key that is
    /// taken from the ring meanwhile must not make the outcome readable.
    pub(crate) fn outcome_key(&self, envelope: &Envelope) -> Option<Key> {
        encryption::outcome_key(envelope, self.ring().as_deref()?).cloned()
    }

    /// Returns `true` if the outcome of this task is encrypted, here or elsewhere.
    pub(crate) fn encrypts_outcomes(&self, envelope: &Envelope) -> bool {
        encryption::is_encrypted(envelope) || self.encrypts()
    }

    /// Decrypts these facts in place; returns the error if some stay encrypted.
    pub(crate) fn decrypt_outcome(&self, id: &TaskId, facts: &mut Facts) -> Option<DecryptError> {
        encryption::decrypt_outcome(id, facts, self.ring().as_deref())
    }

    /// Checks that this process may sign this task now.
    pub(crate) fn may_sign(&self, task: &TaskName, queue: &QueueName, now: Timestamp) -> Result<(), String> {
        let Some(ring) = self.ring() else { return Ok(()) };
        let Some(key) = ring.signing_key() else { return Err(KeyError::NoneActive.to_string()) };
        key.believed_at(now).and_then(|()| key.may(task.as_str(), queue.as_str())).map_err(|e| e.to_string())
    }

    /// The message that carries an envelope, signed if there is a key. Every message is made here: what is published again
    /// is signed again.
    pub(crate) fn signed_message(&self, envelope: &Envelope, now: Timestamp) -> Message {
        let mut message = envelope.message();
        let ring = self.ring();
        let Some(key) = ring.as_deref().and_then(Keyring::signing_key) else { return message };
        envelope.sign(&mut message, key, &self.scope, now);
        message
    }

    /// Verifies the signature of a message whose headers were read into `envelope`, and that its key is
    /// trusted. A message without a signature passes only if `unsigned` or the application allows it.
    pub(crate) fn verify(
        &self,
        envelope: &mut Envelope,
        message: &Message,
        unsigned: bool,
    ) -> Result<Option<MessageSignature>, VerifyError> {
        let Some(ring) = self.ring() else { return Ok(None) };
        let unreadable = |e: Unreadable| VerifyError::Untrusted(DeadReason::BadSignature, e.to_string());
        let Some(signed_message) = envelope.read_signature(message).map_err(unreadable)? else {
            return if unsigned { Ok(None) } else { self.unsigned() };
        };
        let key = ring.trusted(&signed_message.key)?;
        if !envelope.is_signed_by(key, &signed_message, &self.scope) {
            let (key, doubt) = (&signed_message.key, self.scope.doubt());
            let error = format!("the signature is not that of key {key} under this message: {doubt}");
            return Err(VerifyError::Untrusted(DeadReason::BadSignature, error));
        }
        self.check_keys(&ring, envelope, &signed_message)?;
        Ok(Some(signed_message))
    }

    /// Checks that the keys of a message are trusted: that of this message, and that of the task's first sender.
    fn check_keys(
        &self,
        ring: &Keyring,
        envelope: &Envelope,
        signed_message: &MessageSignature,
    ) -> Result<(), VerifyError> {
        let key = ring.trusted(&signed_message.key)?;
        key.believed_at(signed_message.signed_at)?;
        if let FirstSigner::Key(first) = &envelope.first {
            let first = if first == key.id() { key } else { ring.trusted(first)? };
            first.believed_at(envelope.first_issued())?;
        }
        Ok(())
    }

    /// Checks a message again that was verified under an earlier ring, and has waited in this process since then.
    /// `unsigned` is `true` if it may run without a signature.
    pub(crate) fn verify_again(
        &self,
        envelope: &Envelope,
        signed_message: Option<&MessageSignature>,
        unsigned: bool,
    ) -> Result<(), VerifyError> {
        let Some(ring) = self.ring() else { return Ok(()) };
        match signed_message {
            Some(signed_message) => self.check_keys(&ring, envelope, signed_message),
            None if unsigned => Ok(()),
            None => self.unsigned().map(drop),
        }
    }

    fn unsigned(&self) -> Result<Option<MessageSignature>, VerifyError> {
        if !self.allow_unsigned {
            return Err(VerifyError::Untrusted(DeadReason::Unsigned, "it carries no signature".to_owned()));
        }
        if !self.told_of_unsigned.swap(true, Ordering::Relaxed) {
            tracing::warn!("unsigned tasks are run, because that was allowed; this is said once");
        }
        Ok(None)
    }

    /// Returns the reason against running a verified task here and now.
    pub(crate) fn rejection(
        &self,
        envelope: &Envelope,
        signed_message: &MessageSignature,
        now: Timestamp,
    ) -> Option<(DeadReason, String)> {
        if let Some(window) = self.window {
            let fresh = signed_message.signed_at.max(envelope.eta.unwrap_or(signed_message.signed_at));
            if now.since(fresh) > window {
                let error = format!("it was to be run at {fresh}, more than {window:?} ago");
                return Some((DeadReason::Stale, error));
            }
        }
        self.not_allowed(envelope, signed_message)
    }

    /// Returns the reason against running a verified task, if its keys may not send it.
    pub(crate) fn not_allowed(
        &self,
        envelope: &Envelope,
        signed_message: &MessageSignature,
    ) -> Option<(DeadReason, String)> {
        let ring = self.ring()?;
        let first = match &envelope.first {
            FirstSigner::Key(first) if *first != signed_message.key => Some(first),
            FirstSigner::Key(_) | FirstSigner::Publisher | FirstSigner::Nobody => None,
        };
        // Both: the first, because the task is its; and the last, because it says who was first.
        for id in std::iter::once(&signed_message.key).chain(first) {
            let allowed =
                ring.trusted(id).and_then(|key| key.may(envelope.name.as_str(), envelope.queue.as_str()));
            if let Err(rejected) = allowed {
                return Some((DeadReason::NotAllowed, rejected.to_string()));
            }
        }
        None
    }

    /// Signs the end of a task, if this commit is one: results are kept where others can write.
    pub(crate) fn sign_end(&self, mut commit: Commit) -> Commit {
        let Some(ring) = self.ring() else { return commit };
        if let Some(key) = ring.signing_key()
            && let Some((_, end)) = commit.facts.iter_mut().find(|(fact, _)| fact == name::END)
            && let Some(id) = commit.id.task()
            && let Some(signed_end) = attested(key, end, |text| result_input(key, &self.scope, &id, text))
        {
            *end = signed_end;
        }
        commit
    }

    /// Checks that the end of a record, if it has one, was signed by a trusted key.
    pub(crate) fn check_end(&self, id: &TaskId, facts: &Facts) -> Result<(), String> {
        let (Some(ring), Some(end)) = (self.ring(), facts.get(name::END)) else { return Ok(()) };
        let Some(attestation) = Attestation::of(end) else {
            let unsigned = "its end carries no signature".to_owned();
            return if self.allow_unsigned { Ok(()) } else { Err(unsigned) };
        };
        let key = ring.trusted(&attestation.key).map_err(|rejected| rejected.to_string())?;
        let input = result_input(key, &self.scope, id, attestation.text);
        if !key.verify(&input, &attestation.signature) {
            let (key, doubt) = (attestation.key, self.scope.doubt());
            return Err(format!("the signature of its end is not that of key {key}: {doubt}"));
        }
        key.believed_at(ended_at(end)?).map_err(|rejected| rejected.to_string())
    }

    /// Returns the reason against publishing a task of a workflow: the key of this application or the first signer of the
    /// workflow may not send it.
    pub(crate) fn child_refusal(&self, envelope: &Envelope, now: Timestamp) -> Option<String> {
        if let Err(why) = self.may_sign(&envelope.name, &envelope.queue, now) {
            return Some(why);
        }
        let (Some(ring), FirstSigner::Key(first)) = (self.ring(), &envelope.first) else { return None };
        let may = |key: &Key| key.may(envelope.name.as_str(), envelope.queue.as_str());
        ring.trusted(first).and_then(may).err().map(|rejected| rejected.to_string())
    }
}

/// Returns the instant that an end states.
pub(super) fn ended_at(end: &[u8]) -> Result<Timestamp, String> {
    #[derive(Deserialize)]
    struct AttestedEnd {
        at: Timestamp,
    }
    serde_json::from_slice::<AttestedEnd>(end).map(|end| end.at).map_err(|e| e.to_string())
}

impl From<KeyRejection> for VerifyError {
    fn from(rejected: KeyRejection) -> Self {
        let error = rejected.to_string();
        match rejected {
            KeyRejection::Unknown(_) => Self::UnknownKey(error),
            // A key outside its time is believed as little as one that was revoked.
            KeyRejection::Revoked(_) | KeyRejection::OutOfTime(..) => {
                Self::Untrusted(DeadReason::RevokedKey, error)
            }
            KeyRejection::NotAllowed(_) => Self::Untrusted(DeadReason::NotAllowed, error),
        }
    }
}

/// Text that begins the signature of an end; the signature is the last part of its JSON.
const SIGNED_BY: &str = ",\"by\":\"";
/// Text between the key and the signature.
const SIGNATURE: &str = "\",\"mac\":\"";
/// Text after the signature.
const END: &[u8] = b"\"}";

/// The signature of an end, taken apart.
pub(super) struct Attestation<'a> {
    /// All that comes before it: what is signed.
    pub(super) text: &'a [u8],
    pub(super) key: KeyId,
    pub(super) signature: Vec<u8>,
}

impl<'a> Attestation<'a> {
    pub(super) fn of(end: &'a Bytes) -> Option<Self> {
        let whole = std::str::from_utf8(end).ok()?.strip_suffix("\"}")?;
        let (text, tail) = whole.rsplit_once(SIGNED_BY)?;
        let (key, signature) = tail.split_once(SIGNATURE)?;
        let key = KeyId::parse(key).ok()?;
        let signature = BASE64.decode(signature).ok()?;
        Some(Self { text: text.as_bytes(), key, signature })
    }
}

/// Kind of content that is signed as the end of a task.
const RESULT: &str = "machinist.result";

fn result_input(key: &Key, scope: &SigningScope, id: &TaskId, text: &[u8]) -> Vec<u8> {
    SigningInput::new(RESULT, text.len() + 256)
        .number(RESULT_VERSION)
        .text(key.algorithm().as_str())
        .text(key.id().as_str())
        .text(&scope.namespace)
        .text(&scope.realm)
        .text(id.as_str())
        .bytes(text)
        .finish()
}

/// Returns the same JSON object with two more fields at its end: the key, and its signature of the input that is made of
/// the text before them. Returns `None` if the key cannot sign.
pub(super) fn attested(key: &Key, object: &Bytes, input: impl FnOnce(&[u8]) -> Vec<u8>) -> Option<Bytes> {
    let text = object.strip_suffix(b"}")?;
    let signature = key.sign(&input(text))?;
    let parts = [text, SIGNED_BY.as_bytes(), key.id().as_str().as_bytes(), SIGNATURE.as_bytes()];
    let before: usize = parts.iter().map(|part| part.len()).sum();
    let encoded = base64::encoded_len(signature.len(), true)?;
    let mut whole = Vec::with_capacity(before + encoded + END.len());
    parts.iter().for_each(|part| whole.extend_from_slice(part));
    whole.resize(before + encoded, 0);
    BASE64.encode_slice(&signature, &mut whole[before..]).ok()?;
    whole.extend_from_slice(END);
    Some(whole.into())
}
