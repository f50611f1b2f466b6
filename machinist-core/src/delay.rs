//! The part of a delay that the broker keeps, and the part that the worker waits for.

use std::time::Duration;

/// What comes no more than this too early is waited for by the worker, instead of being sent on another ride.
pub(crate) const NEARLY_DUE: Duration = Duration::from_millis(20);

/// For how long the broker is to keep what is due after `wait`: somewhat shorter, because what it delivers late can only
/// be late, and a worker waits for the rest to the millisecond. Clocks may differ by what is missing to [`NEARLY_DUE`].
pub(crate) fn keep_for(wait: Duration) -> Duration {
    const SOONER: Duration = Duration::from_millis(16);
    wait.saturating_sub(SOONER)
}
