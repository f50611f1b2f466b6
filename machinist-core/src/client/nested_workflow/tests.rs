//! Workflows as messages of another program: what they hold, and what is refused.

use super::*;
use crate::{
    Signature, TaskDef,
    workflow::{Sendable, StepPlan, Workflow, chain, chord, group},
};

const ADD: TaskDef<(i64, i64), i64> = TaskDef::new("add");
const TWICE: TaskDef<i64, i64> = TaskDef::new("twice");
const SUM: TaskDef<Vec<i64>, i64> = TaskDef::new("sum");
const PAGE: TaskDef<String, i64> = TaskDef::new("page");

fn nested(workflow: impl Sendable) -> Result<NestedWorkflow, String> {
    let mut sendable = workflow.into_parts();
    sendable.parts.id = "R".try_into().unwrap();
    let mut flow = *sendable.parts.flow.unwrap();
    for step in &mut flow.steps {
        step.fill_queue("q");
    }
    let root: TaskId = "R".try_into().unwrap();
    let last = sendable.result.unwrap();
    let last = last.as_str().rsplit('.').next().unwrap();
    nest(&root, &flow, &StepPlace::root(root.clone()).step(last).id())
}

fn ids(tasks: &[NestedTask]) -> Vec<&str> {
    tasks.iter().map(|nested| nested.task.id.as_str()).collect()
}

fn steps(parts: &[JoinPart]) -> Vec<&str> {
    parts.iter().map(|part| part.step.as_str()).collect()
}

#[test]
fn a_chain_is_one_message() {
    let chain = chain(ADD.call((1, 2))).then(ADD.with((3,))).then(TWICE.with(())).on_error(PAGE.call("x"));
    let NestedWorkflow { first, groups, later, awaited } = nested(chain).unwrap();
    let [only] = &first[..] else { panic!("{first:?}") };
    assert_eq!(only.id.as_str(), "R.s0");
    assert_eq!(ids(&only.nested.on_success), ["R.s1"]);
    let second = &only.nested.on_success[0].task.nested;
    assert_eq!(ids(&second.on_success), ["R.s2"]);
    assert_eq!((ids(&only.nested.on_error), ids(&second.on_error)), (vec!["R.s3"], vec!["R.s3"]));
    assert!(groups.is_empty() && only.nested.group.is_none());
    let later: Vec<&str> = later.iter().map(|(id, ..)| id.as_str()).collect();
    assert_eq!(later, ["R.s1", "R.s2", "R.s3"]);
    assert_eq!((steps(&awaited.before), awaited.parts.len()), (vec!["s0", "s1"], 0));
}

#[test]
fn the_members_of_a_chord_hold_its_callback() {
    let chord = chord([1, 2].map(|n| TWICE.call(n)), SUM.with(())).then(TWICE.with(()));
    let NestedWorkflow { first, groups, awaited, .. } = nested(chord).unwrap();
    let firsts: Vec<&str> = first.iter().map(|task| task.id.as_str()).collect();
    assert_eq!(firsts, ["R.s0.0", "R.s0.1"]);
    assert_eq!(first[1].step.args[0].value, 2);
    for member in &first {
        let group = member.nested.group.as_ref().unwrap();
        assert_eq!((group.id.as_str(), group.size), ("group_R.s1", 2));
        let callback = group.callback.as_ref().unwrap();
        assert_eq!(callback.task.id.as_str(), "R.s1");
        assert_eq!(ids(&callback.task.nested.on_success), ["R.s2"]);
    }
    let members: Vec<&str> = groups[0].1.iter().map(TaskId::as_str).collect();
    assert_eq!((groups.len(), members), (1, firsts));
    assert_eq!(steps(&awaited.before), ["s0", "s1"]);
}

#[test]
fn a_group_has_no_task_of_ours_at_its_end() {
    let NestedWorkflow { first, groups, later, awaited } =
        nested(group(vec![TWICE.call(1), TWICE.call(2)])).unwrap();
    assert_eq!((first.len(), groups.len()), (2, 1));
    assert!(first[0].nested.group.as_ref().unwrap().callback.is_none());
    assert_eq!((steps(&awaited.parts), awaited.before.len()), (vec!["s0"], 0));
    assert_eq!(later[0].0.as_str(), "R.results", "its record says on what the result depends");

    let both = group((chain(ADD.call((1, 1))).then(TWICE.with(())), PAGE.call("x")));
    let NestedWorkflow { first, groups, awaited, .. } = nested(both).unwrap();
    assert_eq!((first.len(), groups.len()), (2, 0));
    assert_eq!((steps(&awaited.parts), steps(&awaited.before)), (vec!["s1", "s2"], vec!["s0"]));
}

#[test]
fn what_other_programs_have_no_word_for_is_refused() {
    let two = || vec![TWICE.call(1), TWICE.call(2)];
    let step = |name: &str| StepPlan::new(name, Signature::new(name));
    let graph = |steps: Vec<StepPlan>| nested(Workflow::of_steps(steps).unwrap());
    for (refused, says) in [
        (nested(group(two()).tolerate(1).then(SUM.with(()))), "no policy for failures"),
        (nested(group(two()).on_error(PAGE.call("x"))), "run for each member"),
        (
            nested(
                chain(TWICE.call(1))
                    .then(TWICE.with(()).options(|o| o.countdown(std::time::Duration::from_secs(1)))),
            ),
            "countdown",
        ),
        (
            nested(chain(TWICE.call(1)).then(TWICE.with(()).options(|o| o.label("a", "b")))),
            "a label of a step",
        ),
        (nested(chain(TWICE.call(1)).then(TWICE.with(()).options(|o| o.limit_key("a")))), "limits of a step"),
        (
            nested(group(vec![chain(TWICE.call(1)).then(TWICE.with(()))]).then(SUM.with(()))),
            "a member is one task",
        ),
        (graph(vec![step("a"), step("b").after(["a"]).each(vec![Vec::new()])]), "a group follows"),
        (
            graph(vec![step("a"), step("b").after(["a"]), step("c"), step("d").after(["b", "c"])]),
            "the first ones alone",
        ),
        (
            graph(vec![step("a"), step("b"), step("c").after(["a", "b"]), step("d").after(["a", "b"])]),
            "two steps wait",
        ),
        (graph(vec![step("a").on_error(["e"]), step("b").on_error(["e"]), step("e")]), "would run twice"),
    ] {
        let error = refused.unwrap_err();
        assert!(error.contains(says), "{error}");
    }
}
