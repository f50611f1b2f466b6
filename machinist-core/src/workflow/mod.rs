//! Workflows: chains, groups, chords and graphs of tasks, sent as one thing.
//!
//! A workflow is sent as one message. Its task is run by every worker; what follows is in the message, step by step, as
//! [`docs/workflows.md`](https://github.com/machinist-rs/machinist/blob/main/docs/workflows.md) explains. So a workflow is sent
//! completely or not at all, and everything that can be done with a signature can be done with a workflow: a countdown, an
//! expiry, a periodic schedule.

mod following;
mod graph;
#[cfg(test)]
mod model;
mod plan;
mod typed;

use std::{fmt, marker::PhantomData, time::Duration};

use crate::{
    affinity::without_tags,
    args::Results,
    builtin::WORKFLOW_TASK,
    clock::Timestamp,
    flow::{Flow, Outline, Spawned, StepPlace},
    id::TaskId,
    signature::{Signature, SignatureParts},
    wire::NestedTasks,
};

pub use crate::flow::Policy;
pub use following::{EndsWith, Following, Immutable, Listed, NextStep, TakesAfter};
pub use graph::{After, Graph, GraphTask, Handle, Handles, graph};
pub use plan::{StepPlan, WorkflowError};
pub use typed::{Group, GroupMembers, Member, Outcome, chain, chord, group};

/// Name of the step that ends a workflow which has several last steps.
const RESULTS: &str = "results";

/// Tasks that belong together, ready to be sent; `R` is what the result of the last one is read as.
///
/// A workflow keeps its root's id, so sending it again never makes a second one.
///
/// # Examples
/// ```
/// # use machinist_core::TaskError;
/// # async fn double(n: i64) -> Result<i64, TaskError> { Ok(2 * n) }
/// # async fn sum(all: Vec<i64>) -> Result<i64, TaskError> { Ok(all.into_iter().sum()) }
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let app = machinist_test::TestApp::new(|worker| worker.task(DOUBLE, double).task(SUM, sum)).await;
/// use machinist_core::{TaskDef, workflow::chord};
/// use std::time::Duration;
///
/// const DOUBLE: TaskDef<i64, i64> = TaskDef::new("double");
/// const SUM: TaskDef<Vec<i64>, i64> = TaskDef::new("sum");
///
/// let total = chord([1, 2, 3].map(|n: i64| DOUBLE.call(n)), SUM.with(())).name("total");
/// let sent = app.client().send(total).await?;
/// # app.drain_scheduled().await;
/// assert_eq!(sent.wait(Duration::from_secs(30)).await?, 12);
/// # Ok(())
/// # }
/// ```
#[must_use = "a workflow does nothing until it is sent"]
pub struct Workflow<R = Results> {
    pub(crate) root: SignatureParts,
    name: Option<String>,
    steps: Vec<StepPlan>,
    /// Names of the steps whose results are those of the workflow.
    tails: Vec<String>,
    /// `true` if a workflow with several last steps has no results.
    untyped: bool,
    /// Reason that it cannot be sent.
    unsendable: Option<String>,
    result: PhantomData<fn() -> R>,
}

impl Workflow {
    /// Makes a workflow of these steps, in any order. Its result is that of the step that nothing follows; if there are
    /// several, or if it is a group, the workflow ends when all of them have ended, without a result.
    ///
    /// # Errors
    /// [`WorkflowError`] names the step and what is wrong with it: a name, an unknown step, a cycle, a bound.
    ///
    /// # Examples
    /// ```
    /// use machinist_core::{Signature, workflow::{StepPlan, Workflow}};
    ///
    /// let workflow = Workflow::of_steps(vec![
    ///     StepPlan::new("fetch", Signature::new("fetch").arg("https://example.org")),
    ///     StepPlan::new("resize", Signature::new("resize").arg(640)).after(["fetch"]),
    /// ])?;
    /// # Ok::<(), machinist_core::workflow::WorkflowError>(())
    /// ```
    pub fn of_steps(steps: Vec<StepPlan>) -> Result<Self, WorkflowError> {
        let compiled = plan::compile(&steps)?;
        let last = compiled.outline.into_iter().filter(|step| step.is_last);
        let tails = last.map(|step| step.name).collect();
        Ok(Self { untyped: true, ..Self::of(steps, tails) })
    }
}

/// Returns a name that no step has.
fn free_name(steps: &[StepPlan]) -> String {
    let taken = |name: &str| steps.iter().any(|step| step.name == name);
    let mut numbered = (1..).map(|n| if n == 1 { RESULTS.to_owned() } else { format!("{RESULTS}{n}") });
    // INVARIANT: there are more numbers than steps.
    numbered.find(|name| !taken(name)).expect("a free name")
}

impl<R> Workflow<R> {
    fn of(steps: Vec<StepPlan>, tails: Vec<String>) -> Self {
        let root = Signature::<Results>::typed(WORKFLOW_TASK.to_owned(), Vec::new()).parts;
        Self { root, name: None, steps, tails, untyped: false, unsendable: None, result: PhantomData }
    }

    /// Makes the message of the root, and the outline.
    fn compiled(mut self) -> Result<(SignatureParts, Outline, TaskId), String> {
        if let Some(why) = self.unsendable {
            return Err(why);
        }
        let single = |name: &String| self.steps.iter().any(|step| step.name == *name && step.each.is_none());
        let last = match self.tails.as_slice() {
            [one] if single(one) => one.clone(),
            several => {
                let last = free_name(&self.steps);
                let mut ending =
                    StepPlan::new(&last, Signature::new(WORKFLOW_TASK)).after(several.iter().cloned());
                ending.immutable = self.untyped;
                ending.signature.queue = self.steps.iter().find_map(|step| step.signature.queue.clone());
                self.steps.push(ending);
                last
            }
        };
        let plan::Compiled { then, steps, outline } =
            plan::compile(&self.steps).map_err(|error| error.to_string())?;
        // The root itself requires no tags.
        let mut first = steps.iter().filter(|step| then.contains(&step.name));
        let mut root = self.root;
        root.queue = root.queue.or_else(|| {
            first
                .find_map(|step| Some(without_tags(&step.queue)).filter(|queue| !queue.is_empty()))
                .map(str::to_owned)
        });
        let last = StepPlace::root(root.id.clone()).step(&last).id();
        root.flow = Some(Box::new(Flow { then, steps, ..Flow::default() }));
        Ok((root, Outline { name: self.name, steps: outline }, last))
    }

    /// Returns the root's id, made with the workflow.
    pub fn id(&self) -> &TaskId {
        &self.root.id
    }

    /// Gives the root an id of your choice. It must not contain `!` or `+`, and has at most 150 bytes.
    pub fn with_id(mut self, id: TaskId) -> Self {
        self.root.id = id;
        self
    }

    /// Names the workflow, for people.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Returns the name for people.
    pub fn shown_name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Never begins it later than an instant of backend time: its steps end in FAILURE/upstream instead.
    pub fn expires_at(mut self, instant: Timestamp) -> Self {
        self.root.expires = Some(crate::signature::When::At(instant));
        self
    }

    /// Begins it no earlier than a while after it is sent.
    pub fn countdown(mut self, while_: Duration) -> Self {
        self.root.when = crate::signature::When::In(while_);
        self
    }

    /// Begins it no earlier than at an instant of backend time.
    pub fn eta(mut self, instant: Timestamp) -> Self {
        self.root.when = crate::signature::When::At(instant);
        self
    }

    /// Never begins it later than a while after it is sent: its steps end in FAILURE/upstream instead.
    pub fn expires_in(mut self, while_: Duration) -> Self {
        self.root.expires = Some(crate::signature::When::In(while_));
        self
    }

    /// Reads the result as something else.
    pub fn typed<T>(self) -> Workflow<T> {
        let Self { root, name, steps, tails, untyped, unsendable, .. } = self;
        Workflow { root, name, steps, tails, untyped, unsendable, result: PhantomData }
    }
}

/// Something that a [`Client`](crate::Client) can send: a [`Signature`] or a [`Workflow`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be sent: send a `Signature` or a `Workflow`",
    label = "not a signature and not a workflow"
)]
pub trait Sendable {
    /// Type as which the result is read.
    type ResultType;

    /// Takes it apart.
    #[doc(hidden)]
    fn into_parts(self) -> SendableParts;
}

/// A signature or a workflow, taken apart.
#[doc(hidden)]
#[derive(Debug, Clone)]
pub struct SendableParts {
    pub(crate) parts: SignatureParts,
    pub(crate) outline: Option<Outline>,
    /// Task whose end is the result, if it is not the task that is sent.
    pub(crate) result: Option<TaskId>,
    /// Tasks that follow it inside its message.
    pub(crate) nested: NestedTasks,
}

/// Makes what a handler spawns of what a client could send.
pub(crate) fn spawned_of(sendable: SendableParts) -> Result<Spawned, String> {
    let SendableParts { mut parts, outline, .. } = sendable;
    let flow = parts.flow.take();
    let mut step = plan::step_of(&parts).map_err(|error| error.why)?;
    step.flow = flow.map(|flow| *flow).unwrap_or_default();
    step.flow.check()?;
    Ok(Spawned { step, outline, replaces: false })
}

impl From<SignatureParts> for SendableParts {
    fn from(parts: SignatureParts) -> Self {
        Self { parts, outline: None, result: None, nested: NestedTasks::default() }
    }
}

impl<R> Sendable for Signature<R> {
    type ResultType = R;

    fn into_parts(self) -> SendableParts {
        self.parts.into()
    }
}

impl<R> Sendable for Workflow<R> {
    type ResultType = R;

    fn into_parts(self) -> SendableParts {
        let mut root = self.root.clone();
        match self.compiled() {
            Ok((parts, outline, last)) => {
                SendableParts { outline: Some(outline), result: Some(last), ..SendableParts::from(parts) }
            }
            Err(why) => {
                root.unsendable = Some(why);
                root.into()
            }
        }
    }
}

impl<R> Clone for Workflow<R> {
    fn clone(&self) -> Self {
        Self {
            root: self.root.clone(),
            name: self.name.clone(),
            steps: self.steps.clone(),
            tails: self.tails.clone(),
            untyped: self.untyped,
            unsendable: self.unsendable.clone(),
            result: PhantomData,
        }
    }
}

/// Arguments are not printed: they belong to the user, and logs do not.
impl<R> fmt::Debug for Workflow<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Workflow")
            .field("id", &self.root.id)
            .field("steps", &self.steps.len())
            .finish_non_exhaustive()
    }
}

impl<R> Sendable for Group<R> {
    type ResultType = Vec<R>;

    fn into_parts(self) -> SendableParts {
        Workflow::from(self).into_parts()
    }
}
