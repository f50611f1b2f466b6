//! Lines of a run that wait to be stored, within a bound.

use std::{
    collections::VecDeque,
    mem,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use super::{
    LogLevel, MAX_LINE_BYTES, MAX_LOG_BYTES,
    chunk::{StoredLine, TakenLines},
    writer::LogWriter,
};
use crate::clock::Timestamp;

/// Size from which waiting lines are stored without waiting for more.
const LARGE_BYTES: usize = 10 * 1024;
/// Maximum size of the text that the outcome of a run repeats, in bytes. The oldest lines are dropped first.
pub(crate) const MAX_TEXT_BYTES: usize = 16 * 1024;

/// Lines that a run has left.
#[derive(Debug, Default)]
pub(crate) struct RunLog {
    state: Mutex<RunLogState>,
    /// Wakes the one who stores lines: there is a first line, or many.
    arrived: Notify,
    /// Writer of the chunks, which knows what is stored.
    pub(crate) writer: tokio::sync::Mutex<LogWriter>,
}

#[derive(Debug, Default)]
struct RunLogState {
    /// End of the lines that the handler itself has left, for its outcome.
    text: String,
    waiting: VecDeque<StoredLine>,
    waiting_bytes: usize,
    /// Number of the next line.
    next: u64,
    /// `true` after the end of the handler: what is said about the run after that is no line of it.
    closed: bool,
}

impl RunLog {
    fn state(&self) -> MutexGuard<'_, RunLogState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the lines of a text. `repeated` says that the outcome of the run repeats them. Never waits.
    pub(crate) fn add(&self, at: Timestamp, level: LogLevel, text: &str, repeated: bool) {
        let mut state = self.state();
        if state.closed {
            return;
        }
        if repeated {
            state.repeat(text);
        }
        let before = state.waiting_bytes;
        state.add(at, level, text);
        let wakes = before == 0 || (before < LARGE_BYTES && state.waiting_bytes >= LARGE_BYTES);
        drop(state);
        if wakes {
            self.arrived.notify_one();
        }
    }

    /// Ends the log: what is added later is left out.
    pub(crate) fn close(&self) {
        self.state().closed = true;
    }

    /// Returns `true` if there was any line.
    pub(crate) fn has_lines(&self) -> bool {
        self.state().next > 0
    }

    /// Returns the end of what the handler itself has left.
    pub(crate) fn text(&self) -> String {
        let state = self.state();
        tail(&state.text, MAX_TEXT_BYTES).to_owned()
    }

    /// Takes the lines that wait; `None` if there are none.
    pub(crate) fn take(&self) -> Option<TakenLines> {
        let mut state = self.state();
        if state.waiting.is_empty() {
            return None;
        }
        state.waiting_bytes = 0;
        let lines = Vec::from(mem::take(&mut state.waiting));
        Some(TakenLines { first: state.next - lines.len() as u64, lines })
    }

    /// Completes when lines wait.
    pub(crate) async fn waits(&self) {
        self.waits_for(1).await;
    }

    /// Completes when so many lines wait that they are stored at once.
    pub(crate) async fn is_large(&self) {
        self.waits_for(LARGE_BYTES).await;
    }

    async fn waits_for(&self, bytes: usize) {
        while self.state().waiting_bytes < bytes {
            self.arrived.notified().await;
        }
    }
}

impl RunLogState {
    /// Adds to the text of the outcome. It may be twice as long for a while, so that it is not moved with each line.
    fn repeat(&mut self, text: &str) {
        self.text.push_str(tail(text, MAX_TEXT_BYTES));
        self.text.push('\n');
        if self.text.len() > 2 * MAX_TEXT_BYTES {
            let end = tail(&self.text, MAX_TEXT_BYTES).len();
            self.text.drain(..self.text.len() - end);
        }
    }

    fn add(&mut self, at: Timestamp, level: LogLevel, text: &str) {
        // Of a long text, only its end can stay: the lines before it are counted, and not copied.
        let kept = tail(text, MAX_LOG_BYTES);
        let (passed, kept) = match text[..text.len() - kept.len()].rfind('\n') {
            Some(end) => (&text[..=end], &text[end + 1..]),
            None => ("", text),
        };
        self.next += passed.bytes().filter(|byte| *byte == b'\n').count() as u64;
        if !passed.is_empty() {
            (self.waiting_bytes, self.waiting) = (0, VecDeque::new());
        }
        for line in kept.split('\n') {
            let line = shortened(line.trim_end());
            let line = StoredLine::new(at, level, line);
            self.waiting_bytes += line.size();
            self.waiting.push_back(line);
            self.next += 1;
            while self.waiting_bytes > MAX_LOG_BYTES
                && let Some(oldest) = self.waiting.pop_front()
            {
                self.waiting_bytes -= oldest.size();
            }
        }
    }
}

/// Returns the end of a text, at most this long.
fn tail(text: &str, bytes: usize) -> &str {
    let from = text.len().saturating_sub(bytes);
    let from = (from..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    &text[from..]
}

/// Returns a line, cut off if it is too long.
fn shortened(line: &str) -> String {
    if line.len() <= MAX_LINE_BYTES {
        return line.to_owned();
    }
    let end = (0..=MAX_LINE_BYTES - '…'.len_utf8()).rev().find(|at| line.is_char_boundary(*at)).unwrap_or(0);
    format!("{}…", &line[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Timestamp = Timestamp::from_micros(5);

    fn log(texts: &[&str]) -> RunLog {
        let log = RunLog::default();
        texts.iter().for_each(|text| log.add(AT, LogLevel::Info, text, true));
        log
    }

    #[test]
    fn the_end_is_kept_and_lines_keep_their_numbers() {
        let log = RunLog::default();
        for n in 0..100_000 {
            log.add(AT, LogLevel::Info, &format!("línea {n}"), true);
        }
        let text = log.text();
        assert!(text.len() <= MAX_TEXT_BYTES && text.ends_with("línea 99999\n"));
        let taken = log.take().unwrap();
        let size: usize = taken.lines.iter().map(StoredLine::size).sum();
        assert!((MAX_LOG_BYTES - 100..=MAX_LOG_BYTES).contains(&size), "{size}");
        assert_eq!(taken.first, 100_000 - taken.lines.len() as u64);
        assert_eq!(taken.lines[0].text(), format!("línea {}", taken.first));
        assert_eq!(log.take(), None);
    }

    #[test]
    fn a_text_of_many_lines_is_as_good_as_its_lines() {
        let lines: Vec<String> = (0..20_000).map(|n| format!("line {n}\r")).collect();
        let whole = log(&[&lines.join("\n")]);
        let single = log(&lines.iter().map(String::as_str).collect::<Vec<_>>());
        let (whole, single) = (whole.take().unwrap(), single.take().unwrap());
        assert_eq!(whole, single);
        assert_eq!(whole.lines.last().unwrap().text(), "line 19999");
    }

    #[test]
    fn a_long_line_is_cut_and_a_closed_log_takes_none() {
        let log = log(&["a", &"é".repeat(1024 * 1024)]);
        log.close();
        log.add(AT, LogLevel::Info, "late", true);
        let taken = log.take().unwrap();
        assert_eq!((taken.first, taken.lines.len()), (0, 2));
        assert!(taken.lines[1].text().len() <= MAX_LINE_BYTES && taken.lines[1].text().ends_with("é…"));
    }
}
