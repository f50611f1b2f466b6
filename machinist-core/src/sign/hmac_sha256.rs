//! HMAC-SHA256 (RFC 2104): one secret signs and verifies.

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// Minimum size of a secret, in bytes. A shorter secret would be easier to guess than its MAC.
pub(super) const MIN_SECRET_BYTES: usize = 32;

/// Returns the SHA-256 of these bytes.
pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

#[derive(Clone)]
pub(crate) struct HmacSecret {
    /// State after the key's own block, so that it is not computed again for every message.
    keyed_state: Hmac<Sha256>,
    bytes: Zeroizing<Vec<u8>>,
}

impl HmacSecret {
    /// Creates the secret; `None` if it is too short.
    pub(super) fn new(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < MIN_SECRET_BYTES {
            return None;
        }
        let keyed_state = Hmac::new_from_slice(bytes).ok()?;
        Some(Self { keyed_state, bytes: Zeroizing::new(bytes.to_vec()) })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn sign(&self, input: &[u8]) -> [u8; 32] {
        self.keyed_state.clone().chain_update(input).finalize().into_bytes().into()
    }

    pub(super) fn verify(&self, input: &[u8], signature: &[u8]) -> bool {
        self.keyed_state.clone().chain_update(input).verify_slice(signature).is_ok()
    }
}
