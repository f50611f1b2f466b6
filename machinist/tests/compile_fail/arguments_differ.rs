//! A handler whose argument types differ from its definition's; extractors do not count.

//~ ERROR: the handler takes `(String, i64)`, but its TaskDef declares `(i64, i64)`
use machinist_core::{State, TaskDef, TaskError, handler::Binding};

const ADD: TaskDef<(i64, i64), i64> = TaskDef::new("add");

async fn add(_: State<u8>, a: String, b: i64) -> Result<i64, TaskError> {
    Ok(a.len() as i64 + b)
}

fn main() {
    Binding::new(ADD, add);
}
