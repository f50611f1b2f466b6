//! Admission: may a task start here and now?
//!
//! A worker asks its rules after the times of a task and before it takes a slot. A task that is refused spends no attempt
//! and no postponement, holds no slot, and does not stop the tasks behind it: it is *parked*, and starts when no rule
//! refuses it any more. Pauses, disabled names and limits are rules.

use std::{fmt, sync::Arc};

use async_trait::async_trait;

use crate::{
    clock::Timestamp,
    id::{QueueName, TaskId, TaskName},
};

/// Reason that a task waits: a code and the thing that it is about, as `disabled:report`.
///
/// Tasks that wait for the same reason are released together.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WaitReason(Arc<str>);

impl WaitReason {
    /// Creates a reason from a code without a colon, such as `paused`, and what it is about.
    pub fn new(code: &str, subject: &str) -> Self {
        Self(format!("{code}:{subject}").into())
    }

    /// The reason that a task's name is disabled for all workers.
    pub(crate) fn disabled(task: &TaskName) -> Self {
        Self::new("disabled", task.as_str())
    }

    /// Returns the reason as text, `CODE:SUBJECT`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the text to share.
    pub(crate) fn text(&self) -> Arc<str> {
        Arc::clone(&self.0)
    }
}

impl From<&str> for WaitReason {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for WaitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for WaitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

/// A task that asks for admission. Its message is verified; its body is not decoded.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct AdmissionRequest<'a> {
    /// Task id.
    pub id: &'a TaskId,
    /// Task name.
    pub name: &'a TaskName,
    /// Queue of the task.
    pub queue: &'a QueueName,
    /// Attempt, from 1.
    pub attempt: u32,
    /// Backend time.
    pub now: Timestamp,
}

/// Answer of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdmissionDecision {
    /// The task may start here now.
    Now,
    /// The task may start nowhere before this time.
    NotBefore(Timestamp, WaitReason),
    /// The task may not start here until somebody lifts the reason.
    NotHere(WaitReason),
}

/// Rule that decides whether a task may start.
///
/// A rule is asked for every start, and again every quarter of a second for a task that waits in the process, so it
/// answers from memory or with one round trip. It must not fail: a rule that cannot decide chooses the answer that its
/// purpose asks for. A start after the death of a worker is asked for too.
///
/// ```
/// use machinist_core::admission::{AdmissionDecision, AdmissionRequest, AdmissionRule, WaitReason};
///
/// /// Keeps reports for the night.
/// #[derive(Debug)]
/// struct AtNight;
///
/// #[async_trait::async_trait]
/// impl AdmissionRule for AtNight {
///     async fn admit(&self, task: &AdmissionRequest<'_>) -> AdmissionDecision {
///         let hour = task.now.as_micros() / 3_600_000_000 % 24;
///         if task.name.as_str() == "report" && (6..22).contains(&hour) {
///             return AdmissionDecision::NotHere(WaitReason::new("daytime", "report"));
///         }
///         AdmissionDecision::Now
///     }
/// }
/// ```
#[async_trait]
pub trait AdmissionRule: fmt::Debug + Send + Sync + 'static {
    /// Decides whether a task may start.
    ///
    /// # Cancel safety
    /// The future may be dropped: the task is then asked for again, here or in another worker.
    async fn admit(&self, task: &AdmissionRequest<'_>) -> AdmissionDecision;
}
