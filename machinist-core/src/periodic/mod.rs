//! Periodic tasks: tasks that are sent at instants of a schedule, by the workers themselves.
//!
//! No server and no master decides. Every worker knows the definitions; for each of them one worker at a time has the turn
//! to tick (see `worker/periodic`). A tick has a deterministic id, so it is one task even if two workers send it, and the
//! cursor of its name is passed only after the broker has confirmed it: no tick is lost when a worker dies, and none is
//! sent again later.
//!
//! | module | question |
//! |---|---|
//! | `schedule` | when does it tick? |
//! | `policy` | what about missed ticks, and those that overlap? |
//! | `due` | which ticks are sent now? |
//! | `tick` | which id does a tick have? |
//! | `order` | what is stored, and how does it change? |
//! | `control` | how do people add, pause and remove it? |
//! | `view` | what do they see of it? |

mod control;
mod due;
mod error;
mod order;
mod policy;
mod schedule;
mod sealing;
mod tick;
mod view;

use std::time::Duration;

pub use error::PeriodicError;
pub use policy::{Misfire, Overlap, Policies, Source};
pub use schedule::{Schedule, ScheduleError};
pub use view::{PeriodicTask, PeriodicTick, Triggered};

pub(crate) use due::Plan;
pub(crate) use order::{
    Cursor, Own, PeriodicOrder, PeriodicOutline, Swap, fact, name, periodic_record, wake_record,
};
pub(crate) use sealing::{check_steps, trusted_order};
pub(crate) use tick::tick_id;

use crate::{
    app::App,
    clock::Timestamp,
    flow::Outline,
    id::{QueueName, TaskName},
    signature::{SignatureParts, When},
    workflow::{Sendable, SendableParts},
};

/// Definition of a periodic task: a name, a schedule, and the signature or the workflow that is sent at each tick.
///
/// # Examples
/// ```
/// use machinist_core::{Signature, periodic::{Overlap, Periodic, Schedule}};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let schedule = Schedule::cron("0 3 * * *")?.time_zone("Europe/Berlin")?;
/// let nightly = Periodic::new("nightly", schedule, Signature::new("report"))?.overlap(Overlap::Skip);
/// assert_eq!(nightly.name(), "nightly");
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use = "a periodic task does nothing until it is added to a worker or to the backend"]
pub struct Periodic {
    pub(crate) plan: Plan,
    pub(crate) parts: SignatureParts,
    /// Outline of the workflow, if it is one.
    pub(crate) outlined: Option<Outline>,
    pub(crate) source: Source,
}

impl Periodic {
    /// Creates a definition of a signature or a workflow. Its ticks have ids that follow from its name and their instants; the
    /// id of what is given is not used.
    ///
    /// # Errors
    /// [`PeriodicError::Name`], and [`PeriodicError::Invalid`] for an ETA, a countdown, or an instant of expiry, for a
    /// signature that is unique or requires a live worker, and for a workflow that cannot be sent.
    pub fn new<S: Sendable>(
        name: impl Into<String>,
        schedule: Schedule,
        what: S,
    ) -> Result<Self, PeriodicError> {
        let name = name.into();
        if let Err(why) = tick::check_name(&name) {
            return Err(PeriodicError::Name { name: name.chars().take(60).collect(), why });
        }
        let SendableParts { parts, outline: outlined, .. } = what.into_parts();
        let invalid = |why: &str| PeriodicError::Invalid { name: name.clone(), why: why.to_owned() };
        if let Some(why) = parts.unsendable.as_deref().or_else(|| parts.for_clients_alone()) {
            return Err(invalid(why));
        }
        if parts.when != When::In(Duration::ZERO) {
            return Err(invalid(
                "its task has an ETA or a countdown; the schedule says when it runs: leave it out",
            ));
        }
        if matches!(parts.expires, Some(When::At(_))) {
            return Err(invalid("its task expires at an instant; write a time from each tick, like 10m"));
        }
        let plan = Plan { name, schedule, policies: Policies::default() };
        Ok(Self { plan, parts, outlined, source: Source::Code })
    }

    /// Sets the treatment of missed ticks. Default: [`Misfire::Once`].
    pub fn misfire(mut self, misfire: Misfire) -> Self {
        self.plan.policies.misfire = misfire;
        self
    }

    /// Sets the treatment of a tick when the last one has not ended. Default: [`Overlap::Allow`].
    pub fn overlap(mut self, overlap: Overlap) -> Self {
        self.plan.policies.overlap = overlap;
        self
    }

    /// Sends each tick later by a time below this one. The time is a hash of name and instant, the same on every worker. At
    /// most a day. Default: none.
    pub fn jitter(mut self, jitter: Duration) -> Self {
        self.plan.policies.jitter = jitter;
        self
    }

    /// Ticks at this instant at the earliest.
    pub fn from(mut self, instant: Timestamp) -> Self {
        self.plan.policies.from = Some(instant);
        self
    }

    /// Ticks at this instant at the latest.
    pub fn until(mut self, instant: Timestamp) -> Self {
        self.plan.policies.until = Some(instant);
        self
    }

    /// Makes up for missed ticks up to this age, at most seven days. Default: a day.
    pub fn catch_up(mut self, age: Duration) -> Self {
        self.plan.policies.catch_up = age;
        self
    }

    /// Marks the definition as one of a file of settings.
    #[doc(hidden)]
    pub fn of_file(mut self) -> Self {
        self.source = Source::File;
        self
    }

    /// Returns the name.
    pub fn name(&self) -> &str {
        &self.plan.name
    }

    /// Returns the schedule.
    pub fn schedule(&self) -> &Schedule {
        &self.plan.schedule
    }

    /// Returns the name of the task that is sent; `machinist.workflow` for a workflow.
    pub fn task_name(&self) -> &str {
        &self.parts.name
    }

    /// Checks the policies. A worker and the backend do it themselves.
    ///
    /// # Errors
    /// [`PeriodicError::Invalid`] for policies that contradict each other or exceed their maximum.
    pub fn check(&self) -> Result<(), PeriodicError> {
        let policies = &self.plan.policies;
        let invalid = |why: String| Err(PeriodicError::Invalid { name: self.plan.name.clone(), why });
        if policies.jitter > policy::MAX_JITTER {
            return invalid(format!("a jitter of {:?} is too long; the longest is 1d", policies.jitter));
        }
        if policies.catch_up > policy::MAX_CATCH_UP {
            return invalid(format!(
                "a catch-up time of {:?} is too long; the longest is 7d",
                policies.catch_up
            ));
        }
        if let (Some(from), Some(until)) = (policies.from, policies.until)
            && until < from
        {
            return invalid(format!("it ends at {until}, before it starts at {from}"));
        }
        Ok(())
    }

    /// Returns the signature of each tick, but for its id. All queues are complete: the default queue of another application
    /// may be another.
    pub(crate) fn tick_parts(&self, app: &App, queue: &QueueName) -> SignatureParts {
        let mut parts = SignatureParts { queue: Some(queue.to_string()), ..self.parts.clone() };
        if let Some(flow) = &mut parts.flow {
            flow.fill_queues(app.default_queue().as_str());
        }
        parts
    }

    /// Returns what the record says about it, if it has a task name and a queue that are allowed.
    pub(crate) fn outline(&self, app: &App) -> Result<PeriodicOutline, PeriodicError> {
        let invalid = |error: crate::id::InvalidName| PeriodicError::Invalid {
            name: self.plan.name.clone(),
            why: error.to_string(),
        };
        let queue = self.parts.queue_name(app.default_queue()).map_err(invalid)?;
        if self.outlined.is_some() && app.0.rules.profile(&queue).is_some() {
            let why = format!(
                "queue {queue} is one of another program, which knows no periodic workflow; take another queue"
            );
            return Err(PeriodicError::Invalid { name: self.plan.name.clone(), why });
        }
        Ok(PeriodicOutline {
            task: TaskName::parse(&self.parts.name).map_err(invalid)?,
            queue,
            schedule: self.plan.schedule.stored(),
            policies: self.plan.policies.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{signature::Signature, unique::Unique};

    #[test]
    fn options_that_only_a_client_honours_are_refused() {
        let report = || Signature::new("report");
        for (signature, says) in [
            (report().unique(Unique::new()), "its task is unique"),
            (report().require_worker(), "requires a live worker"),
        ] {
            let schedule = Schedule::cron("0 3 * * *").unwrap();
            let error = Periodic::new("nightly", schedule, signature).unwrap_err().to_string();
            assert!(error.starts_with("periodic task nightly: ") && error.contains(says), "{error}");
        }
    }
}
