//! Policies of a periodic task: missed ticks, ticks that overlap, jitter, start and end. Pure.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{clock::Timestamp, sign::sha256};

/// Default age up to which a missed tick is made up for.
const DEFAULT_CATCH_UP: Duration = Duration::from_secs(24 * 3600);
/// Maximum age up to which missed ticks are made up for.
pub(super) const MAX_CATCH_UP: Duration = Duration::from_secs(7 * 24 * 3600);
/// Maximum jitter.
pub(super) const MAX_JITTER: Duration = Duration::from_secs(24 * 3600);

macro_rules! words {
    ($(#[$doc:meta])* $name:ident, $what:literal: $($(#[$variant_doc:meta])* $variant:ident $word:literal)*) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
        #[serde(rename_all = "lowercase")]
        #[non_exhaustive]
        pub enum $name { $($(#[$variant_doc])* $variant),* }

        impl $name {
            /// Every value.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// Returns the value as a word.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),* }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl $name {
            /// Reads a word.
            ///
            /// # Errors
            /// A sentence that lists the words.
            pub fn parse(text: &str) -> Result<Self, String> {
                Self::ALL.iter().copied().find(|known| known.as_str() == text).ok_or_else(|| {
                    let known: Vec<_> = Self::ALL.iter().map(|known| known.as_str()).collect();
                    format!("{text:?} is not a policy for {}; write one of {}", $what, known.join(", "))
                })
            }
        }
    };
}

words! {
    /// Treatment of missed ticks: those that no worker sent within a minute, because none was there.
    Misfire, "missed ticks":
    /// Sends none of them.
    Skip "skip"
    /// Sends the newest of them, if it is not older than the catch-up time.
    #[default]
    Once "once"
    /// Sends all of them that are not older than the catch-up time, at most the newest 1000.
    All "all"
}

words! {
    /// Treatment of a tick when the task of the last tick has not ended. A task without a record counts as ended.
    Overlap, "ticks that overlap":
    /// Sends it.
    #[default]
    Allow "allow"
    /// Leaves it out.
    Skip "skip"
    /// Sends it when the last one has ended.
    Queue "queue"
    /// Revokes the last one, and sends it.
    Cancel "cancel"
}

words! {
    /// Owner of a periodic task: the place where its definition is changed and removed.
    Source, "the owner":
    /// The backend: it was added while the installation ran.
    #[default]
    Live "live"
    /// A file of settings.
    File "file"
    /// The code of an application.
    Code "code"
}

/// Policies of a periodic task.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Policies {
    /// Treatment of missed ticks.
    #[serde(default)]
    pub misfire: Misfire,
    /// Treatment of a tick when the last one has not ended.
    #[serde(default)]
    pub overlap: Overlap,
    /// Maximum time by which a tick is sent later than its instant. The time is a hash of name and instant.
    #[serde(default, skip_serializing_if = "Duration::is_zero")]
    pub jitter: Duration,
    /// Time before which there are no ticks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Timestamp>,
    /// Time after which there are no ticks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// Age up to which a missed tick is made up for.
    pub catch_up: Duration,
}

impl Default for Policies {
    fn default() -> Self {
        Self {
            misfire: Misfire::default(),
            overlap: Overlap::default(),
            jitter: Duration::ZERO,
            from: None,
            until: None,
            catch_up: DEFAULT_CATCH_UP,
        }
    }
}

impl Policies {
    /// Returns the delay of a tick: the same for every worker, and spread evenly over the jitter.
    pub(super) fn delay(&self, name: &str, tick: Timestamp) -> Duration {
        let Some(micros) = u64::try_from(self.jitter.as_micros()).ok().filter(|micros| *micros > 0) else {
            return Duration::ZERO;
        };
        let hash = sha256(format!("{name}\0{}", tick.as_micros()).as_bytes());
        let [a, b, c, d, e, f, g, h, ..] = hash;
        Duration::from_micros(u64::from_be_bytes([a, b, c, d, e, f, g, h]) % micros)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_read_as_their_words_and_the_error_names_them() {
        for overlap in Overlap::ALL {
            assert_eq!(Overlap::parse(overlap.as_str()), Ok(*overlap));
            assert_eq!(serde_json::to_string(overlap).unwrap(), format!("\"{overlap}\""));
        }
        let error = Misfire::parse("twice").unwrap_err();
        assert_eq!(error, "\"twice\" is not a policy for missed ticks; write one of skip, once, all");
    }

    #[test]
    fn jitter_is_the_same_for_every_worker_and_below_its_maximum() {
        let policies = Policies { jitter: Duration::from_secs(60), ..Policies::default() };
        let delays: Vec<_> =
            (0..100).map(|n| policies.delay("nightly", Timestamp::from_micros(n * 1_000_000))).collect();
        assert!(delays.iter().all(|delay| *delay < Duration::from_secs(60)));
        let early = delays.iter().filter(|delay| **delay < Duration::from_secs(30)).count();
        assert!((30..70).contains(&early), "{early} of 100 are in the first half");
        assert_eq!(policies.delay("nightly", Timestamp::from_micros(7_000_000)), delays[7]);
        assert_ne!(policies.delay("hourly", Timestamp::from_micros(7_000_000)), delays[7]);
        assert_eq!(Policies::default().delay("nightly", Timestamp::from_micros(0)), Duration::ZERO);
    }
}
