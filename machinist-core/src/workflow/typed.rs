//! Chains, groups and chords whose steps the compiler has checked.

use super::{Workflow, following::NextStep, plan::StepPlan};
use crate::{
    args::{Arg, FromResults, IntoResults, Misfit, Results, WireArg},
    builtin::WORKFLOW_TASK,
    flow::Policy,
    id::TaskId,
    record::FailureKind,
    signature::Signature,
};

/// Begins a chain: tasks that run one after the other, each with the results of the one before it.
///
/// # Examples
/// ```
/// use machinist_core::{TaskDef, workflow::chain};
///
/// const FETCH: TaskDef<String, String> = TaskDef::new("fetch");
/// const RESIZE: TaskDef<(i64, String), String> = TaskDef::new("resize");
/// const STORE: TaskDef<String, ()> = TaskDef::new("store");
///
/// let thumbnail = chain(FETCH.call("https://example.org/cat.png"))
///     .then(RESIZE.with((640,)))
///     .then(STORE.with(()));
/// ```
pub fn chain<R>(first: Signature<R>) -> Workflow<R> {
    Workflow::first(first)
}

/// Makes a group: tasks or chains that run side by side. Of a tuple, each can be another task; of a list, all are the same
/// task with other arguments.
///
/// # Examples
/// ```
/// use machinist_core::{TaskDef, workflow::group};
///
/// const ADD: TaskDef<(i64, i64), i64> = TaskDef::new("add");
/// const GREET: TaskDef<String, String> = TaskDef::new("greet");
///
/// let sums = group((0..10).map(|n| ADD.call((n, n))).collect::<Vec<_>>()); // results: Vec<i64>
/// let both = group((ADD.call((1, 2)), GREET.call("Ada"))); // results: (i64, String)
/// ```
pub fn group<M: GroupMembers>(members: M) -> M::Group {
    members.into_group()
}

/// Makes a chord: a group, and a task that gets the results of all its members.
///
/// # Examples
/// ```
/// use machinist_core::{TaskDef, workflow::chord};
///
/// const COUNT: TaskDef<String, i64> = TaskDef::new("count");
/// const SUM: TaskDef<Vec<i64>, i64> = TaskDef::new("sum");
///
/// let total = chord(["a.txt", "b.txt"].map(|file| COUNT.call(file)), SUM.with(()));
/// ```
pub fn chord<M: GroupMembers, N: NextStep<M::ResultType>>(
    members: M,
    callback: N,
) -> Workflow<N::ResultType> {
    members.into_group().into_workflow().then(callback)
}

/// Something that can be a member of a group: a signature, a chain, or a group.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be a member of a group: a member is a `Signature` or a `Workflow`",
    label = "not a member of a group"
)]
pub trait Member {
    /// Type of its results.
    type ResultType;

    /// Makes it a workflow.
    #[doc(hidden)]
    fn into_workflow(self) -> Workflow<Self::ResultType>;
}

impl<R> Member for Signature<R> {
    type ResultType = R;

    fn into_workflow(self) -> Workflow<R> {
        chain(self)
    }
}

impl<R> Member for Workflow<R> {
    type ResultType = R;

    fn into_workflow(self) -> Self {
        self
    }
}

impl<R> Member for Group<R> {
    type ResultType = Vec<R>;

    fn into_workflow(self) -> Workflow<Vec<R>> {
        self.0
    }
}

/// GroupMembers of a group.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be the members of a group",
    label = "not a list and not a tuple of tasks or chains",
    note = "members are a `Vec` or an array of signatures or chains, or a tuple of up to eight of them"
)]
pub trait GroupMembers {
    /// Types of their results together.
    type ResultType;
    /// The group.
    type Group: Member<ResultType = Self::ResultType>;

    /// Makes the group.
    #[doc(hidden)]
    fn into_group(self) -> Self::Group;
}

impl<M: Member> GroupMembers for Vec<M> {
    type ResultType = Vec<M::ResultType>;
    type Group = Group<M::ResultType>;

    fn into_group(self) -> Self::Group {
        Group(Workflow::of_members(&self.into_iter().map(Member::into_workflow).collect::<Vec<_>>()))
    }
}

impl<M: Member, const N: usize> GroupMembers for [M; N] {
    type ResultType = Vec<M::ResultType>;
    type Group = Group<M::ResultType>;

    fn into_group(self) -> Self::Group {
        Vec::from(self).into_group()
    }
}

macro_rules! tuples {
    ($($($member:ident)*;)*) => {$(
        impl<$($member: Member),*> GroupMembers for ($($member,)*)
        where
            $($member::ResultType: WireArg,)*
        {
            type ResultType = ($($member::ResultType,)*);
            type Group = Workflow<Self::ResultType>;

            fn into_group(self) -> Self::Group {
                #[allow(non_snake_case)]
                let ($($member,)*) = self;
                let mut all = Workflow::empty();
                $(all.absorb(&$member.into_workflow());)*
                all
            }
        }
    )*};
}

tuples! {
    M1;
    M1 M2;
    M1 M2 M3;
    M1 M2 M3 M4;
    M1 M2 M3 M4 M5;
    M1 M2 M3 M4 M5 M6;
    M1 M2 M3 M4 M5 M6 M7;
    M1 M2 M3 M4 M5 M6 M7 M8;
}

/// GroupMembers of the same kind that run side by side; `R` is what each returns.
///
/// Unless a policy says otherwise, the group fails with its first member that fails.
///
/// # Examples
/// ```
/// use machinist_core::{TaskDef, workflow::{Outcome, Workflow, group}};
///
/// const FETCH: TaskDef<String, String> = TaskDef::new("fetch");
///
/// let pages = || group(["https://example.org/a", "https://example.org/b"].map(|url| FETCH.call(url)));
/// // Goes on without a page that cannot be fetched:
/// let most: Workflow<Vec<String>> = pages().tolerate(1).into();
/// // Goes on with the outcome of each page:
/// let all: Workflow<Vec<Outcome<String>>> = pages().collect();
/// ```
#[must_use = "a group does nothing until it is sent"]
#[derive(Debug, Clone)]
pub struct Group<R>(Workflow<Vec<R>>);

impl<R> Group<R> {
    /// Lets a task follow that gets the results of all members as one list.
    pub fn then<N: NextStep<Vec<R>>>(self, next: N) -> Workflow<N::ResultType> {
        self.0.then(next)
    }

    /// Sends a task when a member has failed for good; see [`Workflow::on_error`].
    pub fn on_error<T>(self, callback: Signature<T>) -> Self {
        Self(self.0.on_error(callback))
    }

    /// Revokes the other members when one has failed.
    pub fn cancel_rest(self) -> Self {
        Self(self.0.with_policy(Policy::CancelRest))
    }

    /// Holds the workflow when a member has failed, until a retry of that member has succeeded or somebody revokes it.
    pub fn hold(self) -> Self {
        Self(self.0.with_policy(Policy::Hold))
    }

    /// Goes on unless more than this number of members have failed. The results are those of the members that succeeded.
    pub fn tolerate(self, failures: u32) -> Self {
        Self(self.0.with_policy(Policy::Tolerate(failures)))
    }

    /// Goes on unless more than this share of the members has failed, in percent. The results are those of the members that
    /// succeeded.
    pub fn tolerate_percent(self, percent: u8) -> Self {
        Self(self.0.with_policy(Policy::ToleratePercent(percent)))
    }

    /// Goes on when all members have ended, with all outcomes.
    pub fn collect(self) -> Workflow<Vec<Outcome<R>>> {
        self.0.with_policy(Policy::Collect).typed()
    }
}

impl<R> From<Group<R>> for Workflow<Vec<R>> {
    fn from(group: Group<R>) -> Self {
        group.0
    }
}

/// Outcome of a member of a group whose failures are [collected](Group::collect).
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome<R> {
    /// The member succeeded.
    Success(R),
    /// The member failed.
    Failure {
        /// Its id.
        id: TaskId,
        /// Kind of its failure.
        kind: FailureKind,
        /// Its error.
        error: String,
    },
}

impl<R> Outcome<R> {
    /// Returns the results of a member that succeeded.
    pub fn success(self) -> Option<R> {
        match self {
            Self::Success(results) => Some(results),
            Self::Failure { .. } => None,
        }
    }
}

impl<R: IntoResults + FromResults + Send + 'static> WireArg for Outcome<R> {
    const TYPE: &'static str = "json";

    fn into_wire(self) -> Result<serde_json::Value, Misfit> {
        Ok(match self {
            Self::Success(results) => {
                let Results(results) = results.into_results()?;
                let values: Vec<_> = results.into_iter().map(|arg| arg.value).collect();
                serde_json::json!({ "state": "SUCCESS", "results": values })
            }
            Self::Failure { id, kind, error } => {
                serde_json::json!({ "id": id, "state": "FAILURE", "kind": kind, "error": error })
            }
        })
    }

    fn from_wire(value: serde_json::Value) -> Result<Self, Misfit> {
        #[derive(serde::Deserialize)]
        #[serde(tag = "state", rename_all = "UPPERCASE")]
        enum Shape {
            Success { results: Vec<serde_json::Value> },
            Failure { id: TaskId, kind: FailureKind, error: String },
        }
        match serde_json::from_value(value).map_err(Misfit::new)? {
            Shape::Success { results } => {
                let results = Results(results.into_iter().map(Arg::from_value).collect());
                R::from_results(results).map(Self::Success)
            }
            Shape::Failure { id, kind, error } => Ok(Self::Failure { id, kind, error }),
        }
    }
}

impl<R> Signature<R> {
    /// Makes a workflow in which another task follows this one when it has succeeded. The result stays that of this one.
    pub fn on_success<N: NextStep<R>>(self, next: N) -> Workflow<R> {
        chain(self).on_success(next)
    }

    /// Makes a workflow in which another task is sent when this one has failed for good: with the error's text before its own
    /// arguments.
    pub fn on_error<T>(self, callback: Signature<T>) -> Workflow<R> {
        chain(self).on_error(callback)
    }
}

impl<R> Workflow<R> {
    pub(super) fn empty() -> Self {
        Self::of(Vec::new(), Vec::new())
    }

    fn first(signature: Signature<R>) -> Self {
        let mut workflow = Self::empty();
        workflow.push(|name| StepPlan::new(name, signature));
        workflow
    }

    /// Adds a step whose results are those of the workflow.
    pub(super) fn push(&mut self, step: impl FnOnce(String) -> StepPlan) {
        let name = self.fresh_name();
        self.tails = vec![name.clone()];
        self.steps.push(step(name));
    }

    fn fresh_name(&self) -> String {
        format!("s{}", self.steps.len())
    }

    /// Lets a task follow: it gets the results so far after the arguments that it is given.
    pub fn then<N: NextStep<R>>(mut self, next: N) -> Workflow<N::ResultType> {
        let after = std::mem::take(&mut self.tails);
        self.push(|name| next.into_step(name).after(after));
        self.typed()
    }

    /// Lets a task follow whose results are not those of the workflow. Several can follow side by side.
    pub fn on_success<N: NextStep<R>>(mut self, next: N) -> Self {
        let tails = self.tails.clone();
        self.push(|name| next.into_step(name).after(tails.clone()));
        self.tails = tails;
        self
    }

    /// Sends a task when one of the tasks so far has failed for good: with the error's text before its own arguments, and
    /// once.
    pub fn on_error<T>(mut self, callback: Signature<T>) -> Self {
        let all =
            self.steps.iter().filter(|step| !step.catches).map(|step| step.name.clone()).collect::<Vec<_>>();
        self.catch(callback, &all);
        self
    }

    /// Adds an error callback of the steps with these names.
    pub(super) fn catch<T>(&mut self, callback: Signature<T>, of: &[String]) {
        let (name, tails) = (self.fresh_name(), self.tails.clone());
        for step in self.steps.iter_mut().filter(|step| of.contains(&step.name)) {
            step.on_error.push(name.clone());
        }
        self.push(|name| StepPlan { catches: true, ..StepPlan::new(name, callback) });
        self.tails = tails;
    }

    /// Adds another workflow that runs beside this one. The results of both are those of the whole.
    pub(super) fn absorb<T>(&mut self, other: &Workflow<T>) {
        let first = self.steps.len();
        let renamed = |name: &String| match other.steps.iter().position(|step| step.name == *name) {
            Some(at) => format!("s{}", first + at),
            None => name.clone(),
        };
        for step in &other.steps {
            self.steps.push(StepPlan {
                name: renamed(&step.name),
                after: step.after.iter().map(renamed).collect(),
                on_error: step.on_error.iter().map(renamed).collect(),
                ..step.clone()
            });
        }
        self.tails.extend(other.tails.iter().map(renamed));
        self.unsendable = self.unsendable.take().or_else(|| other.unsendable.clone());
    }

    fn with_policy(mut self, policy: Policy) -> Self {
        for step in self.steps.iter_mut().filter(|step| self.tails.contains(&step.name)) {
            step.on_failure = policy;
        }
        self
    }
}

impl<R> Workflow<Vec<R>> {
    /// Makes a group of workflows that differ only in the arguments of their first tasks.
    fn of_members(members: &[Workflow<R>]) -> Self {
        let mut workflow = Self::empty();
        let each = members.iter().map(|member| member.steps.first().map(|step| step.signature.args.clone()));
        let each: Vec<Vec<Arg>> = each.map(Option::unwrap_or_default).collect();
        let Some(model) = members.first() else {
            let nothing = Signature::<Results>::typed(WORKFLOW_TASK.to_owned(), Vec::new());
            workflow.push(|name| StepPlan::new(name, nothing).each(Vec::new()));
            return workflow;
        };
        let failed = members.iter().find_map(|member| member.reason_against());
        let same = members.iter().all(|member| member.is_like(model));
        workflow.unsendable = failed.or_else(|| {
            let why = "the members of a group are the same task with the same options, or the same chain; only the \
                       arguments of its first task differ: make a group of a tuple, or a graph";
            (!same).then(|| why.to_owned())
        });
        let mut steps = model.steps.iter().cloned();
        let Some(first) = steps.next() else { return workflow };
        let inner: Vec<StepPlan> = steps
            .map(|mut step| {
                step.after.retain(|before| *before != first.name);
                step
            })
            .collect();
        workflow.push(|name| {
            let mut step = StepPlan { name, inner, ..first };
            step.signature.args.clear();
            step.each(each)
        });
        workflow
    }
}

impl<R> Workflow<R> {
    /// Returns the reason that keeps the workflow from being sent or from being a member of a group.
    fn reason_against(&self) -> Option<String> {
        let unsendable = self.steps.iter().find_map(|step| step.signature.unsendable.clone());
        let is_chain = || {
            let follows = |(before, step): (&StepPlan, &StepPlan)| step.after == [before.name.clone()];
            let single = self.steps.iter().all(|step| step.each.is_none() && step.on_error.is_empty());
            single && self.steps.iter().zip(self.steps.iter().skip(1)).all(follows)
        };
        let no_chain = || {
            let why = "a member of a list is a task or a chain, without callbacks: make a graph, or give the \
                       callbacks to the group";
            (!is_chain()).then(|| why.to_owned())
        };
        self.unsendable.clone().or(unsendable).or_else(no_chain)
    }

    /// Returns `true` if another workflow differs only in the arguments of its first task.
    fn is_like(&self, other: &Self) -> bool {
        let alike = |(at, (own, other)): (usize, (&StepPlan, &StepPlan))| own.is_like(other, at == 0);
        self.steps.len() == other.steps.len() && self.steps.iter().zip(&other.steps).enumerate().all(alike)
    }
}
