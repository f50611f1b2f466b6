//! Functions as handlers: their shapes, for as many parameters as a handler may have.
//!
//! The shape ([`Function`]) and the parameters ([`Parameters`]) are two traits, so that the compiler can name the
//! one parameter that does not fit instead of saying that the function as a whole is no handler.

use crate::{
    context::TaskContext,
    error::TaskError,
    extract::{Incoming, Parameter, Requirement},
};

/// A function or closure of up to ten parameters; `P` is the tuple of their types. Never implemented by hand.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a handler",
    label = "not a function that can be a handler",
    note = "a handler is a function or closure of up to ten parameters, `Send`, `Sync` and `'static`; closures name \
            the types of their parameters",
    note = "a reference cannot be a parameter: take the value itself, `String` for `&str`"
)]
pub trait Function<P>: Send + Sync + 'static {
    /// What it returns.
    type Output;

    /// Calls it.
    fn call(&self, parameters: P) -> Self::Output;
}

/// The parameters of a handler, as a tuple. Never implemented by hand.
pub trait Parameters<Via>: Sized + Send + 'static {
    /// The arguments among them, as a tuple.
    type Args;

    /// Fills all of them, in their order.
    ///
    /// # Errors
    /// See [`Parameter::take`]; FAILURE/malformed when arguments are left over.
    fn take(cx: &TaskContext, args: Incoming) -> Result<Self, TaskError>;

    /// The shared values without which they cannot be filled.
    fn requires() -> Vec<Requirement>;
}

/// A list of types as nested pairs, `(A, (B, ()))`, which can be built one by one, and the same as a plain tuple,
/// which people can read in an error of the compiler.
pub trait Flatten {
    /// The plain tuple.
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

macro_rules! shapes {
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

shapes! {
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

/// That the arguments which a handler takes are those which its task definition declares, `A`. Never implemented by
/// hand.
#[diagnostic::on_unimplemented(
    message = "the handler takes `{Self}` but its TaskDef declares `{A}`",
    label = "a handler that does not fit its TaskDef",
    note = "the handler's parameters, without the extractors among them, are the task's arguments in their order"
)]
pub trait Takes<A> {}

#[diagnostic::do_not_recommend]
impl<A> Takes<A> for A {}

/// One argument may be declared without a tuple.
#[diagnostic::do_not_recommend]
impl<A> Takes<A> for (A,) {}

/// That a handler returns what its task definition declares, `R`. Never implemented by hand.
#[diagnostic::on_unimplemented(
    message = "the handler returns `{Self}` but its TaskDef declares `{R}`",
    label = "a handler that does not fit its TaskDef"
)]
pub trait Returns<R> {
    /// The value itself.
    fn returned(self) -> R;
}

#[diagnostic::do_not_recommend]
impl<R> Returns<R> for R {
    fn returned(self) -> R {
        self
    }
}

/// What a handler may come to: a `Result` whose error says what should follow. Never implemented by hand.
#[diagnostic::on_unimplemented(
    message = "handlers return `Result<R, E>`, not `{Self}`",
    label = "a handler that returns `{Self}`",
    note = "`R` is what its TaskDef declares; `E` is `TaskError`, or any error that turns into one: every \
            `std::error::Error + Send + Sync`, `anyhow::Error`, a `String`",
    note = "register an `async fn` with `task`, a function that blocks with `task_blocking`"
)]
pub trait HandlerResult {
    /// What it returns when all is well.
    type Value;

    /// The outcome with the error as the worker reads it.
    ///
    /// # Errors
    /// The handler's own.
    fn outcome(self) -> Result<Self::Value, TaskError>;
}

#[diagnostic::do_not_recommend]
impl<T, E: Into<TaskError>> HandlerResult for Result<T, E> {
    type Value = T;

    fn outcome(self) -> Result<T, TaskError> {
        self.map_err(Into::into)
    }
}

/// What calling an `async fn` gives: a future of an outcome. Never implemented by hand.
#[diagnostic::on_unimplemented(
    message = "an async handler returns a future, not `{Self}`",
    label = "not an `async fn`",
    note = "register an `async fn` with `task`, a function that blocks with `task_blocking`"
)]
pub trait HandlerCall: Future<Output = <Self as HandlerCall>::HandlerResult> {
    /// What it comes to.
    type HandlerResult;
}

#[diagnostic::do_not_recommend]
impl<F: Future> HandlerCall for F {
    type HandlerResult = F::Output;
}
