//! What is sent, and what it does: the tasks of every scenario.

use std::time::Duration;

use machinist::{
    Backoff, Signature,
    prelude::{State, TaskContext, TaskDef, TaskError},
};

use crate::ledger::Ledger;

/// So long after they were sent orphans are due.
pub(crate) const ORPHANS_DUE: Duration = Duration::from_secs(10);

/// Countdown of late tasks.
pub(crate) const LATE_DUE: Duration = Duration::from_secs(20);

/// What a task is for.
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
    /// Takes half a minute.
    Held,
    /// Takes longer than the longest fault.
    Long,
    /// Fails for good: a dead letter.
    Failing,
    /// Ends the process that runs it.
    Abort,
    /// Takes all the memory that its process may have, which ends it.
    Oom,
    /// Not one of our messages: a dead letter.
    Garbage,
    /// The same, with headers nested as deep as a frame can hold.
    Deep,
    /// Delayed, for a queue that is gone when it comes due.
    Orphan,
    /// Delayed by longer than it takes to delete the queues in which it waits.
    Late,
    /// The root of a workflow, which no handler sees.
    Root,
    /// A step of a workflow.
    Step,
    /// A step that never runs, because one before it fails.
    Never,
}

impl Kind {
    pub(crate) const ALL: [Self; 16] = [
        Self::Plain,
        Self::Slow,
        Self::Delayed,
        Self::Flaky,
        Self::Held,
        Self::Long,
        Self::Failing,
        Self::Abort,
        Self::Oom,
        Self::Garbage,
        Self::Deep,
        Self::Orphan,
        Self::Late,
        Self::Root,
        Self::Step,
        Self::Never,
    ];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Slow => "slow",
            Self::Delayed => "delayed",
            Self::Flaky => "flaky",
            Self::Held => "held",
            Self::Long => "long",
            Self::Failing => "failing",
            Self::Abort => "abort",
            Self::Oom => "oom",
            Self::Garbage => "garbage",
            Self::Deep => "deep",
            Self::Orphan => "orphan",
            Self::Late => "late",
            Self::Root => "root",
            Self::Step => "step",
            Self::Never => "never",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }

    /// Whether it has to succeed.
    pub(crate) fn is_innocent(self) -> bool {
        !matches!(self, Self::Failing | Self::Orphan | Self::Never) && !self.is_deadly() && self.is_task()
    }

    /// Whether it becomes a dead letter.
    pub(crate) fn is_buried(self) -> bool {
        !self.is_innocent() && self != Self::Never
    }

    /// Whether it ends the process that runs it.
    pub(crate) fn is_deadly(self) -> bool {
        matches!(self, Self::Abort | Self::Oom)
    }

    /// Whether a program of ours has written it.
    pub(crate) fn is_task(self) -> bool {
        !matches!(self, Self::Garbage | Self::Deep)
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

    /// A task of this kind, if it is one.
    pub(crate) fn signature(self, queue: &str) -> Signature {
        let signature = DO.call((self.as_str().to_owned(),)).queue(queue).untyped();
        match self {
            Self::Delayed => signature.countdown(Duration::from_millis(rand::random_range(300..4000))),
            Self::Orphan => signature.countdown(ORPHANS_DUE),
            Self::Late => signature.countdown(LATE_DUE),
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
        Some(Kind::Held) => tokio::time::sleep(Duration::from_secs(30)).await,
        Some(Kind::Long) => {
            tokio::time::sleep(Duration::from_secs(75)).await;
            if cx.cancellation().is_cancelled() {
                ledger.say(&[format!("cancelled {about}")]).await?;
            }
        }
        Some(Kind::Flaky) if cx.attempt() < 3 => return Err("not yet".into()),
        Some(Kind::Failing) => return Err(TaskError::permanent("never")),
        Some(Kind::Abort) => std::process::abort(),
        Some(Kind::Oom) => take_all_memory(),
        _ => tokio::time::sleep(Duration::from_millis(rand::random_range(0..300))).await,
    }
    ledger.say(&[format!("effect {about}")]).await?;
    Ok(())
}

/// Takes memory until there is none. Nothing is written to it, so that only the limit of the process is reached.
fn take_all_memory() -> ! {
    loop {
        std::mem::forget(Vec::<u8>::with_capacity(256 << 20));
    }
}
