//! XChaCha20-Poly1305: encrypts, and tells whether what is decrypted is what was encrypted.
//!
//! Its nonce has 192 bits, so that a random one for each message never repeats, however many processes share a key.
//! From RustCrypto like HMAC: pure Rust, wiped from memory, and as quick on machines without AES instructions.

use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305, XNonce,
    aead::{Aead, Payload},
};
use zeroize::Zeroizing;

const NONCE_BYTES: usize = 24;

#[derive(Clone)]
pub(crate) struct EncryptionSecret(Zeroizing<[u8; 32]>);

impl EncryptionSecret {
    /// `None` if it does not have 32 bytes.
    pub(super) fn new(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(|bytes| Self(Zeroizing::new(bytes)))
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0[..]
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new((&*self.0).into())
    }

    /// A fresh nonce, and what this hides; only together with `about` will it open.
    pub(super) fn encrypt(&self, about: &[u8], text: &[u8]) -> Vec<u8> {
        let nonce: [u8; NONCE_BYTES] = rand::random();
        let encrypted_fact = self.cipher().encrypt(&XNonce::from(nonce), Payload { msg: text, aad: about });
        // INVARIANT: the cipher takes 256 GiB, and no message is as long.
        [&nonce[..], &encrypted_fact.expect("a text below 256 GiB")].concat()
    }

    /// `None`: not encrypted with this key about this.
    pub(super) fn decrypt(&self, about: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, encrypted_fact) = sealed.split_first_chunk::<NONCE_BYTES>()?;
        self.cipher().decrypt(&XNonce::from(*nonce), Payload { msg: encrypted_fact, aad: about }).ok()
    }
}
