//! Orders to workers, and their signatures: write access to the backend alone commands nobody.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use serde::{Deserialize, Serialize};

use super::trust::Trust;
use crate::{
    clock::Timestamp,
    sign::{Key, KeyId, input::SigningInput},
};

/// Version of what is signed under an order.
const ORDER_VERSION: i64 = 1;

/// Action that a worker is ordered to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum WorkerAction {
    /// Fall asleep: unsubscribe, and start nothing until it is resumed, also after a restart.
    Pause,
    /// Wake up again.
    Resume,
    /// Take no more tasks, let the running ones end, and stop.
    Drain,
    /// Answer.
    Ping,
}

impl WorkerAction {
    /// Returns the action as a word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Drain => "drain",
            Self::Ping => "ping",
        }
    }

    /// Returns `true` if the order states what is wanted of the name, and not only of one process.
    pub(crate) const fn is_lasting(self) -> bool {
        matches!(self, Self::Pause | Self::Resume)
    }
}

/// An order to one worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WorkerOrder {
    pub(crate) id: String,
    pub(crate) action: WorkerAction,
    /// Running tasks are handed back instead of being awaited.
    pub(crate) now: bool,
    /// Name of the worker.
    pub(crate) target: String,
    /// Session of the worker, for an order to one process.
    pub(crate) session: Option<String>,
    pub(crate) issued: Timestamp,
    pub(crate) expires: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) mac: Option<String>,
}

impl Trust {
    /// Signs an order, if this application signs.
    ///
    /// # Errors
    /// The key that signs here may not command workers.
    pub(crate) fn sign_order(&self, mut order: WorkerOrder) -> Result<WorkerOrder, String> {
        let Some(ring) = self.ring() else { return Ok(order) };
        let Some(key) = ring.signing_key() else { return Err("no configured key signs".to_owned()) };
        may_command(key)?;
        key.believed_at(order.issued).map_err(|rejected| rejected.to_string())?;
        order.mac = key.sign(&self.order_input(key, &order)).map(|mac| BASE64.encode(mac));
        order.key = Some(key.id().to_string());
        Ok(order)
    }

    /// Checks that an order is for this worker, and that a key signed it that may. Its expiry is not checked.
    pub(crate) fn check_order(&self, order: &WorkerOrder, worker: &str) -> Result<(), String> {
        if order.target != worker {
            return Err(format!("the order is for worker {:?}", order.target));
        }
        let Some(ring) = self.ring() else { return Ok(()) };
        let (Some(key), Some(mac)) = (&order.key, &order.mac) else {
            let unsigned = "the order is not signed; configure a key where it is given, or start the worker with \
                            --allow-unsigned";
            return if self.allows_unsigned() { Ok(()) } else { Err(unsigned.to_owned()) };
        };
        let id = KeyId::parse(key).map_err(|error| error.to_string())?;
        let key = ring.trusted(&id).map_err(|rejected| rejected.to_string())?;
        let mac = BASE64.decode(mac).unwrap_or_default();
        if !key.verify(&self.order_input(key, order), &mac) {
            return Err(format!("the signature of the order is not that of key {id}"));
        }
        may_command(key)?;
        key.believed_at(order.issued).map_err(|rejected| rejected.to_string())
    }

    fn order_input(&self, key: &Key, order: &WorkerOrder) -> Vec<u8> {
        SigningInput::new("machinist.order", 512)
            .number(ORDER_VERSION)
            .text(key.algorithm().as_str())
            .text(key.id().as_str())
            .text(&self.scope().namespace)
            .text(&self.scope().realm)
            .text(&order.id)
            .text(order.action.as_str())
            .number(i64::from(order.now))
            .text(&order.target)
            .maybe_text(order.session.as_deref())
            .number(order.issued.as_micros())
            .number(order.expires.as_micros())
            .finish()
    }
}

/// Checks that a key is for everything: one that is for some tasks or queues must not stop the others.
fn may_command(key: &Key) -> Result<(), String> {
    if key.is_for_everything() {
        return Ok(());
    }
    Err(format!(
        "key {} has `tasks` or `queues`, so it may not command workers; use a key without them",
        key.id()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sign::Algorithm;

    fn order() -> WorkerOrder {
        WorkerOrder {
            id: "1".into(),
            action: WorkerAction::Pause,
            now: false,
            target: "w".into(),
            session: None,
            issued: Timestamp::from_micros(1),
            expires: Timestamp::from_micros(10),
            key: None,
            mac: None,
        }
    }

    fn key(id: &str) -> Key {
        Key::with_secret(Algorithm::HmacSha256, id, &[7; 32]).unwrap()
    }

    fn trust(key: Key) -> Trust {
        Trust::new(Some(key.into()), false, None)
    }

    #[test]
    fn a_signed_order_is_believed_and_nothing_in_it_can_be_changed() {
        let trust = trust(key("k"));
        let signed = trust.sign_order(order()).unwrap();
        assert_eq!(trust.check_order(&signed, "w"), Ok(()));
        assert!(trust.check_order(&signed, "v").is_err());
        let later = Timestamp::from_micros(11);
        for changed in [
            WorkerOrder { id: "2".into(), ..signed.clone() },
            WorkerOrder { action: WorkerAction::Resume, ..signed.clone() },
            WorkerOrder { now: true, ..signed.clone() },
            WorkerOrder { session: Some("s".into()), ..signed.clone() },
            WorkerOrder { issued: later, ..signed.clone() },
            WorkerOrder { expires: later, ..signed.clone() },
            WorkerOrder { mac: None, ..signed.clone() },
        ] {
            assert!(trust.check_order(&changed, "w").is_err(), "{changed:?}");
        }
        let moved = WorkerOrder { target: "v".into(), ..signed };
        assert!(trust.check_order(&moved, "v").is_err());
    }

    #[test]
    fn an_unsigned_order_is_obeyed_only_where_that_is_allowed() {
        assert!(trust(key("k")).check_order(&order(), "w").unwrap_err().contains("--allow-unsigned"));
        let lenient = Trust::new(Some(key("k").into()), true, None);
        assert_eq!(lenient.check_order(&order(), "w"), Ok(()));
        assert_eq!(Trust::new(None, false, None).check_order(&order(), "w"), Ok(()));
    }

    #[test]
    fn a_key_that_is_for_some_tasks_commands_nobody() {
        let restricted = key("k").for_tasks(["add"]).unwrap();
        assert!(trust(restricted.clone()).sign_order(order()).unwrap_err().contains("may not command"));
        let signed = trust(key("k")).sign_order(order()).unwrap();
        assert!(trust(restricted).check_order(&signed, "w").is_err());
    }
}
