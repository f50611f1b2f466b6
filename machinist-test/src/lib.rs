//! Testing kit for code that uses machinist: the real worker over broker and backend in memory, under paused time.
//!
//! ```
//! use machinist_core::{TaskContext, TaskDef, TaskError};
//! use machinist_test::{TestApp, assert_enqueued, refute_enqueued};
//! use std::time::Duration;
//!
//! const REMIND: TaskDef<String, ()> = TaskDef::new("remind").queue("mail").retries(3);
//!
//! async fn remind(to: String, cx: TaskContext) -> Result<(), TaskError> {
//!     match cx.attempt() {
//!         1 => Err("no answer".into()),
//!         _ => Ok(()),
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() {
//! const MONTH: Duration = Duration::from_secs(30 * 24 * 3600);
//! let app = TestApp::new(|worker| worker.task(REMIND, remind)).await;
//! app.send(REMIND.call("ada@example.org").countdown(MONTH)).await;
//! assert_enqueued!(app, name = "remind", args = ["ada@example.org"], queue = "mail", due = MONTH);
//!
//! assert!(app.drain().await.is_empty());
//! let runs = app.drain_scheduled().await;
//! assert!(runs[0].is_retry() && runs[1].is_success());
//! refute_enqueued!(app, name = "remind");
//! # }
//! ```
//!
//! [`TestApp`] runs tasks to their end, [`run_one`] calls one handler once. With the feature `servers`, `TestServers` is an
//! application over RabbitMQ and Redis. `docs/testing.md` is the guide.

mod app;
mod clock;
mod crash;
mod enqueued;
mod run;
mod seen;
#[cfg(feature = "servers")]
mod servers;

pub use app::TestApp;
pub use enqueued::{Enqueued, EnqueuedPattern};
pub use machinist_conformance::arrows::{ArrowStep, Side};
pub use run::{RunResult, TaskRun, run_one};
#[doc(hidden)]
pub use serde_json::json;
#[cfg(feature = "servers")]
pub use servers::{TestServers, TestWorker};

/// Asserts that a task waits that fits all options: `name` (with `*` for any text), `args`, `arg`, `queue`, `due`,
/// `due_within`, `attempt`, `header` and `count`, the methods of [`EnqueuedPattern`].
///
/// # Panics
/// If no task fits; the message lists those that wait.
#[macro_export]
macro_rules! assert_enqueued {
    ($app:expr $(, $key:ident = $value:expr)* $(,)?) => {
        $app.assert_enqueued(&$crate::EnqueuedPattern::new()$(.$key($value))*)
    };
}

/// Asserts that no task waits that fits all options: see [`assert_enqueued!`].
///
/// # Panics
/// If a task fits.
#[macro_export]
macro_rules! refute_enqueued {
    ($app:expr $(, $key:ident = $value:expr)* $(,)?) => {
        $app.refute_enqueued(&$crate::EnqueuedPattern::new()$(.$key($value))*)
    };
}

/// The examples of `docs/testing.md` are compiled and run.
#[cfg(all(doctest, feature = "servers"))]
#[doc = include_str!("../../docs/testing.md")]
struct DocsOfTesting;
