//! The part of a delay that the broker keeps, and the part that the worker waits for.

use std::time::Duration;

use crate::broker::Broker;

/// Maximum time that a worker waits for a delivery that comes too early. An earlier one is published again, with the
/// remaining delay.
pub(crate) const NEARLY_DUE: Duration = Duration::from_millis(20);

/// Returns the delay for the broker of a message that is due after `wait`. It is somewhat shorter: a late delivery can only
/// be late, and a worker waits for the rest to the millisecond. Clocks may differ by the remainder to [`NEARLY_DUE`].
///
/// No delay is longer than the broker's longest. A worker that receives the message before its time publishes it again,
/// with the remaining delay.
pub(crate) fn keep_for(wait: Duration, broker: &dyn Broker) -> Duration {
    const SOONER: Duration = Duration::from_millis(16);
    let longest = broker.capabilities().max_delay.unwrap_or(Duration::MAX);
    wait.saturating_sub(SOONER).min(longest)
}
