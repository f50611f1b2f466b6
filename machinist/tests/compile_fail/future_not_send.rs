//! A handler whose future cannot move to another thread.

//~ ERROR: future cannot be sent between threads safely
use machinist_core::{TaskDef, TaskError, handler::Binding};
use std::rc::Rc;

const GREET: TaskDef<String, ()> = TaskDef::new("greet");

async fn greet(name: String) -> Result<(), TaskError> {
    let name = Rc::new(name);
    std::future::ready(()).await;
    drop(name);
    Ok(())
}

fn main() {
    Binding::new(GREET, greet);
}
