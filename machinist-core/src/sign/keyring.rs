//! Key ring: several keys verify, one signs; several decrypt, one encrypts.

use std::{collections::BTreeMap, fmt};

use super::{Key, KeyError, KeyId, KeyState};
use crate::{affinity::without_tags, builtin::WORKFLOW_TASK, clock::Timestamp};

/// Keys of an application. Cheap enough to clone, and replaced as a whole.
#[derive(Clone)]
pub struct Keyring {
    keys: BTreeMap<KeyId, Key>,
    active: Option<KeyId>,
    cipher: Option<KeyId>,
}

impl Keyring {
    /// Creates a ring of these keys. At most one that signs and one that encrypts are [active](KeyState::Active); a
    /// ring without an active key reads results and signs nothing.
    ///
    /// # Errors
    /// [`KeyError::Empty`], [`KeyError::Twice`], [`KeyError::TwoActive`], [`KeyError::TwoEncrypt`].
    pub fn new(keys: impl IntoIterator<Item = Key>) -> Result<Self, KeyError> {
        let mut ring = Self { keys: BTreeMap::new(), active: None, cipher: None };
        for key in keys {
            if key.state() == KeyState::Active {
                let id = key.id().clone();
                let slot = if key.encrypts() { &mut ring.cipher } else { &mut ring.active };
                if let Some(other) = slot.replace(id.clone()) {
                    let error = if key.encrypts() { KeyError::TwoEncrypt } else { KeyError::TwoActive };
                    return Err(error(other, id));
                }
            }
            if let Some(twice) = ring.keys.insert(key.id().clone(), key) {
                return Err(KeyError::Twice(twice.id().clone()));
            }
        }
        if ring.keys.is_empty() { Err(KeyError::Empty) } else { Ok(ring) }
    }

    /// Returns the keys, by name.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.keys.values()
    }

    /// Returns the key that signs; `None` if none is active.
    pub fn signing_key(&self) -> Option<&Key> {
        self.keys.get(self.active.as_ref()?)
    }

    /// Returns the key that encrypts everything that this application sends and records; `None` if it is left readable.
    pub fn encrypting_key(&self) -> Option<&Key> {
        self.keys.get(self.cipher.as_ref()?)
    }

    /// Returns this ring with everything revoked that another ring revokes.
    pub(crate) fn with_revocations(&self, other: &Self) -> Self {
        let mut ring = self.clone();
        for (id, key) in other.keys.iter().filter(|(_, key)| key.state() == KeyState::Revoked) {
            ring.keys.insert(id.clone(), key.clone());
            for active in [&mut ring.active, &mut ring.cipher] {
                active.take_if(|active| active == id);
            }
        }
        ring
    }

    /// Returns the key of this name, unless it is revoked.
    pub(crate) fn trusted(&self, id: &KeyId) -> Result<&Key, KeyRejection> {
        match self.keys.get(id) {
            None => Err(KeyRejection::Unknown(id.clone())),
            Some(key) if key.state() == KeyState::Revoked => Err(KeyRejection::Revoked(id.clone())),
            Some(key) => Ok(key),
        }
    }
}

/// Creates a ring of one key.
impl From<Key> for Keyring {
    fn from(key: Key) -> Self {
        let id = (key.state() == KeyState::Active).then(|| key.id().clone());
        let (active, cipher) = if key.encrypts() { (None, id) } else { (id, None) };
        Self { keys: [(key.id().clone(), key)].into(), active, cipher }
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.keys.values()).finish()
    }
}

impl Key {
    /// Checks that this key is trusted for a signature of this instant.
    pub(crate) fn believed_at(&self, instant: Timestamp) -> Result<(), KeyRejection> {
        if self.valid_at(instant) { Ok(()) } else { Err(KeyRejection::OutOfTime(self.id().clone(), instant)) }
    }

    /// Checks that the key may command workers. One that is for some tasks or queues must not stop the others.
    pub(crate) fn may_command(&self) -> Result<(), KeyRejection> {
        let why = match (self.control, &self.tasks, &self.queues) {
            (false, ..) => "has `control = false`",
            (true, None, None) => return Ok(()),
            _ => "has `tasks` or `queues`",
        };
        Err(KeyRejection::NotAllowed(format!(
            "key {} {why}, so it may not command workers; use a key without that restriction",
            self.id()
        )))
    }

    /// Checks that this key may sign this task for this queue. Every key may sign workflows: each of their tasks is checked
    /// when it is sent and when it is published.
    pub(crate) fn may(&self, task: &str, queue: &str) -> Result<(), KeyRejection> {
        self.may_bury(Some(task).filter(|task| *task != WORKFLOW_TASK), queue)
    }

    /// Checks that this key may sign the mark of a dead letter of this queue, which perhaps states no task name.
    pub(crate) fn may_bury(&self, task: Option<&str>, queue: &str) -> Result<(), KeyRejection> {
        if self.tasks.is_none() && self.queues.is_none() {
            return Ok(());
        }
        // The tags that tasks of a queue require are no other queue.
        let base = without_tags(queue);
        for (kind, name, list) in [("task", task, &self.tasks), ("queue", Some(queue), &self.queues)] {
            if let (Some(list), Some(name)) = (list, name)
                && !list.iter().any(|pattern| pattern.fits(name) || (kind == "queue" && pattern.fits(base)))
            {
                return Err(KeyRejection::NotAllowed(format!(
                    "key {} is not for the {kind} {name:?}",
                    self.id()
                )));
            }
        }
        Ok(())
    }
}

/// Reason that a key is not trusted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum KeyRejection {
    #[error("the key ring here has no key {0}")]
    Unknown(KeyId),
    #[error("key {0} is revoked")]
    Revoked(KeyId),
    #[error("key {0} was not valid at {1}, when it signed this")]
    OutOfTime(KeyId, Timestamp),
    #[error("{0}")]
    NotAllowed(String),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sign::Algorithm;

    fn key(id: &str) -> Key {
        Key::generate(Algorithm::HmacSha256, id).unwrap()
    }

    #[test]
    fn a_ring_has_one_signing_key_and_no_two_keys_of_one_name() {
        assert!(matches!(Keyring::new([]), Err(KeyError::Empty)));
        assert!(matches!(Keyring::new([key("a"), key("b")]), Err(KeyError::TwoActive(..))));
        let twice = Keyring::new([key("a"), key("a").with_state(KeyState::Verify)]);
        assert!(matches!(twice, Err(KeyError::Twice(_))), "{twice:?}");
        let cipher = |id: &str| Key::generate(Algorithm::XChaCha20Poly1305, id).unwrap();
        assert!(matches!(Keyring::new([cipher("a"), cipher("b")]), Err(KeyError::TwoEncrypt(..))));
        let ring = Keyring::new([cipher("c"), key("a")]).unwrap();
        assert_eq!((ring.signing_key().unwrap().id().as_str(), ring.keys().count()), ("a", 2));
        assert_eq!(ring.encrypting_key().unwrap().id().as_str(), "c");
        assert!(Keyring::from(cipher("c")).signing_key().is_none());
        let ring = Keyring::new([key("a").with_state(KeyState::Verify), key("b")]).unwrap();
        assert_eq!(ring.signing_key().unwrap().id().as_str(), "b");
        assert!(Keyring::from(key("a").with_state(KeyState::Verify)).signing_key().is_none());
    }

    #[test]
    fn keys_are_trusted_within_their_restrictions() {
        let from = Timestamp::from_micros(10);
        let to = Timestamp::from_micros(20);
        let restricted = key("a").not_before(from).not_after(to).for_tasks(["mail.*"]).unwrap();
        let ring = Keyring::new([restricted, Key::revoked("gone").unwrap()]).unwrap();
        let named = |id| ring.trusted(&KeyId::parse(id).unwrap());
        let key = named("a").unwrap();
        let at = |micros| key.believed_at(Timestamp::from_micros(micros));
        assert!(at(10).is_ok() && at(20).is_ok());
        assert!(
            matches!(at(9), Err(KeyRejection::OutOfTime(..)))
                && matches!(at(21), Err(KeyRejection::OutOfTime(..)))
        );
        assert!(matches!(named("gone"), Err(KeyRejection::Revoked(_))));
        assert!(matches!(named("who"), Err(KeyRejection::Unknown(_))));
        assert!(key.may("mail.send", "any").is_ok() && key.may("add", "any").is_err());
    }
}
