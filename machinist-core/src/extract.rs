//! Extractors: parameters of a handler besides its arguments, and the way every parameter gets its value.
//!
//! A parameter is filled in one of three ways: out of the [`TaskContext`] ([`FromContext`]), by the next argument
//! ([`WireArg`]), or by all the arguments that are left ([`Rest`]). They may stand in any order; the arguments
//! among them are taken in theirs.

use std::any::{TypeId, type_name};

use crate::{
    args::{Arg, Rest, WireArg},
    context::TaskContext,
    error::TaskError,
};

/// Something that a handler can take as a parameter and that does not travel with the task.
///
/// # Examples
/// A custom extractor:
/// ```
/// use machinist_core::extract::{FromContext, Requirement};
/// use machinist_core::{State, TaskContext, TaskError};
///
/// #[derive(Clone)]
/// struct Tenants(std::collections::BTreeMap<String, u32>);
///
/// /// The tenant that the sender named in a header.
/// struct Tenant(u32);
///
/// impl FromContext for Tenant {
///     fn from_context(cx: &TaskContext) -> Result<Self, TaskError> {
///         let State(Tenants(tenants)) = State::from_context(cx)?;
///         let name = cx.headers().get("tenant").ok_or("the header `tenant` is missing")?;
///         let tenant = tenants.get(name).ok_or_else(|| TaskError::permanent("no such tenant"))?;
///         Ok(Self(*tenant))
///     }
///
///     fn requires() -> Vec<Requirement> {
///         State::<Tenants>::requires()
///     }
/// }
///
/// async fn bill(Tenant(tenant): Tenant, cents: u64) -> Result<(), TaskError> {
///     Ok(())
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be taken out of the task's context",
    note = "implement `FromContext` for it, or take the shared value of the worker as `State<{Self}>`"
)]
pub trait FromContext: Sized + Send + 'static {
    /// Takes it out of the context of this run.
    ///
    /// # Errors
    /// What should happen to the task when it is not there.
    fn from_context(cx: &TaskContext) -> Result<Self, TaskError>;

    /// The shared values without which it cannot be had; the worker is not built when one of them is missing.
    fn requires() -> Vec<Requirement> {
        Vec::new()
    }
}

/// A shared value that a handler needs: the type, and its name for people.
pub type Requirement = (TypeId, &'static str);

/// A shared value of the worker: a connection pool, a client, settings. It is registered on the worker builder,
/// and a worker without it is not built.
///
/// Each run gets a clone, so put what is not cheap to clone into an [`Arc`](std::sync::Arc).
///
/// # Examples
/// ```
/// use machinist_core::{State, TaskError};
/// use std::sync::Arc;
///
/// struct Mailer;
///
/// async fn welcome(State(mailer): State<Arc<Mailer>>, address: String) -> Result<(), TaskError> {
///     Ok(())
/// }
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct State<T>(pub T);

impl<T: Clone + Send + Sync + 'static> FromContext for State<T> {
    fn from_context(cx: &TaskContext) -> Result<Self, TaskError> {
        let missing = || TaskError::new(format!("this worker has no shared value {}", type_name::<T>()));
        cx.state().map(Self).ok_or_else(missing)
    }

    fn requires() -> Vec<Requirement> {
        vec![(TypeId::of::<T>(), type_name::<T>())]
    }
}

impl FromContext for TaskContext {
    fn from_context(cx: &TaskContext) -> Result<Self, TaskError> {
        Ok(cx.clone())
    }
}

/// One parameter of a handler. Never implemented by hand: implement [`FromContext`] or [`WireArg`].
///
/// `Via` tells the three ways apart for the compiler; `Before<Tail>` is the list of argument types `Tail` with this
/// parameter's in front, if it takes one.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot travel as a task argument: wrap it in `Json<{Self}>`, or derive `WireArg` for it",
    label = "a handler with a parameter that is no argument and no extractor",
    note = "the parameters of a handler are `TaskContext`, `State<T>` and other `FromContext` types, and the task's \
            arguments: `bool`, integers, floats, `String`, `Vec` and `Option` of these, `Json<T>`, `Rest<T>`",
    note = "a reference cannot be a parameter: take the value itself, `String` for `&str`"
)]
pub trait Parameter<Via>: Sized + Send + 'static {
    /// The argument types of the parameters after this one, with this one's in front.
    type Before<Tail>;

    /// Fills the parameter.
    ///
    /// # Errors
    /// FAILURE/malformed where an argument is missing or does not fit; else what the extractor says.
    fn take(cx: &TaskContext, args: &mut Incoming) -> Result<Self, TaskError>;

    /// The shared values without which it cannot be filled.
    fn requires() -> Vec<Requirement> {
        Vec::new()
    }
}

/// A parameter out of the context.
#[derive(Debug)]
pub enum ViaContext {}

/// A parameter that takes the next argument.
#[derive(Debug)]
pub enum ViaArgument {}

/// A parameter that takes all arguments that are left.
#[derive(Debug)]
pub enum ViaRest {}

impl<T: FromContext> Parameter<ViaContext> for T {
    type Before<Tail> = Tail;

    fn take(cx: &TaskContext, _: &mut Incoming) -> Result<Self, TaskError> {
        T::from_context(cx)
    }

    fn requires() -> Vec<Requirement> {
        <T as FromContext>::requires()
    }
}

impl<T: WireArg> Parameter<ViaArgument> for T {
    type Before<Tail> = (T, Tail);

    fn take(_: &TaskContext, args: &mut Incoming) -> Result<Self, TaskError> {
        args.next()
    }
}

#[diagnostic::do_not_recommend]
impl<T: WireArg> Parameter<ViaRest> for Rest<T> {
    type Before<Tail> = (Self, Tail);

    fn take(_: &TaskContext, args: &mut Incoming) -> Result<Self, TaskError> {
        let mut rest = Vec::with_capacity(args.left());
        while args.left() > 0 {
            rest.push(args.next()?);
        }
        Ok(Self(rest))
    }
}

/// The arguments of a delivery, as the parameters take them one after the other, by value.
#[derive(Debug)]
pub struct Incoming {
    args: std::vec::IntoIter<Arg>,
    sent: usize,
}

impl Incoming {
    pub(crate) fn new(args: Vec<Arg>) -> Self {
        Self { sent: args.len(), args: args.into_iter() }
    }

    fn left(&self) -> usize {
        self.args.len()
    }

    fn next<T: WireArg>(&mut self) -> Result<T, TaskError> {
        let Some(arg) = self.args.next() else {
            return T::absent().ok_or_else(|| self.missing(T::TYPE));
        };
        let position = self.sent - self.left();
        T::from_wire(arg.value).map_err(|misfit| {
            let place = if arg.name.is_empty() {
                format!("argument {position}")
            } else {
                format!("argument {position} ({:?})", arg.name)
            };
            TaskError::malformed(misfit.within(place))
        })
    }

    fn missing(&self, kind: &str) -> TaskError {
        let next = self.sent + 1;
        let sent = self.sent;
        TaskError::malformed(format!("argument {next} ({kind}) is missing: the task was sent with {sent}"))
    }

    /// Says no to arguments that no parameter took.
    pub(crate) fn finish(self) -> Result<(), TaskError> {
        let taken = self.sent - self.left();
        match self.left() {
            0 => Ok(()),
            _ => Err(TaskError::malformed(format!(
                "too many arguments: the handler takes {taken}, the task was sent with {}",
                self.sent
            ))),
        }
    }
}
