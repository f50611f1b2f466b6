//! XChaCha20-Poly1305: encrypts, and detects changes when it decrypts.
//!
//! Its nonce has 192 bits, so that a random nonce for each message never repeats, however many processes share a key.
//! Like HMAC it is RustCrypto's: pure Rust, wiped from memory, and equally fast on machines without AES instructions.

use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305, XNonce,
    aead::{Aead, Payload},
};
use zeroize::Zeroizing;

const NONCE_BYTES: usize = 24;

#[derive(Clone)]
pub(crate) struct EncryptionSecret(Zeroizing<[u8; 32]>);

impl EncryptionSecret {
    /// Creates the secret; `None` if it does not have 32 bytes.
    pub(super) fn new(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(|bytes| Self(Zeroizing::new(bytes)))
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0[..]
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new((&*self.0).into())
    }

    /// Returns a random nonce, followed by the encrypted text, which can only be decrypted together with `about`.
    pub(super) fn encrypt(&self, about: &[u8], text: &[u8]) -> Vec<u8> {
        let nonce: [u8; NONCE_BYTES] = rand::random();
        let ciphertext = self.cipher().encrypt(&XNonce::from(nonce), Payload { msg: text, aad: about });
        // INVARIANT: the cipher accepts 256 GiB, and no message is that long.
        [&nonce[..], &ciphertext.expect("a text below 256 GiB")].concat()
    }

    /// Decrypts; `None` if this key did not encrypt it, or if `about` is different.
    pub(super) fn decrypt(&self, about: &[u8], encrypted: &[u8]) -> Option<Vec<u8>> {
        let (nonce, ciphertext) = encrypted.split_first_chunk::<NONCE_BYTES>()?;
        self.cipher().decrypt(&XNonce::from(*nonce), Payload { msg: ciphertext, aad: about }).ok()
    }
}
