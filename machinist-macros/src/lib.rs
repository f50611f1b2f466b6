//! Macros of machinist, re-exported by the crate `machinist`. None of them is ever required.
//!
//! Their examples need that crate, which compiles and runs them.

mod duration;
mod failure;
mod options;
mod task;
mod wire_arg;

use proc_macro::TokenStream;
use syn::{DeriveInput, ItemFn, parse_macro_input};

/// Makes a task definition from a function: a constant whose name is the function's in capitals.
///
/// The function itself stays as it is. Its parameters of the types `TaskContext` and `State<T>` come from the worker; the
/// others are the task's arguments. Mark a parameter that another `FromContext` type fills with `#[extract]`.
///
/// Options, all optional: `name = "…"` (the task's name; default: the function's), `def = NAME` (the constant's name),
/// `crate = path` (the path of the crate `machinist`), and everything that a definition can set: `queue`, `retries`,
/// `backoff`, `backoff_list`, `retry_for`, `retry_timeouts`, `max_postponements`, `requires`, `timeout`, `soft_timeout`, `priority`,
/// `expires_in`, `limit_key`, `limit_cost`, `unique`, `unique_by`. Their values are constant expressions; a duration can also be text, such as `"30s"` or `"1h 30m"`.
///
#[cfg_attr(not(doctest), doc = include_str!("task.md"))]
#[proc_macro_attribute]
pub fn task(options: TokenStream, function: TokenStream) -> TokenStream {
    let options = parse_macro_input!(options as options::TaskAttributes);
    let function = parse_macro_input!(function as ItemFn);
    task::expand(options, function).unwrap_or_else(syn::Error::into_compile_error).into()
}

/// Gives a type that serde can write and read a form on the wire, so that it is an argument or a result without
/// `Json<T>`. The form is the same as that of `Json<T>`.
///
#[cfg_attr(not(doctest), doc = include_str!("wire_arg.md"))]
#[proc_macro_derive(WireArg, attributes(machinist))]
pub fn wire_arg(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    wire_arg::expand(input).unwrap_or_else(syn::Error::into_compile_error).into()
}

/// Says what follows from your error: `#[task_error(permanent)]`, `#[task_error(retry)]`,
/// `#[task_error(retry_after = "30s")]` or `#[task_error(retry_in = "30s")]`, on the type or on the variants of an enum. A
/// variant without an attribute follows the type's; a type without one is retried as the policy says.
/// `#[task_error(transparent)]` on a variant with one field asks that field.
///
#[cfg_attr(not(doctest), doc = include_str!("task_failure.md"))]
#[proc_macro_derive(TaskFailure, attributes(task_error, machinist))]
pub fn task_failure(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    failure::expand(&input).unwrap_or_else(syn::Error::into_compile_error).into()
}
