//! Encryption of arguments, results and errors against readers of the broker, the backend and dead letters.
//!
//! An application whose ring has an active key for encryption encrypts the bodies of what it sends and the outcomes
//! that it records. A worker that runs a task with an encrypted body encrypts its outcome too. A body is bound to the names
//! under which it was sent (id, task, queue, time), an outcome to its task and its place in the record: neither can be
//! put elsewhere. The signature covers the encrypted body, so it is verified before anything is decrypted, and
//! binds it to all that changes from attempt to attempt too.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Map, Value, json};

use crate::{
    backend::Commit,
    id::TaskId,
    record::{Facts, name},
    sign::{Key, KeyId, Keyring, input::SigningInput},
    wire::Envelope,
};

/// Content type of an encrypted body. The content type of the plain body is part of the plaintext.
const ENCRYPTED_CONTENT_TYPE: &str = "application/vnd.machinist.encrypted";
/// Fields of an outcome that may contain arguments or results.
const ENCRYPTED_FIELDS: [&str; 6] = ["results", "error", "log", "lines", "note", "spawned"];
/// Field that holds their ciphertext.
const CIPHERTEXT_FIELD: &str = "enc";

/// Error of a decryption.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DecryptError {
    #[error("it is encrypted with key {0}, which is not in the ring here")]
    NoKey(KeyId),
    #[error("it is encrypted with key {0}, which is revoked")]
    Revoked(KeyId),
    #[error("it does not open with key {0}: it was encrypted by another, or as another task")]
    Broken(KeyId),
    #[error("what says by which key it is encrypted cannot be read")]
    Unreadable,
}

/// Returns `true` if a body is encrypted.
pub(crate) fn is_encrypted(envelope: &Envelope) -> bool {
    envelope.content_type == ENCRYPTED_CONTENT_TYPE
}

/// Returns the key that encrypts the outcome of a task: the active one, else the one that encrypted its body.
pub(crate) fn outcome_key<'r>(envelope: &Envelope, ring: &'r Keyring) -> Option<&'r Key> {
    let before = || is_encrypted(envelope).then(|| EncryptedBody::of(&envelope.body).ok()).flatten();
    ring.encrypting_key().or_else(|| key(ring, &before()?.key).ok())
}

/// Checks that the ring holds the key of an encrypted body.
pub(crate) fn check_decryptable(envelope: &Envelope, ring: Option<&Keyring>) -> Result<(), DecryptError> {
    let EncryptedBody { key: id, .. } = EncryptedBody::of(&envelope.body)?;
    key(ring.ok_or_else(|| DecryptError::NoKey(id.clone()))?, &id).map(|_| ())
}

/// A body taken apart: the key, then the nonce and what is hidden.
struct EncryptedBody<'a> {
    key: KeyId,
    ciphertext: &'a [u8],
}

impl<'a> EncryptedBody<'a> {
    fn of(body: &'a [u8]) -> Result<Self, DecryptError> {
        let (length, rest) = body.split_first().ok_or(DecryptError::Unreadable)?;
        let (key, ciphertext) =
            rest.split_at_checked(usize::from(*length)).ok_or(DecryptError::Unreadable)?;
        let key = std::str::from_utf8(key).ok().and_then(|text| KeyId::parse(text).ok());
        Ok(Self { key: key.ok_or(DecryptError::Unreadable)?, ciphertext })
    }
}

fn body_context(envelope: &Envelope, key: &KeyId) -> Vec<u8> {
    SigningInput::new("machinist.encrypted.body", 256)
        .text(key.as_str())
        .text(envelope.id.as_str())
        .text(envelope.name.as_str())
        .text(envelope.queue.as_str())
        .number(envelope.issued.as_micros())
        .finish()
}

fn fact_context(id: &str, fact: &str, key: &KeyId) -> Vec<u8> {
    SigningInput::new("machinist.encrypted.fact", 256).text(key.as_str()).text(id).text(fact).finish()
}

fn key<'r>(ring: &'r Keyring, id: &KeyId) -> Result<&'r Key, DecryptError> {
    match ring.trusted(id) {
        Ok(key) if key.encrypts() => Ok(key),
        Err(crate::sign::KeyRejection::Revoked(_)) => Err(DecryptError::Revoked(id.clone())),
        _ => Err(DecryptError::NoKey(id.clone())),
    }
}

fn encrypt(key: &Key, about: &[u8], text: &[u8]) -> Vec<u8> {
    // INVARIANT: rings give out only keys that encrypt. What could not be hidden must not go out.
    key.encrypt(about, text).expect("a key that encrypts")
}

/// The envelope with its body encrypted by this key.
pub(crate) fn encrypted(mut envelope: Envelope, key: &Key) -> Envelope {
    let inside = [envelope.content_type.as_bytes(), b"\0", &envelope.body].concat();
    let ciphertext = encrypt(key, &body_context(&envelope, key.id()), &inside);
    let id = key.id().as_str().as_bytes();
    // INVARIANT: the name of a key has 64 bytes at most.
    let length = u8::try_from(id.len()).expect("a short name");
    envelope.body = [&[length][..], id, &ciphertext].concat().into();
    envelope.content_type = ENCRYPTED_CONTENT_TYPE.to_owned();
    envelope
}

/// The envelope with its body as its sender wrote it.
pub(crate) fn decrypted(envelope: &Envelope, ring: Option<&Keyring>) -> Result<Envelope, DecryptError> {
    if !is_encrypted(envelope) {
        return Ok(envelope.clone());
    }
    let EncryptedBody { key: id, ciphertext } = EncryptedBody::of(&envelope.body)?;
    let key = key(ring.ok_or_else(|| DecryptError::NoKey(id.clone()))?, &id)?;
    let broken = || DecryptError::Broken(id.clone());
    let inside = key.decrypt(&body_context(envelope, &id), ciphertext).ok_or_else(broken)?;
    let end = inside.iter().position(|byte| *byte == 0).ok_or_else(broken)?;
    let content_type = String::from_utf8(inside[..end].to_vec()).map_err(|_| broken())?;
    Ok(Envelope { content_type, body: Bytes::from(inside).slice(end + 1..), ..envelope.clone() })
}

/// Ciphertext in a record, in place of the encrypted fields.
#[derive(Deserialize)]
struct Ciphertext {
    key: KeyId,
    data: String,
}

fn is_encrypted_fact(fact: &str) -> bool {
    fact == name::END || fact == name::PROGRESS || fact.starts_with("o:") || fact.starts_with("l:")
}

/// Encrypts the results, errors, log and notes in the facts of a commit.
pub(crate) fn encrypt_outcome(mut commit: Commit, key: &Key) -> Commit {
    for (fact, value) in commit.facts.iter_mut().filter(|(fact, _)| is_encrypted_fact(fact)) {
        *value = encrypted_fact(commit.id.id(), fact, value, key);
    }
    commit
}

fn encrypted_fact(id: &str, fact: &str, value: &[u8], key: &Key) -> Bytes {
    // INVARIANT: we made it ourselves, of a struct. What could not be hidden must not be written.
    let mut all: Map<String, Value> = serde_json::from_slice(value).expect("a JSON object");
    let secret: Map<String, Value> = ENCRYPTED_FIELDS
        .iter()
        .filter_map(|field| Some(((*field).to_owned(), all.remove(*field)?)))
        .collect();
    // The shape stays, so that whoever decides by a record needs no key.
    for (field, value) in [("results", json!([])), ("error", json!({"chain": ["encrypted"]}))] {
        if secret.contains_key(field) {
            all.insert(field.to_owned(), value);
        }
    }
    let ciphertext = encrypt(key, &fact_context(id, fact, key.id()), &json_bytes(&secret));
    let ciphertext = json!({ "key": key.id().as_str(), "data": BASE64.encode(ciphertext) });
    all.insert(CIPHERTEXT_FIELD.to_owned(), ciphertext);
    json_bytes(&all).into()
}

fn json_bytes(all: &Map<String, Value>) -> Vec<u8> {
    // INVARIANT: a table of JSON values is JSON.
    serde_json::to_vec(all).expect("JSON")
}

/// Decrypts these facts in place. Returns the error if a fact that counts stays encrypted: the end of the task, or, as long as it
/// has not, anything.
pub(crate) fn decrypt_outcome(
    id: &TaskId,
    facts: &mut Facts,
    ring: Option<&Keyring>,
) -> Option<DecryptError> {
    let names: Vec<String> =
        facts.iter().filter(|(fact, _)| is_encrypted_fact(fact)).map(|(fact, _)| fact.to_owned()).collect();
    let ended = facts.has(name::END);
    let mut locked = None;
    for fact in names {
        let Some(value) = facts.get(&fact) else { continue };
        match decrypted_fact(id, &fact, value, ring) {
            Ok(Some(value)) => facts.put(fact, value),
            Ok(None) => {}
            Err(why) if !ended || fact == name::END => locked = Some(why),
            Err(_) => {}
        }
    }
    locked
}

/// Returns `true` if a fact is a JSON object without a ciphertext. Most are, and none of their values is copied here.
fn is_readable(value: &[u8]) -> bool {
    /// Named as [`CIPHERTEXT_FIELD`].
    #[derive(Deserialize)]
    struct Outside {
        enc: Option<IgnoredAny>,
    }
    serde_json::from_slice::<Outside>(value).is_ok_and(|outside| outside.enc.is_none())
}

fn decrypted_fact(
    id: &TaskId,
    fact: &str,
    value: &[u8],
    ring: Option<&Keyring>,
) -> Result<Option<Bytes>, DecryptError> {
    if is_readable(value) {
        return Ok(None);
    }
    let Ok(mut all) = serde_json::from_slice::<Map<String, Value>>(value) else { return Ok(None) };
    let Some(ciphertext) = all.remove(CIPHERTEXT_FIELD) else { return Ok(None) };
    let Ciphertext { key: id_of_key, data } =
        serde_json::from_value(ciphertext).map_err(|_| DecryptError::Unreadable)?;
    let key = key(ring.ok_or_else(|| DecryptError::NoKey(id_of_key.clone()))?, &id_of_key)?;
    let broken = || DecryptError::Broken(id_of_key.clone());
    let ciphertext = BASE64.decode(data).map_err(|_| broken())?;
    let secret = key.decrypt(&fact_context(id.as_str(), fact, &id_of_key), &ciphertext).ok_or_else(broken)?;
    let secret: Map<String, Value> = serde_json::from_slice(&secret).map_err(|_| broken())?;
    all.extend(secret);
    Ok(Some(json_bytes(&all).into()))
}
