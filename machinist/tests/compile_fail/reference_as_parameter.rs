//! A handler that takes a reference.

//~ ERROR: a reference cannot be a parameter: take the value itself, `String` for `&str`
use machinist_core::{TaskDef, TaskError, handler::Binding};

const GREET: TaskDef<String, ()> = TaskDef::new("greet");

async fn greet(_: &str) -> Result<(), TaskError> {
    Ok(())
}

fn main() {
    Binding::new(GREET, greet);
}
