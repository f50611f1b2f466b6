//! The signatures of dead letters' marks: which worker made a message a dead letter, with which reason.

use super::Trust;
use crate::{
    id::QueueName,
    sign::Keyring,
    wire::{DeadMark, MarkSignature, MarkedMessage},
};

impl Trust {
    /// Signs the mark of a dead letter of this queue, if there is a key that signs.
    pub(crate) fn sign_mark(
        &self,
        mut mark: DeadMark,
        queue: &QueueName,
        message: &MarkedMessage,
    ) -> DeadMark {
        let ring = self.ring();
        let key = ring.as_deref().and_then(Keyring::signing_key);
        mark.signature = key.and_then(|key| {
            let signature = key.sign(&mark.signing_input(key, self.scope(), queue, message))?;
            Some(MarkSignature { key: key.id().clone(), signature })
        });
        mark
    }

    /// Checks that a trusted key signed the mark of a dead letter. Where unsigned tasks are allowed, unsigned marks are
    /// too.
    ///
    /// # Errors
    /// The reason against it.
    pub(crate) fn check_mark(
        &self,
        mark: &DeadMark,
        queue: &QueueName,
        message: &MarkedMessage,
    ) -> Result<(), String> {
        let Some(ring) = self.ring() else { return Ok(()) };
        let Some(signature) = &mark.signature else {
            let unsigned = "no worker signed its mark".to_owned();
            return if self.allows_unsigned() { Ok(()) } else { Err(unsigned) };
        };
        let key = ring.trusted(&signature.key).map_err(|rejected| rejected.to_string())?;
        if !key.verify(&mark.signing_input(key, self.scope(), queue, message), &signature.signature) {
            let (key, doubt) = (key.id(), self.scope().doubt());
            return Err(format!("the signature of its mark is not that of key {key}: {doubt}"));
        }
        key.believed_at(mark.at).map_err(|rejected| rejected.to_string())?;
        // A worker's key is for every task that the worker runs. A message that states no name was refused unread.
        let name = message.name.as_ref().map(|name| name.as_str());
        key.may_bury(name, queue.as_str()).map_err(|rejected| rejected.to_string())
    }
}
