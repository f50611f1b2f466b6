//! Statements: texts in the backend that are believed only with a signature, such as the orders about periodic tasks.

use bytes::Bytes;

use super::{
    Trust,
    trust::{Attestation, attested},
};
use crate::{
    clock::Timestamp,
    id::{QueueName, TaskName},
    sign::{Key, KeyError, KeyId, Keyring, SigningScope, input::SigningInput},
};

/// Version of what is signed under a statement.
const STATEMENT_VERSION: i64 = 1;

/// Subject of a statement. Both fields are under its signature.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Statement<'a> {
    /// Kind of statement. A signature of one kind is worthless for another.
    pub(crate) kind: &'static str,
    /// Name of the thing that it is about.
    pub(crate) subject: &'a str,
}

/// Consequence of a statement, which its key has to be allowed.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Consequence<'a> {
    /// It only states something.
    State,
    /// It leads to the call of this task in this queue.
    Call(&'a TaskName, &'a QueueName),
    /// It commands workers.
    Command,
}

impl Consequence<'_> {
    fn check(self, key: &Key) -> Result<(), String> {
        match self {
            Self::State => Ok(()),
            Self::Call(task, queue) => {
                key.may(task.as_str(), queue.as_str()).map_err(|rejected| rejected.to_string())
            }
            Self::Command => key.may_command().map_err(|rejected| rejected.to_string()),
        }
    }
}

/// Returns the name of the key under a statement, whether it is believed or not.
pub(super) fn signed_by(stored: &Bytes) -> Option<String> {
    Attestation::of(stored).map(|attestation| attestation.key.to_string())
}

impl Statement<'_> {
    fn input(self, key: &Key, scope: &SigningScope, text: &[u8]) -> Vec<u8> {
        SigningInput::new(self.kind, text.len() + 256)
            .number(STATEMENT_VERSION)
            .text(key.algorithm().as_str())
            .text(key.id().as_str())
            .text(&scope.namespace)
            .text(&scope.realm)
            .text(self.subject)
            .bytes(text)
            .finish()
    }
}

impl Trust {
    /// Signs a statement, a JSON object, if this application has keys.
    ///
    /// # Errors
    /// The reason that it cannot be signed.
    pub(crate) fn sign_statement(&self, statement: Statement<'_>, text: Bytes) -> Result<Bytes, String> {
        let Some(ring) = self.ring() else { return Ok(text) };
        let Some(key) = ring.signing_key() else { return Err(KeyError::NoneActive.to_string()) };
        let signed = attested(key, &text, |text| statement.input(key, self.scope(), text));
        signed.ok_or_else(|| format!("key {} cannot sign", key.id()))
    }

    /// Signs a statement that commands workers, if this application has keys.
    ///
    /// # Errors
    /// The reason that it cannot be signed: the key may not command, or is not valid at this instant.
    pub(crate) fn sign_command(
        &self,
        statement: Statement<'_>,
        text: Bytes,
        at: Timestamp,
    ) -> Result<Bytes, String> {
        if let Some(key) = self.ring().as_deref().and_then(Keyring::signing_key) {
            Consequence::Command.check(key)?;
            key.believed_at(at).map_err(|rejected| rejected.to_string())?;
        }
        self.sign_statement(statement, text)
    }

    /// Checks that a trusted key signed a statement at this instant, and that the key is allowed its consequence. Where
    /// unsigned tasks are allowed, unsigned statements are too.
    ///
    /// # Errors
    /// The reason against it.
    pub(crate) fn check_statement(
        &self,
        statement: Statement<'_>,
        stored: &Bytes,
        at: Timestamp,
        consequence: Consequence<'_>,
    ) -> Result<(), String> {
        let Some(ring) = self.ring() else { return Ok(()) };
        let Some(attestation) = Attestation::of(stored) else {
            let unsigned = match consequence {
                Consequence::Command => {
                    "it is not signed; configure a key where it is given, or start the worker with --allow-unsigned"
                }
                _ => "it carries no signature",
            };
            return if self.allows_unsigned() { Ok(()) } else { Err(unsigned.to_owned()) };
        };
        let key = ring.trusted(&attestation.key).map_err(|rejected| rejected.to_string())?;
        if !key.verify(&statement.input(key, self.scope(), attestation.text), &attestation.signature) {
            let (key, doubt) = (key.id(), self.scope().doubt());
            return Err(format!("its signature is not that of key {key}: {doubt}"));
        }
        key.believed_at(at).map_err(|rejected| rejected.to_string())?;
        consequence.check(key)
    }

    /// Checks that the key of a statement which was believed is allowed a further consequence.
    ///
    /// # Errors
    /// The reason against it.
    pub(crate) fn check_consequence(
        &self,
        stored: &Bytes,
        consequence: Consequence<'_>,
    ) -> Result<(), String> {
        let (Some(ring), Some(attestation)) = (self.ring(), Attestation::of(stored)) else { return Ok(()) };
        let key = ring.trusted(&attestation.key).map_err(|rejected| rejected.to_string())?;
        consequence.check(key)
    }

    /// Encrypts a text that belongs to a statement, if this application encrypts. Returns the key's name and the result.
    pub(crate) fn encrypt_statement(
        &self,
        statement: Statement<'_>,
        text: &[u8],
    ) -> Option<(KeyId, Vec<u8>)> {
        let ring = self.ring()?;
        let key = ring.encrypting_key()?;
        Some((key.id().clone(), key.encrypt(&statement.input(key, self.scope(), b""), text)?))
    }

    /// Decrypts the result of [`encrypt_statement`](Self::encrypt_statement).
    ///
    /// # Errors
    /// The reason that it cannot be decrypted.
    pub(crate) fn decrypt_statement(
        &self,
        statement: Statement<'_>,
        key: &KeyId,
        sealed: &[u8],
    ) -> Result<Vec<u8>, String> {
        let ring = self.ring();
        let key = ring.as_deref().map(|ring: &Keyring| ring.trusted(key));
        let key = key.ok_or("it is encrypted, and there are no keys here")?.map_err(|e| e.to_string())?;
        let text = key.decrypt(&statement.input(key, self.scope(), b""), sealed);
        text.ok_or_else(|| format!("key {} cannot decrypt it: {}", key.id(), self.scope().doubt()))
    }
}
