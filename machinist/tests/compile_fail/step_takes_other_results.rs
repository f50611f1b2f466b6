//! A step whose last argument is not what the step before it returns.

//~ ERROR: the step takes `(i64,)`, but the step before it returns `(String,)`: its last arguments must be of these types
use machinist_core::{TaskDef, workflow::chain};

const FETCH: TaskDef<String, String> = TaskDef::new("fetch");
const DOUBLE: TaskDef<i64, i64> = TaskDef::new("double");

fn main() {
    let _workflow = chain(FETCH.call("a")).then(DOUBLE.with(()));
}
