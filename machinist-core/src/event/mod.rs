//! Events: what happens to tasks and workers, for those who watch.
//!
//! Senders and workers emit an event where something has happened, and [`Observer`]s receive it. Logging, counting and
//! application code watch through this one seam, so the delivery protocol names none of them. Events are notifications:
//! no state is derived from them, and no observer can change what happens.
//!
//! `docs/events.md` has a table of all events.

mod kind;
mod observer;
mod stopwatch;

pub use kind::{EventKind, EventTask, WorkerState};
pub use observer::Observer;
pub(crate) use observer::Observers;
pub(crate) use stopwatch::Stopwatch;

use crate::clock::{Clock, Timestamp};

/// One event, as an observer sees it.
#[derive(Debug, Clone, Copy)]
pub struct Event<'a> {
    /// Kind of the event, with its data.
    pub kind: EventKind<'a>,
    /// Name of the worker; `None` for an event of a sender.
    pub worker: Option<&'a str>,
    clock: &'a Clock,
}

impl<'a> Event<'a> {
    /// Names of all events, in the order of the table in `docs/events.md`.
    pub const NAMES: &'static [&'static str] = EventKind::NAMES;

    pub(crate) const fn new(kind: EventKind<'a>, worker: Option<&'a str>, clock: &'a Clock) -> Self {
        Self { kind, worker, clock }
    }

    /// Returns the name of the event: one of [`NAMES`](Self::NAMES).
    pub const fn name(&self) -> &'static str {
        self.kind.name()
    }

    /// Returns the task, if the event is about a task whose message was verified.
    pub const fn task(&self) -> Option<EventTask<'a>> {
        self.kind.task()
    }

    /// Returns backend time. The clock is read at each call, because most observers do not ask.
    pub fn at(&self) -> Timestamp {
        self.clock.now()
    }
}
