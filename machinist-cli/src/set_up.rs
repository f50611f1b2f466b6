//! Additions of an application to the commands: its tasks, and a change to the application that they connect.

use std::{error::Error, pin::Pin, sync::OnceLock};

use machinist::{AppBuilder, WorkerBuilder};

/// Error of a set-up or of an own command: any error, by `?`.
pub type SetUpError = Box<dyn Error + Send + Sync>;

pub(crate) type Running<'a, T> = Pin<Box<dyn Future<Output = Result<T, SetUpError>> + 'a>>;

/// Function that adds an application's tasks to a worker.
pub(crate) type BuildWorker<'a> = Box<dyn FnOnce(WorkerBuilder) -> Running<'a, WorkerBuilder> + 'a>;

pub(crate) type ChangeApp = Box<dyn Fn(AppBuilder) -> AppBuilder + Send + Sync>;

/// Change to each application that a command connects. There is one program in a process.
static CHANGE_APP: OnceLock<ChangeApp> = OnceLock::new();

/// Sets the change to each application. Only the first one counts.
pub(crate) fn set_change_app(change: ChangeApp) {
    CHANGE_APP.get_or_init(|| change);
}

/// Applies the change of the application.
pub(crate) fn change_app(app: AppBuilder) -> AppBuilder {
    match CHANGE_APP.get() {
        Some(change) => change(app),
        None => app,
    }
}
