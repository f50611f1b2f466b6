//! A handler with a parameter that is neither an argument nor an extractor.

//~ ERROR: `Options` cannot travel as a task argument: wrap it in `Json<Options>`
use machinist_core::{TaskDef, TaskError, handler::Binding};

const ADD: TaskDef<(i64, i64), i64> = TaskDef::new("add");

struct Options(i64);

async fn add(a: i64, b: Options) -> Result<i64, TaskError> {
    Ok(a + b.0)
}

fn main() {
    Binding::new(ADD, add);
}
