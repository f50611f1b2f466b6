//! From a workflow to messages that hold what follows them: the part of a workflow that other programs can run.
//!
//! The tasks that follow nothing are sent. Each message holds the tasks that follow its own, and a group's members hold the
//! task that waits for them. Everything else is refused here, before anything is sent.

use std::collections::BTreeMap;

use crate::{
    builtin::WORKFLOW_TASK,
    flow::{Catch, Flow, JoinPart, Policy, Step, StepPlace},
    id::{QueueName, TaskId, TaskName},
    mirrored_record::AwaitedTasks,
    wire::{NestedGroup, NestedTask, NestedTasks, TaskMessage},
};

/// A workflow as it is sent to another program.
#[derive(Debug)]
pub(super) struct NestedWorkflow {
    /// Tasks that are sent, with what follows them.
    pub(super) first: Vec<FirstTask>,
    /// Groups, with the ids of their members.
    pub(super) groups: Vec<(TaskId, Vec<TaskId>)>,
    /// Tasks that come later, for their records: id, name and queue.
    pub(super) later: Vec<(TaskId, String, String)>,
    /// Tasks on which the result depends.
    pub(super) awaited: AwaitedTasks,
}

/// A task that is sent.
#[derive(Debug)]
pub(super) struct FirstTask {
    pub(super) id: TaskId,
    /// Its step, with the arguments of the member if it is a group.
    pub(super) step: Step,
    pub(super) nested: NestedTasks,
}

/// Translates the flow of a root; `result` is the task whose end is the result.
///
/// # Errors
/// The step that cannot be sent in this way, and the reason.
pub(super) fn nest(root: &TaskId, flow: &Flow, result: &TaskId) -> Result<NestedWorkflow, String> {
    let mut nesting = Nesting {
        root: StepPlace::root(root.clone()),
        before: BTreeMap::new(),
        catches: BTreeMap::new(),
        later: Vec::new(),
    };
    if flow.replaces.is_some() {
        return Err("a workflow that replaces a task cannot be sent in it".to_owned());
    }
    let firsts: Vec<&Step> = flow.then.iter().filter_map(|name| flow.step(name)).collect();
    let (waiting, entries): (Vec<&Step>, Vec<&Step>) =
        firsts.into_iter().partition(|step| !step.awaits().is_empty());
    let mut awaited = AwaitedTasks { root: root.clone(), before: Vec::new(), parts: Vec::new() };
    let mut places: BTreeMap<&str, NestedGroup> = BTreeMap::new();
    let mut groups = Vec::new();
    for step in waiting {
        let gathers = step.task == WORKFLOW_TASK;
        if gathers && !step.flow.then.is_empty() {
            return Err(refused(step, "a group follows other tasks: let it come first"));
        }
        let is_first = |part: &JoinPart| entries.iter().any(|entry| entry.name == part.step);
        let all_first = step.awaits().iter().all(is_first);
        if gathers {
            awaited.parts = step.awaits().to_vec();
        } else {
            check_chord(step, all_first)?;
        }
        let mut members = Vec::new();
        for part in step.awaits() {
            if part.last.is_some() {
                return Err(format!(
                    "step {:?}: the members of its group are chains; a member is one task",
                    part.step
                ));
            }
            members.extend(part.tasks(&nesting.root.step(&step.name)));
        }
        let callback = if gathers {
            None
        } else {
            nesting.before.insert(step.name.clone(), step.awaits().to_vec());
            Some(Box::new(nesting.task(flow, step)?))
        };
        let is_group = members.len() > 1 || step.awaits().iter().any(|part| part.members.is_some());
        if callback.is_none() && !(all_first && is_group) {
            continue;
        }
        let id = format!("group_{}", nesting.root.step(&step.name).id());
        let id = TaskId::parse(&id).map_err(|error| error.to_string())?;
        let size = u32::try_from(members.len()).unwrap_or(u32::MAX);
        for part in step.awaits() {
            let group = NestedGroup { id: id.clone(), size, callback: callback.clone() };
            if places.insert(&part.step, group).is_some() {
                return Err(format!(
                    "step {:?}: two steps wait for it; a task is a member of one group",
                    part.step
                ));
            }
        }
        if !members.is_empty() {
            groups.push((id, members));
        }
    }
    let mut first = Vec::new();
    for entry in entries {
        let nested =
            NestedTasks { group: places.remove(entry.name.as_str()), ..nesting.follows(flow, entry)? };
        Nesting::check_options(entry)?;
        let place = nesting.root.step(&entry.name);
        match &entry.each {
            None => first.push(FirstTask { id: place.id(), step: entry.clone(), nested }),
            Some(each) => {
                for (index, args) in (0..).zip(each) {
                    let mut step = entry.clone();
                    step.args.extend(args.iter().cloned());
                    first.push(FirstTask { id: place.member(index).id(), step, nested: nested.clone() });
                }
            }
        }
    }
    nesting.check_catches()?;
    let before = |name: &str| nesting.before.get(name).cloned().unwrap_or_default();
    awaited.before = match flow.steps.iter().find(|step| nesting.root.step(&step.name).id() == *result) {
        Some(step) if awaited.parts.is_empty() => before(&step.name),
        _ => awaited.parts.iter().flat_map(|part| before(&part.step)).collect(),
    };
    let mut later = nesting.later;
    if let Some(step) = flow.steps.iter().find(|step| step.task == WORKFLOW_TASK && step.each.is_none()) {
        later.push((nesting.root.step(&step.name).id(), step.task.clone(), step.queue.clone()));
    }
    Ok(NestedWorkflow { first, groups, later, awaited })
}

/// Checks a step that waits for others.
fn check_chord(step: &Step, all_first: bool) -> Result<(), String> {
    if !all_first {
        return Err(refused(
            step,
            "it waits for tasks that follow others; it can wait for the first ones alone",
        ));
    }
    if let Some(part) = step.awaits().iter().find(|part| part.policy != Policy::Fail) {
        return Err(format!("step {:?}: it has no policy for failures; leave on_failure out", part.step));
    }
    Ok(())
}

fn refused(step: &Step, why: &str) -> String {
    format!("step {:?}: {why}", step.name)
}

impl Step {
    fn awaits(&self) -> &[JoinPart] {
        &self.flow.awaits
    }
}

struct Nesting {
    root: StepPlace,
    /// Steps whose failures keep a step from running, by its name.
    before: BTreeMap<String, Vec<JoinPart>>,
    /// Steps whose failures an error callback follows, each with the names of the steps before it.
    catches: BTreeMap<String, Vec<Vec<String>>>,
    later: Vec<(TaskId, String, String)>,
}

impl Nesting {
    /// Makes the task of a step that follows others.
    fn task(&mut self, scope: &Flow, step: &Step) -> Result<NestedTask, String> {
        if step.each.is_some() {
            return Err(refused(step, "a group follows another task: let it come first"));
        }
        if step.countdown_ms.is_some() {
            return Err(refused(step, "it has a countdown from the end of another task; leave it out"));
        }
        Self::check_options(step)?;
        let place = self.root.step(&step.name);
        let queue = QueueName::parse(&step.queue).map_err(|error| refused(step, &error.to_string()))?;
        let name = TaskName::parse(&step.task).map_err(|error| refused(step, &error.to_string()))?;
        let known = self.later.iter().any(|(id, ..)| *id == place.id());
        if !known {
            self.later.push((place.id(), step.task.clone(), step.queue.clone()));
        }
        let mut task = TaskMessage::new(place.id(), name);
        task.args.clone_from(&step.args);
        task.retry.clone_from(&step.retry);
        task.timeout = step.timeout_ms.map(std::time::Duration::from_millis);
        task.soft_timeout = step.soft_timeout_ms.map(std::time::Duration::from_millis);
        task.priority = step.priority;
        task.headers.clone_from(&step.headers);
        task.nested = self.follows(scope, step)?;
        Ok(NestedTask { task, queue, ignores_results: step.immutable || step.flow.ignores_results })
    }

    /// Returns what follows a step.
    fn follows(&mut self, scope: &Flow, step: &Step) -> Result<NestedTasks, String> {
        let mut nested = NestedTasks::default();
        if !step.flow.steps.is_empty() || (step.each.is_some() && !step.flow.then.is_empty()) {
            return Err(refused(step, "the members of its group are chains; a member is one task"));
        }
        let mut before = self.before.get(&step.name).cloned().unwrap_or_default();
        before.push(JoinPart {
            step: step.name.clone(),
            members: None,
            between: Vec::new(),
            last: None,
            policy: Policy::Fail,
            sources: Vec::new(),
        });
        for name in &step.flow.then {
            let Some(next) = scope.step(name) else { return Err(format!("step {name:?} is not there")) };
            self.before.insert(name.clone(), before.clone());
            nested.on_success.push(self.task(scope, next)?);
        }
        for Catch { step: callback, .. } in &step.flow.catch {
            if step.each.is_some() {
                let why =
                    "an error callback of a group would run for each member that fails; leave on_error out";
                return Err(refused(step, why));
            }
            let path = before.iter().map(|part| part.step.clone()).collect();
            self.catches.entry(callback.name.clone()).or_default().push(path);
            let known = self.before.clone();
            nested.on_error.push(self.task(&callback.flow, callback)?);
            self.before = known;
        }
        Ok(nested)
    }

    /// Refuses options that would be lost on the way.
    fn check_options(step: &Step) -> Result<(), String> {
        let lacks =
            |what: &str| Err(refused(step, &format!("{what} of a step cannot be sent; leave it out")));
        if step.expires_ms.is_some() {
            return lacks("the expiry");
        }
        if !step.labels.is_empty() {
            return lacks("a label");
        }
        if step.limit_key.is_some() || step.limit_cost.is_some() {
            return lacks("the key or the cost of limits");
        }
        if !step.done.is_empty() {
            return Err(refused(step, "a workflow that repeats another cannot be sent; send a new one"));
        }
        Ok(())
    }

    /// Checks that an error callback can run once at most: of the steps that it follows, each keeps the later ones from
    /// running.
    fn check_catches(&self) -> Result<(), String> {
        for (name, paths) in &self.catches {
            let one_way = |one: &Vec<String>, other: &Vec<String>| {
                one.last().is_some_and(|last| other.contains(last))
                    || other.last().is_some_and(|last| one.contains(last))
            };
            let twice = paths
                .iter()
                .enumerate()
                .any(|(at, one)| !paths[at + 1..].iter().all(|other| one_way(one, other)));
            if twice {
                return Err(format!(
                    "step {name:?}: it catches the failures of tasks that can both fail, and would run twice; give \
                     each its own"
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
