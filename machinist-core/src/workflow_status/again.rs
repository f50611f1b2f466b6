//! A workflow that failed, sent again: what has succeeded is not run again.
//!
//! The workflow gets a new root and so new ids. A step that succeeded is sent with its recorded results, which its new task
//! returns at once; so joins and arguments are filled as they were.

use std::collections::BTreeMap;

use crate::{
    args::Arg,
    client::Client,
    control::ControlError,
    error::ResultError,
    flow::{Flow, Outline, Step, StepPlace},
    id::{RecordId, TaskId},
    record::{TaskState, name},
    result::AsyncResult,
};

/// Number of records that are read at once.
const PAGE_SIZE: usize = 500;

/// Result of [`Client::send_again`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SentAgain {
    /// The task or workflow was sent under this id.
    As(TaskId),
    /// The task waited for its next run, and runs as soon as a worker is free.
    RunsNow,
}

impl Client {
    /// Returns `true` if an id is that of a workflow, which is the id of its root.
    ///
    /// # Errors
    /// [`ControlError`]
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn is_workflow(&self, id: &TaskId) -> Result<bool, ControlError> {
        let places = self.workflows_of(std::slice::from_ref(id)).await;
        let place = places.map_err(|error| unusable(id, error))?.into_iter().next().flatten();
        Ok(place.is_some_and(|place| place.path.is_none()))
    }

    /// Sends a failed task or workflow again, as [`Client::retry`] and [`Client::retry_workflow`] do. A task that waits
    /// for its next run runs at once, as by [`Client::run_now`].
    ///
    /// # Errors
    /// [`ControlError`], as those functions.
    ///
    /// # Cancel safety
    /// A dropped future leaves the task sent or not; asking again is fine.
    pub async fn send_again(&self, id: &TaskId) -> Result<SentAgain, ControlError> {
        if self.is_workflow(id).await? {
            let last = self.retry_workflow(id).await?;
            return Ok(SentAgain::As(last.workflow_id().unwrap_or_else(|| last.id()).clone()));
        }
        match self.retry(id).await {
            Ok(again) => Ok(SentAgain::As(again.id().clone())),
            Err(ControlError::State { state: TaskState::Retry, .. }) => {
                self.run_now(id).await?;
                Ok(SentAgain::RunsNow)
            }
            Err(error) => Err(error),
        }
    }

    /// Sends a workflow that failed again, as a new workflow, and returns the result of its last task. Steps that have succeeded are
    /// not run again: their recorded results are used. Of a member with several steps, all are run again unless the last
    /// has succeeded. The records of both roots name each other.
    ///
    /// A workflow is sent again once: asked a second time, this returns the result of the first time.
    ///
    /// # Errors
    /// [`ControlError`]: only a workflow in FAILURE can be sent again, and only while the record of its root holds its
    /// message (256 KiB at most).
    ///
    /// # Cancel safety
    /// A dropped future leaves the workflow sent or not; asking again is fine.
    pub async fn retry_workflow(&self, root: &TaskId) -> Result<AsyncResult, ControlError> {
        let facts = self.read(root).await?;
        let status = self.workflow(root).await.map_err(|error| unusable(root, error))?;
        if status.is_none_or(|status| status.state != TaskState::Failure) {
            let why = "only a workflow in FAILURE can be sent again: a last step has failed, and nothing else goes on";
            return Err(self.wrong_state(root, &facts, why));
        }
        self.check_before_sending_again(root, &facts)?;
        let sent = facts.read(name::SENT).unwrap_or_else(|| self.app.clock().now());
        let kept = self.kept_envelope(root, &facts, name::MESSAGE, sent)?;
        let refused = |why: String| ControlError::NoMessage { id: root.clone(), why };
        let mut body = self.app.decode(&kept).map_err(|error| refused(error.to_string()))?;
        let flow = body.flow.as_mut().ok_or_else(|| refused("it is no workflow".to_owned()))?;
        self.note_done(&StepPlace::root(root.clone()), flow).await?;
        let codec = self.app.0.codec;
        let bytes = codec.encode(&body).map_err(|error| refused(error.to_string()))?;
        let changed = self.app.0.trust.renamed(&kept, |old| crate::wire::Envelope {
            content_type: codec.content_type().to_owned(),
            body: bytes,
            ..old
        });
        let changed = changed.map_err(|locked| refused(locked.to_string()))?;
        let again = self.send_copy(&facts, changed).await?.id().clone();
        let outline: Outline = facts.read(name::OUTLINE).unwrap_or_default();
        let last = outline.steps.iter().find(|step| step.is_last);
        let place = StepPlace::root(again.clone());
        let last = last.map_or_else(|| again.clone(), |last| place.step(&last.name).id());
        Ok(AsyncResult::sent(self.app.clone(), last).of_workflow(again))
    }

    /// Notes the results of all tasks in a scope that have succeeded.
    async fn note_done(&self, root: &StepPlace, flow: &mut Flow) -> Result<(), ControlError> {
        for step in &mut flow.steps {
            let place = root.step(&step.name);
            let ids: Vec<TaskId> = match &step.each {
                None => vec![place.id()],
                Some(each) => {
                    let members = (0..each.len()).filter_map(|index| u32::try_from(index).ok());
                    members.map(|index| end_of_member(&place.member(index), step)).collect()
                }
            };
            // What succeeded before this workflow repeated another stays done.
            let before = std::mem::replace(&mut step.done, self.results_by_index(&ids).await?);
            for (index, results) in before {
                step.done.entry(index).or_insert(results);
            }
        }
        Ok(())
    }

    /// Returns the results of those tasks that have succeeded, by their index in the list.
    async fn results_by_index(&self, ids: &[TaskId]) -> Result<BTreeMap<u32, Vec<Arg>>, ControlError> {
        let mut done = BTreeMap::new();
        let mut index = 0;
        for page in ids.chunks(PAGE_SIZE) {
            let names: Vec<RecordId> = page.iter().map(RecordId::from).collect();
            for (id, facts) in page.iter().zip(self.app.backend().read_each(&names).await?) {
                let record = facts.ok().and_then(|facts| self.app.record_of(id, facts).ok().flatten());
                if let Some(record) = record {
                    let counting = self.app.counting_record(record).await;
                    let results = counting.map_err(|error| unusable(id, error))?.results;
                    done.extend(results.map(|results| (index, results.0)));
                }
                index += 1;
            }
        }
        Ok(done)
    }
}

/// Returns the id of the task whose end is the end of a member.
fn end_of_member(member: &StepPlace, step: &Step) -> TaskId {
    let joins = |step: &&Step| step.flow.joins.iter().any(|joining| joining.up > 0);
    step.flow.steps.iter().find(joins).map_or_else(|| member.id(), |last| member.step(&last.name).id())
}

fn unusable(root: &TaskId, error: ResultError) -> ControlError {
    match error {
        ResultError::Backend(error) => error.into(),
        ResultError::Unknown { id } => ControlError::Unknown { id },
        other => ControlError::NoMessage { id: root.clone(), why: other.to_string() },
    }
}
