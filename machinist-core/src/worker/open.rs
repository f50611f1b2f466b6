//! Opening a delivery: what it claims, and what of that is believed.
//!
//! Everything here happens before the body is parsed and before anything is written. Only the headers that are
//! ours are read, and they are flat and bounded.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    broker::Message,
    clock::Timestamp,
    envelope::{DeadReason, Envelope, Unreadable},
    id::QueueName,
    limits::Limits,
    trust::{Doubt, Trust},
};

/// What a message turned out to be.
#[derive(Debug)]
pub(super) enum Opened {
    /// A task for this queue, from somebody who may send it.
    Task(Envelope),
    /// Authentic, and not to be run: its record is asked first, and then says why.
    Rejected(Envelope, DeadReason, String),
    /// Perhaps for a program that knows more (a newer wire, another key ring).
    NotYet(DeadReason, String),
    /// Nothing in it is believed, or it belongs elsewhere: no record is written.
    Dead(DeadReason, String),
}

/// Opens a message that came from a queue.
pub(super) fn open(
    trust: &Trust,
    limits: &Limits,
    queue: &QueueName,
    message: &Message,
    now: Timestamp,
) -> Opened {
    if let Some((what, size, limit)) = limits.exceeded(message) {
        let error = format!("its {what}: {size} bytes, and {limit} are the limit here");
        return Opened::Dead(DeadReason::TooLarge, error);
    }
    let mut envelope = match Envelope::read(message) {
        Ok(envelope) => envelope,
        Err(Unreadable::Header(error)) => return Opened::Dead(DeadReason::Undecodable, error),
        Err(error @ Unreadable::Version(_)) => {
            return Opened::NotYet(DeadReason::Undecodable, error.to_string());
        }
    };
    let seal = match trust.verify(&mut envelope, message) {
        Ok(seal) => seal,
        Err(Doubt::Nothing(reason, error)) => return Opened::Dead(reason, error),
        Err(Doubt::UnknownKey(error)) => return Opened::NotYet(DeadReason::UnknownKey, error),
    };
    if envelope.queue != *queue {
        let error = format!("it was sent to queue {:?}", envelope.queue);
        return Opened::Dead(DeadReason::WrongQueue, error);
    }
    match seal.and_then(|seal| trust.objection(&envelope, &seal, now)) {
        Some((reason, error)) => Opened::Rejected(envelope, reason, error),
        None => Opened::Task(envelope),
    }
}

/// How often the same reason is logged.
const QUIET: Duration = Duration::from_secs(10);

/// Counts what was refused, and says so without letting whoever sends it fill the log.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    count: AtomicU64,
    said: Mutex<Vec<Said>>,
}

/// What was last said of one reason.
#[derive(Debug)]
struct Said {
    reason: DeadReason,
    at: Instant,
    silently: u64,
}

impl Refusals {
    /// How many messages were refused.
    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Notes one. The error names what its message claims, but never repeats its body.
    pub(super) fn note(&self, queue: &QueueName, reason: DeadReason, error: &str) {
        self.count.fetch_add(1, Ordering::Relaxed);
        if let Some(silently) = self.to_be_said(reason, Instant::now()) {
            let reason = reason.as_str();
            tracing::warn!(%queue, reason, error, silently, "a message was refused and is a dead letter now");
        }
    }

    /// How many were passed over since the last line, if it is time for another.
    fn to_be_said(&self, reason: DeadReason, now: Instant) -> Option<u64> {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        match said.iter_mut().find(|said| said.reason == reason) {
            Some(said) if now.saturating_duration_since(said.at) < QUIET => {
                said.silently += 1;
                None
            }
            Some(said) => {
                said.at = now;
                Some(std::mem::take(&mut said.silently))
            }
            None => {
                said.push(Said { reason, at: now, silently: 0 });
                Some(0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_one_line() {
        let refusals = Refusals::default();
        let say = |reason| refusals.to_be_said(reason, Instant::now());
        assert_eq!(say(DeadReason::Unsigned), Some(0));
        assert_eq!(say(DeadReason::Stale), Some(0));
        for _ in 0..1000 {
            assert_eq!(say(DeadReason::Unsigned), None);
        }
        tokio::time::advance(QUIET).await;
        assert_eq!(say(DeadReason::Unsigned), Some(1000));
    }
}
