//! Continuation of a workflow: the tasks that follow an end, those that never will, and the joins it belongs to.
//!
//! Everything here is a function of the message of the ended task and of its recorded end. Two workers that continue the
//! same workflow publish the same tasks with the same arguments.

use std::collections::BTreeMap;

use super::{
    facts::{End, Facts, Failure, name},
    follow_up::is_dead_lettered,
};
use crate::{
    args::Arg,
    builtin::WORKFLOW_TASK,
    flow::{Flow, Membership, Outline, Policy, Replaced, Spawned, Step, StepPlace, spawned_id},
    id::{RecordId, RecordKind, TaskId},
};

/// A task of a workflow that is published, or that ends without being published.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Child {
    pub(crate) place: StepPlace,
    /// The step that it comes from. Its arguments and its flow are those of the child.
    pub(crate) step: Step,
    /// Outline of the workflow that it begins.
    pub(crate) outline: Option<Outline>,
}

impl Child {
    /// Returns the id of the task.
    pub(crate) fn id(&self) -> TaskId {
        self.place.id()
    }

    /// Returns `true` unless it is a single task that was spawned.
    pub(crate) fn is_of_workflow(&self) -> bool {
        !self.place.is_root() || !self.step.flow.is_empty()
    }
}

/// Membership of an ended task in a join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Joining {
    /// StepPlace of the step that waits.
    pub(crate) waiting: StepPlace,
    /// Index of the task among the members.
    pub(crate) index: u32,
    /// Number of members.
    pub(crate) size: u32,
    pub(crate) policy: Policy,
}

impl Joining {
    /// Returns the record of the join.
    pub(crate) fn record(&self) -> RecordId {
        join_record(&self.waiting)
    }
}

/// Returns the record of the join that the step at this place waits for.
pub(crate) fn join_record(waiting: &StepPlace) -> RecordId {
    RecordId::new(RecordKind::Join, waiting.id().as_str())
}

/// Returns the record of the join that a task has waited for; `None` if it has not waited.
pub(crate) fn awaited_join(place: &StepPlace, flow: &Flow) -> Option<RecordId> {
    (!flow.awaits.is_empty()).then(|| join_record(place))
}

/// Returns the tasks that follow a success with these results, in the order in which they are published.
pub(crate) fn after_success(place: &StepPlace, flow: &Flow, results: &[Arg]) -> Vec<Child> {
    let steps = flow.then.iter().filter_map(|name| flow.step(name));
    let mut children: Vec<Child> = steps.flat_map(|step| tasks_of(place, flow, step, results)).collect();
    if let Some(replaced) = &flow.replaces {
        children.extend(after_success(&replaced.place(), &replaced.flow, results));
    }
    children
}

/// Returns what the handler of a task has spawned. The ids are those of the task and a number. `place` and `flow` are those
/// of the task: they pass to what replaces it.
pub(crate) fn spawned_by(
    parent: &TaskId,
    spawned: Vec<Spawned>,
    place: Option<&StepPlace>,
    flow: Option<&Flow>,
) -> Vec<Child> {
    let child = |(number, mut spawned): (usize, Spawned)| {
        let root = spawned_place(parent, number);
        if spawned.replaces {
            let place = place.cloned().unwrap_or_else(|| StepPlace::root(parent.clone()));
            pass_on(&place, flow.cloned().unwrap_or_default(), &mut spawned);
        }
        Child { place: root, step: spawned.step, outline: spawned.outline }
    };
    spawned.into_iter().enumerate().map(child).collect()
}

/// Returns the id of the task that ends in the place of this one, if its handler has spawned what replaces it.
pub(crate) fn continued_by(parent: &TaskId, spawned: &[Spawned]) -> Option<TaskId> {
    let number = spawned.iter().position(|spawned| spawned.replaces)?;
    Some(spawned[number].last(&spawned_place(parent, number)).id())
}

/// Returns the id of the task whose end counts in the place of this one, by its record.
pub(crate) fn continued_by_record(facts: &Facts) -> Option<TaskId> {
    facts.read::<End>(name::END)?.continued_by
}

fn spawned_place(parent: &TaskId, number: usize) -> StepPlace {
    StepPlace::root(spawned_id(parent, number + 1))
}

/// Passes what follows a task on to the workflow that replaces it: its last task gets everything, the others the error
/// callbacks.
fn pass_on(place: &StepPlace, flow: Flow, spawned: &mut Spawned) {
    let flow = Flow { awaits: Vec::new(), ignores_results: false, ..flow };
    let nothing_else = Flow { replaces: None, ..flow.clone() }.is_empty();
    let replaced = match flow.replaces.clone() {
        // A task that replaces itself again and again keeps a message of the same size.
        Some(replaced) if nothing_else => *replaced,
        _ => Replaced::new(place, flow),
    };
    let callbacks = replaced.callbacks();
    let last = spawned.outline.as_ref().and_then(Outline::last).map(str::to_owned);
    let mut open = vec![(true, &mut spawned.step)];
    while let Some((in_first_scope, step)) = open.pop() {
        let is_last = in_first_scope && last.as_deref().is_none_or(|last| last == step.name);
        let passed_on = if is_last { &replaced } else { &callbacks };
        step.flow.replaces = Some(Box::new(passed_on.clone()));
        // The root names the steps of the first scope, and a group those of its members.
        let in_first_scope = in_first_scope && step.each.is_none();
        open.extend(step.flow.steps.iter_mut().map(|step| (in_first_scope, step)));
    }
}

/// Returns the error callbacks of a failure, which get its text. There are none if somebody wanted the end, or if its cause is
/// another task: that one has called back.
pub(crate) fn after_failure(place: &StepPlace, flow: &Flow, failure: &Failure) -> Vec<Child> {
    if !is_dead_lettered(failure.kind) {
        return Vec::new();
    }
    error_callbacks(place, flow, &failure.error.chain.join(": "))
}

fn error_callbacks(place: &StepPlace, flow: &Flow, text: &str) -> Vec<Child> {
    let error = Arg { name: String::new(), kind: "string".to_owned(), value: text.into() };
    let children = flow.catch.iter().flat_map(|catch| {
        let scope = place.outer_scope(catch.up);
        let mut step = catch.step.clone();
        if !step.immutable {
            step.args.insert(0, error.clone());
        }
        tasks_of(&scope, &step.flow.clone(), &step, &[])
    });
    let mut children: Vec<Child> = children.collect();
    if let Some(replaced) = &flow.replaces {
        children.extend(error_callbacks(&replaced.place(), &replaced.flow, text));
    }
    children
}

/// Returns the tasks that never run because this one has failed: all that can only follow it.
pub(crate) fn never_after(place: &StepPlace, flow: &Flow) -> Vec<Child> {
    let mut never = after_replaced(flow);
    for step in flow.reachable(&flow.then) {
        for child in tasks_of(place, flow, step, &[]) {
            if step.each.is_some() {
                never.extend(never_after(&child.place, &child.step.flow));
            } else {
                never.extend(after_replaced(&child.step.flow));
            }
            never.push(child);
        }
    }
    never
}

/// Returns the tasks that can only follow the task that was replaced.
fn after_replaced(flow: &Flow) -> Vec<Child> {
    flow.replaces.as_ref().map(|replaced| never_after(&replaced.place(), &replaced.flow)).unwrap_or_default()
}

/// Returns the joins that the end of a task belongs to.
pub(crate) fn joinings(place: &StepPlace, flow: &Flow) -> Vec<Joining> {
    let of = |membership: &Membership| {
        let Membership { to, up, first, size, policy } = membership;
        let member = up.checked_sub(1).and_then(|up| place.member_index(up)).unwrap_or(0);
        Joining {
            waiting: place.outer_scope(*up).step(to),
            index: first.saturating_add(member),
            size: *size,
            policy: *policy,
        }
    };
    let mut all: Vec<Joining> = flow.joins.iter().map(of).collect();
    if let Some(replaced) = &flow.replaces {
        all.extend(joinings(&replaced.place(), &replaced.flow));
    }
    all
}

/// Returns the tasks that a step is published as. `scope` is the place of any task in the scope, and `flow` holds its steps.
fn tasks_of(scope: &StepPlace, flow: &Flow, step: &Step, results: &[Arg]) -> Vec<Child> {
    let place = scope.step(&step.name);
    // A callback gets its results from its join.
    let results = if step.immutable || !step.flow.awaits.is_empty() { &[] } else { results };
    let Some(each) = &step.each else {
        let done = step.done.get(&0);
        let mut step = Step { done: BTreeMap::new(), ..step.clone() };
        step.flow.steps = flow.reachable(&step.flow.then).into_iter().cloned().collect();
        return vec![child(place, step, done, None, results)];
    };
    // Cloned for each member: it must not hold what belongs to all of them.
    let template = Step { each: None, done: BTreeMap::new(), ..step.clone() };
    let member = |(index, args): (usize, &Vec<Arg>)| {
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        let done = step.done.get(&index);
        child(place.member(index), template.clone(), done, Some(args), results)
    };
    each.iter().enumerate().map(member).collect()
}

/// Makes a child of a step: the member with these arguments, or the task itself. `done` are its results if it has
/// succeeded in the workflow that this one repeats.
fn child(
    place: StepPlace,
    mut step: Step,
    done: Option<&Vec<Arg>>,
    member: Option<&[Arg]>,
    results: &[Arg],
) -> Child {
    match done {
        Some(done) => {
            step.task = WORKFLOW_TASK.to_owned();
            step.args.clone_from(done);
            step.flow.awaits = Vec::new();
            if member.is_some() && !step.flow.steps.is_empty() && step.flow.joins.is_empty() {
                // A member of several steps: its last one joins.
                let joins = step.flow.steps.iter().flat_map(|step| &step.flow.joins);
                let joins = joins.filter(|joining| joining.up > 0).cloned().collect();
                step.flow = Flow { joins, ..Flow::default() };
            }
            (step.countdown_ms, step.expires_ms) = (None, None);
        }
        None => {
            step.args.extend_from_slice(member.unwrap_or_default());
            step.args.extend_from_slice(results);
        }
    }
    Child { place, step, outline: None }
}
