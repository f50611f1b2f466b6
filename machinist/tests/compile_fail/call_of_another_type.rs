//! A call with an argument of another type.

//~ ERROR: the task takes `(i64, i64)`, but
use machinist_core::TaskDef;

const ADD: TaskDef<(i64, i64), i64> = TaskDef::new("add");

fn main() {
    let _ = ADD.call((1, "two"));
}
