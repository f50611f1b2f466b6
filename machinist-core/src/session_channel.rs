//! The wake-up channel of a session: a client wakes the worker that runs a task, so that it looks at its record at once.
//!
//! The channel is the wake-up of a record that is never written. One watch serves a worker, not one for each running
//! task. Nothing depends on it: the worker's next renewal reads every record anyway.

use crate::{
    backend::Commit,
    id::{SessionId, TaskId},
};

/// Returns the id that the worker of a session watches; `None` if no session can have that name.
pub(crate) fn session_channel(session: &SessionId) -> Option<TaskId> {
    TaskId::parse(&format!("session.{}", session.as_str())).ok()
}

/// Returns the commit that wakes the worker of a session, if a worker can watch it.
pub(crate) fn wake_session(session: &SessionId) -> Option<Commit> {
    Some(Commit { wake: true, ..Commit::new(session_channel(session)?) })
}
