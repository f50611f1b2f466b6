//! Decisions of the one who stores the lines of a run: what is written, and what is dropped for it.

use std::{collections::VecDeque, mem, sync::Arc, time::Duration};

use super::{
    MAX_LOG_BYTES,
    chunk::{Chunk, ChunkPlace, MISSING, StoredLine, TakenLines, chunks, log_record},
};
use crate::{
    backend::{Commit, Expiry},
    id::TaskId,
    record::{Facts, json},
};

/// Size of a chunk, in bytes: the log is shortened by whole chunks.
const CHUNK_BYTES: usize = 8 * 1024;

/// Run whose lines are stored.
#[derive(Debug, Clone)]
pub(crate) struct LogRun {
    pub(crate) id: TaskId,
    pub(crate) attempt: u32,
    /// Number of the run within the attempt.
    pub(crate) run: u32,
}

impl LogRun {
    /// Returns `true` if no run of the task was before: then nothing can be stored yet.
    const fn is_first(&self) -> bool {
        self.attempt == 1 && self.run == 1
    }
}

/// Chunk that is in the record.
#[derive(Debug)]
struct KeptChunk {
    place: ChunkPlace,
    bytes: usize,
    /// Number of the line after its last.
    end: u64,
}

/// Writer of the chunks of one run.
#[derive(Debug, Default)]
pub(crate) struct LogWriter {
    /// `true` once it knows what the record holds.
    knows: bool,
    kept: VecDeque<KeptChunk>,
    bytes: usize,
    /// Lines of earlier runs of which no chunk is left.
    missing: u64,
    /// Number of the next chunk.
    next: u32,
    /// Commit whose answer is missing. It is repeated as it was: a fact is written once.
    unanswered: Option<Arc<Commit>>,
}

impl LogWriter {
    /// Returns `true` if the record has to be read before anything is written.
    pub(crate) fn must_read(&self, run: &LogRun) -> bool {
        !self.knows && !run.is_first()
    }

    /// Takes note of what earlier runs have stored.
    pub(crate) fn learn(&mut self, facts: &Facts) {
        self.knows = true;
        self.missing = facts.read(MISSING).unwrap_or_default();
        for (place, (chunk, bytes)) in chunks(facts) {
            self.bytes += bytes;
            self.kept.push_back(KeptChunk { place, bytes, end: chunk.first + chunk.count });
        }
    }

    /// Returns the commit whose answer is missing.
    pub(crate) fn unanswered(&self) -> Option<Arc<Commit>> {
        self.unanswered.clone()
    }

    /// Takes note of an answer.
    pub(crate) fn answered(&mut self) {
        self.unanswered = None;
    }

    /// Returns the commit that stores these lines, and keeps the record for `ttl` from now. `seal` encrypts it, where that
    /// is due. Until [`answered`](Self::answered), [`unanswered`](Self::unanswered) returns the same commit.
    pub(crate) fn store(
        &mut self,
        run: &LogRun,
        taken: Option<TakenLines>,
        ttl: Duration,
        seal: impl FnOnce(Commit) -> Commit,
    ) -> Arc<Commit> {
        let mut commit = Commit::new(log_record(&run.id));
        commit.expiry = Expiry::After(ttl);
        commit.wake = taken.is_some();
        if let Some(TakenLines { mut first, lines }) = taken {
            for lines in in_chunks(lines) {
                let count = lines.len() as u64;
                self.add(run, &mut commit, &Chunk { first, count, lines });
                first += count;
            }
            self.shorten(run, &mut commit);
        }
        let commit = Arc::new(seal(commit));
        self.unanswered = Some(Arc::clone(&commit));
        commit
    }

    fn add(&mut self, run: &LogRun, commit: &mut Commit, chunk: &Chunk) {
        let place = ChunkPlace { attempt: run.attempt, run: run.run, number: self.next };
        self.next += 1;
        let value = json(chunk);
        self.bytes += value.len();
        self.kept.push_back(KeptChunk { place, bytes: value.len(), end: chunk.first + chunk.count });
        commit.facts.push((place.name(), value));
    }

    /// Drops the oldest chunks until the rest is within the bound.
    fn shorten(&mut self, run: &LogRun, commit: &mut Commit) {
        let before = self.missing;
        while self.bytes > MAX_LOG_BYTES
            && let Some(oldest) = self.kept.pop_front()
        {
            self.bytes -= oldest.bytes;
            let of = |place: ChunkPlace| (place.attempt, place.run);
            let is_last = self.kept.front().is_none_or(|next| of(next.place) != of(oldest.place));
            if is_last && of(oldest.place) != (run.attempt, run.run) {
                self.missing += oldest.end;
            }
            let name = oldest.place.name();
            let written = commit.facts.iter().position(|(fact, _)| *fact == name);
            match written {
                Some(at) => drop(commit.facts.remove(at)),
                None => commit.drop.push(name),
            }
        }
        if self.missing > before {
            commit.drop.push(MISSING.into());
            commit.facts.push((MISSING.into(), json(&self.missing)));
        }
    }
}

/// Divides lines into chunks.
fn in_chunks(lines: Vec<StoredLine>) -> Vec<Vec<StoredLine>> {
    let (mut all, mut chunk, mut bytes) = (Vec::new(), Vec::new(), 0);
    for line in lines {
        let size = line.size();
        if bytes + size > CHUNK_BYTES && !chunk.is_empty() {
            all.push(mem::take(&mut chunk));
            bytes = 0;
        }
        bytes += size;
        chunk.push(line);
    }
    all.push(chunk);
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::Timestamp,
        task_log::{LogLevel, LogLine, RunLog, read_log},
    };

    fn run(attempt: u32) -> LogRun {
        LogRun { id: "t".try_into().unwrap(), attempt, run: 1 }
    }

    /// Stores lines of a new run of this attempt, a few at a time.
    fn write(facts: &mut Facts, attempt: u32, lines: u32) {
        let run = run(attempt);
        let (log, mut writer) = (RunLog::default(), LogWriter::default());
        if writer.must_read(&run) {
            writer.learn(facts);
        }
        for first in (0..lines).step_by(100) {
            for n in first..(first + 100).min(lines) {
                log.add(Timestamp::from_micros(7), LogLevel::Warn, &format!("line {n}"), false);
            }
            let commit = writer.store(&run, log.take(), Duration::from_secs(60), |commit| commit);
            assert_eq!(writer.unanswered().as_ref(), Some(&commit));
            assert!(commit.apply(facts));
            writer.answered();
        }
    }

    fn lines(facts: &Facts) -> (Vec<LogLine>, u64) {
        let log = read_log(&run(1).id, facts, None);
        assert!(facts.iter().map(|(_, value)| value.len()).sum::<usize>() <= MAX_LOG_BYTES + 20);
        let seen = log.lines.len() as u64 + log.all_missing();
        (log.lines, seen)
    }

    #[test]
    fn every_line_is_shown_or_counted() {
        let mut facts = Facts::default();
        write(&mut facts, 1, 250);
        let (first, seen) = lines(&facts);
        assert_eq!((first.len(), seen), (250, 250));
        assert_eq!((first[249].text.as_str(), first[249].level), ("line 249", LogLevel::Warn));
        write(&mut facts, 2, 3);
        assert_eq!(lines(&facts).1, 253);
        write(&mut facts, 3, 10_000);
        let (third, seen) = lines(&facts);
        assert_eq!(seen, 10_253);
        assert!(third.iter().all(|line| line.attempt == 3));
        assert!(third.len() > 1000 && third[0].missing > 0 && third[1].missing == 0);
        write(&mut facts, 4, 1);
        let (fourth, seen) = lines(&facts);
        assert_eq!((fourth.last().unwrap().attempt, seen), (4, 10_254));
    }

    #[test]
    fn a_commit_without_an_answer_is_repeated_as_it_was() {
        let mut facts = Facts::default();
        let (log, mut writer) = (RunLog::default(), LogWriter::default());
        log.add(Timestamp::from_micros(7), LogLevel::Info, "one", false);
        let lost = writer.store(&run(1), log.take(), Duration::from_secs(60), |commit| commit);
        log.add(Timestamp::from_micros(8), LogLevel::Info, "two", false);
        assert!(lost.apply(&mut facts));
        assert!(writer.unanswered().unwrap().apply(&mut facts));
        writer.answered();
        assert!(writer.store(&run(1), log.take(), Duration::from_secs(60), |c| c).apply(&mut facts));
        let (lines, seen) = lines(&facts);
        assert_eq!((lines.len(), seen), (2, 2));
    }
}
