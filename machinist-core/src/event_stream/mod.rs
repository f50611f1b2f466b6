//! Events of the whole installation: each process publishes its own in batches, and readers see them all within a second.
//!
//! A batch is a record that expires after a minute, and a line in an index. Batches of a process are numbered, so a reader knows
//! when it has missed some. Nothing derives state from events: the records tell it.
//!
//! # Why not a channel of the server
//! A published message is gone for those who do not listen at that moment, and each backend would need a second way to send.
//! The index keeps events for a while for late readers, over what every backend has.

mod publisher;
mod reader;
mod streamed;

pub(crate) use publisher::EventPublisher;
pub use publisher::PublishedEvents;
pub use reader::{EventFilter, EventStream};
pub use streamed::StreamedEvent;

use std::time::Duration;

/// Time for which a batch is kept for late readers.
const KEPT_FOR: Duration = Duration::from_secs(60);
