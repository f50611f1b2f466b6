//! Reasons for which messages wait, by the task that each claims to be.
//!
//! The claim is not verified, so there is a fixed number of places, each expires within minutes, and none is in the record
//! of the task.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::MAX_ERROR_BYTES;
use crate::{
    app::App,
    backend::{BackendError, Commit, Expiry},
    broker::Message,
    id::{QueueName, RecordId, RecordKind, TaskId},
    record::{DeadReason, ErrorText, json},
    sign::sha256,
};

/// Number of places for each queue.
const PLACES: u32 = 10_000;
/// Time for which a place is kept. A waiting message is offered again each minute.
const PLACE_TTL: Duration = Duration::from_secs(180);
/// The fact of a place.
const WAITS: &str = "waits";

#[derive(Debug, Serialize, Deserialize)]
struct WaitingMessage {
    id: String,
    reason: String,
    error: String,
}

fn place(queue: &QueueName, id: &str) -> RecordId {
    let digest = sha256(id.as_bytes());
    let place = u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]) % PLACES;
    RecordId::new(RecordKind::DeadLetter, &format!("{queue} waiting #{place}"))
}

/// Notes that a message waits. Best effort.
pub(crate) async fn note_waiting(
    app: &App,
    queue: &QueueName,
    message: &Message,
    reason: DeadReason,
    error: &str,
) {
    let Some(id) = message.id.as_deref().filter(|id| TaskId::parse(id).is_ok()) else { return };
    let mut text = ErrorText::from(error);
    text.shorten(MAX_ERROR_BYTES);
    let reason = reason.as_str().to_owned();
    let waits = WaitingMessage { id: id.to_owned(), reason, error: text.chain.join(": ") };
    let mut commit = Commit::new(place(queue, id));
    commit.drop = vec![WAITS.into()];
    commit.facts = vec![(WAITS.into(), json(&waits))];
    commit.expiry = Expiry::After(PLACE_TTL);
    for answer in app.backend().commit(vec![commit.into()]).await {
        if let Err(error) = answer {
            tracing::debug!(%error, "it was not noted that a message waits");
        }
    }
}

/// Returns the reason for which a message waits that claims to be this task.
pub(super) async fn waiting_reason(
    app: &App,
    id: &TaskId,
    queue: &QueueName,
) -> Result<Option<String>, BackendError> {
    let facts = app.backend().read(&[place(queue, id.as_str())]).await?.pop().unwrap_or_default();
    let waits = facts.read::<WaitingMessage>(WAITS).filter(|waits| waits.id == id.as_str());
    Ok(waits.map(|waits| format!("{}: {}", waits.reason, waits.error)))
}
