//! Time of a test: it stands still unless everything waits for it.

use std::time::Duration;

use tokio::time::Instant;

/// Pauses tokio's clock, if it runs.
///
/// # Panics
/// In a runtime of several threads, whose clock cannot be paused.
pub(crate) fn pause() {
    let before = Instant::now();
    // A clock that runs has moved after this.
    std::thread::sleep(Duration::from_millis(1));
    if Instant::now() != before {
        tokio::time::pause();
    }
}
