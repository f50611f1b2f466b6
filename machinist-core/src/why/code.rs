//! Codes of the reasons: the closed list that scripts and the documentation rely on. Pure.

use serde::Serialize;

/// Defines every reason once, with its word and its class.
macro_rules! reasons {
    ($($(#[$doc:meta])+ $variant:ident => $word:literal, $class:ident;)+) => {
        /// Reason that a task does not run, or what it does instead. `docs/observing.md` lists them.
        ///
        /// A code may be added, and never changes its meaning.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
        #[serde(rename_all = "kebab-case")]
        #[non_exhaustive]
        pub enum WhyReason {
            $($(#[$doc])+ $variant,)+
        }

        impl WhyReason {
            /// Every reason, in the order of the table in `docs/observing.md`.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// Returns the reason as a word.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }

            /// Returns what the reason asks of people.
            pub const fn class(self) -> WhyClass {
                match self {
                    $(Self::$variant => WhyClass::$class,)+
                }
            }
        }
    };
}

reasons! {
    /// The backend cannot be asked.
    BackendAway => "backend-away", Broken;
    /// The broker cannot be asked.
    BrokerAway => "broker-away", Broken;
    /// The task, or the queue, is unknown here.
    UnknownId => "unknown-id", Act;
    /// The task was not sent.
    NotSent => "not-sent", Act;
    /// Another task has its unique key.
    Duplicate => "duplicate", Wait;
    /// Workers did not accept its message.
    Refused => "refused", Act;
    /// It has ended.
    Ended => "ended", Wait;
    /// Its message is a dead letter.
    DeadLetter => "dead-letter", Act;
    /// A worker runs it.
    Running => "running", Wait;
    /// The session of the worker that ran it is gone.
    WorkerGone => "worker-gone", Wait;
    /// The steps before it have not ended.
    WaitsForSteps => "waits-for-steps", Wait;
    /// Not all first steps of the workflow are certainly sent.
    IncompleteSend => "incomplete-send", Wait;
    /// Its time has not come.
    Delayed => "delayed", Wait;
    /// It waits for its next run.
    Retry => "retry", Wait;
    /// Its time is long past, and no worker has received it.
    Overdue => "overdue", Wait;
    /// Nothing has happened to it for half an hour, and its queue is empty: a server has lost what would continue it.
    Stranded => "stranded", Act;
    /// Its name is disabled for all workers.
    Disabled => "disabled", Act;
    /// A worker that failed its name again and again has left it to others.
    CircuitOpen => "circuit-open", Wait;
    /// A limit, or another rule of admission, refuses its start.
    Limited => "limited", Wait;
    /// No live worker takes tasks from its queue.
    NoConsumer => "no-consumer", Act;
    /// No live worker of its queue has the tags that it requires.
    NoTag => "no-tag", Act;
    /// Workers take tasks from its queue, and none knows its name.
    UnknownTask => "unknown-task", Act;
    /// Its queue is paused for all workers, or every worker that could run it is asleep.
    Paused => "paused", Act;
    /// Every worker that could run it is asleep, and one wakes up by itself.
    Asleep => "asleep", Wait;
    /// Every worker that could run it has no free slot.
    Busy => "busy", Wait;
    /// A worker takes it when its turn comes.
    Queued => "queued", Wait;
}

/// Need for people to act.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum WhyClass {
    /// Nothing: it goes on by itself, or is over.
    Wait,
    /// People have to act: otherwise nothing changes.
    Act,
    /// A server is away: nothing goes on until it is back.
    Broken,
}

impl WhyClass {
    /// Returns the class as a word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Wait => "wait",
            Self::Act => "act",
            Self::Broken => "broken",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_shown_as_it_is_serialized() {
        for reason in WhyReason::ALL {
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.as_str());
            assert_eq!(serde_json::to_value(reason.class()).unwrap(), reason.class().as_str());
        }
    }

    #[test]
    fn the_documentation_lists_every_reason_with_its_class() {
        let page = include_str!("../../../docs/observing.md");
        let rows = page.lines().filter(|line| line.starts_with("| `"));
        let listed: Vec<(&str, &str)> = rows
            .filter_map(|row| {
                let mut cells = row.split('|').map(str::trim).skip(1);
                Some((cells.next()?.trim_matches('`'), cells.next()?))
            })
            .filter(|(_, class)| ["wait", "act", "broken"].contains(class))
            .collect();
        let all: Vec<_> = WhyReason::ALL.iter().map(|one| (one.as_str(), one.class().as_str())).collect();
        assert_eq!(listed, all);
    }
}
