//! An application with its own tasks and all commands of `machinist`.
//!
//! In two terminals:
//!
//! ```text
//! cargo run --bin app -- worker
//! cargo run --bin app -- send shout hello --wait
//! ```
//!
//! Settings, flags and `machinist.toml` are those of `machinist`; with `--features servers` also RabbitMQ and Redis
//! (after `cargo run --bin app -- keygen`).

use std::process::ExitCode;

use machinist::prelude::*;

const SHOUT: TaskDef<String, String> = TaskDef::new("shout");
const COUNT: TaskDef<String, (u64, u64)> = TaskDef::new("count");

/// State that the handlers share, such as a pool of connections.
#[derive(Clone)]
struct Mark(&'static str);

async fn shout(State(mark): State<Mark>, text: String) -> Result<String, TaskError> {
    Ok(text.to_uppercase() + mark.0)
}

/// Counts words and bytes: a function that blocks its thread, with two results.
fn count(text: String) -> Result<(u64, u64), TaskError> {
    let words = text.split_whitespace().count() as u64;
    Ok((words, text.into_bytes().len() as u64))
}

fn main() -> ExitCode {
    machinist_cli::run(|worker| worker.state(Mark("!")).task(SHOUT, shout).task_blocking(COUNT, count))
}
