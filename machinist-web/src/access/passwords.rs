//! The password file: `NAME:ROLE:HASH` in each line, with a hash of argon2.
//!
//! Checks are slow on purpose, and each takes 19 MiB: two run at the same time, and others wait for a moment at most. A
//! name that does not exist costs as much as one that does, so that the time does not tell which names exist.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, OnceLock},
    time::Duration,
};

use argon2::{
    Argon2,
    password_hash::{PasswordHasher as _, PasswordVerifier as _, phc::PasswordHash},
};
use tokio::sync::Semaphore;

use super::{
    AccessError,
    watched_file::{WatchedFile, fields},
};
use crate::{UserRole, web_error::WebError};

/// Number of passwords that are checked at the same time.
const PARALLEL_CHECKS: usize = 2;
/// Maximum time that a check waits for its turn.
const MAX_WAIT: Duration = Duration::from_secs(3);
/// Maximum length of a password, in bytes.
const MAX_PASSWORD: usize = 1024;
/// Syntax of a line.
const SYNTAX: &str = "NAME:ROLE:HASH, as `machinist web user NAME` prints it";

/// Entry of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PasswordEntry {
    pub(super) role: UserRole,
    /// Hash in the form of PHC strings: `$argon2id$…`.
    pub(super) hash: String,
}

/// Users with passwords.
#[derive(Debug)]
pub(super) struct PasswordFile {
    file: WatchedFile<BTreeMap<String, PasswordEntry>>,
    turns: Arc<Semaphore>,
}

impl PasswordFile {
    pub(super) fn open(path: &Path) -> Result<Self, AccessError> {
        let turns = Arc::new(Semaphore::new(PARALLEL_CHECKS));
        Ok(Self { file: WatchedFile::open(path, parse)?, turns })
    }

    /// Returns the entry of a user, as the file has it now.
    pub(super) fn entry(&self, name: &str) -> Result<Option<PasswordEntry>, AccessError> {
        Ok(self.file.content()?.get(name).cloned())
    }

    /// Checks a password, and returns the entry of the user if it is right.
    ///
    /// # Errors
    /// The file cannot be read, or too many passwords are being checked.
    pub(super) async fn check(&self, name: &str, password: &str) -> Result<Option<PasswordEntry>, WebError> {
        let entry = self.entry(name).map_err(|error| WebError::away(error.to_string()))?;
        if password.len() > MAX_PASSWORD {
            return Ok(None);
        }
        let turn = tokio::time::timeout(MAX_WAIT, Arc::clone(&self.turns).acquire_owned()).await;
        let Ok(Ok(turn)) = turn else {
            return Err(WebError::away("too many passwords are being checked; try again in a moment"));
        };
        let hash = entry.as_ref().map_or_else(|| hash_of_nobody().to_owned(), |entry| entry.hash.clone());
        let password = password.to_owned();
        let checked = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            is_right(&password, &hash)
        });
        let is_right = checked.await.map_err(|error| WebError::away(error.to_string()))?;
        Ok(entry.filter(|_| is_right))
    }
}

fn is_right(password: &str, hash: &str) -> bool {
    PasswordHash::new(hash)
        .is_ok_and(|hash| Argon2::default().verify_password(password.as_bytes(), &hash).is_ok())
}

/// Returns the hash that is checked for names that do not exist.
fn hash_of_nobody() -> &'static str {
    static HASH: OnceLock<String> = OnceLock::new();
    HASH.get_or_init(|| hash_password("nobody").unwrap_or_default())
}

/// Hashes a password for the password file.
///
/// # Errors
/// The password is empty or longer than 1,024 bytes, or the system has no randomness.
pub fn hash_password(password: &str) -> Result<String, AccessError> {
    if password.is_empty() || password.len() > MAX_PASSWORD {
        let problem =
            format!("a password has 1 to {MAX_PASSWORD} bytes, and this one has {}", password.len());
        return Err(AccessError::Invalid(problem));
    }
    let hash = Argon2::default().hash_password(password.as_bytes());
    Ok(hash
        .map_err(|error| AccessError::Invalid(format!("the password cannot be hashed: {error}")))?
        .to_string())
}

fn parse(text: &str) -> Result<BTreeMap<String, PasswordEntry>, String> {
    let mut users = BTreeMap::new();
    for (number, [name, role, hash]) in fields::<3>(text, SYNTAX)? {
        let role = role.parse().map_err(|problem| format!("line {number}: {problem}"))?;
        if !hash.starts_with("$argon2") || PasswordHash::new(&hash).is_err() {
            return Err(format!("line {number}: the third field is no argon2 hash; write {SYNTAX}"));
        }
        if users.insert(name.clone(), PasswordEntry { role, hash }).is_some() {
            return Err(format!("line {number}: user {name:?} is there twice"));
        }
    }
    if users.is_empty() {
        return Err(format!("holds no user; write lines of the form {SYNTAX}"));
    }
    Ok(users)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_says_which_line_is_wrong_and_repeats_no_secret() {
        let hash = hash_password("sesame").unwrap();
        let users = parse(&format!("# people\n\nada:admin:{hash}\nbob : viewer : {hash}\n")).unwrap();
        assert_eq!(users["ada"].role, UserRole::Admin);
        assert!(is_right("sesame", &users["bob"].hash) && !is_right("sesam", &users["bob"].hash));
        for (text, problem) in [
            ("", "holds no user"),
            ("ada:s3cret", "line 1 is not of the form"),
            ("ada::x", "line 1 has an empty field"),
            ("ada:boss:s3cret", "\"boss\" is no role"),
            ("\nada:admin:s3cret", "line 2: the third field is no argon2 hash"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(problem) && !error.contains("s3cret"), "{error}");
        }
        assert!(parse(&format!("a:admin:{hash}\na:viewer:{hash}")).unwrap_err().contains("twice"));
        assert!(hash_password("").is_err() && hash_password(&"x".repeat(1025)).is_err());
    }
}
