//! How long and how much.

use std::time::Duration;

/// How long faults are, and how fast leases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Size {
    /// Short faults and leases: all scenarios in about 17 minutes.
    Smoke,
    /// Leases as they are by default, faults of a minute.
    Nightly,
}

impl Size {
    /// The workers' session lease.
    pub(crate) fn lease(self) -> Duration {
        match self {
            Self::Smoke => Duration::from_secs(3),
            Self::Nightly => Duration::from_secs(15),
        }
    }

    /// How long a fault lasts that has a length.
    pub(crate) fn fault(self) -> Duration {
        match self {
            Self::Smoke => Duration::from_secs(5),
            Self::Nightly => Duration::from_secs(60),
        }
    }

    /// How long RabbitMQ is stopped without a word: longer than heartbeats and probes are patient with at the nightly size,
    /// than probes at the other.
    pub(crate) fn freeze(self) -> Duration {
        match self {
            Self::Smoke => Duration::from_secs(15),
            Self::Nightly => Duration::from_secs(40),
        }
    }

    /// Load before and after the fault.
    pub(crate) fn calm(self) -> Duration {
        match self {
            Self::Smoke => Duration::from_secs(3),
            Self::Nightly => Duration::from_secs(20),
        }
    }

    /// How often something is repeated.
    pub(crate) fn rounds(self) -> u32 {
        match self {
            Self::Smoke => 4,
            Self::Nightly => 20,
        }
    }

    /// Number of workflows of each shape that are sent in one go. At night the kills of workers, RabbitMQ and Redis together
    /// meet more than 10,000 chords.
    pub(crate) fn flows(self) -> usize {
        match self {
            Self::Smoke => 8,
            Self::Nightly => 110,
        }
    }

    /// Number of workers that tick and hold slots.
    pub(crate) fn fleet(self) -> usize {
        match self {
            Self::Smoke => 4,
            Self::Nightly => 10,
        }
    }

    /// Number of periodic tasks, each of which ticks once a second; of the shards too.
    pub(crate) fn periodic(self) -> usize {
        match self {
            Self::Smoke => 5,
            Self::Nightly => 20,
        }
    }

    /// Number of workers that are paused together.
    pub(crate) fn crowd(self) -> usize {
        match self {
            Self::Smoke => 8,
            Self::Nightly => 50,
        }
    }

    /// Number of keys of limited tasks.
    pub(crate) fn keys(self) -> usize {
        match self {
            Self::Smoke => 20,
            Self::Nightly => 1000,
        }
    }

    /// How long workers of the fleet are killed at random.
    pub(crate) fn ticking(self) -> Duration {
        match self {
            Self::Smoke => Duration::from_secs(12),
            Self::Nightly => Duration::from_secs(600),
        }
    }

    /// Tasks a second, of each sender. At 80 tasks of this mix a second all workers together would be busy: what waits
    /// when a fault is over is then what the fault has held up, and no more.
    pub(crate) fn rate(self) -> usize {
        match self {
            Self::Smoke => 40,
            Self::Nightly => 60,
        }
    }

    /// How long the queues may take to become empty when all is well again: a guard stays away for 15 s, and the
    /// next one for 30 s; and RabbitMQ passes a delayed message that it was moving when it crashed on some time later.
    /// At night some 25 tasks end their process, five times each, and each time a lease and a guard go by.
    pub(crate) fn drain(self) -> Duration {
        match self {
            Self::Smoke => Duration::from_secs(120),
            Self::Nightly => Duration::from_secs(600),
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Smoke => "smoke",
            Self::Nightly => "nightly",
        }
    }
}
