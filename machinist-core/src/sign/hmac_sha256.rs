//! HMAC-SHA256 (RFC 2104): one secret signs and verifies.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

/// A shorter secret would be easier to guess than the MAC it makes.
pub(super) const MIN_SECRET_BYTES: usize = 32;

#[derive(Clone)]
pub(crate) struct HmacSecret {
    /// The state after the key's own block, so that no message pays for it again.
    ready: Hmac<Sha256>,
    bytes: Zeroizing<Vec<u8>>,
}

impl HmacSecret {
    /// `None` if it is too short.
    pub(super) fn new(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < MIN_SECRET_BYTES {
            return None;
        }
        let ready = Hmac::new_from_slice(bytes).ok()?;
        Some(Self { ready, bytes: Zeroizing::new(bytes.to_vec()) })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn sign(&self, input: &[u8]) -> [u8; 32] {
        self.ready.clone().chain_update(input).finalize().into_bytes().into()
    }

    pub(super) fn verify(&self, input: &[u8], signature: &[u8]) -> bool {
        self.ready.clone().chain_update(input).verify_slice(signature).is_ok()
    }
}
