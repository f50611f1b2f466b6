//! Questions to the servers, and their answers as lists. Changes nothing.

use std::{collections::BTreeMap, time::Duration};

use machinist::{
    App, History, HistoryMark, HistorySelection, HistoryStep, QueueName, TaskFilter, TaskHistory, TaskSearch,
    Why, WorkerFilter,
    clock::Timestamp,
    event_stream::PublishedEvents,
    record::{Record, TaskState},
};

use super::{
    entries::{self, rate},
    filter::{FilterKey, ListFilter},
    listing::{Listing, Trend},
    question::TopQuestion,
};
use crate::{commands::queue_list, exit::CliError};

/// Time after which a question is given up.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// Time that the trends of the overview show.
const TREND: Duration = Duration::from_secs(20 * 60);
/// Maximum number of tasks in the list.
const MAX_TASKS: usize = 500;
/// Maximum number of pages that are searched for them.
const MAX_PAGES: usize = 5;

/// Everything that is needed to ask.
#[derive(Debug, Clone)]
pub(super) struct Asker {
    pub(super) app: App,
    /// Queues of the settings: they belong to every list.
    pub(super) configured: Vec<QueueName>,
    /// Events of this process, which say what the list of ended tasks has.
    pub(super) events: PublishedEvents,
}

impl Asker {
    /// Returns the answer, or the reason that there is none.
    pub(super) async fn ask(&self, question: &TopQuestion) -> Result<Listing, String> {
        match tokio::time::timeout(ANSWER_TIMEOUT, self.answer(question)).await {
            Ok(answer) => answer.map_err(|error| error.text),
            Err(_) => Err(format!("it took more than {} s", ANSWER_TIMEOUT.as_secs())),
        }
    }

    async fn answer(&self, question: &TopQuestion) -> Result<Listing, CliError> {
        let (client, now) = (self.app.client(), self.app.clock().now());
        Ok(match question {
            TopQuestion::Queues => entries::queues(&queue_list::details(&self.app, &self.configured).await?),
            TopQuestion::Workers => entries::workers(&client.workers(&WorkerFilter::new()).await?, now),
            TopQuestion::Tasks(filter) => self.tasks(filter, now).await?,
            TopQuestion::Failures => entries::failures(&client.failures(None).await?, now),
            TopQuestion::History => {
                history(&client.history(now.minus(TREND), &HistorySelection::new()).await?, now)
            }
            TopQuestion::Reason(id) => reason(client.why(id).await?),
            TopQuestion::QueueReason(queue) => reason(client.why_queue(queue).await?),
        })
    }

    /// Searches tasks page by page, until there are enough that fit.
    async fn tasks(&self, filter: &ListFilter, now: Timestamp) -> Result<Listing, CliError> {
        let state = filter.get(FilterKey::State).and_then(entries::state_of).unwrap_or(TaskState::Started);
        let exact = |key| filter.get(key).filter(|text| !text.ends_with('*')).map(str::to_owned);
        let mut wanted = TaskFilter::new();
        wanted.state = Some(state);
        (wanted.name, wanted.queue) = (exact(FilterKey::Name), exact(FilterKey::Queue));
        (wanted.worker, wanted.error) =
            (exact(FilterKey::Worker), filter.get(FilterKey::Error).map(str::to_owned));
        let mut search = TaskSearch::new(wanted);
        search.limit = MAX_TASKS;
        let client = self.app.client();
        let (mut tasks, mut looked_at, mut notes) = (Vec::new(), 0, Vec::new());
        for page in 1..=MAX_PAGES {
            let found = client.search_tasks(&search).await?;
            looked_at += found.looked_at;
            let fits = |record: &Record| filter.fits(&entries::task_facets(record), &FilterKey::ALL);
            tasks.extend(found.records.iter().filter(|record| fits(record)).cloned());
            let is_last = found.next.is_none() || tasks.len() >= MAX_TASKS || page == MAX_PAGES;
            if is_last {
                if found.next.is_some() {
                    notes.push(format!("there may be more: it looked at {looked_at} ended tasks"));
                }
                notes.extend(entries::task_notes(&found, state, self.events));
                break;
            }
            search.after = found.next;
        }
        tasks.truncate(MAX_TASKS);
        Ok(Listing { notes, ..entries::tasks(&tasks, now) })
    }
}

fn mark_text(mark: &HistoryMark, now: Timestamp) -> String {
    format!("{} ({} ago)", mark.text, entries::time(Some(now.since(mark.at))))
}

/// Returns an answer to the question why something stands still.
fn reason(why: Why) -> Listing {
    let reason = format!("{} ({})", why.reason.as_str(), why.class.as_str());
    let sums = vec![("why", reason), ("", why.sentence), ("advice", why.advice)];
    Listing { sums, ..Listing::default() }
}

/// Returns the rates of the last minute, and the trends of the last minutes.
fn history(history: &History, now: Timestamp) -> Listing {
    let width = HistoryStep::TenSeconds.width();
    let begin = |at: Timestamp| at.as_micros() / i64::try_from(width.as_micros()).unwrap_or(i64::MAX);
    // The newest bucket is not over, and the one before is stored some seconds later.
    let end = begin(now) - 1;
    let count = i64::try_from(TREND.as_secs() / width.as_secs()).unwrap_or(i64::MAX);
    let mut sums: BTreeMap<i64, (TaskHistory, u64)> = BTreeMap::new();
    for point in &history.points {
        sums.insert(begin(point.at), (point.sum(), point.of_all_queues().ready));
    }
    let trend = |label, value: fn(&(TaskHistory, u64)) -> u64| Trend {
        label,
        values: (end - count..end).map(|at| sums.get(&at).map_or(0, value)).collect(),
    };
    let mut minute = TaskHistory::default();
    let last = sums.range(end - 6..end).map(|(_, (sum, _))| sum);
    last.for_each(|sum| minute.merge(sum));
    let wait = minute.received.times.quantile(0.95);
    let per_second = |count: u64| rate(Some(count as f64 / 60.0));
    let mut notes = Vec::new();
    if history.lost > 0 {
        notes.push(format!("{} things were counted and could not be stored", history.lost));
    }
    let mark = history.marks.last().map(|mark| ("last mark", mark_text(mark, now)));
    let rates = [
        ("succeeded/s", per_second(minute.succeeded.count)),
        ("failed/s", per_second(minute.failed.count)),
        ("retried/s", per_second(minute.retried.count)),
        ("wait p95", entries::time(wait)),
    ];
    Listing {
        sums: rates.into_iter().chain(mark).collect(),
        trends: vec![
            trend("succeeded", |(sum, _)| sum.succeeded.count),
            trend("failed", |(sum, _)| sum.failed.count),
            trend("ready", |(_, ready)| *ready),
        ],
        wrong: notes,
        ..Listing::default()
    }
}
