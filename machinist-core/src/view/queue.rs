//! A queue with its numbers.

use std::time::Duration;

use serde::Serialize;

use crate::QueueDetails;

/// Queue, as `queues` prints it. A number that is not known is `None`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct QueueView {
    /// Name.
    pub queue: String,
    /// Messages that wait for a worker; `None` if the queue does not exist.
    pub ready: Option<u64>,
    /// Maximum of `ready` for senders with this configuration.
    pub max_depth: Option<u64>,
    /// Messages that wait for their time.
    pub delayed: Option<u64>,
    /// Deliveries that are not settled.
    pub unacked: Option<u64>,
    /// Dead letters.
    pub dead: Option<u64>,
    /// Subscriptions of all processes.
    pub consumers: Option<u64>,
    /// Messages per second that came in.
    pub in_rate: Option<f64>,
    /// Messages per second that workers took.
    pub out_rate: Option<f64>,
    /// Time for which the oldest message waits at most, in seconds.
    pub oldest_age: Option<f64>,
    /// Time until the queue is empty, in seconds.
    pub empty_in: Option<f64>,
    /// `true` if no worker takes tasks from it until it is resumed.
    pub paused: bool,
}

/// Rounds to a thousandth: the numbers are estimates.
fn rounded(number: f64) -> f64 {
    (number * 1e3).round() / 1e3
}

impl From<&QueueDetails> for QueueView {
    fn from(details: &QueueDetails) -> Self {
        let seconds = |time: Option<Duration>| time.map(|time| rounded(time.as_secs_f64()));
        Self {
            queue: details.queue.to_string(),
            ready: details.ready,
            max_depth: details.max_depth,
            delayed: details.delayed,
            unacked: details.unacked,
            dead: details.dead,
            consumers: details.consumers,
            in_rate: details.in_rate.map(rounded),
            out_rate: details.out_rate.map(rounded),
            oldest_age: seconds(details.oldest_age),
            empty_in: seconds(details.empty_in),
            paused: details.paused,
        }
    }
}
