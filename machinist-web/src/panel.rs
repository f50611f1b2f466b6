//! Parts of a page that never keep the page waiting: each has a second, then its last value is shown with its age.
//!
//! A panel is read at most once at a time and once a second in a process, whatever the number of pages that show it. One that
//! changes slowly is read less often.

use std::{fmt, sync::Arc, time::Duration};

use tokio::{sync::watch, time::Instant};

/// Time for which a value counts as new, unless the panel says otherwise, and after which a failed read is tried again.
const FRESH: Duration = Duration::from_secs(1);
/// Maximum time that a page waits for a new value.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);
/// Maximum time of a read that no page waits for any more.
const READ_LIMIT: Duration = Duration::from_secs(30);

/// Value that many pages show.
pub(crate) struct Panel<T> {
    /// The thing that is read, for its problem.
    what: &'static str,
    /// Time for which a value counts as new.
    fresh: Duration,
    current: watch::Sender<CurrentValue<T>>,
}

struct CurrentValue<T> {
    value: Option<Arc<T>>,
    /// Time at which the value was read.
    read_at: Option<Instant>,
    /// Time at which the last read has ended.
    ended_at: Option<Instant>,
    /// Reason that the last read gave no value.
    problem: Option<String>,
    is_reading: bool,
    /// Number of changes made here to what is read. A read that began before one of them gives no value.
    changes: u64,
}

/// Value as a page shows it.
#[derive(Debug)]
pub(crate) struct PanelView<T> {
    /// The newest value; `None` if there never was one.
    pub(crate) value: Option<Arc<T>>,
    /// Age of a value that is not new.
    pub(crate) age: Option<Duration>,
    /// The reason that there is no new value.
    pub(crate) problem: Option<String>,
}

impl<T: Clone> PanelView<T> {
    /// Changes the value for this page alone.
    pub(crate) fn reduced(self, reduce: impl FnOnce(&mut T)) -> Self {
        let value = self.value.map(|value| {
            let mut value = T::clone(&value);
            reduce(&mut value);
            Arc::new(value)
        });
        Self { value, ..self }
    }
}

impl<T> Panel<T> {
    pub(crate) fn new(what: &'static str) -> Self {
        let current = CurrentValue {
            value: None,
            read_at: None,
            ended_at: None,
            problem: None,
            is_reading: false,
            changes: 0,
        };
        Self { what, fresh: FRESH, current: watch::Sender::new(current) }
    }

    /// Sets the time for which a value counts as new.
    pub(crate) fn fresh_for(self, fresh: Duration) -> Self {
        Self { fresh, ..self }
    }
}

impl<T: Send + Sync + 'static> Panel<T> {
    /// Returns a value that is new, or the last one. `read` begins only if no other page has asked within a second.
    pub(crate) async fn see<F>(self: &Arc<Self>, read: impl FnOnce() -> F) -> PanelView<T>
    where
        F: Future<Output = Result<T, String>> + Send + 'static,
    {
        if let Some(changes) = self.begin_read() {
            let (panel, reading) = (Arc::clone(self), read());
            tokio::spawn(async move {
                // Its own task, so that a panic in it is a problem of one read.
                let mut reading = tokio::spawn(reading);
                let answer = tokio::time::timeout(READ_LIMIT, &mut reading).await;
                reading.abort();
                let answer = match answer {
                    Ok(Ok(answer)) => answer,
                    Ok(Err(error)) => Err(error.to_string()),
                    Err(_) => Err(format!("no answer within {} s", READ_LIMIT.as_secs())),
                };
                panel.put(changes, answer);
            });
        }
        let mut changes = self.current.subscribe();
        // The value is looked at below: a guard of it must not be held meanwhile.
        let reading_ends = async { drop(changes.wait_for(|current| !current.is_reading).await) };
        let _in_time = tokio::time::timeout(PATIENCE, reading_ends).await.is_ok();
        self.shown()
    }

    /// Lets the next page read again, because somebody here has changed what is read.
    pub(crate) fn expire(&self) {
        self.current.send_modify(|current| {
            current.ended_at = None;
            current.is_reading = false;
            current.changes += 1;
        });
    }

    /// Begins a read, and returns the number of changes before it; `None` if this caller does not have to read.
    fn begin_read(&self) -> Option<u64> {
        let mut begun = None;
        self.current.send_if_modified(|current| {
            let fresh = if current.problem.is_none() { self.fresh } else { FRESH };
            let is_fresh = current.ended_at.is_some_and(|ended| ended.elapsed() < fresh);
            let begins = !current.is_reading && !is_fresh;
            current.is_reading |= begins;
            begun = begins.then_some(current.changes);
            begins
        });
        begun
    }

    fn put(&self, changes: u64, answer: Result<T, String>) {
        let now = Instant::now();
        self.current.send_modify(|current| {
            if current.changes != changes {
                return;
            }
            match answer {
                Ok(value) => {
                    current.value = Some(Arc::new(value));
                    current.read_at = Some(now);
                    current.problem = None;
                }
                Err(problem) => current.problem = Some(problem),
            }
            current.ended_at = Some(now);
            current.is_reading = false;
        });
    }

    fn shown(&self) -> PanelView<T> {
        let current = self.current.borrow();
        let late = current.is_reading.then(|| format!("no answer within {} s", PATIENCE.as_secs()));
        let problem = current.problem.clone().or(late);
        PanelView {
            value: current.value.clone(),
            age: current.read_at.filter(|_| problem.is_some()).map(|at| at.elapsed()),
            problem: problem.map(|problem| format!("{}: {problem}", self.what)),
        }
    }
}

impl<T> fmt::Debug for Panel<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Panel").field("what", &self.what).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test(start_paused = true)]
    async fn many_pages_make_one_read_a_second() {
        let panel = Arc::new(Panel::new("the queues"));
        let reads = Arc::new(AtomicU32::new(0));
        let read = || {
            let reads = Arc::clone(&reads);
            async move { Ok(reads.fetch_add(1, Ordering::SeqCst)) }
        };
        let pages = futures_util::future::join_all((0..20).map(|_| panel.see(read))).await;
        assert!(pages.iter().all(|seen| seen.value.as_deref() == Some(&0) && seen.problem.is_none()));
        tokio::time::advance(FRESH).await;
        assert_eq!(panel.see(read).await.value.as_deref(), Some(&1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_panel_is_read_less_often_and_a_failed_read_is_tried_again() {
        let panel = Arc::new(Panel::new("the history").fresh_for(Duration::from_secs(60)));
        assert!(panel.see(|| async { Err("it is closed".to_owned()) }).await.value.is_none());
        tokio::time::advance(FRESH).await;
        assert_eq!(panel.see(|| async { Ok(1) }).await.value.as_deref(), Some(&1));
        tokio::time::advance(FRESH * 59).await;
        assert_eq!(panel.see(|| async { Ok(2) }).await.value.as_deref(), Some(&1));
        tokio::time::advance(FRESH).await;
        assert_eq!(panel.see(|| async { Ok(2) }).await.value.as_deref(), Some(&2));
        panel.expire();
        assert_eq!(panel.see(|| async { Ok(3) }).await.value.as_deref(), Some(&3));
        // A read that has begun before a change does not hide it.
        tokio::time::advance(FRESH * 60).await;
        let (answer, asked) = tokio::sync::oneshot::channel();
        let slow = panel.see(|| async { Ok(asked.await.unwrap_or_default()) });
        let page = async {
            tokio::task::yield_now().await;
            panel.expire();
            assert_eq!(panel.see(|| async { Ok(5) }).await.value.as_deref(), Some(&5));
            answer.send(4).unwrap();
        };
        tokio::join!(slow, page);
        tokio::task::yield_now().await;
        assert_eq!(panel.see(|| async { Ok(6) }).await.value.as_deref(), Some(&5));
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_is_away_leaves_the_last_value_with_its_age() {
        let panel = Arc::new(Panel::new("the queues"));
        assert_eq!(panel.see(|| async { Ok(7) }).await.value.as_deref(), Some(&7));
        tokio::time::advance(Duration::from_secs(60)).await;
        let late = panel.see(std::future::pending).await;
        assert_eq!(late.value.as_deref(), Some(&7));
        assert!(late.age.is_some_and(|age| age >= Duration::from_secs(60)));
        assert_eq!(late.problem.as_deref(), Some("the queues: no answer within 1 s"));
        // Slept, so that the read is given up before its value counts as old.
        tokio::time::sleep(READ_LIMIT).await;
        tokio::time::sleep(FRESH).await;
        let refused = panel.see(|| async { Err("it is closed".to_owned()) }).await;
        assert_eq!(
            (refused.value.as_deref(), refused.problem.as_deref()),
            (Some(&7), Some("the queues: it is closed"))
        );
        tokio::time::advance(FRESH).await;
        let back = panel.see(|| async { Ok(8) }).await;
        assert_eq!((back.value.as_deref(), back.age, back.problem), (Some(&8), None, None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_read_that_panics_is_a_problem_and_the_next_one_works() {
        let panel = Arc::new(Panel::<u8>::new("the queues"));
        let broken = panel.see(|| async { panic!("a bug") }).await;
        assert!(broken.value.is_none() && broken.problem.is_some());
        tokio::time::advance(FRESH).await;
        assert_eq!(panel.see(|| async { Ok(1) }).await.value.as_deref(), Some(&1));
    }
}
