//! A blocking function registered as an `async fn`.

//~ ERROR: an async handler returns a future, not `Result<i64, TaskError>`
use machinist_core::{TaskDef, TaskError, handler::Binding};

const ADD: TaskDef<(i64, i64), i64> = TaskDef::new("add");

fn add(a: i64, b: i64) -> Result<i64, TaskError> {
    Ok(a + b)
}

fn main() {
    Binding::new(ADD, add);
}
