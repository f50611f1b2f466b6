//! Typed handlers, called without their types, as the worker calls them.

use std::{any::TypeId, sync::Arc};

use serde_json::{Value, json};

use super::*;
use crate::{
    args::{Json, Rest},
    consequence::Disposition,
    context::StateMap,
    extract::{FromContext, State},
};

const ADD: TaskDef<(i64, i64), i64> = TaskDef::new("add");

#[derive(Debug, Clone, PartialEq)]
struct Base(i64);

async fn add(a: i64, b: i64) -> Result<i64, TaskError> {
    Ok(a + b)
}

fn cx() -> TaskContext {
    let mut state = StateMap::default();
    state.insert(Base(100));
    TaskContext::test(state)
}

/// Arguments as another producer might send them.
fn sent(values: Value) -> Vec<Arg> {
    let Value::Array(values) = values else { panic!("expected a list of arguments") };
    values.into_iter().map(|value| Arg { name: String::new(), kind: String::new(), value }).collect()
}

async fn run(binding: Binding, args: Value) -> Result<Vec<Value>, TaskError> {
    let results = binding.handler.call(cx(), sent(args)).await?;
    Ok(results.0.into_iter().map(|result| result.value).collect())
}

async fn malformed(binding: Binding, args: Value) -> String {
    let error = run(binding, args).await.unwrap_err();
    assert_eq!(error.disposition, Disposition::Malformed, "{error}");
    error.to_string()
}

#[tokio::test]
async fn a_call_reaches_its_handler() {
    let binding = Binding::new(ADD, add);
    assert_eq!(binding.name, "add");
    assert!(binding.requires.is_empty());
    let results = binding.handler.call(cx(), ADD.call((i64::MAX - 1, 1)).parts.args).await.unwrap();
    assert_eq!(results.0, [Arg { name: String::new(), kind: "int64".into(), value: i64::MAX.into() }]);
}

#[tokio::test]
async fn extractors_may_be_anywhere_among_the_arguments() {
    let first = |State(base): State<Base>, _: TaskContext, a: i64, b: i64| async move {
        Ok::<_, TaskError>(base.0 + a - b)
    };
    let between = |a: i64, State(base): State<Base>, b: i64, cx: TaskContext| async move {
        assert_eq!(cx.attempt(), 1);
        Ok::<_, TaskError>(base.0 + a - b)
    };
    assert_eq!(run(Binding::new(ADD, first), json!([5, 3])).await.unwrap(), [102]);
    assert_eq!(run(Binding::new(ADD, between), json!([5, 3])).await.unwrap(), [102]);
}

#[tokio::test]
async fn a_handler_has_up_to_ten_parameters() {
    #[allow(clippy::type_complexity)]
    const EIGHT: TaskDef<(u8, u8, u8, u8, u8, u8, u8, u8), u8> = TaskDef::new("eight");
    #[allow(clippy::too_many_arguments)]
    async fn eight(
        _: State<Base>,
        a: u8,
        b: u8,
        c: u8,
        d: u8,
        e: u8,
        f: u8,
        g: u8,
        h: u8,
        _: TaskContext,
    ) -> Result<u8, TaskError> {
        Ok([a, b, c, d, e, f, g, h].iter().sum())
    }
    let args = EIGHT.call((1, 2, 3, 4, 5, 6, 7, 8)).parts.args;
    let results = Binding::new(EIGHT, eight).handler.call(cx(), args).await.unwrap();
    assert_eq!(results.0[0].value, 36);
}

#[tokio::test]
async fn arguments_that_do_not_fit_are_malformed() {
    let add = || Binding::new(ADD, add);
    assert_eq!(malformed(add(), json!([1])).await, "argument 2 (int64) is missing: the task was sent with 1");
    let text = malformed(add(), json!([1, 2, 3])).await;
    assert_eq!(text, "too many arguments: the handler takes 2, the task was sent with 3");
    assert_eq!(malformed(add(), json!([1, "two"])).await, "argument 2: expected int64, got \"two\"");
    let named = vec![Arg { name: "left".into(), kind: "string".into(), value: "x".into() }];
    let error = add().handler.call(cx(), named).await.unwrap_err();
    assert_eq!(error.to_string(), "argument 1 (\"left\"): expected int64, got \"x\"");
}

#[tokio::test]
async fn an_option_at_the_end_may_be_left_out() {
    const DEF: TaskDef<(i64, Option<i64>), Option<i64>> = TaskDef::new("task");
    async fn task(_: i64, b: Option<i64>) -> Result<Option<i64>, TaskError> {
        Ok(b)
    }
    assert_eq!(run(Binding::new(DEF, task), json!([1])).await.unwrap(), [Value::Null]);
    assert_eq!(run(Binding::new(DEF, task), json!([1, null])).await.unwrap(), [Value::Null]);
    assert_eq!(run(Binding::new(DEF, task), json!([1, 2])).await.unwrap(), [2]);
}

#[tokio::test]
async fn rest_takes_all_remaining_arguments() {
    const JOIN: TaskDef<(String, Rest<String>), String> = TaskDef::new("join");
    async fn join(by: String, Rest(parts): Rest<String>, _: TaskContext) -> Result<String, TaskError> {
        Ok(parts.join(&by))
    }
    let join = || Binding::new(JOIN, join);
    assert_eq!(run(join(), json!(["-", "a", "b", "c"])).await.unwrap(), ["a-b-c"]);
    assert_eq!(run(join(), json!(["-"])).await.unwrap(), [""]);
    assert_eq!(malformed(join(), json!(["-", "a", 2])).await, "argument 3: expected string, got 2");
}

#[tokio::test]
async fn one_argument_may_be_declared_with_or_without_a_tuple() {
    const BARE: TaskDef<String, u64> = TaskDef::new("bare");
    const TUPLE: TaskDef<(String,), u64> = TaskDef::new("tuple");
    async fn length(text: String) -> Result<u64, TaskError> {
        Ok(text.len() as u64)
    }
    assert_eq!(run(Binding::new(BARE, length), json!(["abc"])).await.unwrap(), [3]);
    assert_eq!(run(Binding::new(TUPLE, length), json!(["abc"])).await.unwrap(), [3]);
}

#[tokio::test]
async fn a_handler_returns_several_results_or_none_or_any_serde_type() {
    #[allow(clippy::type_complexity)]
    const DIVIDE: TaskDef<(i64, i64), (i64, i64, Json<Vec<i64>>)> = TaskDef::new("divide");
    async fn divide(a: i64, b: i64) -> Result<(i64, i64, Json<Vec<i64>>), TaskError> {
        Ok((a / b, a % b, Json(vec![a, b])))
    }
    assert_eq!(
        run(Binding::new(DIVIDE, divide), json!([7, 2])).await.unwrap(),
        [json!(3), json!(1), json!([7, 2])]
    );

    const NOTHING: TaskDef<(), ()> = TaskDef::new("nothing");
    let nothing = || async { Ok::<_, TaskError>(()) };
    assert!(run(Binding::new(NOTHING, nothing), json!([])).await.unwrap().is_empty());

    const RAW: TaskDef<(), Results> = TaskDef::new("raw");
    let raw = || async { Ok::<_, TaskError>(Results(sent(json!([1, "two"])))) };
    assert_eq!(run(Binding::new(RAW, raw), json!([])).await.unwrap(), [json!(1), json!("two")]);
}

#[tokio::test]
async fn any_error_of_a_handler_is_a_failed_attempt() {
    const TASK: TaskDef<(), ()> = TaskDef::new("task");
    async fn io() -> std::io::Result<()> {
        Err(std::io::Error::other("disk"))
    }
    async fn through_anyhow() -> anyhow::Result<()> {
        Err(anyhow::Error::from(io().await.unwrap_err()).context("outer"))
    }
    async fn text() -> Result<(), String> {
        Err("plain".into())
    }
    async fn own() -> Result<(), TaskError> {
        Err(TaskError::permanent("never"))
    }
    let chain = async |binding| run(binding, json!([])).await.unwrap_err().chain();
    assert_eq!(chain(Binding::new(TASK, io)).await, ["disk"]);
    assert_eq!(chain(Binding::new(TASK, through_anyhow)).await, ["outer", "disk"]);
    assert_eq!(chain(Binding::new(TASK, text)).await, ["plain"]);
    let error = run(Binding::new(TASK, own), json!([])).await.unwrap_err();
    assert_eq!(error.disposition, Disposition::Permanent);
}

#[tokio::test]
async fn a_result_that_cannot_be_written_does_not_run_the_task_again() {
    const HALF: TaskDef<f64, f64> = TaskDef::new("half");
    let half = |_: f64| async { Ok::<_, TaskError>(f64::INFINITY) };
    let error = run(Binding::new(HALF, half), json!([1])).await.unwrap_err();
    assert_eq!(error.disposition, Disposition::Permanent);
    assert_eq!(error.to_string(), "result 1: inf has no form on the wire");
}

#[tokio::test]
async fn a_missing_shared_value_is_known_before_the_run_and_reported_by_it() {
    async fn needs(_: State<Base>, _: State<Arc<str>>) -> Result<(), TaskError> {
        Ok(())
    }
    const TASK: TaskDef<(), ()> = TaskDef::new("task");
    let binding = Binding::new(TASK, needs);
    let required: Vec<_> = binding.requires.iter().map(|(id, _)| *id).collect();
    assert_eq!(required, [TypeId::of::<Base>(), TypeId::of::<Arc<str>>()]);
    assert!(binding.requires[0].1.ends_with("Base"));
    let error = run(binding, json!([])).await.unwrap_err();
    assert_eq!(error.to_string(), "this worker has no shared value alloc::sync::Arc<str>");
}

#[tokio::test]
async fn an_extractor_may_be_a_type_of_the_user() {
    struct Doubled(i64);
    impl FromContext for Doubled {
        fn from_context(cx: &TaskContext) -> Result<Self, TaskError> {
            State::from_context(cx).map(|State(Base(base))| Self(2 * base))
        }
        fn requires() -> Vec<Requirement> {
            State::<Base>::requires()
        }
    }
    async fn task(a: i64, Doubled(base): Doubled, b: i64) -> Result<i64, TaskError> {
        Ok(base + a + b)
    }
    let binding = Binding::new(ADD, task);
    assert_eq!(binding.requires, [(TypeId::of::<Base>(), std::any::type_name::<Base>())]);
    assert_eq!(run(binding, json!([1, 2])).await.unwrap(), [203]);
}

#[tokio::test]
async fn a_blocking_function_runs_on_another_thread() {
    const DEF: TaskDef<i64, bool> = TaskDef::new("task");
    let caller = std::thread::current().id();
    let on_other_thread = move |State(base): State<Base>, n: i64| {
        Ok::<_, TaskError>(base.0 + n == 101 && std::thread::current().id() != caller)
    };
    let binding = Binding::blocking(DEF, on_other_thread);
    assert_eq!(binding.requires.len(), 1);
    assert_eq!(run(binding, json!([1])).await.unwrap(), [true]);

    fn fails(_: i64) -> anyhow::Result<bool> {
        anyhow::bail!("no")
    }
    assert_eq!(run(Binding::blocking(DEF, fails), json!([1])).await.unwrap_err().to_string(), "no");
    assert_eq!(
        malformed(Binding::blocking(DEF, fails), json!(["x"])).await,
        "argument 1: expected int64, got \"x\""
    );
}

#[tokio::test]
async fn a_panic_of_a_blocking_function_resumes_in_its_run() {
    const TASK: TaskDef<(), ()> = TaskDef::new("task");
    fn task() -> Result<(), TaskError> {
        panic!("oh")
    }
    let run = tokio::spawn(Binding::blocking(TASK, task).handler.call(cx(), vec![]));
    let panic = run.await.unwrap_err().into_panic();
    assert_eq!(crate::panics::PanicText::of(panic.as_ref()).message, "oh");
}

#[tokio::test]
async fn arguments_are_moved_not_copied() {
    const SIZE: TaskDef<(String, Json<Value>), u64> = TaskDef::new("size");
    let text = "x".repeat(500_000);
    let address = text.as_ptr() as usize;
    let size = move |text: String, Json(value): Json<Value>| async move {
        assert_eq!(text.as_ptr() as usize, address);
        Ok::<_, TaskError>(text.len() as u64 + value.as_str().map_or(0, str::len) as u64)
    };
    let args = SIZE.call((text, Json(Value::from("y")))).parts.args;
    let results = Binding::new(SIZE, size).handler.call(cx(), args).await.unwrap();
    assert_eq!(results.0[0].value, 500_001);
}

#[test]
fn a_binding_knows_the_types_of_its_task() {
    const MANY: TaskDef<(String, crate::Rest<i64>), (bool, f64)> = TaskDef::new("many");
    async fn many(_: String, _: crate::Rest<i64>) -> Result<(bool, f64), TaskError> {
        Ok((true, 0.5))
    }
    let shape = Binding::new(MANY, many).shape;
    let args: Vec<_> = shape.args.unwrap().into_iter().filter_map(|arg| arg.kind).collect();
    assert_eq!(args, ["string", "...int64"]);
    assert_eq!(shape.results.unwrap(), ["bool", "float64"]);
}
