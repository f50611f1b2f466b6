//! Demo tasks of `--demo`.

use std::time::Duration;

use machinist::{Arg, Results, TaskContext, TaskError, args::WireArg, settings::parse_duration};
use serde_json::Value;

/// Adds any number of numbers.
pub(crate) async fn add(_: TaskContext, args: Vec<Arg>) -> Result<Results, TaskError> {
    sum(&args).map(|sum| Results(vec![Arg::from_value(sum)])).map_err(TaskError::malformed)
}

/// Returns its arguments.
pub(crate) async fn echo(_: TaskContext, args: Vec<Arg>) -> Result<Results, TaskError> {
    Ok(Results(args.into_iter().map(|arg| Arg { name: String::new(), ..arg }).collect()))
}

/// Time between two reports of a sleep's progress.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// Sleeps for a number of seconds, or a duration like "200ms".
pub(crate) async fn sleep(cx: TaskContext, args: Vec<Arg>) -> Result<Results, TaskError> {
    let duration = parse_sleep(&args).map_err(TaskError::malformed)?;
    let report = async {
        let start = tokio::time::Instant::now();
        let millis = |d: Duration| u64::try_from(d.as_millis());
        loop {
            cx.progress(
                millis(start.elapsed()).unwrap_or(u64::MAX),
                millis(duration).unwrap_or(u64::MAX),
                "asleep",
            );
            tokio::time::sleep(PROGRESS_INTERVAL).await;
        }
    };
    tokio::select! {
        () = report => Ok(Results::default()),
        () = tokio::time::sleep(duration) => Ok(Results::default()),
        () = cx.cancellation().cancelled() => Err(TaskError::new("the run was cancelled")),
    }
}

/// Fails with the given message.
pub(crate) async fn fail(cx: TaskContext, args: Vec<Arg>) -> Result<Results, TaskError> {
    cx.log(format!("failing, attempt {}", cx.attempt()));
    let message = args.first().map_or_else(|| "asked to fail".to_owned(), |arg| text(&arg.value));
    Err(TaskError::new(message))
}

/// Adds numbers; whole numbers exactly and without wrapping.
fn sum(args: &[Arg]) -> Result<Value, String> {
    if args.iter().all(|arg| arg.value.is_i64()) {
        let whole = args.iter().filter_map(|arg| arg.value.as_i64()).try_fold(0i64, i64::checked_add);
        return whole.map(Value::from).ok_or_else(|| "the sum is larger than a 64-bit number".to_owned());
    }
    let number =
        |arg: &Arg| number(&arg.value).ok_or_else(|| format!("add takes numbers, not {}", arg.value));
    args.iter().map(number).sum::<Result<f64, _>>().map(Value::from)
}

fn parse_sleep(args: &[Arg]) -> Result<Duration, String> {
    match args {
        [arg] => match (&arg.value, number(&arg.value)) {
            (_, Some(seconds)) => Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string()),
            (Value::String(text), None) => parse_duration(text),
            (other, None) => Err(format!("sleep takes seconds or a duration like \"200ms\", not {other}")),
        },
        _ => Err(format!("sleep takes one argument, not {}", args.len())),
    }
}

/// Returns a number, also one that is text because of its spelling.
fn number(value: &Value) -> Option<f64> {
    f64::from_wire(value.clone()).ok()
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn args(values: &[Value]) -> Vec<Arg> {
        values.iter().cloned().map(Arg::from_value).collect()
    }

    #[test]
    fn numbers_are_added() {
        assert_eq!(sum(&args(&[json!(2), json!(-1)])), Ok(json!(1)));
        assert_eq!(sum(&args(&[json!(2), json!(0.5)])), Ok(json!(2.5)));
        assert_eq!(sum(&[]), Ok(json!(0)));
        assert!(sum(&args(&[json!(i64::MAX), json!(1)])).is_err());
        assert!(sum(&args(&[json!("x")])).is_err());
    }

    #[test]
    fn a_while_is_seconds_or_a_duration() {
        assert_eq!(parse_sleep(&args(&[json!(0.5)])), Ok(Duration::from_millis(500)));
        assert_eq!(parse_sleep(&args(&[json!("200ms")])), Ok(Duration::from_millis(200)));
        assert!(parse_sleep(&args(&[json!(-1)])).is_err());
        assert!(parse_sleep(&args(&[])).is_err());
    }
}
