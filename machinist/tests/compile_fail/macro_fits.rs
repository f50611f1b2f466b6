//! Definitions of functions, and derived types, that fit.

use machinist_core::{Backoff, State, TaskContext, TaskDef, TaskError, WorkerBuilder, extract::FromContext};
use machinist_macros::{TaskFailure, WireArg, task};
use serde::{Deserialize, Serialize};
use std::time::Duration;

#[derive(Serialize, Deserialize, WireArg)]
#[machinist(crate = machinist_core)]
pub struct Options {
    width: u32,
}

#[derive(Serialize, Deserialize, WireArg)]
#[machinist(crate = machinist_core)]
pub enum Pair<T> {
    Both(T, T),
}

pub struct Tenant;

impl FromContext for Tenant {
    fn from_context(_: &TaskContext) -> Result<Self, TaskError> {
        Ok(Self)
    }
}

#[task(
    crate = machinist_core, name = "image.resize", queue = "images", retries = 3, priority = 5,
    backoff = Backoff::fixed(Duration::from_secs(1)), timeout = "1m 30s", soft_timeout = Duration::from_secs(60),
    retry_for = "1h", retry_timeouts, expires_in = "1d", max_postponements = 4, limit_key = "{0}", limit_cost = 2,
    unique = machinist_core::Unique::new(), unique_by = "{0}",
)]
pub async fn resize(
    path: String,
    cx: TaskContext,
    State(scale): State<u32>,
    options: Options,
    #[extract] _tenant: Tenant,
    pairs: Vec<Option<Pair<String>>>,
) -> Result<Options, TaskError> {
    cx.log(path);
    Ok(Options { width: options.width * scale + pairs.len() as u32 })
}

/// A function that blocks, with an alias of `Result` and no arguments.
#[task(crate = machinist_core, def = SWEEP)]
fn clean_up() -> std::io::Result<()> {
    Ok(())
}

/// A task that a workflow may replace.
#[task(crate = machinist_core)]
async fn grow(n: i64, cx: TaskContext) -> Result<machinist_core::Continue<i64>, TaskError> {
    match n {
        0 => Ok(cx.continue_with(GROW.call(1))?),
        n => Ok(machinist_core::Continue::value(n)),
    }
}

// Names of the prelude and of the crates may mean something else here.
mod hygiene {
    #![allow(dead_code, non_camel_case_types)]
    struct Result;
    struct Option;
    struct String;
    trait Send {}
    mod core {}
    mod std {}
    use machinist_core::TaskError as Oh;
    #[machinist_macros::task(crate = ::machinist_core, timeout = "1s")]
    pub(super) async fn r#move(n: u8) -> ::core::result::Result<u8, Oh> {
        Ok(n)
    }
}

#[derive(Debug, TaskFailure)]
#[machinist(crate = machinist_core)]
#[task_error(retry_in = "30s")]
enum MailError {
    #[task_error(permanent)]
    NoSuchAddress { name: String },
    Busy,
    #[task_error(transparent)]
    Inner(Inner),
}

#[derive(Debug, TaskFailure)]
#[machinist(crate = machinist_core)]
#[task_error(retry_after = "500ms")]
struct Inner;

fn main() {
    let _: TaskDef<(String, Options, Vec<Option<Pair<String>>>), Options> = RESIZE;
    let _: TaskDef<(), ()> = SWEEP;
    let _: TaskDef<u8, u8> = hygiene::MOVE;
    let _: TaskDef<i64, i64> = GROW;
    let _ = (MailError::NoSuchAddress { name: String::new() }, MailError::Busy, MailError::Inner(Inner));
    let _ = |worker: WorkerBuilder| {
        worker.task(RESIZE, resize).task_blocking(SWEEP, clean_up).task(GROW, grow).task(hygiene::MOVE, hygiene::r#move)
    };
}
