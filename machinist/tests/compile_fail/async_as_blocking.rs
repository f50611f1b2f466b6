//! An `async fn` registered as a blocking function.

//~ ERROR: handlers return `Result<R, E>`, not
//~ ERROR: register an `async fn` with `task`, and a blocking function with `task_blocking`
use machinist_core::{TaskDef, TaskError, handler::Binding};

const ADD: TaskDef<(i64, i64), i64> = TaskDef::new("add");

async fn add(a: i64, b: i64) -> Result<i64, TaskError> {
    Ok(a + b)
}

fn main() {
    Binding::blocking(ADD, add);
}
