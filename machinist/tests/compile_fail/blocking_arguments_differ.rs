//! A blocking handler whose argument differs from a definition without a tuple.

//~ ERROR: the handler takes `(i64,)`, but its TaskDef declares `String`
use machinist_core::{TaskDef, TaskError, handler::Binding};

const GREET: TaskDef<String, ()> = TaskDef::new("greet");

fn greet(_: i64) -> Result<(), TaskError> {
    Ok(())
}

fn main() {
    Binding::blocking(GREET, greet);
}
