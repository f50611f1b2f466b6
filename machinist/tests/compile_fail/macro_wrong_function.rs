//! Functions that cannot be tasks.
//~ ERROR: a task's function returns `Result<R, E>`; `R` is `()` where the task has no result
//~ ERROR: handlers return `Result<R, E>`, not `u32`
//~ ERROR: a task's function is not generic: a definition has one list of argument types
//~ ERROR: a reference cannot be an argument: take the value itself, `String` for `&str`
//~ ERROR: a task has at most 8 arguments: put them into a struct with `#[derive(WireArg)]`

use machinist_core::TaskError;
use machinist_macros::task;

#[task(crate = machinist_core)]
async fn nothing() {}

#[task(crate = machinist_core)]
async fn number() -> u32 {
    1
}

#[task(crate = machinist_core)]
async fn generic<T>(_: T) -> Result<(), TaskError> {
    Ok(())
}

#[task(crate = machinist_core)]
async fn text(_: &str) -> Result<(), TaskError> {
    Ok(())
}

#[task(crate = machinist_core)]
async fn many(_: u8, _: u8, _: u8, _: u8, _: u8, _: u8, _: u8, _: u8, _: u8) -> Result<(), TaskError> {
    Ok(())
}

fn main() {}
