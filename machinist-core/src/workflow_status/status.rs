//! State of a workflow, by the records of its tasks.
//!
//! Nothing is stored about a workflow as a whole except its outline. Its state is a function of the records of its tasks, so
//! no two writers can disagree about it.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::join_all;
use serde::Serialize;

use crate::{
    args::Results,
    backend::BackendError,
    client::Client,
    clock::Timestamp,
    control::{ControlError, Revoked},
    error::ResultError,
    flow::{Outline, OutlineStep, StepPlace, spawned_root},
    id::{RecordId, TaskId},
    record::{Facts, FailureKind, Record, TaskState, fold, name},
};

/// Number of records that are read at once.
const PAGE_SIZE: usize = 500;
/// Number of tasks that are revoked at the same time.
const CONCURRENT_REVOCATIONS: usize = 64;

/// State of a workflow.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct WorkflowStatus {
    /// Id of its root.
    pub root: TaskId,
    /// Its name, for people.
    pub name: Option<String>,
    /// SUCCESS if its last steps have succeeded; FAILURE if one of them has failed and nothing of it is known to wait or run
    /// any more, except error callbacks; PENDING before it has begun; STARTED otherwise.
    pub state: TaskState,
    /// `true` while not all of its first steps are certainly sent.
    pub incomplete: bool,
    /// Numbers of tasks.
    pub progress: WorkflowProgress,
    /// Its steps, in the order in which they were given.
    pub steps: Vec<StepStatus>,
    /// Record of the root.
    pub record: Record,
}

/// Numbers of a workflow's tasks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct WorkflowProgress {
    /// Tasks that have ended.
    pub done: u32,
    /// All tasks, without error callbacks.
    pub total: u32,
}

/// Numbers of a group's members.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct MemberCounts {
    /// All members.
    pub total: u32,
    /// Members that have ended.
    pub done: u32,
    /// Members that have failed.
    pub failed: u32,
}

/// Workflow that a task belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TaskPlace {
    /// Id of the workflow's root.
    pub root: TaskId,
    /// Path of the task below the root, as its id has it: a step, `many.3` for a member. `None` for the root itself.
    pub path: Option<String>,
}

/// State of a step.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct StepStatus {
    /// Its name.
    pub name: String,
    /// Id of its task; the ids of members are this id and their index.
    pub id: TaskId,
    /// Name of its task.
    pub task: String,
    /// Names of the steps before it.
    pub after: Vec<String>,
    /// State of its task; of a group, the state of all its members together.
    pub state: TaskState,
    /// Kind of its failure; of a group, that of the first member that failed.
    pub kind: Option<FailureKind>,
    /// Error of its failure.
    pub error: Option<String>,
    /// Start of its last run; of a group, that of the first member.
    pub started_at: Option<Timestamp>,
    /// Its end; of a group that has ended, the end of the last member.
    pub ended_at: Option<Timestamp>,
    /// Results of a single task.
    pub results: Option<Results>,
    /// Numbers of members, if it is a group.
    pub members: Option<MemberCounts>,
    /// `true` if it runs only when another step has failed.
    pub is_error_callback: bool,
    /// `true` if nothing follows it.
    pub is_last: bool,
}

/// A step with what only the state of the whole depends on.
struct KnownStep {
    status: StepStatus,
    /// `true` if machinist has added it.
    internal: bool,
    /// `true` if a task of it has a record and has not ended.
    under_way: bool,
}

impl Client {
    /// Returns the state of a workflow; `None` if the id is that of a task and not of a workflow's root.
    ///
    /// # Errors
    /// [`ResultError::Unknown`] where there is no record, [`ResultError::Forged`], [`ResultError::Backend`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn workflow(&self, root: &TaskId) -> Result<Option<WorkflowStatus>, ResultError> {
        let facts = self.read(root).await?;
        let Some(record) = fold(root, &facts) else { return Err(ResultError::Unknown { id: root.clone() }) };
        let Some(outline) = facts.read::<Outline>(name::OUTLINE) else { return Ok(None) };
        let incomplete = record.state == TaskState::Success && !facts.has(name::FOLLOWED);
        let place = StepPlace::root(root.clone());
        let mut steps = Vec::with_capacity(outline.steps.len());
        let mut progress = WorkflowProgress::default();
        for step in &outline.steps {
            let (status, under_way) = self.step_status(&place, step).await?;
            if !step.internal && !step.catches {
                progress.total += status.members.map_or(1, |members| members.total);
                let ended = u32::from(status.state.is_final());
                progress.done += status.members.map_or(ended, |members| members.done);
            }
            steps.push(KnownStep { status, internal: step.internal, under_way });
        }
        let mut state = state(&record, &steps);
        if state == TaskState::Failure && self.has_unfinished_members(&place, &outline).await? {
            state = TaskState::Started;
        }
        let steps = steps.into_iter().filter(|step| !step.internal).map(|step| step.status).collect();
        Ok(Some(WorkflowStatus {
            root: root.clone(),
            name: outline.name,
            state,
            incomplete,
            progress,
            steps,
            record,
        }))
    }

    /// Returns the state of a task with this record; of the whole workflow, if it is the root of one. `None` without a record.
    pub(crate) async fn whole_state(
        &self,
        id: &TaskId,
        facts: &Facts,
    ) -> Result<Option<TaskState>, BackendError> {
        if facts.has(name::OUTLINE) {
            // On the heap: most are single tasks.
            match Box::pin(self.workflow(id)).await {
                Ok(Some(workflow)) => return Ok(Some(workflow.state)),
                Err(ResultError::Backend(error)) => return Err(error),
                // Gone since, or a result that is not believed.
                Ok(None) | Err(_) => {}
            }
        }
        Ok(fold(id, facts).map(|record| record.state))
    }

    /// Returns the records of a group's members, at most `limit`, from the member `first` on; `None` in the place of a member
    /// that has no record.
    ///
    /// # Errors
    /// As [`workflow`](Self::workflow); [`ResultError::Unknown`] too if the workflow has no such group.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn workflow_members(
        &self,
        root: &TaskId,
        step: &str,
        first: u32,
        limit: usize,
    ) -> Result<Vec<(TaskId, Option<Record>)>, ResultError> {
        let facts = self.read(root).await?;
        let outline = facts.read::<Outline>(name::OUTLINE).unwrap_or_default();
        let group = outline.steps.iter().find(|known| known.name == step);
        let Some((group, total)) = group.and_then(|group| Some((group, group.members?))) else {
            return Err(ResultError::Unknown { id: StepPlace::root(root.clone()).step(step).id() });
        };
        let end = u32::try_from(limit).map_or(total, |limit| total.min(first.saturating_add(limit)));
        self.member_records(&StepPlace::root(root.clone()), group, first..end).await
    }

    /// Returns the workflow of each of these tasks, if it belongs to one whose root still has its record. The ids tell; the
    /// tasks themselves may have no record.
    ///
    /// # Errors
    /// [`ResultError::Backend`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn workflows_of(&self, ids: &[TaskId]) -> Result<Vec<Option<TaskPlace>>, ResultError> {
        let candidates: BTreeSet<TaskId> = ids.iter().flat_map(possible_roots).collect();
        let candidates: Vec<TaskId> = candidates.into_iter().collect();
        let mut outlines = BTreeMap::new();
        for page in candidates.chunks(PAGE_SIZE) {
            let names: Vec<RecordId> = page.iter().map(RecordId::from).collect();
            for (id, facts) in page.iter().zip(self.app.backend().read_each(&names).await?) {
                if let Some(outline) = facts.ok().and_then(|facts| facts.read::<Outline>(name::OUTLINE)) {
                    outlines.insert(id.clone(), outline);
                }
            }
        }
        let place = |id: &TaskId| {
            possible_roots(id).find_map(|root| {
                let outline = outlines.get(&root)?;
                let path = id.as_str()[root.as_str().len()..].strip_prefix('.').map(str::to_owned);
                let first = path.as_deref().and_then(|path| path.split('.').next());
                let is_part = first.is_none_or(|first| {
                    first.starts_with('#') || outline.steps.iter().any(|step| step.name == first)
                });
                is_part.then_some(TaskPlace { root, path })
            })
        };
        Ok(ids.iter().map(place).collect())
    }

    /// Returns `true` if a member of several steps has begun and has not ended: of such members, the states of steps show the
    /// last task alone.
    async fn has_unfinished_members(&self, root: &StepPlace, outline: &Outline) -> Result<bool, ResultError> {
        for step in outline.steps.iter().filter(|step| step.last.is_some()) {
            for page in step.tasks(root).chunks(PAGE_SIZE) {
                let names: Vec<RecordId> = page.iter().map(RecordId::from).collect();
                let records = self.app.backend().read_each(&names).await?;
                if records.iter().flatten().any(|facts| !facts.is_empty() && !facts.has(name::END)) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Returns the state of a step, and whether a task of it has a record and has not ended.
    async fn step_status(
        &self,
        root: &StepPlace,
        step: &OutlineStep,
    ) -> Result<(StepStatus, bool), ResultError> {
        let place = root.step(&step.name);
        let mut status = StepStatus {
            name: step.name.clone(),
            id: place.id(),
            task: step.task.clone(),
            after: step.after.clone(),
            state: TaskState::Pending,
            kind: None,
            error: None,
            started_at: None,
            ended_at: None,
            results: None,
            members: None,
            is_error_callback: step.catches,
            is_last: step.is_last,
        };
        let mut under_way = false;
        let Some(total) = step.members else {
            let id = status.id.clone();
            if let Some(record) = self.result(id).counting_record().await? {
                under_way = !record.state.is_final();
                status.state = record.state;
                status.kind = record.kind;
                status.started_at = record.started_at;
                status.ended_at = record.ended_at;
                status.error = record.error.map(|error| error.message().to_owned());
                status.results = record.results;
            }
            return Ok((status, under_way));
        };
        let mut counts = MemberCounts { total, ..MemberCounts::default() };
        let mut begun = false;
        let page = u32::try_from(PAGE_SIZE).unwrap_or(u32::MAX);
        for first in (0..total).step_by(PAGE_SIZE) {
            let members = first..total.min(first.saturating_add(page));
            for (_, record) in self.member_records(root, step, members).await? {
                let Some(record) = record else { continue };
                begun |= record.state != TaskState::Pending;
                under_way |= !record.state.is_final();
                counts.done += u32::from(record.state.is_final());
                status.started_at = status.started_at.into_iter().chain(record.started_at).min();
                status.ended_at = status.ended_at.max(record.ended_at);
                if record.state == TaskState::Failure {
                    counts.failed += 1;
                    status.kind = status.kind.or(record.kind);
                    status.error =
                        status.error.or_else(|| record.error.map(|error| error.message().to_owned()));
                }
            }
        }
        status.state = match (counts.done == total, counts.failed) {
            (true, 0) => TaskState::Success,
            (true, _) => TaskState::Failure,
            (false, _) if begun => TaskState::Started,
            (false, _) => TaskState::Pending,
        };
        status.ended_at = status.ended_at.filter(|_| counts.done == total);
        status.members = Some(counts);
        Ok((status, under_way))
    }

    /// Reads the records of the last tasks of members.
    async fn member_records(
        &self,
        root: &StepPlace,
        step: &OutlineStep,
        members: std::ops::Range<u32>,
    ) -> Result<Vec<(TaskId, Option<Record>)>, ResultError> {
        let group = root.step(&step.name);
        let ids: Vec<TaskId> = members
            .map(|index| {
                let member = group.member(index);
                step.last.as_ref().map_or_else(|| member.id(), |last| member.step(last).id())
            })
            .collect();
        let mut records = Vec::with_capacity(ids.len());
        for page in ids.chunks(PAGE_SIZE) {
            let names: Vec<RecordId> = page.iter().map(RecordId::from).collect();
            let facts = self.app.backend().read_each(&names).await?;
            // A record that cannot be read is shown as one that is not there.
            let read = |(id, facts): (&TaskId, Result<_, _>)| {
                let record = facts.ok().and_then(|facts| self.app.record_of(id, facts).ok().flatten());
                (id.clone(), record)
            };
            let own = page.iter().zip(facts).map(read).collect();
            for (id, record) in page.iter().zip(self.app.with_mirrored(own, None).await?) {
                let record = match record {
                    Some(record) => Some(self.app.counting_record(record).await?),
                    None => None,
                };
                records.push((id.clone(), record));
            }
        }
        Ok(records)
    }

    /// Revokes a workflow: nothing of it starts any more, and what runs is asked to end. Returns the number of tasks that
    /// have ended by it, and the number of those that were asked.
    ///
    /// Tasks that are not sent yet end in FAILURE/upstream when the tasks before them end; that is soon, also if those are
    /// delayed. A task that begins at the same moment is told to end at the next renewal of its worker's session. A backend
    /// that loses its data forgets the revocation.
    ///
    /// # Errors
    /// [`ControlError`]. Asking again is fine.
    ///
    /// # Cancel safety
    /// A dropped future leaves each task revoked or not; asking again is fine.
    pub async fn revoke_workflow(&self, root: &TaskId) -> Result<(u32, u32), ControlError> {
        let facts = self.read(root).await?;
        let outline =
            facts.read::<Outline>(name::OUTLINE).ok_or_else(|| ControlError::Unknown { id: root.clone() })?;
        self.mark_revoked(root).await?;
        let place = StepPlace::root(root.clone());
        let mut ids = vec![root.clone()];
        ids.extend(outline.steps.iter().flat_map(|step| step.tasks(&place)));
        let (mut ended, mut asked) = (0, 0);
        for window in ids.chunks(CONCURRENT_REVOCATIONS) {
            for revoked in join_all(window.iter().map(|id| self.revoke(id))).await {
                match revoked {
                    Ok(Revoked::Ended) => ended += 1,
                    Ok(Revoked::Asked) => asked += 1,
                    // Not sent yet, or over.
                    Ok(Revoked::Already(_)) | Err(ControlError::Unknown { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok((ended, asked))
    }

    /// Revokes what replaces a task that has ended; `last` is the task that ends in its place.
    pub(crate) async fn revoke_replacement(&self, last: &TaskId) -> Result<Revoked, ControlError> {
        let root = spawned_root(last);
        // It need not be sent yet: the mark holds for what comes later.
        self.mark_revoked(&root).await?;
        let revoked = match self.revoke_workflow(&root).await {
            Err(ControlError::Unknown { .. }) => self.revoke(&root).await,
            Ok((0, 0)) => Ok(Revoked::Already(TaskState::Success)),
            Ok((_, 0)) => Ok(Revoked::Ended),
            Ok(_) => Ok(Revoked::Asked),
            Err(error) => Err(error),
        };
        match revoked {
            Err(ControlError::Unknown { .. }) => Ok(Revoked::Ended),
            other => other,
        }
    }

    async fn mark_revoked(&self, root: &TaskId) -> Result<(), ControlError> {
        let now = self.app.clock().now();
        self.commit(crate::record::revoke_root(root, now, self.app.0.results_ttl)).await?;
        Ok(())
    }
}

/// Returns the ids that the root of a task's workflow can have, the longest first.
fn possible_roots(id: &TaskId) -> impl Iterator<Item = TaskId> {
    let text = id.as_str();
    let shorter = text.rmatch_indices('.').filter_map(|(dot, _)| TaskId::parse(&text[..dot]).ok());
    std::iter::once(id.clone()).chain(shorter)
}

/// Returns the state of a workflow with these steps.
fn state(root: &Record, steps: &[KnownStep]) -> TaskState {
    let mut last = steps.iter().map(|step| &step.status).filter(|step| step.is_last).map(|step| step.state);
    if last.clone().all(|state| state == TaskState::Success) {
        return TaskState::Success;
    }
    // A failure is certain as soon as a last step has failed. But others go on, and would run twice if it were sent again.
    let goes_on = steps.iter().any(|step| step.under_way && !step.status.is_error_callback);
    if last.any(|state| state == TaskState::Failure) && !goes_on {
        return TaskState::Failure;
    }
    let begun = root.state.is_final() || steps.iter().any(|step| step.status.state != TaskState::Pending);
    if begun { TaskState::Started } else { root.state }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(state: TaskState, is_last: bool, under_way: bool) -> KnownStep {
        let id: TaskId = "R.s".try_into().unwrap();
        let status = StepStatus {
            name: "s".to_owned(),
            id,
            task: "add".to_owned(),
            after: Vec::new(),
            state,
            kind: None,
            error: None,
            started_at: None,
            ended_at: None,
            results: None,
            members: None,
            is_error_callback: false,
            is_last,
        };
        KnownStep { status, internal: false, under_way }
    }

    #[test]
    fn a_workflow_fails_when_nothing_goes_on() {
        use TaskState::{Failure, Pending, Retry, Started, Success};
        let root = Record::of("R".try_into().unwrap(), Success);
        let of = |steps: &[KnownStep]| state(&root, steps);
        assert_eq!(
            of(&[step(Failure, false, false), step(Success, true, false)]),
            Success,
            "it was tolerated"
        );
        assert_eq!(of(&[step(Failure, true, false), step(Success, true, false)]), Failure);
        // It never runs, or its record is forgotten.
        assert_eq!(of(&[step(Failure, true, false), step(Pending, true, false)]), Failure);
        for other in [Pending, Started, Retry] {
            assert_eq!(of(&[step(Failure, true, false), step(other, false, true)]), Started, "{other}");
        }
        let mut callback = step(Started, false, true);
        callback.status.is_error_callback = true;
        assert_eq!(of(&[step(Failure, true, false), callback]), Failure);
        let root = Record::of("R".try_into().unwrap(), Pending);
        assert_eq!(state(&root, &[step(Pending, true, false)]), Pending);
    }
}
