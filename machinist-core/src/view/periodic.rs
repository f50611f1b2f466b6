//! A periodic task.

use serde::Serialize;

use crate::{
    clock::Timestamp,
    duration::show_duration,
    periodic::{Misfire, Overlap, PeriodicTask, PeriodicTick, Schedule, Source},
    record::TaskState,
};

/// Tick as it is shown.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct TickView {
    /// Instant of the schedule, or of an extra tick.
    pub tick: String,
    /// Id of its task.
    pub id: String,
    /// `None` if its record has expired.
    pub state: Option<TaskState>,
}

impl From<&PeriodicTick> for TickView {
    fn from(tick: &PeriodicTick) -> Self {
        Self { tick: tick.tick.to_string(), id: tick.id.to_string(), state: tick.state }
    }
}

/// Periodic task as `list` shows it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct PeriodicView {
    /// Name.
    pub name: String,
    /// Name of the task that is sent.
    pub task: String,
    /// Queue to which it is sent.
    pub queue: String,
    /// Cron expression, if it has one.
    pub cron: Option<String>,
    /// Interval, if it has one.
    pub every: Option<String>,
    /// Time zone of the cron expression.
    pub time_zone: Option<String>,
    /// Next tick.
    pub next: Option<String>,
    /// Newest tick.
    pub last: Option<TickView>,
    /// `true` if it is paused.
    pub paused: bool,
    /// Owner of the definition.
    pub source: Source,
    /// Worker whose file or code has it.
    pub worker: Option<String>,
    /// Time at which a worker wrote it back, after the backend had lost it.
    pub restored_at: Option<String>,
    /// Reason that it does not tick.
    pub problem: Option<String>,
}

/// Periodic task as `show` shows it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct PeriodicDetailsView {
    /// Fields of the list.
    #[serde(flatten)]
    pub row: PeriodicView,
    /// Treatment of ticks that were missed.
    pub misfire: Misfire,
    /// Treatment of ticks while the task of the one before runs.
    pub overlap: Overlap,
    /// Maximum random delay of a tick.
    pub jitter: String,
    /// Time before which it does not tick.
    pub from: Option<String>,
    /// Time after which it does not tick.
    pub until: Option<String>,
    /// Maximum lateness of a tick.
    pub catch_up: String,
    /// Generation of the last order about it.
    pub generation: u64,
    /// Time since when it is paused.
    pub paused_at: Option<String>,
    /// Newest ticks, the newest first.
    pub ticks: Vec<TickView>,
}

impl From<&PeriodicTask> for PeriodicView {
    fn from(task: &PeriodicTask) -> Self {
        let schedule = task.schedule.as_ref();
        Self {
            name: task.name.clone(),
            task: task.task.to_string(),
            queue: task.queue.to_string(),
            cron: schedule.and_then(Schedule::cron_text).map(str::to_owned),
            every: schedule.and_then(Schedule::interval).map(show_duration),
            time_zone: schedule.and_then(Schedule::time_zone_name).map(str::to_owned),
            next: text(task.next),
            last: task.ticks.first().map(TickView::from),
            paused: task.paused.is_some(),
            source: task.source,
            worker: task.worker.clone(),
            restored_at: text(task.restored),
            problem: task.problem.clone(),
        }
    }
}

impl From<&PeriodicTask> for PeriodicDetailsView {
    fn from(task: &PeriodicTask) -> Self {
        let policies = &task.policies;
        Self {
            row: task.into(),
            misfire: policies.misfire,
            overlap: policies.overlap,
            jitter: show_duration(policies.jitter),
            from: text(policies.from),
            until: text(policies.until),
            catch_up: show_duration(policies.catch_up),
            generation: task.generation,
            paused_at: text(task.paused),
            ticks: task.ticks.iter().map(TickView::from).collect(),
        }
    }
}

fn text(instant: Option<Timestamp>) -> Option<String> {
    instant.map(|instant| instant.to_string())
}
