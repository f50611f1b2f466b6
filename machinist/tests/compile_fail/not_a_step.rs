//! A signature in the place of a step.

//~ ERROR: cannot follow a step that returns `String`
use machinist_core::{TaskDef, workflow::chain};

const FETCH: TaskDef<String, String> = TaskDef::new("fetch");

fn main() {
    let _workflow = chain(FETCH.call("a")).then(FETCH.call("b"));
}
