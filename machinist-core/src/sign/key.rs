//! Key: it signs, verifies or encrypts, for certain times, tasks and queues.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{Algorithm, KeyError, KeyId, Material, ed25519, hmac_sha256, xchacha20_poly1305};
use crate::clock::Timestamp;

/// State of a key, whenever it signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum KeyState {
    /// It signs and verifies. At most one signing key of a ring is active.
    #[default]
    Active,
    /// It verifies only: the old key while its messages are still under way, or the new key before it signs.
    Verify,
    /// None of its signatures is trusted any more.
    Revoked,
}

/// A key with its restrictions.
///
/// Its secret is wiped from memory when the last clone is dropped, and is never printed.
///
/// # Examples
/// ```
/// use machinist_core::sign::{Algorithm, Key, KeyState, Keyring};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let new = Key::generate(Algorithm::HmacSha256, "2026-11")?;
/// let old = Key::generate(Algorithm::HmacSha256, "2026-05")?.with_state(KeyState::Verify);
/// let mailer = Key::generate(Algorithm::Ed25519, "mailer")?
///     .with_state(KeyState::Verify)
///     .for_tasks(["mail.*"])?
///     .for_queues(["mail"])?;
/// let ring = Keyring::new([new, old, mailer])?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Key {
    id: KeyId,
    pub(super) material: Material,
    algorithm: Algorithm,
    pub(super) not_before: Option<Timestamp>,
    pub(super) not_after: Option<Timestamp>,
    pub(super) state: KeyState,
    pub(super) tasks: Option<Vec<Pattern>>,
    pub(super) queues: Option<Vec<Pattern>>,
    /// `false` if the key may not command workers.
    pub(super) control: bool,
}

impl Key {
    /// Generates a random key.
    ///
    /// # Errors
    /// [`KeyError::Id`].
    pub fn generate(algorithm: Algorithm, id: &str) -> Result<Self, KeyError> {
        let secret = Zeroizing::new(rand::random::<[u8; 32]>());
        Self::with_secret(algorithm, id, &secret[..])
    }

    /// Creates a key from its secret: at least 32 bytes for HMAC, exactly 32 for Ed25519 (the private key's seed) and
    /// XChaCha20-Poly1305.
    ///
    /// # Errors
    /// [`KeyError::Id`], [`KeyError::Material`].
    pub fn with_secret(algorithm: Algorithm, id: &str, secret: &[u8]) -> Result<Self, KeyError> {
        let id = KeyId::parse(id)?;
        let material = match algorithm {
            Algorithm::HmacSha256 => hmac_sha256::HmacSecret::new(secret).map(Material::Hmac),
            Algorithm::Ed25519 => ed25519::Private::new(secret).map(Material::Ed25519),
            Algorithm::XChaCha20Poly1305 => {
                xchacha20_poly1305::EncryptionSecret::new(secret).map(Material::Cipher)
            }
        };
        let found = secret.len();
        let needed = hmac_sha256::MIN_SECRET_BYTES;
        let problem = || match algorithm {
            Algorithm::HmacSha256 => {
                format!("its secret has {found} bytes; HMAC-SHA256 needs at least {needed}")
            }
            Algorithm::Ed25519 => format!("its secret has {found} bytes; Ed25519 needs exactly 32"),
            Algorithm::XChaCha20Poly1305 => {
                format!("its secret has {found} bytes; XChaCha20-Poly1305 needs exactly 32")
            }
        };
        let Some(material) = material else { return Err(KeyError::Material { id, what: problem() }) };
        Ok(Self::unrestricted(id, algorithm, material, KeyState::Active))
    }

    /// Creates a key from the public half of an Ed25519 key: it verifies and cannot sign.
    ///
    /// # Errors
    /// [`KeyError::Id`], [`KeyError::Material`].
    pub fn with_public(id: &str, public: &[u8]) -> Result<Self, KeyError> {
        let id = KeyId::parse(id)?;
        match ed25519::Public::new(public) {
            Some(public) => {
                let material = Material::Ed25519Public(public);
                Ok(Self::unrestricted(id, Algorithm::Ed25519, material, KeyState::Verify))
            }
            None => {
                let what = "its public part is not an Ed25519 public key of 32 bytes".to_owned();
                Err(KeyError::Material { id, what })
            }
        }
    }

    /// Creates a key that is refused: a revoked key needs only its name.
    ///
    /// # Errors
    /// [`KeyError::Id`].
    pub fn revoked(id: &str) -> Result<Self, KeyError> {
        Ok(Self::unrestricted(KeyId::parse(id)?, Algorithm::default(), Material::None, KeyState::Revoked))
    }

    fn unrestricted(id: KeyId, algorithm: Algorithm, material: Material, state: KeyState) -> Self {
        Self {
            id,
            material,
            algorithm,
            not_before: None,
            not_after: None,
            state,
            tasks: None,
            queues: None,
            control: true,
        }
    }

    /// Returns the same key in another state. A key that cannot sign (a public half) stays at [`KeyState::Verify`] if
    /// [`KeyState::Active`] is requested.
    #[must_use]
    pub fn with_state(mut self, state: KeyState) -> Self {
        self.state = match (&self.material, state) {
            (Material::None, _) => KeyState::Revoked,
            (Material::Ed25519Public(_), KeyState::Active) => KeyState::Verify,
            (_, state) => state,
        };
        self
    }

    /// Trusts only signatures that this key made at or after this instant.
    #[must_use]
    pub fn not_before(mut self, instant: Timestamp) -> Self {
        self.not_before = Some(instant);
        self
    }

    /// Trusts only signatures that this key made at or before this instant. The key itself states the time of a
    /// signature, so this ends the use of a key that was not stolen; a stolen key must be [revoked](KeyState::Revoked).
    #[must_use]
    pub fn not_after(mut self, instant: Timestamp) -> Self {
        self.not_after = Some(instant);
        self
    }

    /// Restricts the key to these tasks: names, or prefixes of names followed by `*`.
    ///
    /// # Errors
    /// [`KeyError::Pattern`].
    pub fn for_tasks<S: Into<String>>(
        mut self,
        patterns: impl IntoIterator<Item = S>,
    ) -> Result<Self, KeyError> {
        self.tasks = Some(self.patterns(patterns)?);
        Ok(self)
    }

    /// Restricts the key to these queues: names, or prefixes of names followed by `*`.
    ///
    /// # Errors
    /// [`KeyError::Pattern`].
    pub fn for_queues<S: Into<String>>(
        mut self,
        patterns: impl IntoIterator<Item = S>,
    ) -> Result<Self, KeyError> {
        self.queues = Some(self.patterns(patterns)?);
        Ok(self)
    }

    /// Sets whether the key may command workers: pause them, disable tasks, and so on. Every key may that is not restricted
    /// to tasks or queues, unless this is `false`.
    #[must_use]
    pub fn for_control(mut self, control: bool) -> Self {
        self.control = control;
        self
    }

    fn patterns<S: Into<String>>(
        &self,
        patterns: impl IntoIterator<Item = S>,
    ) -> Result<Vec<Pattern>, KeyError> {
        let check = |text: S| {
            Pattern::parse(text.into()).map_err(|pattern| KeyError::Pattern { id: self.id.clone(), pattern })
        };
        patterns.into_iter().map(check).collect()
    }

    /// Returns the name of the key.
    pub fn id(&self) -> &KeyId {
        &self.id
    }

    /// Returns the algorithm of the key.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Returns the state of the key.
    pub fn state(&self) -> KeyState {
        self.state
    }

    /// Returns `true` if the key holds a secret for signing, whatever its state.
    pub fn can_sign(&self) -> bool {
        matches!(self.material, Material::Hmac(_) | Material::Ed25519(_))
    }

    /// Returns `true` if the key encrypts and decrypts, and signs nothing.
    pub fn encrypts(&self) -> bool {
        matches!(self.material, Material::Cipher(_))
    }

    /// Encrypts a text, which can only be decrypted together with `about`. Returns `None` if this key does not
    /// [encrypt](Self::encrypts).
    pub fn encrypt(&self, about: &[u8], text: &[u8]) -> Option<Vec<u8>> {
        match &self.material {
            Material::Cipher(secret) => Some(secret.encrypt(about, text)),
            _ => None,
        }
    }

    /// Decrypts the result of [`encrypt`](Self::encrypt). Returns `None` if this key did not encrypt it, or if `about`
    /// is different.
    pub fn decrypt(&self, about: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        match &self.material {
            Material::Cipher(secret) => secret.decrypt(about, sealed),
            _ => None,
        }
    }

    /// Returns the public half of an Ed25519 key, for processes that only verify; `None` for other keys.
    #[must_use]
    pub fn public(&self) -> Option<Self> {
        let public = match &self.material {
            Material::Ed25519(private) => private.public(),
            Material::Ed25519Public(public) => public.clone(),
            Material::Hmac(_) | Material::Cipher(_) | Material::None => return None,
        };
        let state = if self.state == KeyState::Revoked { KeyState::Revoked } else { KeyState::Verify };
        Some(Self { material: Material::Ed25519Public(public), state, ..self.clone() })
    }

    /// Returns the public half as base64 text; `None` for keys without one.
    pub fn public_base64(&self) -> Option<String> {
        match self.public()?.material {
            Material::Ed25519Public(public) => Some(BASE64.encode(public.bytes())),
            _ => None,
        }
    }

    /// Returns the secret as base64 text; `None` for keys without one.
    pub(super) fn secret_base64(&self) -> Option<Zeroizing<String>> {
        let bytes = match &self.material {
            Material::Hmac(secret) => secret.bytes(),
            Material::Ed25519(private) => private.bytes(),
            Material::Cipher(secret) => secret.bytes(),
            Material::Ed25519Public(_) | Material::None => return None,
        };
        Some(Zeroizing::new(BASE64.encode(bytes)))
    }

    /// Signs bytes, whatever the key's state and restrictions. Returns `None` if the key has no secret.
    pub fn sign(&self, input: &[u8]) -> Option<Vec<u8>> {
        self.material.sign(input)
    }

    /// Returns `true` if this key made this signature of these bytes, whatever its state and restrictions. Takes
    /// constant time.
    pub fn verify(&self, input: &[u8], signature: &[u8]) -> bool {
        self.material.verify(input, signature)
    }

    /// Returns `true` if the key may sign at this instant.
    pub(super) fn valid_at(&self, instant: Timestamp) -> bool {
        self.not_before.is_none_or(|from| from <= instant) && self.not_after.is_none_or(|to| instant <= to)
    }
}

/// Shows everything but the secret.
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key")
            .field("id", &self.id)
            .field("algorithm", &self.algorithm)
            .field("state", &self.state)
            .field("not_before", &self.not_before)
            .field("not_after", &self.not_after)
            .field("tasks", &self.tasks)
            .field("queues", &self.queues)
            .field("control", &self.control)
            .finish_non_exhaustive()
    }
}

/// A name, or a prefix of names.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Pattern {
    text: String,
    is_prefix: bool,
}

impl Pattern {
    /// Reads a pattern. The error is the text without a `*` at its end.
    pub(crate) fn parse(mut text: String) -> Result<Self, String> {
        let is_prefix = text.ends_with('*');
        if is_prefix {
            text.pop();
        }
        if text.contains('*') { Err(text) } else { Ok(Self { text, is_prefix }) }
    }

    pub(crate) fn fits(&self, name: &str) -> bool {
        if self.is_prefix { name.starts_with(&self.text) } else { name == self.text }
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.text, if self.is_prefix { "*" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The crates that hold the secrets do this only with a feature, and without it this does not compile. An HMAC
    /// holds nothing but two states of SHA-256.
    #[test]
    fn secrets_are_wiped_when_they_are_dropped() {
        fn wiped<T: zeroize::ZeroizeOnDrop>() {}
        wiped::<sha2::Sha256>();
        wiped::<ed25519_dalek::SigningKey>();
        wiped::<chacha20poly1305::XChaCha20Poly1305>();
        wiped::<zeroize::Zeroizing<Vec<u8>>>();
    }

    #[test]
    fn no_secret_is_printed() {
        for alg in [Algorithm::HmacSha256, Algorithm::Ed25519, Algorithm::XChaCha20Poly1305] {
            let key = Key::with_secret(alg, "k", &[b'x'; 32]).unwrap();
            let text = format!("{key:?} {key:#?}");
            assert!(!text.contains("xxxx") && !text.contains("120, 120") && !text.contains("eHh4"), "{text}");
        }
    }

    #[test]
    fn secrets_of_the_wrong_size_are_refused() {
        let short = Key::with_secret(Algorithm::HmacSha256, "k", &[1; 31]).unwrap_err();
        assert_eq!(short.to_string(), "key k: its secret has 31 bytes; HMAC-SHA256 needs at least 32");
        assert!(Key::with_secret(Algorithm::Ed25519, "k", &[1; 33]).is_err());
        assert!(Key::with_public("k", &[0; 32]).is_err(), "a weak key verifies anything");
        assert!(Key::generate(Algorithm::Ed25519, "two words").is_err());
    }

    #[test]
    fn a_public_half_verifies_and_never_signs() {
        let key = Key::generate(Algorithm::Ed25519, "k").unwrap();
        let public = key.public().unwrap().with_state(KeyState::Active);
        assert_eq!(public.state(), KeyState::Verify);
        let signature = key.material.sign(b"input").unwrap();
        assert!(
            public.material.verify(b"input", &signature) && !public.material.verify(b"inpus", &signature)
        );
        assert!(public.material.sign(b"input").is_none());
        assert!(Key::generate(Algorithm::HmacSha256, "k").unwrap().public().is_none());
    }

    #[test]
    fn patterns_are_names_or_prefixes() {
        let fits = |pattern: &str, name| Pattern::parse(pattern.to_owned()).unwrap().fits(name);
        assert!(fits("mail.*", "mail.send") && fits("*", "anything") && fits("add", "add"));
        assert!(!fits("mail.*", "mailer") && !fits("add", "adder") && !fits("", "add"));
        assert!(Pattern::parse("*.send".to_owned()).is_err());
    }
}
