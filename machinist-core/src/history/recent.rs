//! The last minute of the history, for the rates of queues.

use std::time::Duration;

use super::{HistoryBucket, HistoryStep};
use crate::{
    backend::{Backend, BackendError},
    clock::Timestamp,
};

/// Time of which rates are the mean.
const SPAN: Duration = Duration::from_secs(60);
/// Time after which the parts of a bucket have been written.
const WRITTEN_AFTER: Duration = Duration::from_secs(3);

/// Buckets of the last minute that are over, the earliest first.
#[derive(Debug)]
pub(crate) struct RecentHistory {
    buckets: Vec<(Timestamp, HistoryBucket)>,
    end: Timestamp,
}

/// Messages per second, into a queue and out of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct QueueRates {
    pub(crate) into: f64,
    pub(crate) out: f64,
}

impl RecentHistory {
    /// Reads it.
    pub(crate) async fn read(backend: &dyn Backend, now: Timestamp) -> Result<Self, BackendError> {
        let step = HistoryStep::TenSeconds;
        let end = step.begin(now.minus(WRITTEN_AFTER));
        let begins: Vec<Timestamp> = step.begins(end.minus(SPAN), end).collect();
        let records: Vec<_> = begins.iter().map(|begin| step.record(*begin)).collect();
        let mut buckets = Vec::new();
        for (begin, facts) in begins.into_iter().zip(backend.read_each(&records).await?) {
            let mut bucket = HistoryBucket::default();
            // A record that another program has spoilt is left out.
            if let Ok(facts) = facts {
                bucket.merge_facts(&facts);
            }
            buckets.push((begin, bucket));
        }
        Ok(Self { buckets, end })
    }

    /// Returns the rates of a queue in which so many messages wait now; `None` if nobody has measured it in that time.
    ///
    /// What went in is what came out and what there is more of now.
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    pub(crate) fn rates(&self, queue: &str, ready: u64, now: Timestamp) -> Option<QueueRates> {
        let measured = |(_, bucket): &&(Timestamp, HistoryBucket)| bucket.queues.contains_key(queue);
        let (from, first) = self.buckets.iter().find(measured)?;
        let before = first.queues.get(queue)?.ready;
        let received = |bucket: &HistoryBucket| -> u64 {
            bucket.tasks.get(queue).map_or(0, |tasks| tasks.values().map(|task| task.received.count).sum())
        };
        let since = self.buckets.iter().filter(|(begin, _)| begin >= from);
        let taken: u64 = since.map(|(_, bucket)| received(bucket)).sum();
        let out = taken as f64 / self.end.since(*from).as_secs_f64().max(1.0);
        // It was measured somewhere in its bucket.
        let measured_at = from.plus(HistoryStep::TenSeconds.width() / 2);
        let grown = (ready as f64 - before as f64) / now.since(measured_at).as_secs_f64().max(1.0);
        Some(QueueRates { into: (out + grown).max(0.0), out })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{QueueGauges, TaskHistory};

    #[test]
    fn rates_follow_from_what_was_taken_and_how_the_queue_has_grown() {
        let at = |seconds: i64| Timestamp::from_micros(seconds * 1_000_000);
        let mut bucket = HistoryBucket::default();
        let mut taken = TaskHistory::default();
        (0..100).for_each(|_| taken.received.add(Some(Duration::ZERO)));
        bucket.add("q", "a", &taken);
        bucket.queues.insert("q".into(), QueueGauges::new([50, 0, 1], Duration::ZERO, [0, 1]));
        let buckets = vec![(at(100), bucket.clone()), (at(110), bucket)];
        let recent = RecentHistory { buckets, end: at(120) };
        let rates = recent.rates("q", 150, at(125)).unwrap();
        assert!((rates.out - 10.0).abs() < 1e-9 && (rates.into - 15.0).abs() < 1e-9, "{rates:?}");
        let rates = recent.rates("q", 0, at(125)).unwrap();
        assert!((rates.into - 7.5).abs() < 1e-9, "{rates:?}");
        assert_eq!(recent.rates("p", 0, at(125)), None);
    }
}
