//! A step with an argument that nobody gives.

//~ ERROR: the task takes `(i64,)`, but `()` was given
use machinist_core::{TaskDef, workflow::chain};

const FETCH: TaskDef<String, String> = TaskDef::new("fetch");
const RESIZE: TaskDef<(i64, String), String> = TaskDef::new("resize");

fn main() {
    let _workflow = chain(FETCH.call("a")).then(RESIZE.with(()));
}
