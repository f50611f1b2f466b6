//! Broker and backend inside one process, for `memory://`.
//!
//! They are the shortest complete implementation of the two seams, so an adapter's author reads them first. They are
//! also products: an application that needs no second process runs on them. Nothing survives the process. Both follow
//! tokio's clock, so that everything above them can be tested under paused time.

mod backend;
mod broker;
mod queues;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use backend::MemoryBackend;
pub use broker::MemoryBroker;
pub use queues::{HeldMessage, MessagePlace};

/// Locks a mutex. Every change under these locks is complete before anything in it can panic, so a poisoned state is
/// consistent.
fn lock<T>(state: &Mutex<T>) -> MutexGuard<'_, T> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
