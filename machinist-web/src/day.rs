//! The last 24 hours of the history, reduced to what the charts show. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use machinist::{History, HistoryMark, QueueGauges, TaskHistory, clock::Timestamp};

/// Time that the charts show.
pub(crate) const DAY: Duration = Duration::from_secs(24 * 3600);
const HOUR_MICROS: i64 = 3600 * 1_000_000;
/// Shortest time of which a rate is the mean: the last bucket has just begun, and its first part is not written yet.
const SHORTEST_SPAN: Duration = Duration::from_secs(60);

/// History of a day, of all queues together and of each one.
#[derive(Debug)]
pub(crate) struct DayHistory {
    all: Vec<DayPoint>,
    queues: BTreeMap<String, Vec<DayPoint>>,
    /// Marks, the earliest first.
    pub(crate) marks: Vec<HistoryMark>,
    /// Time at which it was read.
    pub(crate) now: Timestamp,
    /// Length of a bucket.
    width: Duration,
}

/// Bucket of the history of one queue, or of all.
#[derive(Debug, Clone, PartialEq)]
struct DayPoint {
    at: Timestamp,
    taken: u64,
    failed: u64,
    /// Messages that waited, and the age of the oldest; `None` if nobody has measured them.
    measured: Option<(u64, Duration)>,
    wait_p95: Option<Duration>,
}

/// Bucket as a chart or a row of a table shows it. A number that is not known is `None`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct DaySlot {
    /// Begin.
    pub(crate) at: Timestamp,
    /// Length, in minutes.
    pub(crate) minutes: f64,
    /// Messages that came in: those that were taken, and those by which the queue has grown.
    pub(crate) into: Option<f64>,
    /// Messages that workers have taken.
    pub(crate) out: Option<f64>,
    /// Tasks that have ended in FAILURE.
    pub(crate) failed: Option<f64>,
    /// Largest number of messages that waited.
    pub(crate) ready: Option<f64>,
    /// Age of the oldest message, in seconds.
    pub(crate) oldest_age: Option<f64>,
    /// Time that 95 % of the messages waited at most, in seconds.
    pub(crate) wait_p95: Option<f64>,
}

impl DayPoint {
    fn new(at: Timestamp, tasks: &TaskHistory, gauges: Option<&QueueGauges>) -> Self {
        Self {
            at,
            taken: tasks.received.count,
            failed: tasks.failed.count,
            measured: gauges.map(|gauges| (gauges.ready, gauges.oldest_age())),
            wait_p95: tasks.received.times.quantile(0.95),
        }
    }
}

impl DayHistory {
    /// Reduces a history that was read at this time.
    pub(crate) fn of(history: &History, now: Timestamp) -> Self {
        let mut all = Vec::with_capacity(history.points.len());
        let mut queues: BTreeMap<String, Vec<DayPoint>> = BTreeMap::new();
        for point in &history.points {
            let gauges = (!point.queues.is_empty()).then(|| point.of_all_queues());
            all.push(DayPoint::new(point.at, &point.sum(), gauges.as_ref()));
            let names: BTreeSet<&String> = point.tasks.keys().chain(point.queues.keys()).collect();
            for name in names {
                let mut sum = TaskHistory::default();
                let tasks = point.tasks.get(name).into_iter().flat_map(BTreeMap::values);
                tasks.for_each(|history| sum.merge(history));
                let reduced = DayPoint::new(point.at, &sum, point.queues.get(name));
                queues.entry(name.clone()).or_default().push(reduced);
            }
        }
        Self { all, queues, marks: history.marks.clone(), now, width: history.step.width() }
    }

    /// Returns the buckets of a queue, or of all queues together; empty if nothing is recorded.
    pub(crate) fn slots(&self, queue: Option<&str>) -> Vec<DaySlot> {
        let points = match queue {
            None => Some(&self.all),
            Some(queue) => self.queues.get(queue),
        };
        points.map(|points| slots(points, self.width, self.now)).unwrap_or_default()
    }
}

/// Returns a slot for each bucket from the first that is known up to now.
fn slots(points: &[DayPoint], width: Duration, now: Timestamp) -> Vec<DaySlot> {
    let Some(earliest) = points.first() else { return Vec::new() };
    let micros = i64::try_from(width.as_micros()).unwrap_or(i64::MAX).max(1);
    let begin = now.minus(DAY).as_micros().div_euclid(micros) * micros;
    let first = Timestamp::from_micros(begin);
    let mut measured = points.iter().filter(|point| point.at < first).rev().find_map(measurement);
    let known_from = earliest.at.max(first);
    let mut slots = Vec::new();
    let mut at = first;
    while at <= now {
        let point = points.binary_search_by_key(&at, |point| point.at).ok().map(|index| &points[index]);
        if at >= known_from {
            let span = now.since(at).clamp(SHORTEST_SPAN.min(width), width);
            slots.push(slot(at, span, point, measured));
            measured = point.and_then(measurement).or(measured);
        }
        at = at.plus(Duration::from_micros(micros.unsigned_abs()));
    }
    slots
}

fn measurement(point: &DayPoint) -> Option<(Timestamp, u64)> {
    point.measured.map(|(ready, _)| (point.at, ready))
}

/// Returns the slot of a bucket; a bucket without a point is one in which nothing was counted or measured.
fn slot(
    at: Timestamp,
    span: Duration,
    point: Option<&DayPoint>,
    before: Option<(Timestamp, u64)>,
) -> DaySlot {
    let taken = point.map_or(0.0, |point| point.taken as f64);
    let measured = point.and_then(|point| point.measured);
    let into = measured.map(|(ready, _)| match before {
        // It may have grown since long ago: what it has grown by belongs to all of that time.
        Some((since, before)) => {
            let grown = (ready as f64 - before as f64) * span.as_secs_f64();
            (taken + grown / at.since(since).as_secs_f64().max(1.0)).max(0.0)
        }
        None => taken,
    });
    DaySlot {
        at,
        minutes: span.as_secs_f64() / 60.0,
        into,
        out: Some(taken),
        failed: Some(point.map_or(0.0, |point| point.failed as f64)),
        ready: measured.map(|(ready, _)| ready as f64),
        oldest_age: measured.map(|(_, age)| age.as_secs_f64()),
        wait_p95: point.and_then(|point| point.wait_p95).map(|wait| wait.as_secs_f64()),
    }
}

/// Returns the slots of each hour as one, the latest first: sums of what happened, and the largest of the rest.
pub(crate) fn hours(slots: &[DaySlot]) -> Vec<DaySlot> {
    let mut hours: Vec<DaySlot> = Vec::new();
    for slot in slots {
        let at = slot.at.as_micros().div_euclid(HOUR_MICROS) * HOUR_MICROS;
        match hours.last_mut().filter(|hour| hour.at.as_micros() == at) {
            Some(hour) => join(hour, slot),
            None => hours.push(DaySlot { at: Timestamp::from_micros(at), ..*slot }),
        }
    }
    hours.reverse();
    hours
}

fn join(hour: &mut DaySlot, slot: &DaySlot) {
    let sum = |a: Option<f64>, b: Option<f64>| a.zip(b).map(|(a, b)| a + b).or(a).or(b);
    let largest = |a: Option<f64>, b: Option<f64>| a.zip(b).map(|(a, b)| a.max(b)).or(a).or(b);
    hour.minutes += slot.minutes;
    hour.into = sum(hour.into, slot.into);
    hour.out = sum(hour.out, slot.out);
    hour.failed = sum(hour.failed, slot.failed);
    hour.ready = largest(hour.ready, slot.ready);
    hour.oldest_age = largest(hour.oldest_age, slot.oldest_age);
    hour.wait_p95 = largest(hour.wait_p95, slot.wait_p95);
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDTH: Duration = Duration::from_secs(600);

    /// Returns an instant by its minute after a full hour.
    fn minute(minute: i64) -> Timestamp {
        Timestamp::from_micros((100_002 * 600 + minute * 60) * 1_000_000)
    }

    fn point(at: i64, taken: u64, ready: Option<u64>) -> DayPoint {
        let measured = ready.map(|ready| (ready, Duration::from_secs(ready)));
        DayPoint { at: minute(at), taken, failed: 1, measured, wait_p95: Some(Duration::from_secs(taken)) }
    }

    #[test]
    fn what_went_in_is_what_came_out_and_what_there_is_more_of() {
        let points = [point(0, 10, Some(5)), point(10, 20, Some(15)), point(20, 30, Some(0))];
        let slots = slots(&points, WIDTH, minute(29));
        let into: Vec<_> = slots.iter().map(|slot| slot.into).collect();
        // The last bucket is nine minutes old: it has lost 15 messages in ten.
        assert_eq!(into, [Some(10.0), Some(30.0), Some(16.5)]);
        assert_eq!(slots[2].minutes, 9.0);
        assert_eq!((slots[1].out, slots[1].failed, slots[1].ready), (Some(20.0), Some(1.0), Some(15.0)));
    }

    #[test]
    fn a_time_without_workers_is_a_gap_and_not_a_peak() {
        let points = [point(0, 10, Some(0)), point(60, 0, Some(600))];
        let slots = slots(&points, WIDTH, minute(70));
        assert_eq!(slots.len(), 8);
        assert_eq!((slots[3].into, slots[3].ready, slots[3].out), (None, None, Some(0.0)));
        assert_eq!(slots[6].into, Some(100.0), "600 messages have come in an hour");
    }

    #[test]
    fn a_day_has_its_buckets_and_nothing_before_what_is_known() {
        let old = point(-24 * 60 - 10, 1, Some(7));
        let whole: Vec<DayPoint> =
            [old].into_iter().chain((-144..=0).map(|n| point(n * 10, 1, Some(7)))).collect();
        assert_eq!(slots(&whole, WIDTH, minute(5)).len(), 145);
        assert_eq!(slots(&whole[100..], WIDTH, minute(5)).len(), 46);
        assert_eq!(slots(&[], WIDTH, minute(5)), []);
    }

    #[test]
    fn hours_add_up_and_keep_the_largest() {
        let points: Vec<DayPoint> = (0..9).map(|n| point(n * 10, 10, Some(5))).collect();
        let hours = hours(&slots(&points, WIDTH, minute(90)));
        assert_eq!(hours.len(), 2);
        assert!(hours[0].at > hours[1].at);
        assert_eq!((hours[1].out, hours[1].ready, hours[1].wait_p95), (Some(60.0), Some(5.0), Some(10.0)));
        assert_eq!(hours[0].out, Some(30.0));
    }
}
