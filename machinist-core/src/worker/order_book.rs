//! The orders that a worker knows: the newest ones count, whatever the backend shows.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;

use crate::id::TaskName;

/// Function that sets the log level of the program.
pub(super) type SetLogLevel = Arc<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

/// Answer to a change of the running worker: a remark for people, or the reason that nothing has changed.
pub(super) type ChangeAnswer = Result<Option<String>, String>;
/// Function that reads the configuration of the program again.
pub(super) type ReloadConfiguration = Arc<dyn Fn() -> BoxFuture<'static, ChangeAnswer> + Send + Sync>;

/// Orders that a worker knows, and the means to obey them.
pub(super) struct OrderBook {
    /// Exit code at which a supervisor starts the program again.
    pub(super) restart_exit_code: Option<u8>,
    pub(super) set_log_level: Option<SetLogLevel>,
    /// Names of the tasks of the worker.
    tasks: RwLock<Vec<TaskName>>,
    /// Locked while the queues or options of the worker change, so that no change undoes another one.
    pub(super) changing: tokio::sync::Mutex<()>,
    /// Reads the configuration of the program again.
    reload: Mutex<Option<ReloadConfiguration>>,
    memory: Mutex<OrderMemory>,
}

/// Orders that count, and those that were obeyed.
#[derive(Default)]
pub(super) struct OrderMemory {
    /// Newest state that is wanted, with the name of which it is wanted.
    pub(super) wanted: Option<WantedState>,
    /// State that is wanted as it was stored, and is not believed. It was logged.
    pub(super) doubted: Bytes,
    /// Number and answer of the newest change of options.
    pub(super) changed: Option<(i64, ChangeAnswer)>,
    /// `true` if the process ends in order to be started again.
    pub(super) restarts: bool,
}

/// State that is wanted of a name.
#[derive(Clone)]
pub(super) struct WantedState {
    pub(super) worker: Arc<str>,
    pub(super) number: i64,
    pub(super) stored: Bytes,
}

impl OrderBook {
    pub(super) fn new(
        restart_exit_code: Option<u8>,
        set_log_level: Option<SetLogLevel>,
        tasks: Vec<TaskName>,
    ) -> Self {
        let (tasks, reload) = (RwLock::new(tasks), Mutex::default());
        let (changing, memory) = (tokio::sync::Mutex::default(), Mutex::default());
        Self { restart_exit_code, set_log_level, tasks, changing, reload, memory }
    }

    pub(super) fn memory(&self) -> MutexGuard<'_, OrderMemory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Names of the tasks of the worker.
    pub(super) fn tasks(&self) -> Vec<TaskName> {
        self.tasks.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_tasks(&self, tasks: Vec<TaskName>) {
        *self.tasks.write().unwrap_or_else(PoisonError::into_inner) = tasks;
    }

    /// Sets the function that reads the configuration again; `None` at the end of the worker, which the function may own.
    pub(super) fn on_reload(&self, reload: Option<ReloadConfiguration>) {
        *self.reload.lock().unwrap_or_else(PoisonError::into_inner) = reload;
    }

    /// Reads the configuration again. Returns a remark for people.
    pub(super) async fn reload(&self) -> ChangeAnswer {
        let reload = self.reload.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match reload {
            Some(reload) => reload().await,
            None => Err("this program has no configuration that it could read again".to_owned()),
        }
    }

    /// Returns the exit code of a process that was ordered to restart.
    pub(super) fn restart(&self) -> Option<u8> {
        self.restart_exit_code.filter(|_| self.memory().restarts)
    }
}

impl fmt::Debug for OrderBook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OrderBook")
            .field("restart_exit_code", &self.restart_exit_code)
            .finish_non_exhaustive()
    }
}
