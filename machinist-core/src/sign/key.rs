//! A key: who may sign, how, from when to when, and what.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{Algorithm, KeyError, KeyId, Material, ed25519, hmac_sha256, xchacha20_poly1305};
use crate::clock::Timestamp;

/// What a key is good for now, whenever it signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum KeyState {
    /// It signs and verifies. One key of a ring at most.
    #[default]
    Active,
    /// It verifies only: the old key while its messages are still under way, or the new one before it signs.
    Verify,
    /// Nothing that it ever signed is believed any more.
    Revoked,
}

/// A key with its limits.
///
/// Its secret is wiped from memory when the last clone goes, and is never printed.
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
}

impl Key {
    /// A fresh random key.
    ///
    /// # Errors
    /// [`KeyError::Id`].
    pub fn generate(algorithm: Algorithm, id: &str) -> Result<Self, KeyError> {
        let secret = Zeroizing::new(rand::random::<[u8; 32]>());
        Self::with_secret(algorithm, id, &secret[..])
    }

    /// A key from its secret: at least 32 bytes for HMAC, exactly 32 for Ed25519 (the private key's seed)
    /// and XChaCha20-Poly1305.
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
        let (found, needed) = (secret.len(), hmac_sha256::MIN_SECRET_BYTES);
        let wrong = || match algorithm {
            Algorithm::HmacSha256 => {
                format!("its secret has {found} bytes; HMAC-SHA256 needs at least {needed}")
            }
            Algorithm::Ed25519 => format!("its secret has {found} bytes; an Ed25519 private key has 32"),
            Algorithm::XChaCha20Poly1305 => {
                format!("its secret has {found} bytes; XChaCha20-Poly1305 has 32")
            }
        };
        let Some(material) = material else { return Err(KeyError::Material { id, what: wrong() }) };
        Ok(Self::of(id, algorithm, material, KeyState::Active))
    }

    /// The public half of an Ed25519 key: it verifies and cannot sign.
    ///
    /// # Errors
    /// [`KeyError::Id`], [`KeyError::Material`].
    pub fn with_public(id: &str, public: &[u8]) -> Result<Self, KeyError> {
        let id = KeyId::parse(id)?;
        match ed25519::Public::new(public) {
            Some(public) => {
                let material = Material::Ed25519Public(public);
                Ok(Self::of(id, Algorithm::Ed25519, material, KeyState::Verify))
            }
            None => {
                let what = "its public part is not an Ed25519 public key of 32 bytes".to_owned();
                Err(KeyError::Material { id, what })
            }
        }
    }

    /// A key that is only to be refused: of a revoked key nothing is needed but its name.
    ///
    /// # Errors
    /// [`KeyError::Id`].
    pub fn revoked(id: &str) -> Result<Self, KeyError> {
        Ok(Self::of(KeyId::parse(id)?, Algorithm::default(), Material::None, KeyState::Revoked))
    }

    fn of(id: KeyId, algorithm: Algorithm, material: Material, state: KeyState) -> Self {
        Self { id, material, algorithm, not_before: None, not_after: None, state, tasks: None, queues: None }
    }

    /// The same key in another state. What cannot sign (a public half) stays at [`KeyState::Verify`] where
    /// [`KeyState::Active`] is asked for.
    #[must_use]
    pub fn with_state(mut self, state: KeyState) -> Self {
        self.state = match (&self.material, state) {
            (Material::None, _) => KeyState::Revoked,
            (Material::Ed25519Public(_), KeyState::Active) => KeyState::Verify,
            (_, state) => state,
        };
        self
    }

    /// Believes only what this key signed at or after this instant.
    #[must_use]
    pub fn not_before(mut self, instant: Timestamp) -> Self {
        self.not_before = Some(instant);
        self
    }

    /// Believes only what this key signed at or before this instant. It says itself when it signed, so this ends
    /// the use of a key that nobody has stolen; a stolen one must be [revoked](KeyState::Revoked).
    #[must_use]
    pub fn not_after(mut self, instant: Timestamp) -> Self {
        self.not_after = Some(instant);
        self
    }

    /// Only for these tasks: names, or beginnings of names followed by `*`.
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

    /// Only for these queues: names, or beginnings of names followed by `*`.
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

    fn patterns<S: Into<String>>(
        &self,
        patterns: impl IntoIterator<Item = S>,
    ) -> Result<Vec<Pattern>, KeyError> {
        let check = |text: S| {
            Pattern::parse(text.into()).map_err(|pattern| KeyError::Pattern { id: self.id.clone(), pattern })
        };
        patterns.into_iter().map(check).collect()
    }

    /// Its name.
    pub fn id(&self) -> &KeyId {
        &self.id
    }

    /// What it does, and how.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// What it is good for now.
    pub fn state(&self) -> KeyState {
        self.state
    }

    /// Whether it has what it takes to sign, whatever its state.
    pub fn can_sign(&self) -> bool {
        matches!(self.material, Material::Hmac(_) | Material::Ed25519(_))
    }

    /// Whether it encrypts and decrypts, and signs nothing.
    pub fn encrypts(&self) -> bool {
        matches!(self.material, Material::Cipher(_))
    }

    /// Encrypts a text, which opens only together with `about`; `None` if this key does not [encrypt](Self::encrypts).
    pub fn encrypt(&self, about: &[u8], text: &[u8]) -> Option<Vec<u8>> {
        match &self.material {
            Material::Cipher(secret) => Some(secret.encrypt(about, text)),
            _ => None,
        }
    }

    /// Opens what [`encrypt`](Self::encrypt) made; `None` if this key did not make it, or it is about something else.
    pub fn decrypt(&self, about: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        match &self.material {
            Material::Cipher(secret) => secret.decrypt(about, sealed),
            _ => None,
        }
    }

    /// The public half of an Ed25519 key, for those who only verify; `None` for other keys.
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

    /// The public half as base64 text; `None` for keys that have none.
    pub fn public_base64(&self) -> Option<String> {
        match self.public()?.material {
            Material::Ed25519Public(public) => Some(BASE64.encode(public.bytes())),
            _ => None,
        }
    }

    /// The secret as base64 text; `None` where there is none.
    pub(super) fn secret_base64(&self) -> Option<Zeroizing<String>> {
        let bytes = match &self.material {
            Material::Hmac(secret) => secret.bytes(),
            Material::Ed25519(private) => private.bytes(),
            Material::Cipher(secret) => secret.bytes(),
            Material::Ed25519Public(_) | Material::None => return None,
        };
        Some(Zeroizing::new(BASE64.encode(bytes)))
    }

    /// Signs bytes, whatever the key's state and limits. `None`: it has no secret.
    pub fn sign(&self, input: &[u8]) -> Option<Vec<u8>> {
        self.material.sign(input)
    }

    /// Whether this key made this signature of these bytes, in constant time; whatever its state and limits.
    pub fn verify(&self, input: &[u8], signature: &[u8]) -> bool {
        self.material.verify(input, signature)
    }

    /// Whether this instant lies in the time in which it may sign.
    pub(super) fn valid_at(&self, instant: Timestamp) -> bool {
        self.not_before.is_none_or(|from| from <= instant) && self.not_after.is_none_or(|to| instant <= to)
    }
}

/// Everything but the secret.
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
            .finish_non_exhaustive()
    }
}

/// A name, or the beginning of names.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Pattern {
    text: String,
    open: bool,
}

impl Pattern {
    fn parse(mut text: String) -> Result<Self, String> {
        let open = text.ends_with('*');
        if open {
            text.pop();
        }
        if text.contains('*') { Err(text) } else { Ok(Self { text, open }) }
    }

    pub(super) fn fits(&self, name: &str) -> bool {
        if self.open { name.starts_with(&self.text) } else { name == self.text }
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.text, if self.open { "*" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// That is a feature of the crates that hold them, and without it this does not compile. A HMAC holds nothing but
    /// two states of SHA-256.
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
    fn secrets_have_a_length() {
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
    fn patterns_are_names_or_beginnings() {
        let fits = |pattern: &str, name| Pattern::parse(pattern.to_owned()).unwrap().fits(name);
        assert!(fits("mail.*", "mail.send") && fits("*", "anything") && fits("add", "add"));
        assert!(!fits("mail.*", "mailer") && !fits("add", "adder") && !fits("", "add"));
        assert!(Pattern::parse("*.send".to_owned()).is_err());
    }
}
