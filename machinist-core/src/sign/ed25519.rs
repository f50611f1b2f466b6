//! Ed25519 (RFC 8032): a process that verifies does not need the right to sign.

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};

/// Private key, wiped from memory when it is dropped.
#[derive(Clone)]
pub(crate) struct Private(SigningKey);

impl Private {
    /// Creates the key; `None` if the seed does not have 32 bytes.
    pub(super) fn new(seed: &[u8]) -> Option<Self> {
        Some(Self(SigningKey::from_bytes(seed.try_into().ok()?)))
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    pub(super) fn public(&self) -> Public {
        Public(self.0.verifying_key())
    }

    pub(super) fn sign(&self, input: &[u8]) -> [u8; 64] {
        self.0.sign(input).to_bytes()
    }
}

/// Public key.
#[derive(Clone)]
pub(crate) struct Public(VerifyingKey);

impl Public {
    /// Creates the key; `None` if the bytes are not a key of 32 bytes, or are one of the few keys under which anything
    /// verifies.
    pub(super) fn new(bytes: &[u8]) -> Option<Self> {
        let key = VerifyingKey::from_bytes(bytes.try_into().ok()?).ok()?;
        (!key.is_weak()).then_some(Self(key))
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// Verifies strictly: a message and key have no second signature that could be derived from the first.
    pub(super) fn verify(&self, input: &[u8], signature: &[u8]) -> bool {
        Signature::from_slice(signature)
            .is_ok_and(|signature| self.0.verify_strict(input, &signature).is_ok())
    }
}
