//! A handler that returns a bare value.

//~ ERROR: handlers return `Result<R, E>`, not `i64`
use machinist_core::{TaskDef, handler::Binding};

const ADD: TaskDef<(i64, i64), i64> = TaskDef::new("add");

async fn add(a: i64, b: i64) -> i64 {
    a + b
}

fn main() {
    Binding::new(ADD, add);
}
