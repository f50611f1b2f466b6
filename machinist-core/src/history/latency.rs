//! Sketch of many durations in little space, which merges by addition. Pure.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

/// Number of buckets in which a duration doubles.
const BUCKETS_PER_DOUBLING: f64 = 2.0;
/// Last bucket: about three days and all that is longer.
const LAST_BUCKET: u8 = 57;

/// Numbers of durations by their size, in 58 buckets whose limits grow by a factor of √2, from 1 ms up to three days.
///
/// The buckets are the same everywhere, so two sketches merge by addition. A quantile differs from the true one by a fifth
/// at most.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Latencies(BTreeMap<u8, u64>);

/// Returns the bucket of a duration: 0 below a millisecond.
fn bucket_of(duration: Duration) -> u8 {
    let millis = duration.as_secs_f64() * 1e3;
    if millis < 1.0 {
        return 0;
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it is between 1 and the last"
    )]
    let bucket = (millis.log2() * BUCKETS_PER_DOUBLING + 1.0).min(f64::from(LAST_BUCKET)) as u8;
    bucket
}

/// Returns the duration that stands for all of a bucket: the geometric middle.
fn middle_of(bucket: u8) -> Duration {
    let millis = match bucket {
        0 => 0.5,
        bucket => ((f64::from(bucket) - 0.5) / BUCKETS_PER_DOUBLING).exp2(),
    };
    Duration::from_secs_f64(millis / 1e3)
}

impl Latencies {
    /// Adds one duration.
    pub(crate) fn add(&mut self, duration: Duration) {
        *self.0.entry(bucket_of(duration)).or_default() += 1;
    }

    /// Adds all durations of another sketch.
    pub fn merge(&mut self, other: &Self) {
        for (bucket, count) in &other.0 {
            let sum = self.0.entry((*bucket).min(LAST_BUCKET)).or_default();
            *sum = sum.saturating_add(*count);
        }
    }

    /// Returns the number of durations.
    pub fn count(&self) -> u64 {
        self.0.values().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// Returns `true` if there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the duration that this share of all does not exceed, such as 0.95; `None` without durations.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let total = self.count();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a rank between 1 and the count; a rounded one is as good"
        )]
        let rank = ((total as f64 * share.clamp(0.0, 1.0)).ceil() as u64).max(1);
        let mut seen = 0_u64;
        for (bucket, count) in &self.0 {
            seen = seen.saturating_add(*count);
            if seen >= rank {
                return Some(middle_of(*bucket));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_quantile_is_near_the_truth_and_sketches_merge_by_addition(
            mut micros in prop::collection::vec(1_000_u64..200_000_000_000, 1..200),
            split in 0_usize..200,
            share in 0.01_f64..1.0,
        ) {
            let split = split.min(micros.len());
            let sketch = |part: &[u64]| {
                let mut sketch = Latencies::default();
                part.iter().for_each(|micros| sketch.add(Duration::from_micros(*micros)));
                sketch
            };
            let whole = sketch(&micros);
            let mut merged = sketch(&micros[..split]);
            merged.merge(&sketch(&micros[split..]));
            prop_assert_eq!(&merged, &whole);
            micros.sort_unstable();
            let rank = ((micros.len() as f64 * share).ceil() as usize).max(1);
            let truth = micros[rank - 1] as f64 / 1e6;
            let told = whole.quantile(share).unwrap().as_secs_f64();
            prop_assert!((told / truth - 1.0).abs() < 0.2, "{told} instead of {truth}");
        }
    }

    #[test]
    fn the_ends_are_kept_and_an_empty_sketch_tells_nothing() {
        assert_eq!(Latencies::default().quantile(0.5), None);
        let mut ends = Latencies::default();
        ends.add(Duration::ZERO);
        ends.add(Duration::from_secs(1 << 40));
        assert_eq!(ends.count(), 2);
        assert_eq!(bucket_of(Duration::from_secs(1 << 40)), LAST_BUCKET);
        let json = serde_json::to_string(&ends).unwrap();
        assert_eq!(json, r#"{"0":1,"57":1}"#);
        assert_eq!(serde_json::from_str::<Latencies>(&json).unwrap(), ends);
    }
}
