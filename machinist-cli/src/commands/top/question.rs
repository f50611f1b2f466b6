//! Questions to the sources: what is asked, how often, and what is known from the last answer. Pure.
//!
//! Each source is asked alone and never twice at once. One that is slow or away delays no other, and what it said last stays
//! on the screen with its age.

use std::time::Duration;

use machinist::{QueueName, TaskId, clock::Timestamp};

use super::{filter::ListFilter, listing::Listing};

/// Place that answers questions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum TopSource {
    Queues,
    Workers,
    Tasks,
    Failures,
    History,
    /// Reason that one task or queue stands still.
    Reason,
}

/// Interval between two questions to a source.
const INTERVAL: Duration = Duration::from_secs(2);
/// The same for those that read much, or that change every ten seconds.
const SLOW_INTERVAL: Duration = Duration::from_secs(10);
/// Time after which an answer is late.
const LATE_AFTER: Duration = Duration::from_secs(3);

impl TopSource {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Queues => "queues",
            Self::Workers => "workers",
            Self::Tasks => "tasks",
            Self::Failures => "failures",
            Self::History => "history",
            Self::Reason => "why",
        }
    }

    const fn interval(self) -> Duration {
        match self {
            Self::Failures | Self::History => SLOW_INTERVAL,
            _ => INTERVAL,
        }
    }
}

/// TopQuestion to a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum TopQuestion {
    Queues,
    Workers,
    Tasks(ListFilter),
    Failures,
    History,
    Reason(TaskId),
    QueueReason(QueueName),
}

impl TopQuestion {
    pub(super) const fn source(&self) -> TopSource {
        match self {
            Self::Queues => TopSource::Queues,
            Self::Workers => TopSource::Workers,
            Self::Tasks(_) => TopSource::Tasks,
            Self::Failures => TopSource::Failures,
            Self::History => TopSource::History,
            Self::Reason(_) | Self::QueueReason(_) => TopSource::Reason,
        }
    }
}

/// Knowledge from one source.
#[derive(Debug, Clone, Default)]
pub(super) struct KnownSource {
    /// Last answer, the question to it, and its time.
    last: Option<(TopQuestion, Listing, Timestamp)>,
    /// TopQuestion without an answer, and its time.
    asked: Option<(TopQuestion, Timestamp)>,
    /// Reason that the last question has no answer.
    problem: Option<String>,
    /// Time before which it is not asked again.
    rests_until: Option<Timestamp>,
}

impl KnownSource {
    /// Returns `true` if this is asked now, and remembers that.
    pub(super) fn ask(&mut self, question: &TopQuestion, now: Timestamp) -> bool {
        let is_new = self.last.as_ref().is_none_or(|(of, ..)| of != question) && self.problem.is_none();
        let rests = self.rests_until.is_some_and(|until| now < until) && !is_new;
        if self.asked.is_some() || rests {
            return false;
        }
        self.asked = Some((question.clone(), now));
        true
    }

    /// Takes an answer.
    pub(super) fn take(&mut self, question: TopQuestion, answer: Result<Listing, String>, now: Timestamp) {
        let interval = question.source().interval();
        let begin = self.asked.take().map_or(now, |(_, at)| at);
        // A source that needs long gets time to rest.
        self.rests_until = Some(begin.plus(interval).max(now.plus(interval / 2)));
        match answer {
            Ok(listing) => {
                self.problem = None;
                self.last = Some((question, listing, now));
            }
            Err(problem) => self.problem = Some(problem),
        }
    }

    /// Lets the source be asked at once.
    pub(super) fn wake(&mut self) {
        self.rests_until = None;
    }

    /// Returns the last answer, to whatever question.
    pub(super) fn listing(&self) -> Option<&Listing> {
        self.last.as_ref().map(|(_, listing, _)| listing)
    }

    /// Returns the last answer if it is one to this question.
    pub(super) fn answer_to(&self, question: &TopQuestion) -> Option<&Listing> {
        self.last.as_ref().filter(|(of, ..)| of == question).map(|(_, listing, _)| listing)
    }

    /// Says what is wrong with the source, and how old its values are.
    pub(super) fn complaint(&self, source: TopSource, now: Timestamp) -> Option<String> {
        let name = source.as_str();
        let seconds = |since: Timestamp| now.since(since).as_secs();
        let trouble = match (&self.problem, &self.asked) {
            (Some(problem), _) => format!("{name}: no answer: {problem}"),
            (None, Some((_, at))) if now.since(*at) >= LATE_AFTER => {
                format!("{name}: no answer for {} s", seconds(*at))
            }
            _ => return None,
        };
        Some(match &self.last {
            Some((.., at)) => format!("{trouble}; the values are {} s old", seconds(*at)),
            None => trouble,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    #[test]
    fn a_source_is_asked_every_two_seconds_and_never_twice_at_once() {
        let mut known = KnownSource::default();
        assert!(known.ask(&TopQuestion::Queues, at(0)));
        assert!(!known.ask(&TopQuestion::Queues, at(60)), "it has not answered");
        known.take(TopQuestion::Queues, Ok(Listing::default()), at(60));
        assert!(!known.ask(&TopQuestion::Queues, at(60)), "it was slow and rests");
        assert!(known.ask(&TopQuestion::Queues, at(61)));
        known.take(TopQuestion::Queues, Ok(Listing::default()), at(61));
        assert!(!known.ask(&TopQuestion::Queues, at(62)));
        assert!(known.ask(&TopQuestion::Queues, at(63)));
    }

    #[test]
    fn another_question_does_not_wait() {
        let mut known = KnownSource::default();
        let filtered = TopQuestion::Tasks(ListFilter::parse("queue=mail").unwrap());
        assert!(known.ask(&TopQuestion::Tasks(ListFilter::default()), at(0)));
        known.take(TopQuestion::Tasks(ListFilter::default()), Ok(Listing::default()), at(0));
        assert!(known.ask(&filtered, at(0)));
        assert!(known.answer_to(&filtered).is_none() && known.listing().is_some());
    }

    #[test]
    fn a_source_that_fails_keeps_its_values_with_their_age_and_comes_back() {
        let mut known = KnownSource::default();
        let (source, question) = (TopSource::Workers, TopQuestion::Workers);
        assert!(known.ask(&question, at(0)));
        known.take(question.clone(), Ok(Listing { notes: vec!["kept".into()], ..Listing::default() }), at(0));
        assert_eq!(known.complaint(source, at(1)), None);
        assert!(known.ask(&question, at(2)));
        assert_eq!(known.complaint(source, at(4)), None, "not late yet");
        let late = "workers: no answer for 5 s; the values are 7 s old";
        assert_eq!(known.complaint(source, at(7)).as_deref(), Some(late));
        known.take(question.clone(), Err("the backend is unavailable".into()), at(12));
        let failed = "workers: no answer: the backend is unavailable; the values are 13 s old";
        assert_eq!(known.complaint(source, at(13)).as_deref(), Some(failed));
        assert_eq!(known.listing().unwrap().notes, ["kept"]);
        assert!(known.ask(&question, at(13)), "it is asked again");
        known.take(question, Ok(Listing::default()), at(13));
        assert_eq!(known.complaint(source, at(13)), None);
    }
}
