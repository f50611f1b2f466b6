//! The lease of a session, and the times that follow from it.

use std::time::Duration;

/// The leases of a worker, as shares of one duration.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lease(Duration);

impl Lease {
    pub(super) const DEFAULT: Self = Self(Duration::from_secs(15));

    pub(super) const fn new(lease: Duration) -> Self {
        Self(lease)
    }

    pub(super) fn millis(self) -> usize {
        usize::try_from(self.0.as_millis()).unwrap_or(usize::MAX)
    }

    /// Time for which a session lives after its last renewal.
    pub(super) const fn duration(self) -> Duration {
        self.0
    }

    /// Interval between renewals of the session.
    pub(super) fn renewal(self) -> Duration {
        self.0 / 3
    }

    /// Minimum time between two looks at the record of a run that nobody has told of, and between two writes of the ids of
    /// the runs: every third renewal reaches it, which is once in a lease.
    pub(super) fn look_interval(self) -> Duration {
        self.0 - self.renewal() / 2
    }

    /// Interval between checks of other sessions.
    pub(super) fn check_interval(self) -> Duration {
        self.0 * 2 / 15
    }

    /// Minimum time between the two checks that find a session gone.
    pub(super) fn gone_confirmation(self) -> Duration {
        self.0 / 3
    }

    /// Maximum time until an expired session is known to be gone: the wait for the first check, the time between the
    /// two checks, the wait for the second, and one second for the answers.
    pub(super) fn detection_time(self) -> Duration {
        self.check_interval() * 2 + self.gone_confirmation() + Duration::from_secs(1)
    }

    /// Time for which a session is checked after a start was last refused because that session holds the task.
    pub(super) fn interest(self) -> Duration {
        self.0 * 4
    }
}
