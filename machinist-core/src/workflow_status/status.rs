//! State of a workflow, by the records of its tasks.
//!
//! Nothing is stored about a workflow as a whole except its outline. Its state is a function of the records of its tasks, so
//! no two writers can disagree about it.

use serde::Serialize;

use crate::{
    args::Results,
    client::Client,
    control::{ControlError, Revoked},
    error::ResultError,
    flow::{Outline, OutlineStep, StepPlace},
    id::{RecordId, TaskId},
    record::{FailureKind, Record, TaskState, fold, name},
};

/// Number of records that are read at once.
const PAGE_SIZE: usize = 500;

/// State of a workflow.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct WorkflowStatus {
    /// Id of its root.
    pub root: TaskId,
    /// Its name, for people.
    pub name: Option<String>,
    /// SUCCESS if its last steps have succeeded; FAILURE if one of them has failed; PENDING before it has begun; STARTED
    /// otherwise.
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
    /// Results of a single task.
    pub results: Option<Results>,
    /// Numbers of members, if it is a group.
    pub members: Option<MemberCounts>,
    /// `true` if it runs only when another step has failed.
    pub is_error_callback: bool,
    /// `true` if nothing follows it.
    pub is_last: bool,
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
            let status = self.step_status(&place, step).await?;
            if !step.internal && !step.catches {
                progress.total += status.members.map_or(1, |members| members.total);
                let ended = u32::from(status.state.is_final());
                progress.done += status.members.map_or(ended, |members| members.done);
            }
            steps.push((step.internal, status));
        }
        let state = state(&record, &steps);
        let steps = steps.into_iter().filter(|(internal, _)| !internal).map(|(_, step)| step).collect();
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

    async fn step_status(&self, root: &StepPlace, step: &OutlineStep) -> Result<StepStatus, ResultError> {
        let place = root.step(&step.name);
        let mut status = StepStatus {
            name: step.name.clone(),
            id: place.id(),
            task: step.task.clone(),
            after: step.after.clone(),
            state: TaskState::Pending,
            kind: None,
            error: None,
            results: None,
            members: None,
            is_error_callback: step.catches,
            is_last: step.is_last,
        };
        let Some(total) = step.members else {
            let id = status.id.clone();
            if let Some(record) = self.result(id).known_record().await? {
                status.state = record.state;
                status.kind = record.kind;
                status.error = record.error.map(|error| error.message().to_owned());
                status.results = record.results;
            }
            return Ok(status);
        };
        let mut counts = MemberCounts { total, ..MemberCounts::default() };
        let mut begun = false;
        let page = u32::try_from(PAGE_SIZE).unwrap_or(u32::MAX);
        for first in (0..total).step_by(PAGE_SIZE) {
            let members = first..total.min(first.saturating_add(page));
            for (_, record) in self.member_records(root, step, members).await? {
                let Some(record) = record else { continue };
                begun |= record.state != TaskState::Pending;
                counts.done += u32::from(record.state.is_final());
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
        status.members = Some(counts);
        Ok(status)
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
            for (id, facts) in page.iter().zip(self.app.backend().read_each(&names).await?) {
                // A record that cannot be read is shown as one that is not there.
                let record = facts.ok().and_then(|facts| self.app.record_of(id, facts).ok().flatten());
                records.push((id.clone(), record));
            }
        }
        Ok(records)
    }

    /// Revokes a workflow: nothing of it starts any more, and what runs is asked to end. Returns the number of tasks that
    /// have ended by it, and the number of those that were asked.
    ///
    /// Tasks that are not sent yet end in FAILURE/upstream when the tasks before them end. A backend that loses its data
    /// forgets the revocation.
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
        self.commit(crate::record::revoke_root(root, self.app.clock().now(), self.app.0.results_ttl)).await?;
        let place = StepPlace::root(root.clone());
        let mut ids = vec![root.clone()];
        for step in &outline.steps {
            let place = place.step(&step.name);
            match step.members {
                None => ids.push(place.id()),
                Some(total) => ids.extend((0..total).map(|index| place.member(index).id())),
            }
            if let (Some(total), Some(last)) = (step.members, &step.last) {
                ids.extend((0..total).map(|index| place.member(index).step(last).id()));
            }
        }
        let (mut ended, mut asked) = (0, 0);
        for id in ids {
            match self.revoke(&id).await {
                Ok(Revoked::Ended) => ended += 1,
                Ok(Revoked::Asked) => asked += 1,
                // Not sent yet, or over.
                Ok(Revoked::Already(_)) | Err(ControlError::Unknown { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok((ended, asked))
    }
}

/// Returns the state of a workflow with these steps, each with whether machinist has added it.
fn state(root: &Record, steps: &[(bool, StepStatus)]) -> TaskState {
    let mut last = steps.iter().filter(|(_, step)| step.is_last).map(|(_, step)| step.state);
    if last.clone().any(|state| state == TaskState::Failure) {
        return TaskState::Failure;
    }
    if last.all(|state| state == TaskState::Success) {
        return TaskState::Success;
    }
    let begun = root.state.is_final() || steps.iter().any(|(_, step)| step.state != TaskState::Pending);
    if begun { TaskState::Started } else { root.state }
}
