//! A typed step after a task whose results have no type.

//~ ERROR: `Results` cannot be passed from one step to the next
use machinist_core::{Signature, TaskDef, workflow::chain};

const DOUBLE: TaskDef<i64, i64> = TaskDef::new("double");

fn main() {
    let _workflow = chain(Signature::new("fetch")).then(DOUBLE.with(()));
}
