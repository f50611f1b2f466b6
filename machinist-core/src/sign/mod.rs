//! Signatures of messages and results, so that nothing runs without a signature by a key that the worker trusts.
//!
//! A task queue that runs everything from its broker gives everybody with access to the broker the right to run code.
//! Here every message carries a detached signature over everything that a worker reads of it; `docs/signing.md` defines
//! the signed bytes. The algorithm is a property of the key: a message cannot choose it.
//!
//! # Why these libraries
//! HMAC and SHA-256 are RustCrypto's, Ed25519 is dalek's. They are pure Rust, so that this crate needs neither a C
//! compiler nor assembly; they have many maintainers; and they wipe their secrets from memory, which ring does not.
//! SHA-256 uses the processor's instructions if it has them, and HMAC takes only a small part of a task's time either
//! way.

mod config;
mod ed25519;
mod hmac_sha256;
pub(crate) mod input;
mod key;
mod keyring;
mod scope;
mod secret_file;
mod xchacha20_poly1305;

use std::{fmt, path::PathBuf, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

pub use config::{KeyConfig, SecretText, shown_path};
pub(crate) use hmac_sha256::sha256;
pub(crate) use key::Pattern;
pub use key::{Key, KeyState};
pub(crate) use keyring::KeyRejection;
pub use keyring::Keyring;
pub(crate) use scope::SigningScope;
pub use secret_file::read_secret_file;

/// Algorithm of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Algorithm {
    /// HMAC with SHA-256: one secret signs and verifies. The fastest.
    #[default]
    #[serde(rename = "hmac-sha256")]
    HmacSha256,
    /// Ed25519: a private key signs, and a process with only the public key can verify but not sign.
    #[serde(rename = "ed25519")]
    Ed25519,
    /// XChaCha20-Poly1305: signs nothing, but encrypts the contents of arguments and results for every process with the
    /// same secret.
    #[serde(rename = "xchacha20-poly1305")]
    XChaCha20Poly1305,
}

impl Algorithm {
    /// Returns its name in key files and in the signed bytes.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::HmacSha256 => "hmac-sha256",
            Self::Ed25519 => "ed25519",
            Self::XChaCha20Poly1305 => "xchacha20-poly1305",
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Algorithm {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        [Self::HmacSha256, Self::Ed25519, Self::XChaCha20Poly1305]
            .into_iter()
            .find(|alg| alg.as_str() == text)
            .ok_or_else(|| KeyError::Algorithm(text.chars().take(40).collect()))
    }
}

/// Name of a key: 1 to 64 letters, digits, `.`, `_` or `-`. It is sent with every message and is not secret.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyId(Arc<str>);

impl KeyId {
    /// Checks a text and makes it the name of a key.
    ///
    /// # Errors
    /// [`KeyError::Id`].
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let fits = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if (1..=64).contains(&text.len()) && text.chars().all(fits) {
            Ok(Self(text.into()))
        } else {
            Err(KeyError::Id(text.chars().take(64).collect()))
        }
    }

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl TryFrom<String> for KeyId {
    type Error = KeyError;
    fn try_from(text: String) -> Result<Self, KeyError> {
        Self::parse(&text)
    }
}

impl From<KeyId> for String {
    fn from(id: KeyId) -> Self {
        id.0.as_ref().to_owned()
    }
}

/// Error of a key or a key ring. Its text never holds anything secret.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The name of a key is not allowed. The text does not repeat it, because it may be a secret in the wrong field.
    #[error("the key id is not allowed: it must be 1 to 64 letters, digits, `.`, `_` or `-`")]
    Id(String),
    /// The algorithm is unknown. The text does not repeat it, because it may be a secret in the wrong field.
    #[error("the algorithm is unknown: it must be `hmac-sha256`, `ed25519` or `xchacha20-poly1305`")]
    Algorithm(String),
    /// The text of a key cannot be read.
    #[error("{0}")]
    Format(String),
    /// The secret or public part of a key is missing, too short or invalid.
    #[error("key {id}: {what}")]
    Material {
        /// The key.
        id: KeyId,
        /// Description of the problem, and the remedy.
        what: String,
    },
    /// A pattern in an allow-list is invalid.
    #[error("key {id}: the pattern {pattern:?} may have a `*` only at its end")]
    Pattern {
        /// The key.
        id: KeyId,
        /// The pattern.
        pattern: String,
    },
    /// A key file cannot be read or written.
    #[error("key file {}: {why}", config::shown_path(path))]
    File {
        /// The file.
        path: PathBuf,
        /// Description of the problem, and the remedy.
        why: String,
    },
    /// The ring has no keys, so it trusts nobody.
    #[error("the key ring is empty: add a key (`machinist keygen` makes one)")]
    Empty,
    /// Two keys of a ring have the same name.
    #[error("key {0} is in the ring twice")]
    Twice(KeyId),
    /// Two keys that encrypt are active, but only one key encrypts.
    #[error(
        "keys {0} and {1} are both active, but only one can encrypt: set `state = \"verify\"` on the other, which then \
         only decrypts"
    )]
    TwoEncrypt(KeyId, KeyId),
    /// Two keys that sign are active, but only one key signs.
    #[error("keys {0} and {1} are both active, but only one can sign: set `state = \"verify\"` on the other")]
    TwoActive(KeyId, KeyId),
    /// No key that signs is active, so nothing can be signed with this ring.
    #[error(
        "no key of the ring that signs is active, so nothing can be signed: set `state = \"active\"` on one"
    )]
    NoneActive,
}

/// Secret or public bytes of a key.
#[derive(Clone)]
pub(crate) enum Material {
    Hmac(hmac_sha256::HmacSecret),
    Ed25519(ed25519::Private),
    Ed25519Public(ed25519::Public),
    Cipher(xchacha20_poly1305::EncryptionSecret),
    /// A revoked key needs nothing but its name.
    None,
}

impl Material {
    /// Signs. Returns `None` if this key cannot sign.
    pub(crate) fn sign(&self, input: &[u8]) -> Option<Vec<u8>> {
        match self {
            Self::Hmac(secret) => Some(secret.sign(input).to_vec()),
            Self::Ed25519(private) => Some(private.sign(input).to_vec()),
            Self::Ed25519Public(_) | Self::Cipher(_) | Self::None => None,
        }
    }

    /// Returns `true` if this key made this signature of this input. Takes constant time.
    pub(crate) fn verify(&self, input: &[u8], signature: &[u8]) -> bool {
        match self {
            Self::Hmac(secret) => secret.verify(input, signature),
            Self::Ed25519(private) => private.public().verify(input, signature),
            Self::Ed25519Public(public) => public.verify(input, signature),
            Self::Cipher(_) | Self::None => false,
        }
    }
}
