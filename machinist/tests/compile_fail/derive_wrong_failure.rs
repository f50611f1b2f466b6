//! Attributes of an error that say nothing, or too much.
//~ ERROR: expected `permanent`, `retry`, `retry_after = "30s"`, `retry_in = "30s"` or `transparent`
//~ ERROR: an error has one consequence
//~ ERROR: `transparent` belongs to a variant with one field

#[derive(machinist_macros::TaskFailure)]
#[machinist(crate = machinist_core)]
#[task_error(never)]
struct Never;

#[derive(machinist_macros::TaskFailure)]
#[machinist(crate = machinist_core)]
#[task_error(permanent, retry)]
struct Both;

#[derive(machinist_macros::TaskFailure)]
#[machinist(crate = machinist_core)]
enum Outer {
    #[task_error(transparent)]
    Unit,
}

fn main() {}
