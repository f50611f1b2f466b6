//! The workflow part of a body: what follows a task, and which joins it belongs to.
//!
//! A workflow has no coordinator. Each message carries the steps that can still follow its own task, so the message that
//! a worker holds is the outbox of everything that its task sets in motion. Steps refer to each other by name within
//! their scope: the workflow itself, or one member of a group.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{Outline, StepPlace};
use crate::{
    affinity::completed,
    args::Arg,
    id::{InvalidName, QueueName, TaskId, TaskName},
    retry::RetryPolicy,
};

/// Maximum number of members of a group.
pub(crate) const MAX_MEMBERS: usize = 10_000;
/// Maximum number of steps in one message, all scopes together.
pub(crate) const MAX_STEPS: usize = 1_000;
/// Maximum number of scopes inside each other: groups in members of groups.
pub(crate) const MAX_SCOPES: usize = 8;

/// Steps that follow a task of a workflow, and the joins that it belongs to.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Flow {
    /// Names of the steps that are sent when the task has succeeded, in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) then: Vec<String>,
    /// Steps that are sent when the task has failed for good.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) catch: Vec<Catch>,
    /// Joins that the task's end belongs to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) joins: Vec<Membership>,
    /// Parts of the join that the task waits for; empty unless it is a callback.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) awaits: Vec<JoinPart>,
    /// `true` if the task waits for its join and gets no results from it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) ignores_results: bool,
    /// The steps of the scope that can still follow.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) steps: Vec<Step>,
    /// Task that the workflow of this one replaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) replaces: Option<Box<Replaced>>,
}

/// A task whose handler has handed its place to a workflow, and what follows the end of that workflow's last task. The other
/// tasks of that workflow hold only its error callbacks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Replaced {
    root: TaskId,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    path: String,
    #[serde(default, skip_serializing_if = "Flow::is_empty")]
    pub(crate) flow: Flow,
}

/// A task that is not sent yet, or a group of them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Step {
    /// Name within the scope.
    pub(crate) name: String,
    /// Name of the task.
    pub(crate) task: String,
    /// Queue of the task. The sender fills it in, because the default queue of a worker may be another.
    pub(crate) queue: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) args: Vec<Arg>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) retry: Option<RetryPolicy>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) timeout_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) soft_timeout_ms: Option<u64>,
    /// Time from the end of what the step follows to its start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) countdown_ms: Option<u64>,
    /// Time from the end of what the step follows to its expiry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) expires_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) priority: Option<u8>,
    /// Key of the task's limits, if its sender has chosen it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) limit_key: Option<String>,
    /// Number of starts for which the task counts in its limits, if its sender has chosen it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) limit_cost: Option<u32>,
    /// Key of the task's share of a fair queue, if its sender has chosen it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) fair_key: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) headers: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) labels: BTreeMap<String, String>,
    /// `true` if the step gets no results.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) immutable: bool,
    /// Makes the step a group: one member for each list of arguments, which come after `args`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) each: Option<Vec<Vec<Arg>>>,
    /// Results of members that have succeeded already, by index: in a workflow that repeats another. The index of a single
    /// task is 0.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) done: BTreeMap<u32, Vec<Arg>>,
    /// Steps that follow the task: within the scope, or within the member if the step is a group.
    #[serde(default, skip_serializing_if = "Flow::is_empty")]
    pub(crate) flow: Flow,
}

/// An error callback: a step that is sent when a task has failed for good. It gets the error's text before its own
/// arguments.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Catch {
    /// Number of scopes between the task and the step.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) up: u32,
    /// The step.
    pub(crate) step: Step,
}

/// A task or a workflow that a handler has spawned, as the end of its task records it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spawned {
    /// The task, or the task that begins the workflow.
    pub(crate) step: Step,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) outline: Option<Outline>,
    /// `true` if it replaces the task that has spawned it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) replaces: bool,
}

/// StepPlace of a task's end in a join.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Membership {
    /// Name of the step that waits; of the group itself if nothing waits for it.
    pub(crate) to: String,
    /// Number of scopes between the task and that step.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) up: u32,
    /// Index of the first member of the part.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) first: u32,
    /// Number of members of the join.
    pub(crate) size: u32,
    /// Policy of the part.
    #[serde(default, skip_serializing_if = "Policy::is_default")]
    pub(crate) policy: Policy,
}

/// Members of a join that come from one step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct JoinPart {
    /// Name of the step.
    pub(crate) step: String,
    /// Number of members, if the step is a group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) members: Option<u32>,
    /// Names of the steps of a member between its first task and its last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) between: Vec<String>,
    /// Name of the last step of a member, if a member has several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) last: Option<String>,
    /// Policy for failures.
    #[serde(default, skip_serializing_if = "Policy::is_default")]
    pub(crate) policy: Policy,
    /// Names of the steps before that step, the nearest first. The end of the first sends it; without any, the scope's first
    /// task does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) sources: Vec<String>,
}

/// Consequence of a member's failure for the step that waits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Policy {
    /// The step that waits ends in FAILURE/upstream at the first failure.
    #[default]
    Fail,
    /// The same, and the other members are revoked.
    CancelRest,
    /// The step runs when all members have ended, and gets all outcomes.
    Collect,
    /// The step runs when all members have ended, unless more than this number have failed. It gets the results of those
    /// that succeeded.
    Tolerate(u32),
    /// The same with a percentage of the members.
    ToleratePercent(u8),
    /// A failed member does not count as ended: the step waits until a retry of it has succeeded.
    Hold,
}

impl Policy {
    #[allow(clippy::trivially_copy_pass_by_ref, reason = "the form that serde asks for")]
    fn is_default(&self) -> bool {
        *self == Self::Fail
    }

    /// Returns the number of failures that the step bears; `None` if it does not depend on their number.
    pub(crate) fn tolerated(self, members: u32) -> Option<u32> {
        match self {
            Self::Fail | Self::CancelRest => Some(0),
            Self::Collect | Self::Hold => None,
            Self::Tolerate(number) => Some(number),
            Self::ToleratePercent(percent) => {
                let share = u64::from(members) * u64::from(percent.min(100)) / 100;
                Some(u32::try_from(share).unwrap_or(u32::MAX))
            }
        }
    }

    /// Returns `true` if the first failure decides.
    pub(crate) fn fails_at_once(self) -> bool {
        matches!(self, Self::Fail | Self::CancelRest)
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "the form that serde asks for")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl JoinPart {
    /// Returns the number of members of the part.
    pub(crate) fn count(&self) -> u32 {
        self.members.unwrap_or(1)
    }

    /// Returns the ids of all tasks of its members, for a step at this place that waits for it.
    pub(crate) fn tasks(&self, waiting: &StepPlace) -> Vec<TaskId> {
        let inner = self.between.iter().chain(&self.last);
        waiting.scope().step(&self.step).tasks(self.members, &inner)
    }
}

impl Replaced {
    pub(crate) fn new(place: &StepPlace, flow: Flow) -> Self {
        Self { root: place.root_id().clone(), path: place.path().to_owned(), flow }
    }

    /// Returns the place of the task.
    pub(crate) fn place(&self) -> StepPlace {
        // A worker has written it. Nothing waits at the place of a root.
        StepPlace::parse(self.root.clone(), &self.path).unwrap_or_else(|| StepPlace::root(self.root.clone()))
    }

    /// Returns the id of the root of its workflow.
    pub(crate) fn root(&self) -> &TaskId {
        &self.root
    }

    /// Returns what the tasks before the last one of the workflow hold: the error callbacks.
    pub(crate) fn callbacks(&self) -> Self {
        Self { flow: self.flow.callbacks(), ..self.clone() }
    }
}

impl Spawned {
    /// Returns the place of the task whose end is the end of all that was spawned.
    pub(crate) fn last(&self, root: &StepPlace) -> StepPlace {
        let last = self.outline.as_ref().and_then(Outline::last);
        last.map_or_else(|| root.clone(), |last| root.step(last))
    }
}

impl Step {
    /// Returns the task and the queue, if their names are allowed.
    pub(crate) fn target(&self) -> Result<(TaskName, QueueName), InvalidName> {
        Ok((TaskName::parse(&self.task)?, QueueName::parse(&self.queue)?))
    }

    /// Returns the number of tasks that the step is published as.
    pub(crate) fn count(&self) -> usize {
        self.each.as_ref().map_or(1, Vec::len)
    }

    /// Gives a queue to the step and to all steps that follow it, unless they name one.
    pub(crate) fn fill_queue(&mut self, default: &str) {
        self.queue = completed(&self.queue, default);
        self.flow.fill_queues(default);
    }

    pub(crate) fn countdown(&self) -> Option<Duration> {
        self.countdown_ms.map(Duration::from_millis)
    }

    pub(crate) fn expires_in(&self) -> Option<Duration> {
        self.expires_ms.map(Duration::from_millis)
    }
}

impl Flow {
    /// Returns `true` if nothing follows and nobody waits.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Returns the step of this name.
    pub(crate) fn step(&self, name: &str) -> Option<&Step> {
        self.steps.iter().find(|step| step.name == name)
    }

    /// Returns the steps that can follow these: those that they name, those that those name, and so on.
    pub(crate) fn reachable<'a>(&'a self, from: impl IntoIterator<Item = &'a String>) -> Vec<&'a Step> {
        let by_name: BTreeMap<&str, &Step> =
            self.steps.iter().map(|step| (step.name.as_str(), step)).collect();
        let mut open: Vec<&str> = from.into_iter().map(String::as_str).collect();
        let mut found = BTreeSet::new();
        while let Some(name) = open.pop() {
            let Some(step) = by_name.get(name) else { continue };
            // What a group names lies in the scope of its members.
            if found.insert(name) && step.each.is_none() {
                open.extend(step.flow.then.iter().map(String::as_str));
            }
        }
        self.steps.iter().filter(|step| found.contains(step.name.as_str())).collect()
    }

    /// Returns the tasks that the workflow of this task replaces, the nearest first.
    pub(crate) fn replaced(&self) -> impl Iterator<Item = &Replaced> {
        std::iter::successors(self.replaces.as_deref(), |replaced| replaced.flow.replaces.as_deref())
    }

    fn callbacks(&self) -> Self {
        let replaces = self.replaces.as_deref().map(|replaced| Box::new(replaced.callbacks()));
        Self { catch: self.catch.clone(), replaces, ..Self::default() }
    }

    /// Gives a queue to all steps, unless they name one.
    pub(crate) fn fill_queues(&mut self, default: &str) {
        let mut open = vec![self];
        while let Some(flow) = open.pop() {
            for step in flow.steps.iter_mut().chain(flow.catch.iter_mut().map(|catch| &mut catch.step)) {
                step.queue = completed(&step.queue, default);
                open.push(&mut step.flow);
            }
        }
    }

    /// Returns all steps: those of inner scopes, and error callbacks too.
    pub(crate) fn all_steps(&self) -> Vec<&Step> {
        let mut all: Vec<&Step> = self.direct_steps().collect();
        let mut seen = 0;
        while let Some(step) = all.get(seen).copied() {
            all.extend(step.flow.direct_steps());
            seen += 1;
        }
        all
    }

    /// Checks that all steps may be sent: the task of each to its queue.
    ///
    /// # Errors
    /// The step, and the reason against it.
    pub(crate) fn check_targets(
        &self,
        may_send: impl Fn(&TaskName, &QueueName) -> Result<(), String>,
    ) -> Result<(), String> {
        for step in self.all_steps() {
            step.target()
                .map_err(|error| error.to_string())
                .and_then(|(task, queue)| may_send(&task, &queue))
                .map_err(|why| format!("step {:?}: {why}", step.name))?;
        }
        Ok(())
    }

    /// Returns the steps of this scope, and the error callbacks of its task.
    fn direct_steps(&self) -> impl Iterator<Item = &Step> {
        self.steps.iter().chain(self.catch.iter().map(|catch| &catch.step))
    }

    /// Checks what a stranger may have written: the number of steps and members, the depth of scopes.
    ///
    /// # Errors
    /// The bound that is exceeded, and the remedy.
    pub(crate) fn check(&self) -> Result<(), String> {
        let mut open: Vec<(&Self, usize)> = vec![(self, 1)];
        let mut steps = 0;
        while let Some((flow, scopes)) = open.pop() {
            steps += flow.steps.len();
            if steps > MAX_STEPS {
                return Err(format!(
                    "the workflow has more than {MAX_STEPS} steps: let a task send the rest of them"
                ));
            }
            if scopes > MAX_SCOPES {
                return Err(format!("more than {MAX_SCOPES} groups are inside each other"));
            }
            open.extend(flow.replaces.as_deref().map(|replaced| (&replaced.flow, scopes)));
            for step in flow.direct_steps() {
                if step.count() > MAX_MEMBERS {
                    return Err(format!(
                        "step {:?} has {} members, and the maximum is {MAX_MEMBERS}: let a task send the members",
                        step.name,
                        step.count()
                    ));
                }
                open.push((&step.flow, scopes + usize::from(step.each.is_some())));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(number: usize) -> Step {
        Step { name: format!("s{number}"), ..Step::default() }
    }

    /// Groups of one member inside each other, in so many scopes.
    fn nested(scopes: usize) -> Flow {
        let mut flow = Flow::default();
        for _ in 1..scopes {
            let group = Step { each: Some(vec![Vec::new()]), flow, ..named(0) };
            flow = Flow { steps: vec![group], ..Flow::default() };
        }
        flow
    }

    fn refusal(flow: &Flow) -> String {
        flow.check().unwrap_err()
    }

    #[test]
    fn a_group_has_at_most_so_many_members() {
        let group = |members: usize| {
            let step = Step { each: Some(vec![Vec::new(); members]), ..named(0) };
            Flow { steps: vec![step], ..Flow::default() }
        };
        assert_eq!(group(MAX_MEMBERS).check(), Ok(()));
        let why = refusal(&group(MAX_MEMBERS + 1));
        assert!(why.contains("10001 members") && why.contains("let a task send the members"), "{why}");
        // An error callback that is a group comes from a stranger: no sender of ours makes one.
        let catch = Catch { up: 0, step: group(MAX_MEMBERS + 1).steps.remove(0) };
        assert!(Flow { catch: vec![catch], ..Flow::default() }.check().is_err());
    }

    #[test]
    fn a_message_has_at_most_so_many_steps_in_all_scopes_together() {
        let steps = |number: usize| (0..number).map(named).collect::<Vec<_>>();
        let scope = |number| Flow { steps: steps(number), ..Flow::default() };
        assert_eq!(scope(MAX_STEPS).check(), Ok(()));
        let why = refusal(&scope(MAX_STEPS + 1));
        assert!(why.contains("more than 1000 steps") && why.contains("let a task send the rest"), "{why}");
        let group = Step { each: Some(Vec::new()), flow: scope(MAX_STEPS / 2), ..named(0) };
        let mut both = scope(MAX_STEPS / 2);
        both.steps[0] = group;
        assert_eq!(both.check(), Ok(()));
        both.steps.push(named(MAX_STEPS));
        assert!(both.check().is_err(), "one half inside a group");
        let replaced = Replaced::new(&StepPlace::root("R".try_into().unwrap()), scope(MAX_STEPS));
        let flow = Flow { replaces: Some(Box::new(replaced)), ..scope(1) };
        assert!(flow.check().is_err(), "what is passed on counts too");
    }

    #[test]
    fn groups_are_inside_each_other_only_so_deep() {
        assert_eq!(nested(MAX_SCOPES).check(), Ok(()));
        let why = refusal(&nested(MAX_SCOPES + 1));
        assert!(why.contains("more than 8 groups are inside each other"), "{why}");
    }
}
