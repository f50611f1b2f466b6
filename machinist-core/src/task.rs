//! The typed name of a task: what producer and worker share.

use std::{fmt, marker::PhantomData};

use crate::{
    args::{ArgList, FromResults, IntoArgs, IntoResults},
    signature::Signature,
};

/// A task's name together with the types of its arguments and of what it returns.
///
/// It is a `const` in a place that both the producer and the worker can see; it holds no code. The producer makes
/// signatures from it, the worker registers a handler for it, and the compiler checks both against the same types.
///
/// `A` is `()`, one type, or a tuple of up to eight types that travel (see [`WireArg`](crate::args::WireArg)); the
/// last one may be [`Rest`](crate::Rest). `R` is `()`, one type, or a tuple: several results. (Clippy may find a long
/// list too complex a type: `#[allow(clippy::type_complexity)]`, or one [`Json`](crate::Json) of a struct.)
///
/// # Examples
/// ```
/// use machinist_core::{Json, Rest, TaskDef};
/// # #[derive(serde::Serialize, serde::Deserialize)] pub struct Options { width: u32 }
///
/// pub const ADD: TaskDef<(i64, i64), i64> = TaskDef::new("add");
/// pub const GREET: TaskDef<String, ()> = TaskDef::new("greet");
/// pub const RESIZE: TaskDef<(String, Json<Options>), (u32, u32)> = TaskDef::new("resize");
/// pub const SUM: TaskDef<Rest<i64>, i64> = TaskDef::new("sum");
/// pub const CLEAN_UP: TaskDef<(), u64> = TaskDef::new("clean_up");
///
/// let signature = ADD.call((2, 3)).retries(5);
/// let signature = GREET.call("Ada");
/// let signature = RESIZE.call(("cat.png", Json(Options { width: 640 })));
/// let signature = SUM.call(vec![1, 2, 3]);
/// let signature = CLEAN_UP.call(());
/// ```
pub struct TaskDef<A, R> {
    name: &'static str,
    types: PhantomData<fn(A) -> R>,
}

impl<A: ArgList, R: IntoResults + FromResults> TaskDef<A, R> {
    /// The task `name`. The name is checked when the task is registered or sent.
    pub const fn new(name: &'static str) -> Self {
        Self { name, types: PhantomData }
    }
}

impl<A, R> TaskDef<A, R> {
    /// The name.
    pub const fn name(self) -> &'static str {
        self.name
    }

    /// An invocation with these arguments, ready to be sent: a tuple for a tuple, one value for one type; `&str`
    /// will do for a `String`, and a `Vec` for [`Rest`](crate::Rest).
    ///
    /// A value that has no form on the wire (a float that is not a number, a [`Json`](crate::Json) that does not
    /// serialize) is reported when the signature is sent.
    pub fn call(self, args: impl IntoArgs<A>) -> Signature<R> {
        match args.into_args() {
            Ok(args) => Signature::typed(self.name.to_owned(), args),
            Err(misfit) => Signature::unsendable(self.name.to_owned(), misfit.to_string()),
        }
    }
}

impl<A, R> Clone for TaskDef<A, R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<A, R> Copy for TaskDef<A, R> {}

impl<A, R> fmt::Debug for TaskDef<A, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TaskDef").field(&self.name).finish()
    }
}
