//! The time that a record is kept.

use std::time::Duration;

/// Time for which an unfinished record is kept beyond the instant for which it waits.
pub(crate) const UNFINISHED_TTL: Duration = Duration::from_secs(30 * 24 * 3600);

/// Minimum time for which a record is kept after its end: guards and duplicates may still arrive.
pub(crate) const MIN_RESULTS_TTL: Duration = Duration::from_secs(15 * 60);
