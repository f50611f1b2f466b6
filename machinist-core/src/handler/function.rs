//! Functions as handlers, with up to ten parameters.
//!
//! The function ([`Function`]) and its parameters ([`Parameters`]) are two traits, so that the compiler can name the
//! one parameter that does not fit instead of rejecting the function as a whole.

use crate::{
    args::{IntoResults, Misfit, Results},
    context::TaskContext,
    continue_with::Continue,
    error::TaskError,
    extract::{Incoming, Parameter, Requirement},
};

/// A function or closure of up to ten parameters; `P` is the tuple of their types. Never implemented by hand.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a handler",
    label = "this function cannot be a handler",
    note = "a handler is a function or closure of up to ten parameters, `Send`, `Sync` and `'static`; a closure \
            declares the types of its parameters",
    note = "a reference cannot be a parameter: take the value itself, `String` for `&str`"
)]
pub trait Function<P>: Send + Sync + 'static {
    /// Return type.
    type Output;

    /// Calls the function.
    fn call(&self, parameters: P) -> Self::Output;
}

/// Parameters of a handler, as a tuple. Never implemented by hand.
pub trait Parameters<Via>: Sized + Send + 'static {
    /// Types of the arguments among the parameters, as a tuple.
    type Args;

    /// Fills all parameters, in their order.
    ///
    /// # Errors
    /// See [`Parameter::take`]; FAILURE/malformed if arguments are left over.
    fn take(cx: &TaskContext, args: Incoming) -> Result<Self, TaskError>;

    /// Returns the shared values that the parameters require.
    fn requires() -> Vec<Requirement>;
}

/// A list of types as nested pairs, `(A, (B, ()))`, which can be built one by one, and the same list as a plain tuple,
/// which is readable in a compiler error.
pub trait Flatten {
    /// Plain tuple of the same types.
    type Flat;
}

macro_rules! nested {
    () => { () };
    ($head:ident $($tail:ident)*) => { ($head, nested!($($tail)*)) };
}

macro_rules! args_of {
    () => { () };
    ($p:ident $via:ident $($tail:tt)*) => { <$p as Parameter<$via>>::Before<args_of!($($tail)*)> };
}

macro_rules! functions {
    ($($($p:ident $via:ident),*;)*) => {$(
        impl<$($p),*> Flatten for nested!($($p)*) {
            type Flat = ($($p,)*);
        }

        impl<Fun, Out, $($p),*> Function<($($p,)*)> for Fun
        where
            Fun: Fn($($p),*) -> Out + Send + Sync + 'static,
        {
            type Output = Out;

            #[allow(non_snake_case)]
            fn call(&self, ($($p,)*): ($($p,)*)) -> Out {
                self($($p),*)
            }
        }

        impl<$($p, $via),*> Parameters<($($via,)*)> for ($($p,)*)
        where
            $($p: Parameter<$via>,)*
            args_of!($($p $via)*): Flatten,
        {
            type Args = <args_of!($($p $via)*) as Flatten>::Flat;

            #[allow(unused_mut, unused_variables)]
            fn take(cx: &TaskContext, mut args: Incoming) -> Result<Self, TaskError> {
                let parameters = ($(<$p as Parameter<$via>>::take(cx, &mut args)?,)*);
                args.finish()?;
                Ok(parameters)
            }

            fn requires() -> Vec<Requirement> {
                let all: [Vec<Requirement>; _] = [$(<$p as Parameter<$via>>::requires()),*];
                all.into_iter().flatten().collect()
            }
        }
    )*};
}

functions! {
    ;
    P1 V1;
    P1 V1, P2 V2;
    P1 V1, P2 V2, P3 V3;
    P1 V1, P2 V2, P3 V3, P4 V4;
    P1 V1, P2 V2, P3 V3, P4 V4, P5 V5;
    P1 V1, P2 V2, P3 V3, P4 V4, P5 V5, P6 V6;
    P1 V1, P2 V2, P3 V3, P4 V4, P5 V5, P6 V6, P7 V7;
    P1 V1, P2 V2, P3 V3, P4 V4, P5 V5, P6 V6, P7 V7, P8 V8;
    P1 V1, P2 V2, P3 V3, P4 V4, P5 V5, P6 V6, P7 V7, P8 V8, P9 V9;
    P1 V1, P2 V2, P3 V3, P4 V4, P5 V5, P6 V6, P7 V7, P8 V8, P9 V9, P10 V10;
}

/// Condition that the arguments of a handler match the arguments `A` of its task definition. Never implemented by hand.
#[diagnostic::on_unimplemented(
    message = "the handler takes `{Self}`, but its TaskDef declares `{A}`",
    label = "this handler does not match its TaskDef",
    note = "the handler's parameters, except its extractors, are the task's arguments in their order"
)]
pub trait Takes<A> {}

#[diagnostic::do_not_recommend]
impl<A> Takes<A> for A {}

/// One argument may be declared without a tuple.
#[diagnostic::do_not_recommend]
impl<A> Takes<A> for (A,) {}

/// Condition that a handler returns the result type `R` of its task definition. Never implemented by hand.
#[diagnostic::on_unimplemented(
    message = "the handler returns `{Self}`, but its TaskDef declares `{R}`",
    label = "this handler does not match its TaskDef"
)]
pub trait Returns<R> {
    /// Converts it to what the record holds.
    ///
    /// # Errors
    /// A value has no form on the wire.
    fn recorded(self) -> Result<Results, Misfit>
    where
        R: IntoResults;
}

#[diagnostic::do_not_recommend]
impl<R> Returns<R> for R {
    fn recorded(self) -> Result<Results, Misfit>
    where
        R: IntoResults,
    {
        self.into_results()
    }
}

#[diagnostic::do_not_recommend]
impl<R> Returns<R> for Continue<R> {
    fn recorded(self) -> Result<Results, Misfit>
    where
        R: IntoResults,
    {
        self.into_value().map_or_else(|| Ok(Results::default()), IntoResults::into_results)
    }
}

/// Outcome of a handler: a `Result` whose error determines the consequence. Never implemented by hand.
#[diagnostic::on_unimplemented(
    message = "handlers return `Result<R, E>`, not `{Self}`",
    label = "this handler returns `{Self}`",
    note = "`R` is the type that its TaskDef declares; `E` is `TaskError`, or any error that converts into it: every \
            `std::error::Error + Send + Sync`, `anyhow::Error`, a `String`",
    note = "register an `async fn` with `task`, and a blocking function with `task_blocking`"
)]
pub trait HandlerResult {
    /// Value of a successful run.
    type Value;

    /// Returns the outcome with the error that the worker reads.
    ///
    /// # Errors
    /// The error of the handler.
    fn outcome(self) -> Result<Self::Value, TaskError>;
}

#[diagnostic::do_not_recommend]
impl<T, E: Into<TaskError>> HandlerResult for Result<T, E> {
    type Value = T;

    fn outcome(self) -> Result<T, TaskError> {
        self.map_err(Into::into)
    }
}

/// Return value of an `async fn`: a future of an outcome. Never implemented by hand.
#[diagnostic::on_unimplemented(
    message = "an async handler returns a future, not `{Self}`",
    label = "not an `async fn`",
    note = "register an `async fn` with `task`, and a blocking function with `task_blocking`"
)]
pub trait HandlerCall: Future<Output = <Self as HandlerCall>::HandlerResult> {
    /// Outcome of the future.
    type HandlerResult;
}

#[diagnostic::do_not_recommend]
impl<F: Future> HandlerCall for F {
    type HandlerResult = F::Output;
}
