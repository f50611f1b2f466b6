//! A call with one argument too many.

//~ ERROR: was given where the task takes `(i64, i64)`
use machinist_core::TaskDef;

const ADD: TaskDef<(i64, i64), i64> = TaskDef::new("add");

fn main() {
    let _ = ADD.call((1, 2, 3));
}
