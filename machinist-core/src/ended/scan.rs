//! Scan of the list, from the newest batches back, a part at a time.

use std::{collections::HashMap, time::Duration};

use super::{
    BATCH_SPAN, EndedRow, LISTED_FOR,
    list::{EndedBatch, batch_record},
};
use crate::{
    backend::{Backend, BackendError, Index, IndexUpdate},
    clock::Timestamp,
};

/// First part of the time that is listed at once. Each further part is four times as long.
const FIRST_WINDOW: Duration = Duration::from_secs(60);
/// Number of index entries that are listed at once.
const PAGE_SIZE: usize = 1000;
/// Maximum number of batches that are read at once.
const BATCHES_AT_ONCE: usize = 50;
/// Number of rows from which no further batch is read with the others.
const ROWS_AT_ONCE: u64 = 1000;
/// Maximum number of pages that are listed to count what was not looked at.
const MAX_COUNTED_PAGES: usize = 100;

/// Rows that were read together.
#[derive(Debug)]
pub(crate) struct ScannedRows {
    /// Rows that ended later than this have all been read.
    pub(crate) complete_from: Timestamp,
    pub(crate) rows: Vec<EndedRow>,
}

/// Scan of the list.
#[derive(Debug)]
pub(crate) struct EndedScan {
    /// Only failed tasks, or only others.
    has_failed: Option<bool>,
    begin: Timestamp,
    /// Batches from here on are listed.
    end: Timestamp,
    window: Duration,
    /// Batches that are listed and not read, the oldest first.
    unread: Vec<(Timestamp, String, EndedBatch)>,
    /// Number of rows that were read.
    pub(crate) looked_at: u64,
    /// Number of rows that were listed.
    pub(crate) listed: u64,
    /// Rows that were cut off, by list.
    cut: HashMap<String, u64>,
    pages: usize,
}

impl EndedScan {
    /// Begins a scan of tasks that ended between two instants, if they are given.
    pub(crate) async fn begin(
        backend: &dyn Backend,
        has_failed: Option<bool>,
        since: Option<Timestamp>,
        until: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<Self, BackendError> {
        let kept = now.minus(LISTED_FOR + BATCH_SPAN);
        // The clocks of processes differ by less than this.
        let newest = now.plus(FIRST_WINDOW);
        let earliest = backend.list(&Index::Ended, None, 1).await?.pop().map_or(newest, |(at, _)| at);
        Ok(Self {
            has_failed,
            begin: since.unwrap_or(kept).max(kept).max(earliest),
            // A batch may hold tasks that ended before its last one.
            end: until.map_or(newest, |at| at.plus(BATCH_SPAN)).min(newest),
            window: FIRST_WINDOW,
            unread: Vec::new(),
            looked_at: 0,
            listed: 0,
            cut: HashMap::new(),
            pages: 0,
        })
    }

    /// Number of rows that bounds have cut off.
    pub(crate) fn cut(&self) -> u64 {
        self.cut.values().sum()
    }

    /// Reads the next part. Returns `None` at the end.
    pub(crate) async fn next(&mut self, backend: &dyn Backend) -> Result<Option<ScannedRows>, BackendError> {
        while self.unread.is_empty() {
            if !self.list_window(backend).await? {
                return Ok(None);
            }
        }
        let batches = self.newest_unread();
        let complete_from = batches.first().map_or(self.begin, |(at, ..)| *at);
        let records: Vec<_> = batches.iter().map(|(_, member, _)| batch_record(member)).collect();
        let (mut rows, mut over) = (Vec::new(), Vec::new());
        for ((_, member, batch), facts) in batches.into_iter().zip(backend.read_each(&records).await?) {
            self.looked_at += batch.rows;
            match facts.ok().and_then(|facts| EndedBatch::read(&facts)) {
                Some(read) => rows.extend(read),
                // It has expired.
                None => over.push(IndexUpdate::Remove { index: Index::Ended, member }),
            }
        }
        if !over.is_empty() {
            backend.update_indexes(over).await?;
        }
        Ok(Some(ScannedRows { complete_from, rows }))
    }

    /// Takes the newest batches that are not read, as many as are read at once.
    fn newest_unread(&mut self) -> Vec<(Timestamp, String, EndedBatch)> {
        let mut rows = 0;
        let fits = |(_, _, batch): &&(Timestamp, String, EndedBatch)| {
            let fits = rows < ROWS_AT_ONCE;
            rows += batch.rows;
            fits
        };
        let count = self.unread.iter().rev().take(BATCHES_AT_ONCE).take_while(fits).count();
        self.unread.split_off(self.unread.len() - count)
    }

    /// Ends the scan, and counts the rows that are not read, as far as a bound allows it.
    pub(crate) async fn count_rest(&mut self, backend: &dyn Backend) -> Result<(), BackendError> {
        while self.pages < MAX_COUNTED_PAGES && self.list_window(backend).await? {}
        (self.end, self.unread) = (self.begin, Vec::new());
        Ok(())
    }

    /// Lists the next part of the time. Returns `false` if there is none.
    async fn list_window(&mut self, backend: &dyn Backend) -> Result<bool, BackendError> {
        if self.end <= self.begin {
            return Ok(false);
        }
        let from = self.end.minus(self.window).max(self.begin);
        let mut after = Some((from, String::new()));
        loop {
            let page = backend.list(&Index::Ended, after, PAGE_SIZE).await?;
            self.pages += 1;
            let is_last = page.len() < PAGE_SIZE || page.last().is_some_and(|(at, _)| *at >= self.end);
            after = page.last().cloned();
            for (at, member) in page.into_iter().filter(|(at, _)| *at < self.end) {
                let Some(batch) = EndedBatch::parse(&member) else { continue };
                if self.has_failed.is_some_and(|wanted| wanted != batch.has_failed) {
                    continue;
                }
                self.listed += batch.rows;
                let cut = self.cut.entry(batch.list.clone()).or_default();
                *cut = batch.cut.max(*cut);
                self.unread.push((at, member, batch));
            }
            if is_last {
                break;
            }
        }
        (self.end, self.window) = (from, self.window * 4);
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use machinist_memory::MemoryBackend;

    use super::*;
    use crate::{
        clock::Clock,
        ended::EndedList,
        event::{Event, EventKind, EventTask},
        id::{QueueName, TaskId, TaskName},
    };

    const START: Timestamp = Timestamp::from_micros(1_000_000_000_000);

    /// Lists the ends of this many tasks.
    async fn end(list: &EndedList, backend: &MemoryBackend, tasks: usize, error: Option<&str>) {
        let clock = Clock::starting_at(START);
        let (name, queue) = (TaskName::parse("n").unwrap(), QueueName::parse("q").unwrap());
        for _ in 0..tasks {
            let id = TaskId::fresh();
            let task = EventTask::new(&id, &name, &queue, 1);
            let error = error.map(crate::record::ErrorText::from).unwrap_or_default();
            let kind =
                EventKind::ended_without_run(task, crate::record::FailureKind::Error, &error, Duration::ZERO);
            list.note(&Event::new(kind, Some("w"), &clock));
        }
        list.flush(backend, START, true).await;
    }

    #[tokio::test]
    async fn a_scan_reads_a_part_at_a_time_and_counts_the_rest() {
        let (list, backend) = (EndedList::new(), MemoryBackend::new());
        for _ in 0..3 {
            end(&list, &backend, 4_000, Some("boom")).await;
        }
        let mut scan = EndedScan::begin(&backend, None, None, None, START).await.unwrap();
        let part = scan.next(&backend).await.unwrap().unwrap();
        assert!((1000..=1500).contains(&part.rows.len()), "{}", part.rows.len());
        assert_eq!(part.rows[0].error_message(), "boom");
        scan.count_rest(&backend).await.unwrap();
        assert_eq!((scan.looked_at, scan.listed, scan.cut()), (part.rows.len() as u64, 12_000, 0));
        assert!(scan.next(&backend).await.unwrap().is_none());
        let mut others = EndedScan::begin(&backend, Some(false), None, None, START).await.unwrap();
        assert!(others.next(&backend).await.unwrap().is_none());
        assert_eq!(others.listed, 0);
    }

    #[tokio::test]
    async fn what_bounds_cut_off_is_counted() {
        let (list, backend) = (EndedList::new(), MemoryBackend::new());
        // More than may wait.
        end(&list, &backend, 5_010, None).await;
        for _ in 0..10 {
            end(&list, &backend, 5_000, None).await;
        }
        let mut scan = EndedScan::begin(&backend, Some(true), None, None, START).await.unwrap();
        scan.count_rest(&backend).await.unwrap();
        assert!(scan.listed <= 50_000, "{}", scan.listed);
        // What was cut off last is told by the next batch.
        assert!((10..=5_010).contains(&scan.cut()), "{}", scan.cut());
        assert!(scan.listed + scan.cut() >= 50_000 + 10);
    }
}
