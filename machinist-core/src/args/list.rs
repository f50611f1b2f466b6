//! Argument lists: the types that a task definition declares, and the values that a caller may pass for them.

use serde_json::Value;

use super::{Arg, Misfit, WireArg};

/// All remaining arguments: the last element of an argument list, and the last argument of a handler.
///
/// # Examples
/// ```
/// use machinist_core::{Rest, TaskDef, TaskError};
///
/// const JOIN: TaskDef<(String, Rest<String>), String> = TaskDef::new("join");
///
/// async fn join(separator: String, Rest(parts): Rest<String>) -> Result<String, TaskError> {
///     Ok(parts.join(&separator))
/// }
///
/// let signature = JOIN.call((", ", Rest(vec!["a".to_owned(), "b".to_owned()])));
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Rest<T>(pub Vec<T>);

/// Arguments that a [`TaskDef`](crate::TaskDef) may declare: `()`, one [`WireArg`] type, or a tuple of up to eight; the
/// last may be [`Rest`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be a task argument: wrap your own types in `Json<T>`, or derive `WireArg` for them",
    label = "not the arguments of a task",
    note = "a task takes `()`, one argument type, or a tuple of up to eight; `Rest<T>` may only be the last",
    note = "argument types are `bool`, integers, floats, `String`, `Vec` and `Option` of these, and `Json<T>` for any serde type"
)]
pub trait ArgList {
    /// Returns the names of the types on the wire.
    #[doc(hidden)]
    fn type_names() -> Vec<String>;
}

/// Last element of an argument list: one argument, or [`Rest`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be a task argument: wrap it in `Json<{Self}>`, or derive `WireArg` for it",
    label = "not an argument type"
)]
pub trait LastArg: Sized {
    /// Appends itself to the arguments.
    ///
    /// # Errors
    /// A value has no form on the wire.
    fn push_to(self, args: &mut Vec<Arg>) -> Result<(), Misfit>;

    /// Returns the name of the type on the wire.
    #[doc(hidden)]
    fn type_name() -> String;
}

impl<T: WireArg> LastArg for T {
    fn type_name() -> String {
        T::TYPE.to_owned()
    }

    fn push_to(self, args: &mut Vec<Arg>) -> Result<(), Misfit> {
        let arg = Arg::of(self).map_err(|e| e.within(format_args!("argument {}", args.len() + 1)))?;
        args.push(arg);
        Ok(())
    }
}

impl<T: WireArg> LastArg for Rest<T> {
    fn type_name() -> String {
        format!("...{}", T::TYPE)
    }

    fn push_to(self, args: &mut Vec<Arg>) -> Result<(), Misfit> {
        args.reserve(self.0.len());
        self.0.into_iter().try_for_each(|value| value.push_to(args))
    }
}

/// Value that a caller may pass for a declared argument of type `T`: a `T`; `&str` for a `String`; a `Vec` for
/// [`Rest`].
#[diagnostic::on_unimplemented(
    message = "the task takes `{T}`, but `{Self}` was given",
    label = "expected `{T}`, found `{Self}`"
)]
pub trait IntoArg<T> {
    /// Converts it to a `T`.
    fn into_arg(self) -> T;
}

impl<T> IntoArg<T> for T {
    fn into_arg(self) -> T {
        self
    }
}

impl IntoArg<String> for &str {
    fn into_arg(self) -> String {
        self.to_owned()
    }
}

impl IntoArg<String> for &String {
    fn into_arg(self) -> String {
        self.clone()
    }
}

impl IntoArg<Value> for &str {
    fn into_arg(self) -> Value {
        self.into()
    }
}

impl<T> IntoArg<Rest<T>> for Vec<T> {
    fn into_arg(self) -> Rest<T> {
        Rest(self)
    }
}

/// Values that [`TaskDef::call`](crate::TaskDef::call) takes for the declared arguments `A`: a tuple for a tuple, one
/// value for one type, `()` for `()`; each element as [`IntoArg`] allows.
#[diagnostic::on_unimplemented(
    message = "the task takes `{A}`, but `{Self}` was given",
    label = "the task takes `{A}`"
)]
pub trait IntoArgs<A> {
    /// Converts them to arguments on the wire.
    ///
    /// # Errors
    /// A value has no form on the wire.
    fn into_args(self) -> Result<Vec<Arg>, Misfit>;
}

impl ArgList for () {
    fn type_names() -> Vec<String> {
        Vec::new()
    }
}

impl IntoArgs<()> for () {
    fn into_args(self) -> Result<Vec<Arg>, Misfit> {
        Ok(Vec::new())
    }
}

#[diagnostic::do_not_recommend]
impl<T: LastArg> ArgList for T {
    fn type_names() -> Vec<String> {
        vec![T::type_name()]
    }
}

#[diagnostic::do_not_recommend]
impl<T: LastArg, X: IntoArg<T>> IntoArgs<T> for X {
    fn into_args(self) -> Result<Vec<Arg>, Misfit> {
        let mut args = Vec::with_capacity(1);
        self.into_arg().push_to(&mut args)?;
        Ok(args)
    }
}

macro_rules! tuples {
    ($($($given:ident $declared:ident,)* | $last_given:ident $last:ident;)*) => {$(
        #[diagnostic::do_not_recommend]
        impl<$($declared: WireArg,)* $last: LastArg> ArgList for ($($declared,)* $last,) {
            fn type_names() -> Vec<String> {
                vec![$($declared::TYPE.to_owned(),)* $last::type_name()]
            }
        }

        #[diagnostic::do_not_recommend]
        impl<$($declared, $given,)* $last, $last_given> IntoArgs<($($declared,)* $last,)> for ($($given,)* $last_given,)
        where
            $($declared: WireArg, $given: IntoArg<$declared>,)*
            $last: LastArg,
            $last_given: IntoArg<$last>,
        {
            fn into_args(self) -> Result<Vec<Arg>, Misfit> {
                #[allow(non_snake_case)]
                let ($($given,)* $last_given,) = self;
                let mut args = Vec::new();
                $($given.into_arg().push_to(&mut args)?;)*
                $last_given.into_arg().push_to(&mut args)?;
                Ok(args)
            }
        }
    )*};
}

tuples! {
    | X1 T1;
    X1 T1, | X2 T2;
    X1 T1, X2 T2, | X3 T3;
    X1 T1, X2 T2, X3 T3, | X4 T4;
    X1 T1, X2 T2, X3 T3, X4 T4, | X5 T5;
    X1 T1, X2 T2, X3 T3, X4 T4, X5 T5, | X6 T6;
    X1 T1, X2 T2, X3 T3, X4 T4, X5 T5, X6 T6, | X7 T7;
    X1 T1, X2 T2, X3 T3, X4 T4, X5 T5, X6 T6, X7 T7, | X8 T8;
}
