//! Sessions of people: a random id in a cookie, and a record of its digest in the backend, so that replicas share them.
//!
//! Who can write to the backend must not be able to make a session. A session therefore has a proof that only the holder of
//! the password file can make: its key is the hash of the user's password. So a new password ends all sessions of a user,
//! and the role is always that of the file, never one of the backend.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use machinist::{
    App,
    backend::{BackendError, Commit, Expiry},
    clock::Timestamp,
    id::{RecordId, RecordKind},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::passwords::{PasswordEntry, PasswordFile};
use crate::{User, web_error::WebError};

/// Maximum time of a session.
pub(crate) const MAX_AGE: Duration = Duration::from_secs(12 * 3600);
/// Length of a session's id, in bytes.
const ID_BYTES: usize = 32;
/// Fact of a session.
const LOGIN: &str = "login";
/// Fact of a user: the time at which all sessions were ended.
const ENDED: &str = "ended";

/// Session as it is stored.
#[derive(Debug, Serialize, Deserialize)]
struct StoredLogin {
    user: String,
    /// Begin, in microseconds.
    at: i64,
    proof: String,
}

/// Begins a session, and returns its id, which is stored nowhere.
///
/// # Errors
/// The backend cannot be asked.
pub(super) async fn begin(app: &App, user: &str, entry: &PasswordEntry) -> Result<String, BackendError> {
    let id = hex(&rand::random::<[u8; ID_BYTES]>());
    let digest = digest(&id);
    let at = app.clock().now();
    let proof = hex(&signer(&digest, user, at, entry).finalize().into_bytes());
    let login = StoredLogin { user: user.to_owned(), at: at.as_micros(), proof };
    let mut commit = Commit::new(record(&digest));
    commit.facts = vec![(LOGIN.into(), json(&login))];
    commit.expiry = Expiry::After(MAX_AGE);
    commit_one(app, commit).await?;
    Ok(id)
}

/// Returns the user of a session; `None` if it has ended, or is none.
///
/// # Errors
/// The backend or the password file cannot be read.
pub(super) async fn user(app: &App, passwords: &PasswordFile, id: &str) -> Result<Option<User>, WebError> {
    if id.len() != 2 * ID_BYTES {
        return Ok(None);
    }
    let digest = digest(id);
    let read = |record| async move { Ok::<_, BackendError>(app.backend().read(&[record]).await?.pop()) };
    let Some(login) = read(record(&digest)).await?.and_then(|facts| facts.read::<StoredLogin>(LOGIN)) else {
        return Ok(None);
    };
    let entry = passwords.entry(&login.user).map_err(|error| WebError::away(error.to_string()))?;
    let Some(entry) = entry else { return Ok(None) };
    let at = Timestamp::from_micros(login.at);
    let is_proven = unhex(&login.proof)
        .is_some_and(|proof| signer(&digest, &login.user, at, &entry).verify_slice(&proof).is_ok());
    let is_young = app.clock().now() < at.plus(MAX_AGE);
    let ended = read(user_record(&login.user)).await?.and_then(|facts| facts.read::<i64>(ENDED));
    let counts = is_proven && is_young && ended.is_none_or(|ended| login.at > ended);
    Ok(counts.then(|| User::new(login.user, entry.role)))
}

/// Ends a session.
///
/// # Errors
/// The backend cannot be asked.
pub(super) async fn end(app: &App, id: &str) -> Result<(), BackendError> {
    let mut commit = Commit::new(record(&digest(id)));
    commit.drop = vec![LOGIN.into()];
    commit_one(app, commit).await
}

/// Ends all sessions of a user of the dashboard, those of other replicas too.
///
/// # Errors
/// The backend cannot be asked.
///
/// # Cancel safety
/// A dropped future leaves the sessions ended or not.
pub async fn end_sessions(app: &App, user: &str) -> Result<(), BackendError> {
    let mut commit = Commit::new(user_record(user));
    commit.drop = vec![ENDED.into()];
    commit.facts = vec![(ENDED.into(), json(&app.clock().now().as_micros()))];
    // Older than any session that it ends.
    commit.expiry = Expiry::After(2 * MAX_AGE);
    commit_one(app, commit).await
}

async fn commit_one(app: &App, commit: Commit) -> Result<(), BackendError> {
    for answer in app.backend().commit(vec![Arc::new(commit)]).await {
        answer?;
    }
    Ok(())
}

fn record(digest: &str) -> RecordId {
    RecordId::new(RecordKind::Login, digest)
}

fn user_record(user: &str) -> RecordId {
    RecordId::new(RecordKind::Login, &format!("user {user}"))
}

/// Returns the MAC of a session, ready to be finished or verified.
fn signer(digest: &str, user: &str, at: Timestamp, entry: &PasswordEntry) -> Hmac<Sha256> {
    // INVARIANT: HMAC takes keys of every length.
    let mac = Hmac::<Sha256>::new_from_slice(entry.hash.as_bytes()).expect("a key of any length");
    let at = at.as_micros();
    mac.chain_update(format!("machinist login\n{digest}\n{at}\n{user}").as_bytes())
}

fn digest(id: &str) -> String {
    hex(&Sha256::digest(id.as_bytes()))
}

fn json(value: &impl Serialize) -> Bytes {
    Bytes::from(serde_json::to_vec(value).unwrap_or_default())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text.chars().map(|c| u8::try_from(c.to_digit(16)?).ok()).collect();
    let digits = digits.filter(|digits| digits.len() % 2 == 0)?;
    Some(digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::UserRole;

    #[test]
    fn a_proof_belongs_to_one_session_of_one_password() {
        let entry = |hash: &str| PasswordEntry { role: UserRole::Viewer, hash: hash.to_owned() };
        let at = Timestamp::from_micros(7);
        let proof = signer("d", "ada", at, &entry("h")).finalize().into_bytes();
        let holds =
            |digest, user, at, hash| signer(digest, user, at, &entry(hash)).verify_slice(&proof).is_ok();
        assert!(holds("d", "ada", at, "h"));
        assert!(!holds("e", "ada", at, "h") && !holds("d", "bob", at, "h") && !holds("d", "ada", at, "new"));
        assert!(!holds("d", "ada", Timestamp::from_micros(8), "h"), "a session cannot be made younger");
    }

    #[test]
    fn hexadecimal_text_is_read_back() {
        assert_eq!(unhex(&hex(&[0, 1, 255])), Some(vec![0, 1, 255]));
        assert_eq!((unhex("0"), unhex("zz")), (None, None));
    }
}
