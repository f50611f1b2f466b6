//! A step of a graph that takes other results than those before it return.

//~ ERROR: the step takes `(i64, String)`, but the step before it returns `(i64, i64)`
use machinist_core::{TaskDef, workflow::graph};

const LOAD: TaskDef<String, i64> = TaskDef::new("load");
const MERGE: TaskDef<(i64, String), i64> = TaskDef::new("merge");

fn main() {
    let _workflow = graph(|graph| {
        let a = graph.task(LOAD.call("a"));
        let b = graph.task(LOAD.call("b"));
        graph.task(MERGE.after((&a, &b)))
    });
}
