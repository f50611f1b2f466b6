//! A workflow and its steps, as `status` prints them.

use serde::Serialize;
use serde_json::{Value, json};

use super::TaskView;
use crate::{
    Client, ResultError, Results, TaskId,
    record::{FailureKind, Record, TaskState},
    workflow_status::{MemberCounts, StepStatus, WorkflowProgress, WorkflowStatus},
};

/// Number of members that are read at once.
const MEMBERS_PAGE: usize = 500;

/// Workflow as `status ROOT --json` and `send --flow --wait --json` print it: the fields of a task, and its steps.
#[derive(Debug, Serialize)]
#[non_exhaustive]
pub struct WorkflowView {
    /// Fields of the task that is not here otherwise.
    #[serde(flatten)]
    pub task: Value,
    /// Name that the file gives it.
    pub workflow_name: Option<String>,
    /// State.
    pub state: TaskState,
    /// Kind of the first failure of a step that ran.
    pub kind: Option<FailureKind>,
    /// 0 for success, below zero for a failure, `None` before the end.
    pub code: Option<i32>,
    /// Error of the failure.
    pub error: Option<Value>,
    /// Results of the last steps.
    pub results: Vec<Value>,
    /// Time of the first start.
    pub started_at: Option<String>,
    /// Time of the end.
    pub ended_at: Option<String>,
    /// Duration in seconds.
    pub duration: Option<f64>,
    /// Numbers of tasks.
    pub progress: WorkflowProgress,
    /// `true` while not all of its first steps are certainly sent.
    pub incomplete: bool,
    /// Steps.
    pub steps: Vec<StepView>,
}

/// Step of a workflow.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct StepView {
    /// Name.
    pub name: String,
    /// Id.
    pub id: String,
    /// Name of the task.
    pub task: String,
    /// Names of the steps before it.
    pub after: Vec<String>,
    /// State.
    pub state: TaskState,
    /// Kind of its failure.
    pub kind: Option<FailureKind>,
    /// Error of the failure.
    pub error: Option<String>,
    /// Results of a single task.
    pub results: Vec<Value>,
    /// Time of the first start.
    pub started_at: Option<String>,
    /// Time of the end.
    pub ended_at: Option<String>,
    /// Duration in seconds.
    pub duration: Option<f64>,
    /// Numbers of members, if it is a group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub members: Option<MemberCounts>,
    /// `true` if it runs only when another step has failed.
    pub error_callback: bool,
}

/// Member of a group, with the fields of its task once it has a record.
#[derive(Debug, Serialize)]
#[non_exhaustive]
pub struct MemberView {
    /// Index in the group.
    pub index: u32,
    /// Fields of the task that is not here otherwise.
    #[serde(flatten)]
    pub task: Value,
}

impl MemberView {
    /// Creates the view.
    pub fn new(index: u32, id: &TaskId, record: Option<&Record>) -> Self {
        let pending = || json!({"id": id, "state": TaskState::Pending});
        let task = record.and_then(|record| serde_json::to_value(TaskView::from(record)).ok());
        Self { index, task: task.unwrap_or_else(pending) }
    }
}

impl From<&StepStatus> for StepView {
    fn from(step: &StepStatus) -> Self {
        let took = step.started_at.zip(step.ended_at);
        Self {
            name: step.name.clone(),
            id: step.id.to_string(),
            task: step.task.clone(),
            after: step.after.clone(),
            state: step.state,
            kind: step.kind,
            error: step.error.clone(),
            results: values(step),
            started_at: step.started_at.map(|at| at.to_string()),
            ended_at: step.ended_at.map(|at| at.to_string()),
            duration: took.map(|(start, end)| end.since(start).as_secs_f64()),
            members: step.members,
            error_callback: step.is_error_callback,
        }
    }
}

/// Returns the results of a single task.
fn values(step: &StepStatus) -> Vec<Value> {
    values_of(step.results.as_ref())
}

fn values_of(results: Option<&Results>) -> Vec<Value> {
    results.iter().flat_map(|results| &results.0).map(|arg| arg.value.clone()).collect()
}

/// Returns the steps that nothing follows, without error callbacks.
fn tails(status: &WorkflowStatus) -> Vec<&StepStatus> {
    let followed = |step: &StepStatus| status.steps.iter().any(|other| other.after.contains(&step.name));
    status.steps.iter().filter(|step| !step.is_error_callback && !followed(step)).collect()
}

/// Results of the last steps of a workflow, by name. A single task has its results, a group the list of its members' results.
pub type LastResults = Vec<(String, Vec<Value>)>;

/// Returns one value for the results of a task, as the next step gets them in a list.
pub fn one_value(mut results: Vec<Value>) -> Value {
    match results.len() {
        0 => Value::Null,
        1 => results.remove(0),
        _ => Value::Array(results),
    }
}

impl WorkflowView {
    /// Creates the view.
    pub fn new(status: &WorkflowStatus, last: LastResults) -> Self {
        let steps: Vec<StepView> = status.steps.iter().map(StepView::from).collect();
        let failed = first_failure(&status.steps).filter(|_| status.state == TaskState::Failure);
        let kind = failed.and_then(|step| step.kind);
        let root = TaskView::from(&status.record);
        let mut task = serde_json::to_value(&root).unwrap_or_default();
        if let Value::Object(task) = &mut task {
            for replaced in [
                "state",
                "kind",
                "code",
                "error",
                "results",
                "started_at",
                "ended_at",
                "duration",
                "progress",
            ] {
                task.remove(replaced);
            }
        }
        let started = status.steps.iter().filter_map(|step| step.started_at).min();
        let ended =
            status.steps.iter().filter_map(|step| step.ended_at).max().filter(|_| status.state.is_final());
        let mut last = last;
        let results = match last.len() {
            _ if status.state != TaskState::Success => Vec::new(),
            1 => last.remove(0).1,
            _ => vec![Value::Object(
                last.into_iter().map(|(name, values)| (name, one_value(values))).collect(),
            )],
        };
        Self {
            task,
            workflow_name: status.name.clone(),
            state: status.state,
            kind,
            code: match status.state {
                TaskState::Success => Some(0),
                _ => kind.map(FailureKind::code),
            },
            error: failed
                .and_then(|step| step.error.as_ref())
                .map(|error| json!({"message": error, "chain": [error]})),
            results,
            started_at: started.map(|at| at.to_string()),
            ended_at: ended.map(|at| at.to_string()),
            duration: started.zip(ended).map(|(start, end)| end.since(start).as_secs_f64()),
            progress: status.progress,
            incomplete: status.incomplete,
            steps,
        }
    }

    /// Reads the state of a workflow, and the results of the steps that nothing follows.
    ///
    /// # Errors
    /// [`ResultError::Unknown`] if there is no such workflow, [`ResultError::Forged`], [`ResultError::Backend`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn read(client: &Client, root: &TaskId) -> Result<Self, ResultError> {
        let status = client.workflow(root).await?;
        let status = status.ok_or_else(|| ResultError::Unknown { id: root.clone() })?;
        let last = Self::last_results(client, &status).await?;
        Ok(Self::new(&status, last))
    }

    /// Reads the results of the steps that nothing follows.
    ///
    /// # Errors
    /// [`ResultError`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn last_results(client: &Client, status: &WorkflowStatus) -> Result<LastResults, ResultError> {
        let mut last = Vec::new();
        if status.state != TaskState::Success {
            return Ok(last);
        }
        for step in tails(status) {
            let values = match step.members {
                None => values(step),
                Some(counts) => vec![member_results(client, status, step, counts.total).await?.into()],
            };
            last.push((step.name.clone(), values));
        }
        Ok(last)
    }
}

/// Reads the results of a group, one value for each member.
async fn member_results(
    client: &Client,
    status: &WorkflowStatus,
    step: &StepStatus,
    total: u32,
) -> Result<Vec<Value>, ResultError> {
    let mut list = Vec::new();
    let mut first = 0;
    while first < total {
        let members = client.workflow_members(&status.root, &step.name, first, MEMBERS_PAGE).await?;
        if members.is_empty() {
            break;
        }
        first = first.saturating_add(u32::try_from(members.len()).unwrap_or(u32::MAX));
        let results = |record: Option<&Record>| one_value(values_of(record.and_then(|r| r.results.as_ref())));
        list.extend(members.iter().map(|(_, record)| results(record.as_ref())));
    }
    Ok(list)
}

/// Returns `true` for a step that failed, and was not merely ended by the failure of another.
fn failed_itself(state: TaskState, kind: Option<FailureKind>) -> bool {
    state == TaskState::Failure && kind != Some(FailureKind::Upstream)
}

/// Returns the first step that failed itself; the first that failed at all if there is none.
fn first_failure(steps: &[StepStatus]) -> Option<&StepStatus> {
    let main = || steps.iter().filter(|step| !step.is_error_callback);
    main()
        .find(|step| failed_itself(step.state, step.kind))
        .or_else(|| main().find(|step| step.state == TaskState::Failure))
}
