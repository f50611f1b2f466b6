//! The observers of an application, and the protection of everybody else from them.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicU64, Ordering},
};

use futures_util::FutureExt as _;

use super::{Event, Stopwatch};

/// Receives the events of an application: see [`AppBuilder::observer`](crate::AppBuilder::observer).
///
/// It is called at once, on the thread on which something happened, and the task or worker goes on when it returns.
/// Therefore it must not block: count, or put what it needs into a channel. It changes nothing: a panic is caught, logged
/// and counted, and the observer receives the next event. Every closure that takes an event is an observer.
///
/// # Examples
/// ```
/// use machinist_core::event::{Event, EventKind, Observer};
/// use std::{collections::BTreeMap, sync::Mutex};
///
/// /// Counts the retries of each task name.
/// #[derive(Default)]
/// struct Retries(Mutex<BTreeMap<String, u64>>);
///
/// impl Observer for Retries {
///     fn observe(&self, event: &Event<'_>) {
///         if let EventKind::Retried { task, .. } = event.kind {
///             let mut retries = self.0.lock().unwrap();
///             *retries.entry(task.name.to_string()).or_default() += 1;
///         }
///     }
/// }
/// ```
pub trait Observer: Send + Sync + 'static {
    /// Receives one event. Must not block.
    fn observe(&self, event: &Event<'_>);

    /// Returns `true` if this observer wants [`EventKind::QueueMeasured`](super::EventKind::QueueMeasured) and
    /// [`EventKind::WorkerMeasured`](super::EventKind::WorkerMeasured): then the workers of the application take part in
    /// measuring the queues. It is asked once.
    fn measures_queues(&self) -> bool {
        false
    }
}

impl<F: Fn(&Event<'_>) + Send + Sync + 'static> Observer for F {
    fn observe(&self, event: &Event<'_>) {
        self(event);
    }
}

/// The observers of an application, in the order in which they were added.
#[derive(Default)]
pub(crate) struct Observers {
    all: Vec<Box<dyn Observer>>,
    measure_queues: bool,
    /// Number of failures of hooks that change nothing, since they were last taken.
    hook_failures: AtomicU64,
}

impl Observers {
    pub(crate) fn add(&mut self, observer: impl Observer) {
        self.measure_queues |= observer.measures_queues();
        self.all.push(Box::new(observer));
    }

    /// Returns `true` if an observer wants to know of the queues.
    pub(crate) const fn measure_queues(&self) -> bool {
        self.measure_queues
    }

    /// Returns `true` if nobody observes. Then nothing has to be measured or prepared for an event.
    pub(crate) const fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Starts a stopwatch, if anybody observes.
    pub(crate) fn stopwatch(&self) -> Stopwatch {
        Stopwatch::started_if(!self.is_empty())
    }

    /// Passes an event to every observer.
    #[inline]
    pub(crate) fn notify(&self, event: &Event<'_>) {
        for observer in &self.all {
            if contain(observer.as_ref(), event).is_err() {
                self.hook_failed();
            }
        }
    }

    /// Calls a hook, and keeps its panic from everybody else: the panic is logged and counted. `None` then.
    pub(crate) fn call_hook<T>(&self, hook: &str, call: impl FnOnce() -> T) -> Option<T> {
        // Unwind safe: only what the hook itself has changed may be left inconsistent.
        self.told_of_panic(hook, catch_unwind(AssertUnwindSafe(call)))
    }

    /// Awaits a hook, and keeps its panic from everybody else as [`call_hook`](Self::call_hook) does.
    ///
    /// # Cancel safety
    /// A dropped future drops the hook.
    pub(crate) async fn await_hook<T>(&self, hook: &str, call: impl AsyncFnOnce() -> T) -> Option<T> {
        // The call itself is inside the future: a hook may panic before it returns its own.
        self.told_of_panic(hook, AssertUnwindSafe(call()).catch_unwind().await)
    }

    fn told_of_panic<T>(&self, hook: &str, returned: std::thread::Result<T>) -> Option<T> {
        let returned = returned.ok();
        if returned.is_none() {
            tracing::error!("{hook} panicked: everything else goes on");
            self.hook_failed();
        }
        returned
    }

    /// Counts a failure of a hook: an observer, a gate, or another function of the application.
    pub(crate) fn hook_failed(&self) {
        self.hook_failures.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the number of failures since it was last asked for.
    pub(crate) fn take_hook_failures(&self) -> u64 {
        self.hook_failures.swap(0, Ordering::Relaxed)
    }
}

/// Calls an observer, and keeps its panic from the task or worker that emitted the event.
fn contain(observer: &dyn Observer, event: &Event<'_>) -> std::thread::Result<()> {
    // Unwind safe: only the observer's own state may be left inconsistent.
    let observed = catch_unwind(AssertUnwindSafe(|| observer.observe(event)));
    if observed.is_err() {
        tracing::error!(
            event = event.name(),
            "an observer panicked: it receives the next event all the same"
        );
    }
    observed
}

impl fmt::Debug for Observers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Observers").field(&self.all.len()).finish()
    }
}
