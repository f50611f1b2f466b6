//! A handler whose return type differs from its definition's.

//~ ERROR: the handler returns `String`, but its TaskDef declares `i64`
use machinist_core::{TaskDef, TaskError, handler::Binding};

const ADD: TaskDef<(i64, i64), i64> = TaskDef::new("add");

async fn add(a: i64, b: i64) -> Result<String, TaskError> {
    Ok((a + b).to_string())
}

fn main() {
    Binding::new(ADD, add);
}
