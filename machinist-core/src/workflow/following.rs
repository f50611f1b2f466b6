//! Steps that may follow each other, checked by the compiler.
//!
//! The results of a step are appended to the arguments that the next one is given. So the last arguments of a task must be
//! of the types that the task before it returns, and the others must be given.

use super::plan::StepPlan;
use crate::{
    args::{Arg, IntoArgs, LastArg, Misfit, WireArg},
    signature::{Signature, SignatureParts},
    task::TaskDef,
};

/// A task that gets the results of the step before it, made by [`TaskDef::with`].
#[must_use = "a step does nothing until it is part of a workflow"]
pub struct Following<A, R, G> {
    signature: Signature<R>,
    given: G,
    types: std::marker::PhantomData<fn(A)>,
}

impl<A, R, G> std::fmt::Debug for Following<A, R, G> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Following").field(&self.signature.name()).finish()
    }
}

/// A task that follows others and gets none of their results, made by [`Signature::immutable`].
#[must_use = "a step does nothing until it is part of a workflow"]
#[derive(Debug, Clone)]
pub struct Immutable<R>(Signature<R>);

impl<A, R> TaskDef<A, R> {
    /// Makes the task a step of a workflow: these arguments, then the results of what comes before it. `()` gives none, and a
    /// tuple as many as are missing. The step has the options of the definition, as a [call](Self::call) has.
    pub fn with<G>(self, given: G) -> Following<A, R, G> {
        let signature = Signature::typed(self.name().to_owned(), Vec::new()).defined(self.options());
        Following { signature, given, types: std::marker::PhantomData }
    }
}

impl<A, R, G> Following<A, R, G> {
    /// Sets options of the task: its queue, its retries, its timeouts.
    ///
    /// # Examples
    /// ```
    /// use machinist_core::{TaskDef, workflow::chain};
    ///
    /// const FETCH: TaskDef<String, String> = TaskDef::new("fetch");
    /// const RESIZE: TaskDef<(i64, String), String> = TaskDef::new("resize");
    /// let thumbnail = chain(FETCH.call("https://example.org/cat.png"))
    ///     .then(RESIZE.with((640,)).options(|resize| resize.queue("images").retries(3)));
    /// ```
    pub fn options(self, set: impl FnOnce(Signature<R>) -> Signature<R>) -> Self {
        Self { signature: set(self.signature), ..self }
    }
}

impl<R> Signature<R> {
    /// Keeps the task from getting the results of what it follows in a workflow.
    pub fn immutable(self) -> Immutable<R> {
        Immutable(self)
    }
}

/// A step that may follow one with the results `P`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot follow a step that returns `{P}`",
    label = "not a step that can follow",
    note = "a step is `TASK.with(…)`, which takes the results before it last, or `TASK.call(…).immutable()`"
)]
pub trait NextStep<P> {
    /// Type of its results.
    type ResultType;

    /// Takes it apart.
    #[doc(hidden)]
    fn into_step(self, name: String) -> StepPlan;
}

impl<P, A, R, G> NextStep<P> for Following<A, R, G>
where
    A: TakesAfter<P, G>,
{
    type ResultType = R;

    fn into_step(self, name: String) -> StepPlan {
        StepPlan::new(name, with_args(self.signature, A::into_given(self.given)))
    }
}

#[diagnostic::do_not_recommend]
impl<P, R> NextStep<P> for Immutable<R> {
    type ResultType = R;

    fn into_step(self, name: String) -> StepPlan {
        StepPlan::new(name, self.0).immutable()
    }
}

fn with_args<R>(mut signature: Signature<R>, args: Result<Vec<Arg>, Misfit>) -> Signature<R> {
    let parts: &mut SignatureParts = &mut signature.parts;
    match args {
        Ok(args) => parts.args = args,
        Err(misfit) => parts.unsendable = Some(misfit.to_string()),
    }
    signature
}

/// Arguments that are made up of what is given and the results `P` of what comes before.
#[diagnostic::on_unimplemented(
    message = "the step takes `{Self}`, and neither `{G}` nor the results `{P}` before it make that up",
    label = "what is given and what comes before do not fit"
)]
pub trait TakesAfter<P, G> {
    /// Converts what is given to arguments on the wire.
    ///
    /// # Errors
    /// A value has no form on the wire.
    #[doc(hidden)]
    fn into_given(given: G) -> Result<Vec<Arg>, Misfit>;
}

impl<A, P, G> TakesAfter<P, G> for A
where
    A: Listed,
    P: Listed,
    A::List: EndsWith<P::List>,
    G: IntoArgs<<A::List as EndsWith<P::List>>::Given>,
{
    fn into_given(given: G) -> Result<Vec<Arg>, Misfit> {
        given.into_args()
    }
}

/// Arguments or results as a tuple.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be passed from one step to the next",
    label = "not what one task returns and another takes",
    note = "a step passes on `()`, one argument type, or a tuple of up to eight; untyped results need an untyped workflow"
)]
pub trait Listed {
    /// The tuple.
    type List;
}

impl Listed for () {
    type List = ();
}

#[diagnostic::do_not_recommend]
impl<T: LastArg> Listed for T {
    type List = (T,);
}

macro_rules! listed {
    ($($($t:ident)* | $last:ident;)*) => {$(
        #[diagnostic::do_not_recommend]
        impl<$($t: WireArg,)* $last: LastArg> Listed for ($($t,)* $last,) {
            type List = Self;
        }
    )*};
}

listed! {
    | T1;
    T1 | T2;
    T1 T2 | T3;
    T1 T2 T3 | T4;
    T1 T2 T3 T4 | T5;
    T1 T2 T3 T4 T5 | T6;
    T1 T2 T3 T4 T5 T6 | T7;
    T1 T2 T3 T4 T5 T6 T7 | T8;
}

/// A tuple that ends with the elements of another.
#[diagnostic::on_unimplemented(
    message = "the step takes `{Self}`, but the step before it returns `{P}`: its last arguments must be of these types",
    label = "the results before it do not fit"
)]
pub trait EndsWith<P> {
    /// The elements before.
    type Given;
}

macro_rules! ends_with {
    ($([$($given:ident)*] [$($passed:ident)*];)*) => {$(
        #[diagnostic::do_not_recommend]
        impl<$($given,)* $($passed,)*> EndsWith<($($passed,)*)> for ($($given,)* $($passed,)*) {
            type Given = ($($given,)*);
        }
    )*};
}

#[rustfmt::skip]
ends_with! {
    [] [];
    [] [P1];
    [] [P1 P2];
    [] [P1 P2 P3];
    [] [P1 P2 P3 P4];
    [] [P1 P2 P3 P4 P5];
    [] [P1 P2 P3 P4 P5 P6];
    [] [P1 P2 P3 P4 P5 P6 P7];
    [] [P1 P2 P3 P4 P5 P6 P7 P8];
    [G1] [];
    [G1] [P1];
    [G1] [P1 P2];
    [G1] [P1 P2 P3];
    [G1] [P1 P2 P3 P4];
    [G1] [P1 P2 P3 P4 P5];
    [G1] [P1 P2 P3 P4 P5 P6];
    [G1] [P1 P2 P3 P4 P5 P6 P7];
    [G1 G2] [];
    [G1 G2] [P1];
    [G1 G2] [P1 P2];
    [G1 G2] [P1 P2 P3];
    [G1 G2] [P1 P2 P3 P4];
    [G1 G2] [P1 P2 P3 P4 P5];
    [G1 G2] [P1 P2 P3 P4 P5 P6];
    [G1 G2 G3] [];
    [G1 G2 G3] [P1];
    [G1 G2 G3] [P1 P2];
    [G1 G2 G3] [P1 P2 P3];
    [G1 G2 G3] [P1 P2 P3 P4];
    [G1 G2 G3] [P1 P2 P3 P4 P5];
    [G1 G2 G3 G4] [];
    [G1 G2 G3 G4] [P1];
    [G1 G2 G3 G4] [P1 P2];
    [G1 G2 G3 G4] [P1 P2 P3];
    [G1 G2 G3 G4] [P1 P2 P3 P4];
    [G1 G2 G3 G4 G5] [];
    [G1 G2 G3 G4 G5] [P1];
    [G1 G2 G3 G4 G5] [P1 P2];
    [G1 G2 G3 G4 G5] [P1 P2 P3];
    [G1 G2 G3 G4 G5 G6] [];
    [G1 G2 G3 G4 G5 G6] [P1];
    [G1 G2 G3 G4 G5 G6] [P1 P2];
    [G1 G2 G3 G4 G5 G6 G7] [];
    [G1 G2 G3 G4 G5 G6 G7] [P1];
    [G1 G2 G3 G4 G5 G6 G7 G8] [];
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::workflow::{chain, chord, graph};

    const RESIZE: TaskDef<(i64, String), String> = TaskDef::new("resize")
        .queue("images")
        .requires(&["gpu"])
        .priority(7)
        .expires_in(Duration::from_secs(60))
        .retries(5)
        .max_postponements(9);

    #[test]
    fn a_step_has_the_options_of_its_definition_as_a_call_has() {
        let step = NextStep::<String>::into_step(RESIZE.with((640,)), "a".to_owned()).signature;
        let call = RESIZE.call((640, "cat.png")).parts;
        assert_eq!(step.queue_text(), "images+gpu");
        assert_eq!(step.queue_text(), call.queue_text());
        assert_eq!((step.priority, step.expires), (call.priority, call.expires));
        assert_eq!((&step.retry, &step.defined_retry), (&call.retry, &call.defined_retry));
    }

    #[test]
    fn the_options_of_a_step_go_before_those_of_its_definition() {
        let step = RESIZE.with((640,)).options(|resize| resize.queue("urgent").retries(1));
        let step = NextStep::<String>::into_step(step, "a".to_owned()).signature;
        assert_eq!((step.queue_text().as_str(), step.priority), ("urgent+gpu", Some(7)));
        let retry = step.retry.unwrap();
        assert_eq!(
            (retry.max_retries, retry.max_postponements),
            (1, 9),
            "the rest is that of the definition"
        );
    }

    #[test]
    fn every_kind_of_workflow_keeps_the_queues_of_its_definitions() {
        const FETCH: TaskDef<String, String> = TaskDef::new("fetch").queue("net");
        const JOIN: TaskDef<Vec<String>, ()> = TaskDef::new("join").queue("local");
        let chained = chain(FETCH.call("a")).then(RESIZE.with((640,)));
        let joined = chord(["a", "b"].map(|url| FETCH.call(url)), JOIN.with(()));
        let graphed = graph(|graph| {
            let page = graph.task(FETCH.call("a"));
            graph.task(RESIZE.with((640,)).after(&page))
        });
        let queues = |steps: &[StepPlan]| -> Vec<String> {
            steps.iter().map(|step| step.signature.queue_text()).collect()
        };
        assert_eq!(queues(&chained.steps), ["net", "images+gpu"]);
        assert_eq!(queues(&joined.steps), ["net", "local"]);
        assert_eq!(queues(&graphed.steps), ["net", "images+gpu"]);
    }
}
