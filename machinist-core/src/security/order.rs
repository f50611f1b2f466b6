//! Orders to workers, and their signatures: write access to the backend alone commands nobody.
//!
//! Every order carries a number that only rises for its target. A worker that has obeyed a lasting order ignores those with
//! lower numbers, so an earlier one that is written back changes nothing.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    Statement, Trust,
    statement::{Consequence, signed_by},
};
use crate::{clock::Timestamp, id::QueuePattern, record::json};

/// Kind of the statement that is an order to a worker.
const ORDER: &str = "machinist.order";
/// Kind of the statement that says what was ordered, for those who ask for it by its id.
const NOTE: &str = "machinist.order.note";
/// Kind of the statement that is a switch for all workers.
const SWITCH: &str = "machinist.switch";

/// Action that a worker is ordered to take.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum WorkerAction {
    /// Fall asleep: unsubscribe, and start nothing until it is resumed, also after a restart.
    Pause,
    /// Wake up again.
    Resume,
    /// Take no more tasks, let the running ones end, and stop.
    Drain,
    /// Drain, and end with the exit code at which a supervisor starts the program again.
    Restart,
    /// Change the options of the running process.
    Set(WorkerChange),
    /// Read the configuration of the program again.
    Reload,
    /// Answer.
    Ping,
    /// Answer as soon as the subscription is the one that is wanted.
    Settle,
    /// Tell everything that runs ([`Client::all_worker_runs`](crate::Client::all_worker_runs)).
    ListRuns,
}

/// Change of the options of a running worker. A restart undoes it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct WorkerChange {
    /// Maximum number of handlers that run at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u32>,
    /// Queues, or patterns of queues, from which the worker takes tasks in addition.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub add_queues: Vec<QueuePattern>,
    /// Queues, or patterns of queues, from which the worker takes no more tasks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drop_queues: Vec<QueuePattern>,
    /// Log level.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_level: Option<String>,
}

impl WorkerAction {
    /// Returns the action as a word.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Drain => "drain",
            Self::Restart => "restart",
            Self::Set(_) => "set",
            Self::Reload => "reload",
            Self::Ping => "ping",
            Self::Settle => "settle",
            Self::ListRuns => "list",
        }
    }

    /// Returns `true` if the order states what is wanted of the name, and not only of one process.
    pub(crate) const fn is_lasting(&self) -> bool {
        matches!(self, Self::Pause | Self::Resume)
    }
}

/// An order to one worker, as it is stored: a signed statement about the name of the worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WorkerOrder {
    pub(crate) id: String,
    pub(crate) action: WorkerAction,
    /// Running tasks are handed back instead of being awaited.
    pub(crate) now: bool,
    /// Session of the worker, for an order to one process.
    pub(crate) session: Option<String>,
    /// Number of the order: that of a later order to the same worker is greater.
    pub(crate) number: i64,
    pub(crate) issued: Timestamp,
    pub(crate) expires: Timestamp,
}

/// A switch that people set for all workers, as it is stored: a signed statement about what it switches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SwitchSetting {
    /// `true` if the task is disabled, or the queue is paused.
    pub(crate) off: bool,
    /// Number of the setting: that of a later one is greater.
    pub(crate) number: i64,
    pub(crate) at: Timestamp,
}

/// Note of an order to workers, kept under its id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OrderNote {
    pub(crate) action: WorkerAction,
    pub(crate) now: bool,
    pub(crate) issued: Timestamp,
    /// Names of the workers.
    pub(crate) workers: Vec<String>,
}

/// Returns the number of a statement that follows one with the number `seen`.
pub(crate) fn next_number(now: Timestamp, seen: Option<i64>) -> i64 {
    seen.map_or(now.as_micros(), |seen| now.as_micros().max(seen.saturating_add(1)))
}

impl Trust {
    /// Returns an order as it is stored: signed, if this application has keys.
    ///
    /// # Errors
    /// The key that signs here may not command workers.
    pub(crate) fn sign_order(&self, target: &str, order: &WorkerOrder) -> Result<Bytes, String> {
        self.sign_command(Statement { kind: ORDER, subject: target }, json(order), order.issued)
    }

    /// Reads an order, if a key that may has signed it for this worker. Its expiry is not checked.
    ///
    /// # Errors
    /// The reason against it.
    pub(crate) fn read_order(&self, target: &str, stored: &Bytes) -> Result<WorkerOrder, String> {
        let order: WorkerOrder = read(stored)?;
        let statement = Statement { kind: ORDER, subject: target };
        self.check_statement(statement, stored, order.issued, Consequence::Command)?;
        Ok(order)
    }

    /// Returns the note of an order as it is stored.
    ///
    /// # Errors
    /// The key that signs here may not command workers.
    pub(crate) fn sign_note(&self, id: &str, note: &OrderNote) -> Result<Bytes, String> {
        self.sign_command(Statement { kind: NOTE, subject: id }, json(note), note.issued)
    }

    /// Reads the note of an order, with the name of the key that has signed it.
    ///
    /// # Errors
    /// The reason that it is not believed.
    pub(crate) fn read_note(&self, id: &str, stored: &Bytes) -> Result<(OrderNote, Option<String>), String> {
        let note: OrderNote = read(stored)?;
        self.check_statement(
            Statement { kind: NOTE, subject: id },
            stored,
            note.issued,
            Consequence::Command,
        )?;
        Ok((note, signed_by(stored)))
    }

    /// Returns a switch as it is stored: signed, if this application has keys.
    ///
    /// # Errors
    /// The key that signs here may not command workers.
    pub(crate) fn sign_switch(&self, subject: &str, setting: SwitchSetting) -> Result<Bytes, String> {
        self.sign_command(Statement { kind: SWITCH, subject }, json(&setting), setting.at)
    }

    /// Reads a switch, if a key that may has signed it.
    ///
    /// # Errors
    /// The reason against it.
    pub(crate) fn read_switch(&self, subject: &str, stored: &Bytes) -> Result<SwitchSetting, String> {
        let setting: SwitchSetting = read(stored)?;
        self.check_statement(Statement { kind: SWITCH, subject }, stored, setting.at, Consequence::Command)?;
        Ok(setting)
    }
}

fn read<T: for<'de> Deserialize<'de>>(stored: &Bytes) -> Result<T, String> {
    serde_json::from_slice(stored).map_err(|error| format!("it is unreadable: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sign::{Algorithm, Key};

    fn order() -> WorkerOrder {
        WorkerOrder {
            id: "1".into(),
            action: WorkerAction::Pause,
            now: false,
            session: None,
            number: 1,
            issued: Timestamp::from_micros(1),
            expires: Timestamp::from_micros(10),
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
        let signed = trust.sign_order("w", &order()).unwrap();
        assert_eq!(trust.read_order("w", &signed), Ok(order()));
        assert!(trust.read_order("v", &signed).is_err(), "it is for another worker");
        let text = std::str::from_utf8(&signed).unwrap();
        for (from, to) in [
            ("\"id\":\"1\"", "\"id\":\"2\""),
            ("\"pause\"", "\"resume\""),
            ("\"now\":false", "\"now\":true"),
            ("\"session\":null", "\"session\":\"s\""),
            ("\"number\":1", "\"number\":2"),
        ] {
            let changed = text.replace(from, to);
            assert_ne!(changed, text);
            assert!(trust.read_order("w", &changed.into()).is_err(), "{to}");
        }
    }

    #[test]
    fn a_statement_of_one_kind_is_worthless_for_another() {
        let trust = trust(key("k"));
        let setting = SwitchSetting { off: true, number: 1, at: Timestamp::from_micros(1) };
        let stored = trust.sign_switch("off:add", setting).unwrap();
        assert_eq!(trust.read_switch("off:add", &stored), Ok(setting));
        assert!(trust.read_switch("queue:add", &stored).is_err());
        let note = OrderNote { action: WorkerAction::Ping, now: false, issued: setting.at, workers: vec![] };
        let stored = trust.sign_note("1", &note).unwrap();
        assert_eq!(trust.read_note("1", &stored), Ok((note, Some("k".to_owned()))));
        assert!(trust.read_note("2", &stored).is_err());
    }

    #[test]
    fn an_unsigned_order_is_obeyed_only_where_that_is_allowed() {
        let unsigned = Trust::new(None, false, None).sign_order("w", &order()).unwrap();
        assert!(trust(key("k")).read_order("w", &unsigned).unwrap_err().contains("--allow-unsigned"));
        let lenient = Trust::new(Some(key("k").into()), true, None);
        assert_eq!(lenient.read_order("w", &unsigned), Ok(order()));
        assert_eq!(Trust::new(None, false, None).read_order("w", &unsigned), Ok(order()));
    }

    #[test]
    fn a_key_that_is_for_some_tasks_or_not_for_control_commands_nobody() {
        let signed = trust(key("k")).sign_order("w", &order()).unwrap();
        for restricted in [key("k").for_tasks(["add"]).unwrap(), key("k").for_control(false)] {
            let trust = trust(restricted);
            assert!(trust.sign_order("w", &order()).unwrap_err().contains("may not command"));
            assert!(trust.read_order("w", &signed).unwrap_err().contains("may not command"));
        }
    }

    #[test]
    fn numbers_rise_also_when_the_clock_falls_back() {
        let now = Timestamp::from_micros(100);
        assert_eq!(next_number(now, None), 100);
        assert_eq!(next_number(now, Some(7)), 100);
        assert_eq!(next_number(now, Some(500)), 501);
    }
}
