//! A handler with one parameter less than its definition has arguments.

//~ ERROR: the handler takes `(i64,)`, but its TaskDef declares `(i64, i64)`
use machinist_core::{TaskDef, TaskError, handler::Binding};

const ADD: TaskDef<(i64, i64), i64> = TaskDef::new("add");

async fn add(a: i64) -> Result<i64, TaskError> {
    Ok(a)
}

fn main() {
    Binding::new(ADD, add);
}
