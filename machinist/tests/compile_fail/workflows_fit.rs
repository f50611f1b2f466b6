//! Workflows that fit.

use machinist_core::{TaskDef, workflow::{Outcome, Workflow, chain, chord, graph, group}};

const FETCH: TaskDef<String, String> = TaskDef::new("fetch");
const RESIZE: TaskDef<(i64, String), String> = TaskDef::new("resize");
const COUNT: TaskDef<String, i64> = TaskDef::new("count");
const SUM: TaskDef<Vec<i64>, i64> = TaskDef::new("sum");
const JUDGE: TaskDef<Vec<Outcome<i64>>, ()> = TaskDef::new("judge");
const NOTE: TaskDef<(), ()> = TaskDef::new("note");

fn main() {
    let _text: Workflow<String> = chain(FETCH.call("a")).then(RESIZE.with((640,)));
    let _sum: Workflow<i64> = chord(["a", "b"].map(|word| COUNT.call(word)), SUM.with(()));
    let _pair: Workflow<(String, i64)> = group((FETCH.call("a"), COUNT.call("b")));
    let _judged: Workflow<()> = group(vec![COUNT.call("a")]).collect().then(JUDGE.with(()));
    let _after: Workflow<()> = chain(FETCH.call("a")).then(NOTE.call(()).immutable());
    let _graph: Workflow<i64> = graph(|graph| {
        let all = graph.group(vec![COUNT.call("a")]);
        graph.task(SUM.after(&all))
    });
}
