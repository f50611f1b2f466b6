//! The kinds of events and their data. All of it is borrowed: building an event allocates nothing.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    clock::Timestamp,
    id::{QueueName, TaskId, TaskName},
    record::{ErrorText, FailureKind, Progress, TaskState},
    task_log::LogLevel,
    wire::{Envelope, Pairs},
};

/// The task that an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct EventTask<'a> {
    /// Task id.
    pub id: &'a TaskId,
    /// Task name.
    pub name: &'a TaskName,
    /// Queue of the task.
    pub queue: &'a QueueName,
    /// Attempt, from 1.
    pub attempt: u32,
    pairs: Option<&'a Pairs>,
}

impl<'a> EventTask<'a> {
    pub(crate) const fn new(id: &'a TaskId, name: &'a TaskName, queue: &'a QueueName, attempt: u32) -> Self {
        Self { id, name, queue, attempt, pairs: None }
    }

    /// Returns the task of a verified message.
    pub(crate) const fn of(envelope: &'a Envelope) -> Self {
        let Envelope { id, name, queue, attempt, pairs, .. } = envelope;
        Self { id, name, queue, attempt: *attempt, pairs: Some(pairs) }
    }

    /// Returns the labels of the task by key, where the event comes from its message.
    pub fn labels(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.pairs.into_iter().flat_map(Pairs::labels)
    }
}

/// The kind of an event, with its data.
///
/// The durations are the stages of a task. Texts of errors and notes of progress are as the handler wrote
/// them: an observer that passes them on must leave them out where `encrypted` is `true`.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum EventKind<'a> {
    /// The broker has confirmed the message of a new task.
    #[non_exhaustive]
    Sent {
        /// The task.
        task: EventTask<'a>,
        /// Earliest start, if the task is delayed.
        eta: Option<Timestamp>,
        /// Time from the publish to the confirm.
        confirm_wait: Duration,
    },
    /// A task was dropped from the buffer of its sender before the broker has confirmed it.
    #[non_exhaustive]
    SendDropped {
        /// The task.
        task: EventTask<'a>,
        /// Time for which the task was in the buffer.
        waited: Duration,
        /// `true` if a try may have queued the task.
        may_be_queued: bool,
    },
    /// A worker has received and verified a message of a task.
    #[non_exhaustive]
    Received {
        /// The task.
        task: EventTask<'a>,
        /// Guard generation of the message; 0 for the original message of the attempt.
        generation: u32,
        /// Time for which the broker held the message after it was issued or due.
        broker_wait: Duration,
        /// `true` if the message was delayed: the wait is the time by which it is late.
        delayed: bool,
    },
    /// A start was granted: the handler is called next.
    #[non_exhaustive]
    Started {
        /// The task.
        task: EventTask<'a>,
        /// Number of this start within the attempt, from 1.
        start: u32,
        /// Time from the receipt of the delivery until it first waited for a slot.
        prefetch_wait: Duration,
        /// Time for which the delivery waited for a slot.
        slot_wait: Duration,
        /// Time that the request of the start took.
        start_wait: Duration,
    },
    /// A handler has reported progress, at most twice a second.
    #[non_exhaustive]
    Progress {
        /// The task.
        task: EventTask<'a>,
        /// The report.
        progress: &'a Progress,
        /// `true` if the report is encrypted in the record.
        encrypted: bool,
    },
    /// A run has left a line in the log of its task. It comes within about a second, before the line is stored.
    #[non_exhaustive]
    Logged {
        /// The task.
        task: EventTask<'a>,
        /// Time of the line.
        at: Timestamp,
        /// Level.
        level: LogLevel,
        /// Text, which may contain control characters.
        text: &'a str,
        /// `true` if the line is encrypted in the record.
        encrypted: bool,
    },
    /// An attempt has ended in RETRY, and this is recorded.
    #[non_exhaustive]
    Retried {
        /// The task, with the attempt that has ended.
        task: EventTask<'a>,
        /// Due time of the next attempt.
        due: Timestamp,
        /// Reason of the failure.
        kind: FailureKind,
        /// Error of the attempt.
        error: &'a ErrorText,
        /// `true` if the error is encrypted in the record.
        encrypted: bool,
        /// Time that the run took.
        run_time: Duration,
        /// Time that the record of the outcome took.
        record_wait: Duration,
    },
    /// A task has ended in SUCCESS or FAILURE, and this is recorded.
    #[non_exhaustive]
    Ended {
        /// The task.
        task: EventTask<'a>,
        /// The final state.
        state: TaskState,
        /// Reason and error of a FAILURE.
        failure: Option<(FailureKind, &'a ErrorText)>,
        /// `true` if the error is encrypted in the record.
        encrypted: bool,
        /// Time that the last run took; `None` if the task ended without a run.
        run_time: Option<Duration>,
        /// Time that the record of the outcome took.
        record_wait: Duration,
    },
    /// The next attempt or the dead letter of an outcome is confirmed and recorded as done.
    #[non_exhaustive]
    FollowedUp {
        /// The task, with the attempt of the outcome.
        task: EventTask<'a>,
        /// Time from the outcome until its follow-up was done.
        follow_up_wait: Duration,
    },
    /// A message was not accepted: it becomes a dead letter.
    #[non_exhaustive]
    Refused {
        /// Queue that delivered the message.
        queue: &'a QueueName,
        /// The task, if the message is authentic.
        task: Option<EventTask<'a>>,
        /// Reason of the dead letter.
        reason: &'static str,
        /// The error. It may repeat the claims of the message, but never its body.
        error: &'a str,
    },
    /// A message that cannot be read or run here is offered again later.
    #[non_exhaustive]
    Deferred {
        /// Queue that delivered the message.
        queue: &'a QueueName,
        /// The task, if the message is authentic.
        task: Option<EventTask<'a>>,
        /// Reason that its dead letter would have.
        reason: &'static str,
        /// The error, for people.
        error: &'a str,
        /// Time for which the message is still offered again; [`Duration::MAX`] if it is for a program that shares the
        /// queue, and is offered until that takes it.
        remaining: Duration,
    },
    /// A task whose start is refused is parked: its message comes back later.
    #[non_exhaustive]
    Parked {
        /// The task.
        task: EventTask<'a>,
        /// The reason, as `CODE:SUBJECT`.
        reason: &'a str,
        /// Time at which the message comes back by itself.
        until: Timestamp,
    },
    /// A delayed task that no worker has received long after its time is published again from its record: the broker has
    /// lost its message.
    #[non_exhaustive]
    Overdue {
        /// The task, with the attempt that waits.
        task: EventTask<'a>,
        /// Time at which the attempt was due.
        due: Timestamp,
    },
    /// The broker has confirmed a dead letter.
    #[non_exhaustive]
    DeadLettered {
        /// Queue of the message.
        queue: &'a QueueName,
        /// The task, if the message is authentic.
        task: Option<EventTask<'a>>,
        /// Id of the letter.
        dead_id: &'a str,
        /// Reason of the letter.
        reason: &'static str,
        /// Error in the letter.
        error: &'a ErrorText,
    },
    /// A worker returns the message of a task to the broker, because it drains or has lost its servers.
    #[non_exhaustive]
    HandedBack {
        /// The task.
        task: EventTask<'a>,
        /// `true` if its handler was cut off; `false` if it was not started here.
        cut_off: bool,
        /// `true` if the worker drains.
        draining: bool,
    },
    /// A worker starts an attempt again whose earlier run is gone.
    #[non_exhaustive]
    TakenOver {
        /// The task.
        task: EventTask<'a>,
        /// Name of the worker of the earlier run.
        from: &'a str,
    },
    /// The outcome of a run does not count, because another run has taken the attempt over.
    #[non_exhaustive]
    Superseded {
        /// The task.
        task: EventTask<'a>,
    },
    /// A revocation is recorded.
    #[non_exhaustive]
    Revoked {
        /// The task.
        task: EventTask<'a>,
        /// `true` if a worker runs the task: its handler is told to end.
        running: bool,
    },
    /// The broker has confirmed a worker's subscription: tasks run from now on.
    #[non_exhaustive]
    WorkerStarted {
        /// Queues from which the worker takes tasks.
        queues: &'a [QueueName],
        /// Names of the tasks that the worker runs.
        tasks: &'a [TaskName],
    },
    /// A worker's ability to take or run tasks has changed.
    #[non_exhaustive]
    WorkerState {
        /// The new state.
        state: WorkerState<'a>,
    },
    /// The worker that measures for all has looked at a queue, for observers that
    /// [ask for it](super::Observer::measures_queues).
    #[non_exhaustive]
    QueueMeasured {
        /// The queue.
        queue: &'a QueueName,
        /// Number of messages that wait for a worker.
        ready: u64,
        /// Number of dead letters.
        dead: u64,
        /// Number of live workers that take tasks from the queue.
        consumers: u64,
        /// Time for which the oldest ready message waits at most; zero for an empty queue.
        oldest_age: Duration,
        /// Number of messages that wait for their time, if the broker tells it. It is a minute old at most.
        delayed: Option<u64>,
        /// Number of deliveries that are not settled, if the broker tells it. It is a minute old at most.
        unacked: Option<u64>,
    },
    /// A worker has looked at itself, every ten seconds, for observers that
    /// [ask for it](super::Observer::measures_queues).
    #[non_exhaustive]
    WorkerMeasured {
        /// Age of the oldest part of the history that is not stored.
        history_lag: Duration,
        /// Number of events that this process has not published since the last look, because too many waited.
        events_dropped: u64,
        /// Number of failures of hooks that change nothing since the last look: panics of observers and gates, and gates
        /// that gave no answer in time.
        hook_failures: u64,
    },
    /// A worker has stopped.
    #[non_exhaustive]
    WorkerEnded {
        /// Number of runs that were cut off and handed back.
        handed_back: u64,
        /// Number of deliveries that could not be finished or handed back in time.
        unfinished: u64,
        /// Number of messages that were refused.
        refused: u64,
        /// Numbers of dead letters that the worker published, by reason.
        dead_letters: &'a BTreeMap<&'static str, u64>,
    },
}

/// Change of a worker's ability to take or run tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum WorkerState<'a> {
    /// It takes no more deliveries, and stops when its runs have ended.
    #[non_exhaustive]
    Draining {
        /// Number of handlers that run.
        running: usize,
    },
    /// The backend does not answer: no deliveries are taken.
    BackendAway,
    /// The backend answers again.
    BackendBack,
    /// The connection that delivers messages was lost: the broker delivers again what was unsettled.
    BrokerAway,
    /// The connection that delivers messages is up again.
    BrokerBack,
    /// The session has expired: the worker opens a new one and adopts its runs.
    #[non_exhaustive]
    SessionExpired {
        /// Number of handlers that run.
        running: usize,
    },
    /// The backend and the broker are away and the lease has expired: all runs are cancelled.
    #[non_exhaustive]
    CutOff {
        /// Number of handlers that run.
        running: usize,
    },
    /// The backend was away for too long: all runs are cancelled and all deliveries handed back.
    #[non_exhaustive]
    Withdrawn {
        /// Number of handlers that run.
        running: usize,
        /// Time for which the backend has been away.
        away: Duration,
    },
    /// The worker has unsubscribed and starts nothing: it was paused, or its timetable or its gate wants that.
    #[non_exhaustive]
    Asleep {
        /// Number of handlers that run.
        running: usize,
    },
    /// The worker has subscribed again, after it had withdrawn or was asleep.
    #[non_exhaustive]
    Resubscribed {
        /// Queues from which the worker takes tasks.
        queues: &'a [QueueName],
    },
}

/// Defines the name of every variant once, and the list of the names.
macro_rules! names {
    ($($variant:ident => $name:literal,)+) => {
        /// All names, in the order of the variants.
        pub const NAMES: &'static [&'static str] = &[$($name),+];

        /// Returns the name, one of [`NAMES`](Self::NAMES).
        pub const fn name(&self) -> &'static str {
            match self {
                $(Self::$variant { .. } => $name,)+
            }
        }
    };
}

impl<'a> EventKind<'a> {
    names! {
        Sent => "sent",
        SendDropped => "send_dropped",
        Received => "received",
        Started => "started",
        Progress => "progress",
        Logged => "logged",
        Retried => "retried",
        Ended => "ended",
        FollowedUp => "followed_up",
        Refused => "refused",
        Deferred => "deferred",
        Parked => "parked",
        Overdue => "overdue",
        DeadLettered => "dead_lettered",
        HandedBack => "handed_back",
        TakenOver => "taken_over",
        Superseded => "superseded",
        Revoked => "revoked",
        WorkerStarted => "worker_started",
        WorkerState => "worker_state",
        QueueMeasured => "queue_measured",
        WorkerMeasured => "worker_measured",
        WorkerEnded => "worker_ended",
    }

    /// Returns the event of a task that has ended in FAILURE without a run.
    pub(crate) const fn ended_without_run(
        task: EventTask<'a>,
        kind: FailureKind,
        error: &'a ErrorText,
        record_wait: Duration,
    ) -> Self {
        Self::Ended {
            task,
            state: TaskState::Failure,
            failure: Some((kind, error)),
            encrypted: false,
            run_time: None,
            record_wait,
        }
    }

    /// Returns the task, if the event is about a task whose message was verified.
    pub const fn task(&self) -> Option<EventTask<'a>> {
        match *self {
            Self::Sent { task, .. }
            | Self::SendDropped { task, .. }
            | Self::Received { task, .. }
            | Self::Started { task, .. }
            | Self::Progress { task, .. }
            | Self::Logged { task, .. }
            | Self::Retried { task, .. }
            | Self::Ended { task, .. }
            | Self::FollowedUp { task, .. }
            | Self::Parked { task, .. }
            | Self::Overdue { task, .. }
            | Self::HandedBack { task, .. }
            | Self::TakenOver { task, .. }
            | Self::Superseded { task }
            | Self::Revoked { task, .. } => Some(task),
            Self::Refused { task, .. } | Self::Deferred { task, .. } | Self::DeadLettered { task, .. } => {
                task
            }
            Self::WorkerStarted { .. }
            | Self::WorkerState { .. }
            | Self::QueueMeasured { .. }
            | Self::WorkerMeasured { .. }
            | Self::WorkerEnded { .. } => None,
        }
    }
}

impl WorkerState<'_> {
    names! {
        Draining => "draining",
        BackendAway => "backend_away",
        BackendBack => "backend_back",
        BrokerAway => "broker_away",
        BrokerBack => "broker_back",
        SessionExpired => "session_expired",
        CutOff => "cut_off",
        Withdrawn => "withdrawn",
        Asleep => "asleep",
        Resubscribed => "resubscribed",
    }
}
