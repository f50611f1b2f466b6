//! Ed25519 (RFC 8032): who can verify need not be able to sign.

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};

/// A private key; wiped from memory when it is dropped.
#[derive(Clone)]
pub(crate) struct Private(SigningKey);

impl Private {
    /// `None` if these are not 32 bytes.
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

/// A public key.
#[derive(Clone)]
pub(crate) struct Public(VerifyingKey);

impl Public {
    /// `None` if these are not 32 bytes that are a key, or are one of the few keys under which anything verifies.
    pub(super) fn new(bytes: &[u8]) -> Option<Self> {
        let key = VerifyingKey::from_bytes(bytes.try_into().ok()?).ok()?;
        (!key.is_weak()).then_some(Self(key))
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// Strict: one message and key have no second signature that could be made from the first.
    pub(super) fn verify(&self, input: &[u8], signature: &[u8]) -> bool {
        Signature::from_slice(signature)
            .is_ok_and(|signature| self.0.verify_strict(input, &signature).is_ok())
    }
}
