//! Graphs: tasks with any dependencies that have no cycle, checked by the compiler.

use std::{fmt, marker::PhantomData};

use super::{
    Workflow,
    following::{Following, NextStep},
    plan::StepPlan,
    typed::{Group, GroupMembers},
};
use crate::{args::WireArg, signature::Signature, task::TaskDef};

/// Makes a workflow of tasks with any dependencies that have no cycle. The closure adds the tasks and returns the one whose
/// result is that of the workflow.
///
/// # Examples
/// ```
/// use machinist_core::{Json, TaskDef, workflow::graph};
///
/// const LOAD: TaskDef<String, Vec<i64>> = TaskDef::new("load");
/// const MERGE: TaskDef<(Vec<i64>, Vec<i64>), Vec<i64>> = TaskDef::new("merge");
/// const PRINT: TaskDef<Vec<i64>, ()> = TaskDef::new("print");
///
/// let report = graph(|graph| {
///     let a = graph.task(LOAD.call("a"));
///     let b = graph.task(LOAD.call("b"));
///     let both = graph.task(MERGE.after((&a, &b)));
///     graph.task(PRINT.after(&both))
/// });
/// ```
pub fn graph<R>(build: impl FnOnce(&mut Graph) -> Handle<R>) -> Workflow<R> {
    let mut graph = Graph { workflow: Workflow::empty() };
    let last = build(&mut graph);
    let mut workflow = graph.workflow;
    workflow.tails = vec![last.name];
    workflow.typed()
}

/// Tasks of a graph, as far as they were added.
#[derive(Debug)]
pub struct Graph {
    workflow: Workflow<()>,
}

/// A task of a graph; `R` is what it returns.
pub struct Handle<R> {
    name: String,
    result: PhantomData<fn() -> R>,
}

/// A task that follows tasks of a graph, made by [`TaskDef::after`] or [`Following::after`].
#[must_use = "a step does nothing until it is added to a graph"]
pub struct After<N, P> {
    next: N,
    before: Vec<String>,
    results: PhantomData<fn() -> P>,
}

impl Graph {
    /// Adds a task: a signature that follows nothing, or a task [after](TaskDef::after) others.
    pub fn task<T: GraphTask>(&mut self, task: T) -> Handle<T::ResultType> {
        self.add(|name| task.into_step(name))
    }

    /// Adds a task with a name of your choice, which is part of its id: `[a-z][a-z0-9_-]{0,39}`.
    pub fn named<T: GraphTask>(&mut self, name: impl Into<String>, task: T) -> Handle<T::ResultType> {
        let name = name.into();
        self.add(|_| task.into_step(name))
    }

    /// Adds a group.
    pub fn group<R, M: GroupMembers<Group = Group<R>>>(&mut self, members: M) -> Handle<Vec<R>> {
        self.workflow.absorb(&Workflow::from(members.into_group()));
        self.newest()
    }

    /// Sends a task when one of these has failed for good: with the error's text before its own arguments, and once. Of a
    /// group, when a member has. [`Workflow::on_error`] is for all tasks of the graph.
    ///
    /// # Examples
    /// ```
    /// use machinist_core::{Signature, TaskDef, workflow::graph};
    ///
    /// const LOAD: TaskDef<String, Vec<i64>> = TaskDef::new("load");
    /// const STORE: TaskDef<Vec<i64>, ()> = TaskDef::new("store");
    ///
    /// let stored = graph(|graph| {
    ///     let loaded = graph.task(LOAD.call("a"));
    ///     graph.on_error(&loaded, Signature::new("page").arg("somebody"));
    ///     graph.task(STORE.after(&loaded))
    /// });
    /// ```
    #[allow(clippy::needless_pass_by_value, reason = "one handle or a tuple of them is written as it is")]
    pub fn on_error<H: Handles, T>(&mut self, tasks: H, callback: Signature<T>) {
        self.workflow.catch(callback, &tasks.names());
    }

    fn add<R>(&mut self, step: impl FnOnce(String) -> StepPlan) -> Handle<R> {
        self.workflow.push(step);
        self.newest()
    }

    /// Returns the step that was added last.
    fn newest<R>(&self) -> Handle<R> {
        let name = self.workflow.steps.last().map(|step| step.name.clone()).unwrap_or_default();
        Handle { name, result: PhantomData }
    }
}

/// A task that can be added to a graph.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be a task of a graph",
    label = "not a task of a graph",
    note = "add `TASK.call(…)`, `TASK.after(&handle)`, or `TASK.with(…).after(&handle)`"
)]
pub trait GraphTask {
    /// Type of its results.
    type ResultType;

    /// Takes it apart.
    #[doc(hidden)]
    fn into_step(self, name: String) -> StepPlan;
}

impl<R> GraphTask for Signature<R> {
    type ResultType = R;

    fn into_step(self, name: String) -> StepPlan {
        StepPlan::new(name, self)
    }
}

impl<N: NextStep<P>, P> GraphTask for After<N, P> {
    type ResultType = N::ResultType;

    fn into_step(self, name: String) -> StepPlan {
        self.next.into_step(name).after(self.before)
    }
}

/// Tasks of a graph that another one follows: one handle, or a tuple of up to eight.
#[diagnostic::on_unimplemented(
    message = "`{Self}` are no tasks of a graph",
    label = "not a handle and not a tuple of handles"
)]
pub trait Handles {
    /// Types of their results together.
    type Passed;

    /// Returns their names.
    #[doc(hidden)]
    fn names(&self) -> Vec<String>;
}

impl<R> Handles for &Handle<R> {
    type Passed = R;

    fn names(&self) -> Vec<String> {
        vec![self.name.clone()]
    }
}

macro_rules! tuples {
    ($($($result:ident)*;)*) => {$(
        impl<$($result: WireArg),*> Handles for ($(&Handle<$result>,)*) {
            type Passed = ($($result,)*);

            fn names(&self) -> Vec<String> {
                #[allow(non_snake_case)]
                let ($($result,)*) = self;
                vec![$($result.name.clone(),)*]
            }
        }
    )*};
}

tuples! {
    R1;
    R1 R2;
    R1 R2 R3;
    R1 R2 R3 R4;
    R1 R2 R3 R4 R5;
    R1 R2 R3 R4 R5 R6;
    R1 R2 R3 R4 R5 R6 R7;
    R1 R2 R3 R4 R5 R6 R7 R8;
}

impl<A, R> TaskDef<A, R> {
    /// Makes the task one that follows tasks of a graph, and takes their results in this order and nothing else.
    pub fn after<H: Handles>(self, tasks: H) -> After<Following<A, R, ()>, H::Passed> {
        self.with(()).after(tasks)
    }
}

impl<A, R, G> Following<A, R, G> {
    /// Makes the task one that follows tasks of a graph, and takes their results after what it is given.
    #[allow(clippy::needless_pass_by_value, reason = "one handle or a tuple of them is written as it is")]
    pub fn after<H: Handles>(self, tasks: H) -> After<Self, H::Passed> {
        After { next: self, before: tasks.names(), results: PhantomData }
    }
}

impl<N, P> fmt::Debug for After<N, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("After").field(&self.before).finish()
    }
}

impl<R> Clone for Handle<R> {
    fn clone(&self) -> Self {
        Self { name: self.name.clone(), result: PhantomData }
    }
}

impl<R> fmt::Debug for Handle<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Handle").field(&self.name).finish()
    }
}
