//! A handler whose error does not convert into a `TaskError`.

//~ ERROR: handlers return `Result<R, E>`, not `Result<i64, Odd>`
use machinist_core::{TaskDef, handler::Binding};

const ADD: TaskDef<(i64, i64), i64> = TaskDef::new("add");

struct Odd;

async fn add(a: i64, b: i64) -> Result<i64, Odd> {
    if a == b { Err(Odd) } else { Ok(a + b) }
}

fn main() {
    Binding::new(ADD, add);
}
