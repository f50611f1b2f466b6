//! From named steps to the message that begins a workflow.
//!
//! A step with one predecessor follows that predecessor's end. A step with several, or with a group before it, waits for a
//! join of which each predecessor is a part. Steps without a predecessor follow the root.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    args::Arg,
    builtin::WORKFLOW_TASK,
    flow::{
        Catch, Flow, JoinPart, MAX_MEMBERS, MAX_STEPS, Membership, OutlineStep, Policy, Step, is_step_name,
    },
    signature::{Signature, SignatureParts, When},
};

/// Suffix of the step that gathers the results for a group which waits for others.
const GATHERS: &str = "-in";

/// One step of a workflow: a task or a group, and what comes before it.
#[derive(Debug, Clone)]
#[must_use = "a step does nothing until it is part of a workflow"]
pub struct StepPlan {
    pub(super) name: String,
    pub(super) signature: SignatureParts,
    pub(super) after: Vec<String>,
    pub(super) each: Option<Vec<Vec<Arg>>>,
    /// Steps of each member after its first task.
    pub(super) inner: Vec<Self>,
    pub(super) immutable: bool,
    pub(super) on_failure: Policy,
    pub(super) on_error: Vec<String>,
    /// `true` if it is an error callback of a typed workflow.
    pub(super) catches: bool,
}

/// Error of steps that are no workflow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{why}", step.as_ref().map(|step| format!("step {step:?}: ")).unwrap_or_default())]
pub struct WorkflowError {
    /// The step, if one is the cause.
    pub step: Option<String>,
    /// The mistake, and the remedy.
    pub why: String,
}

impl StepPlan {
    /// Creates a step with this name: `[a-z][a-z0-9_-]{0,39}`. The signature's id is not used: the id of the task follows
    /// from the workflow's root and the name.
    pub fn new<R>(name: impl Into<String>, signature: Signature<R>) -> Self {
        Self {
            name: name.into(),
            signature: signature.parts,
            after: Vec::new(),
            each: None,
            inner: Vec::new(),
            immutable: false,
            on_failure: Policy::Fail,
            on_error: Vec::new(),
            catches: false,
        }
    }

    /// Adds steps that come before it. Their results are appended to its arguments in this order, those of a group as one
    /// list.
    pub fn after<S: Into<String>>(mut self, steps: impl IntoIterator<Item = S>) -> Self {
        self.after.extend(steps.into_iter().map(Into::into));
        self
    }

    /// Makes it a group: one member for each list of arguments, which come after those of the signature.
    pub fn each(mut self, args: Vec<Vec<Arg>>) -> Self {
        self.each = Some(args);
        self
    }

    /// Keeps the step from getting results.
    pub fn immutable(mut self) -> Self {
        self.immutable = true;
        self
    }

    /// Sets the consequence of a member's failure, if the step is a group.
    pub fn on_failure(mut self, policy: Policy) -> Self {
        self.on_failure = policy;
        self
    }

    /// Adds steps that are sent when this one has failed for good. They get the error's text before their own arguments.
    pub fn on_error<S: Into<String>>(mut self, steps: impl IntoIterator<Item = S>) -> Self {
        self.on_error.extend(steps.into_iter().map(Into::into));
        self
    }

    /// Returns `true` if another step is the same task with the same options; its arguments may differ if `any_args`.
    pub(super) fn is_like(&self, other: &Self, any_args: bool) -> bool {
        let plain = |plan: &Self| {
            let mut step = template(plan)?;
            if any_args {
                step.args.clear();
            }
            Ok::<_, WorkflowError>((step, plan.after.clone()))
        };
        plain(self).is_ok_and(|own| plain(other).is_ok_and(|other| own == other))
    }

    /// Returns the names of the steps of a member between its first task and its last.
    fn between(&self) -> Vec<String> {
        let last = self.inner.len().saturating_sub(1);
        self.inner.iter().take(last).map(|step| step.name.clone()).collect()
    }

    /// Returns the name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

fn error(step: &str, why: impl Into<String>) -> WorkflowError {
    WorkflowError { step: Some(step.to_owned()), why: why.into() }
}

/// Steps of one scope as they are sent.
pub(super) struct Compiled {
    /// Names of the steps that the scope's first task sends: those that wait before those that do not.
    pub(super) then: Vec<String>,
    pub(super) steps: Vec<Step>,
    pub(super) outline: Vec<OutlineStep>,
}

/// Checks the steps of a scope and compiles them.
///
/// # Errors
/// A name that is not allowed, unknown or used twice, a cycle, too many steps or members, options that a step of a workflow
/// cannot have.
pub(super) fn compile(steps: &[StepPlan]) -> Result<Compiled, WorkflowError> {
    let known = Known::of(steps)?;
    let order = known.order()?;
    let mut compiled: Vec<Option<Step>> = vec![None; steps.len()];
    let mut added = Vec::new();
    let mut waiting = Vec::new();
    let mut first = Vec::new();
    for &at in &order {
        let plan = &steps[at];
        let mut step = template(plan)?;
        if !known.catches.contains(&at) {
            match known.kind(at) {
                StepStart::Entry => first.push(plan.name.clone()),
                StepStart::Follows(before) => {
                    // INVARIANT: the order puts a step behind those before it.
                    let before = compiled[before].as_mut().expect("an earlier step");
                    before.flow.then.push(plan.name.clone());
                }
                StepStart::Waits => {
                    let parts = known.parts(at);
                    let target = if plan.each.is_some() {
                        let gathering = gathering(plan, parts.clone());
                        waiting.push(gathering.name.clone());
                        added.push(gathering);
                        format!("{}{GATHERS}", plan.name)
                    } else {
                        step.flow.awaits.clone_from(&parts);
                        step.flow.ignores_results = plan.immutable;
                        waiting.push(plan.name.clone());
                        plan.name.clone()
                    };
                    join_parts(&known, at, &target, &parts, &mut compiled);
                }
            }
        }
        compiled[at] = Some(step);
    }
    let mut steps_out: Vec<Step> = compiled.into_iter().flatten().collect();
    steps_out.extend(added);
    add_catches(&known, &mut steps_out);
    // Those who catch carry them.
    steps_out.retain(|step| !known.is_behind_catch(&step.name));
    let outline = known.outline();
    waiting.append(&mut first);
    Ok(Compiled { then: waiting, steps: steps_out, outline })
}

/// Way in which a step starts.
enum StepStart {
    /// It follows the scope's first task.
    Entry,
    /// It follows the step at this index.
    Follows(usize),
    /// It waits for a join.
    Waits,
}

/// Steps by name, with the indexes of those before each.
struct Known<'a> {
    steps: &'a [StepPlan],
    before: Vec<Vec<usize>>,
    /// Steps that are sent when another has failed.
    catches: BTreeSet<usize>,
}

impl<'a> Known<'a> {
    fn of(steps: &'a [StepPlan]) -> Result<Self, WorkflowError> {
        if steps.is_empty() {
            return Err(WorkflowError { step: None, why: "a workflow has at least one step".to_owned() });
        }
        if steps.len() > MAX_STEPS {
            let why = format!(
                "it has {} steps, and the maximum is {MAX_STEPS}: let a task send the rest",
                steps.len()
            );
            return Err(WorkflowError { step: None, why });
        }
        let mut by_name = BTreeMap::new();
        for (at, step) in steps.iter().enumerate() {
            if !is_step_name(&step.name) {
                let why = "a name is 1 to 40 small letters, digits, `_` or `-`, and begins with a letter";
                return Err(error(&step.name, why));
            }
            if by_name.insert(step.name.as_str(), at).is_some() {
                return Err(error(&step.name, "two steps have this name"));
            }
        }
        let find = |step: &StepPlan, name: &String| {
            by_name.get(name.as_str()).copied().ok_or_else(|| {
                let nearest = crate::nearest(name, steps.iter().map(|step| step.name.as_str()));
                let hint = nearest.map(|name| format!("; did you mean {name:?}?")).unwrap_or_default();
                error(&step.name, format!("there is no step {name:?}{hint}"))
            })
        };
        let mut before = Vec::with_capacity(steps.len());
        let mut catches = BTreeSet::new();
        for step in steps {
            let mut own = step.after.iter().map(|name| find(step, name)).collect::<Result<Vec<_>, _>>()?;
            let mut seen = BTreeSet::new();
            own.retain(|at| seen.insert(*at));
            before.push(own);
            for name in &step.on_error {
                catches.insert(find(step, name)?);
            }
        }
        for &at in &catches {
            let step = &steps[at];
            if !step.after.is_empty() {
                return Err(error(&step.name, "a step in `on_error` cannot also come after others"));
            }
            if step.each.is_some() || !step.on_error.is_empty() {
                return Err(error(&step.name, "a step in `on_error` is one task without `on_error`"));
            }
        }
        Ok(Self { steps, before, catches })
    }

    /// Returns the indexes in an order in which each step comes behind those before it.
    fn order(&self) -> Result<Vec<usize>, WorkflowError> {
        let mut missing: Vec<usize> = self.before.iter().map(Vec::len).collect();
        let mut after = vec![Vec::new(); self.steps.len()];
        for (at, before) in self.before.iter().enumerate() {
            for &step in before {
                after[step].push(at);
            }
        }
        let mut ready: Vec<usize> = (0..self.steps.len()).rev().filter(|at| missing[*at] == 0).collect();
        let mut order = Vec::with_capacity(self.steps.len());
        while let Some(at) = ready.pop() {
            order.push(at);
            for &next in after[at].iter().rev() {
                missing[next] -= 1;
                if missing[next] == 0 {
                    ready.push(next);
                }
            }
        }
        if let Some(at) = (0..self.steps.len()).find(|at| missing[*at] > 0) {
            return Err(error(
                &self.steps[self.on_cycle(at)].name,
                "it comes after itself: the steps form a cycle",
            ));
        }
        for at in self.catches.iter().flat_map(|catch| self.behind(*catch)) {
            if !matches!(self.kind(at), StepStart::Follows(_)) {
                let why = "a step behind one in `on_error` comes after exactly one step, which is no group";
                return Err(error(&self.steps[at].name, why));
            }
        }
        for (at, catch) in
            self.catches.iter().flat_map(|catch| self.catchers(*catch).map(move |at| (at, *catch)))
        {
            if at == catch || self.behind(catch).contains(&at) {
                let why =
                    format!("it cannot catch the failure of {:?}, which comes after it", self.steps[at].name);
                return Err(error(&self.steps[catch].name, why));
            }
        }
        Ok(order)
    }

    /// Returns a step on a cycle that leads to this step.
    fn on_cycle(&self, mut at: usize) -> usize {
        for _ in 0..self.steps.len() {
            let cyclic = |step: &&usize| self.behind(**step).contains(step);
            if self.behind(at).contains(&at) {
                return at;
            }
            match self.before[at].iter().find(cyclic).or_else(|| self.before[at].first()) {
                Some(step) => at = *step,
                None => return at,
            }
        }
        at
    }

    /// Returns the steps that have this one in `on_error`.
    fn catchers(&self, catch: usize) -> impl Iterator<Item = usize> {
        let name = &self.steps[catch].name;
        (0..self.steps.len()).filter(move |at| self.steps[*at].on_error.contains(name))
    }

    /// Returns all steps that come behind this one.
    fn behind(&self, at: usize) -> BTreeSet<usize> {
        let mut found = BTreeSet::new();
        let mut open = vec![at];
        while let Some(at) = open.pop() {
            for (next, _) in self.before.iter().enumerate().filter(|(_, before)| before.contains(&at)) {
                if found.insert(next) {
                    open.push(next);
                }
            }
        }
        found
    }

    /// Returns `true` if a step only runs after a failure: it catches one, or comes behind such a step.
    fn is_behind_catch(&self, name: &str) -> bool {
        let Some(at) = self.steps.iter().position(|step| step.name == name) else { return false };
        self.catches.iter().any(|catch| *catch == at || self.behind(*catch).contains(&at))
    }

    fn kind(&self, at: usize) -> StepStart {
        match self.before[at].as_slice() {
            [] => StepStart::Entry,
            [one] if self.steps[*one].each.is_none() => StepStart::Follows(*one),
            _ => StepStart::Waits,
        }
    }

    /// Returns the parts of the join that a step waits for.
    fn parts(&self, at: usize) -> Vec<JoinPart> {
        let part = |&before: &usize| {
            let plan = &self.steps[before];
            JoinPart {
                step: plan.name.clone(),
                members: plan.each.as_ref().map(|each| u32::try_from(each.len()).unwrap_or(u32::MAX)),
                between: plan.between(),
                last: plan.inner.last().map(|last| last.name.clone()),
                policy: plan.on_failure,
                sources: self.sources(before),
            }
        };
        self.before[at].iter().map(part).collect()
    }

    /// Returns the names of the steps whose ends lead to the sending of a step, the nearest first.
    fn sources(&self, mut at: usize) -> Vec<String> {
        let mut sources = Vec::new();
        loop {
            match self.kind(at) {
                StepStart::Follows(before) => {
                    sources.push(self.steps[before].name.clone());
                    at = before;
                }
                StepStart::Waits if self.steps[at].each.is_some() => {
                    sources.push(format!("{}{GATHERS}", self.steps[at].name));
                    return sources;
                }
                StepStart::Waits | StepStart::Entry => return sources,
            }
        }
    }

    fn outline(&self) -> Vec<OutlineStep> {
        let mut outline = Vec::with_capacity(self.steps.len());
        for (at, step) in self.steps.iter().enumerate() {
            if step.each.is_some() && matches!(self.kind(at), StepStart::Waits) {
                outline.push(OutlineStep {
                    name: format!("{}{GATHERS}", step.name),
                    task: WORKFLOW_TASK.to_owned(),
                    after: step.after.clone(),
                    members: None,
                    between: Vec::new(),
                    last: None,
                    catches: false,
                    internal: true,
                    is_last: false,
                });
            }
            let catches = self.is_behind_catch(&step.name);
            outline.push(OutlineStep {
                name: step.name.clone(),
                task: step.signature.name.clone(),
                after: step.after.clone(),
                members: step.each.as_ref().map(|each| u32::try_from(each.len()).unwrap_or(u32::MAX)),
                between: step.between(),
                last: step.inner.last().map(|last| last.name.clone()),
                catches,
                internal: step.signature.name == WORKFLOW_TASK,
                is_last: !catches && self.before.iter().all(|before| !before.contains(&at)),
            });
        }
        outline
    }
}

/// Adds the memberships of all parts to the steps that they come from.
fn join_parts(known: &Known<'_>, at: usize, target: &str, parts: &[JoinPart], compiled: &mut [Option<Step>]) {
    let size = parts.iter().map(JoinPart::count).sum();
    let mut first = 0;
    for (&before, part) in known.before[at].iter().zip(parts) {
        let membership = Membership {
            to: target.to_owned(),
            up: u32::from(part.members.is_some()),
            first,
            size,
            policy: part.policy,
        };
        first += part.count();
        // INVARIANT: the order puts a step behind those before it.
        let step = compiled[before].as_mut().expect("an earlier step");
        end_of_member(step, part.last.as_deref()).joins.push(membership);
    }
}

/// Returns the flow of the task whose end is that of the step: its own, or that of the last step of each member.
fn end_of_member<'a>(step: &'a mut Step, last: Option<&str>) -> &'a mut Flow {
    let inner = last.and_then(|last| step.flow.steps.iter().position(|step| step.name == last));
    match inner {
        Some(at) => &mut step.flow.steps[at].flow,
        None => &mut step.flow,
    }
}

/// Returns the step that gathers the results for a group which waits.
fn gathering(plan: &StepPlan, parts: Vec<JoinPart>) -> Step {
    Step {
        name: format!("{}{GATHERS}", plan.name),
        task: WORKFLOW_TASK.to_owned(),
        queue: plan.signature.queue.clone().unwrap_or_default(),
        flow: Flow {
            awaits: parts,
            then: vec![plan.name.clone()],
            ignores_results: plan.immutable,
            ..Flow::default()
        },
        ..Step::default()
    }
}

/// Adds the error callbacks to the steps whose failures they catch.
fn add_catches(known: &Known<'_>, steps: &mut [Step]) {
    let scope = Flow { steps: steps.to_vec(), ..Flow::default() };
    let callback = |name: &String| {
        let mut step = scope.step(name)?.clone();
        step.flow.steps = scope.reachable(&step.flow.then).into_iter().cloned().collect();
        Some(step)
    };
    for plan in known.steps.iter().filter(|plan| !plan.on_error.is_empty()) {
        let catches: Vec<Step> = plan.on_error.iter().filter_map(callback).collect();
        let Some(step) = steps.iter_mut().find(|step| step.name == plan.name) else { continue };
        let up = u32::from(step.each.is_some());
        let of = |up| catches.iter().map(move |step| Catch { up, step: step.clone() });
        step.flow.catch.extend(of(up));
        for inner in &mut step.flow.steps {
            inner.flow.catch.extend(of(up));
        }
    }
}

/// Makes the template of a step.
fn template(plan: &StepPlan) -> Result<Step, WorkflowError> {
    let parts = &plan.signature;
    let refuse = |why: &str| Err(error(&plan.name, why));
    if let Some(why) = parts.unsendable.as_deref().or_else(|| parts.for_clients_alone()) {
        return refuse(why);
    }
    let millis = |t: std::time::Duration| u64::try_from(t.as_millis()).unwrap_or(u64::MAX);
    let relative = |when: When, what: &str| match when {
        When::In(delay) => Ok(Some(millis(delay)).filter(|delay| *delay > 0)),
        When::At(_) => Err(error(
            &plan.name,
            format!(
                "{what} of a step is counted from the end of the steps before it: give a duration, not an instant"
            ),
        )),
    };
    if plan.each.as_ref().is_some_and(|each| each.len() > MAX_MEMBERS) {
        return refuse(&format!("a group has at most {MAX_MEMBERS} members: let a task send the members"));
    }
    if plan.each.is_none() && plan.on_failure != Policy::Fail {
        return refuse("only a group has a policy for failures");
    }
    if plan.on_failure == Policy::Hold && !plan.inner.is_empty() {
        return refuse("a failure can be held only if each member is one task");
    }
    if parts.priority.is_some_and(|priority| priority > 9) {
        return refuse("its priority is not in 0 to 9");
    }
    let countdown_ms = relative(parts.when, "the start")?;
    let expires_ms = parts.expires.map(|when| relative(when, "the expiry")).transpose()?.flatten();
    if plan.after.len() != 1 && countdown_ms.is_some() && !plan.after.is_empty() {
        return refuse(
            "a step that waits for several others starts when they have ended: it has no countdown",
        );
    }
    let mut flow = match &parts.flow {
        Some(_) => return refuse("a workflow cannot be a step: add its steps"),
        None => Flow::default(),
    };
    if !plan.inner.is_empty() {
        let inner = compile(&plan.inner)?;
        let tails = inner.outline.iter().filter(|step| step.is_last).count();
        if tails != 1 || inner.outline.last().is_none_or(|last| !last.is_last || last.members.is_some()) {
            return refuse("the members of a group end with one task");
        }
        flow.then = inner.then;
        flow.steps = inner.steps;
    }
    Ok(Step {
        name: plan.name.clone(),
        task: parts.name.clone(),
        queue: parts.queue_text(),
        args: parts.args.clone(),
        retry: parts.retry.clone(),
        timeout_ms: parts.timeout.map(millis),
        soft_timeout_ms: parts.soft_timeout.map(millis),
        countdown_ms,
        expires_ms,
        priority: parts.priority,
        limit_key: parts.limit_key.clone(),
        limit_cost: parts.limit_cost,
        fair_key: parts.fair_key.clone(),
        headers: parts.headers.clone(),
        labels: parts.labels.clone(),
        immutable: plan.immutable,
        each: plan.each.clone(),
        done: BTreeMap::new(),
        flow,
    })
}

/// Makes a step of a signature that is spawned.
pub(super) fn step_of(parts: &SignatureParts) -> Result<Step, WorkflowError> {
    let plan = StepPlan { signature: parts.clone(), ..StepPlan::new(String::new(), Signature::new("")) };
    // Its arguments are complete: no step comes before it.
    Ok(Step { limit_key: parts.key_of_limits(), ..template(&plan)? })
}
