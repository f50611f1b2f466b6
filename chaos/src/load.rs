//! What is sent, and what it does: the tasks of every scenario.

use std::time::Duration;

use machinist::{
    Backoff, Signature,
    prelude::{State, TaskContext, TaskDef, TaskError},
};

use crate::ledger::Ledger;

/// What a task is for. Every kind but the last three is innocent: it has to succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Kind {
    /// Takes a few milliseconds.
    Plain,
    /// Takes two seconds.
    Slow,
    /// Waits in the broker before it runs.
    Delayed,
    /// Fails twice, then succeeds.
    Flaky,
    /// Fails for good: a dead letter.
    Failing,
    /// Ends the process that runs it.
    Abort,
    /// Not one of our messages: a dead letter.
    Garbage,
}

impl Kind {
    pub(crate) const ALL: [Self; 7] =
        [Self::Plain, Self::Slow, Self::Delayed, Self::Flaky, Self::Failing, Self::Abort, Self::Garbage];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Slow => "slow",
            Self::Delayed => "delayed",
            Self::Flaky => "flaky",
            Self::Failing => "failing",
            Self::Abort => "abort",
            Self::Garbage => "garbage",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }

    pub(crate) fn is_innocent(self) -> bool {
        !matches!(self, Self::Failing | Self::Abort | Self::Garbage)
    }

    /// Everyday load: mostly plain, some of each innocent kind, and a few that fail.
    pub(crate) fn of_mix(number: u64) -> Self {
        match number % 50 {
            0 | 10 | 20 | 30 | 40 => Self::Delayed,
            5 | 15 | 25 | 35 | 45 => Self::Flaky,
            // 13 of them run at any time at 80 tasks a second: a crash always finds some.
            number if number % 12 == 7 => Self::Slow,
            13 => Self::Failing,
            _ => Self::Plain,
        }
    }

    /// A task of this kind. Not for garbage, which is no task.
    pub(crate) fn signature(self, queue: &str) -> Signature {
        let signature = DO.call((self.as_str().to_owned(),)).queue(queue).untyped();
        match self {
            Self::Delayed => signature.countdown(Duration::from_millis(rand::random_range(300..4000))),
            Self::Flaky => signature.retries(5).backoff(Backoff::fixed(Duration::from_millis(400))),
            _ => signature,
        }
    }
}

/// The one task: its argument is its kind.
pub(crate) const DO: TaskDef<(String,), ()> = TaskDef::new("do");

/// Runs it, telling the ledger.
pub(crate) async fn run(
    cx: TaskContext,
    State(ledger): State<Ledger>,
    kind: String,
) -> Result<(), TaskError> {
    let about = format!("{} {} {} {}", cx.task_id(), cx.attempt(), cx.fencing_token(), std::process::id());
    ledger.say(&[format!("start {about}")]).await?;
    match Kind::parse(&kind) {
        Some(Kind::Slow) => tokio::time::sleep(Duration::from_secs(2)).await,
        Some(Kind::Flaky) if cx.attempt() < 3 => return Err("not yet".into()),
        Some(Kind::Failing) => return Err(TaskError::permanent("never")),
        Some(Kind::Abort) => std::process::abort(),
        _ => tokio::time::sleep(Duration::from_millis(rand::random_range(0..300))).await,
    }
    ledger.say(&[format!("effect {about}")]).await?;
    Ok(())
}
