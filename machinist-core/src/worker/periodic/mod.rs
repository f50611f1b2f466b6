//! The ticks of periodic tasks: every worker knows the definitions, and for each of them one worker at a time ticks.
//!
//! A worker reads the records of all periodic tasks every few seconds, and at once when it is woken. For each of them it
//! tries to take the turn; the one that has it publishes the ticks that are due, each confirmed, and then passes the
//! cursor. When it dies, its turn expires, and another worker goes on from the cursor: a tick that was published but not
//! passed is published again under the same id, and is one task. When two workers have the turn for a moment, the cursor
//! is passed by one of them, and the ids are the same.
//!
//! | file | duty |
//! |---|---|
//! | `active` | the definition that is in force |
//! | `book` | what the worker knows of the periodic tasks, and what the backend has lost |
//! | `turns` | the turns that the worker has |
//! | `ticking` | the ticks of one periodic task: publish, then pass the cursor |

mod active;
mod book;
mod ticking;
mod turns;

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, time::Instant};

use self::{book::Book, turns::Turns};
use super::{WorkerContext, server_calls::jittered, wake_up::WakeUp};
use crate::{
    backend::BackendError,
    periodic::{Periodic, wake_record},
};

/// Interval at which the records are read, if no wake-up comes.
const REFRESH_INTERVAL: Duration = Duration::from_secs(5);
/// Wait after a failure of a server.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Minimum wait between two rounds.
const MIN_WAIT: Duration = Duration::from_millis(5);
/// Maximum time for giving the turns up at the end.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(1);

/// Ticks until the worker drains, then gives its turns up, so that another worker goes on at once. `own` holds the definitions
/// of the code and the configuration, which can be replaced.
pub(super) async fn run(worker: Arc<WorkerContext>, mut own: watch::Receiver<Vec<Periodic>>) {
    let first = own.borrow_and_update().clone();
    let mut ticker = Ticker {
        book: Book::new(&worker.app, first),
        turns: Turns::new(worker.name.held()),
        refreshed: None,
    };
    let stages = worker.stages.clone();
    loop {
        tokio::select! {
            () = ticker.tick_forever(&worker) => {}
            () = replaced(&mut own) => {
                let definitions = own.borrow_and_update().clone();
                // Cursors are in the backend: no tick is lost or sent twice, as after a restart.
                ticker.book.replace_own(&worker.app, definitions);
                ticker.refreshed = None;
            }
            () = stages.draining() => break,
        }
    }
    // Best effort: a turn that is not given up expires.
    let _in_time = tokio::time::timeout(RELEASE_TIMEOUT, ticker.turns.give_up_all(&worker.app)).await;
}

/// Completes when the definitions were replaced.
async fn replaced(own: &mut watch::Receiver<Vec<Periodic>>) {
    if own.changed().await.is_err() {
        // Nobody is left who could replace them.
        std::future::pending().await
    }
}

struct Ticker {
    book: Book,
    turns: Turns,
    /// Time at which the records were read last.
    refreshed: Option<Instant>,
}

impl Ticker {
    async fn tick_forever(&mut self, worker: &WorkerContext) {
        let mut wake_up = WakeUp::new(wake_record());
        let mut refresh_interval = jittered(REFRESH_INTERVAL);
        loop {
            wake_up.open(worker.app.backend().as_ref()).await;
            let wait = match self.round(worker, refresh_interval).await {
                Ok(wait) => wait,
                Err(error) => {
                    tracing::debug!(%error, "periodic tasks have to wait");
                    jittered(RETRY_INTERVAL)
                }
            };
            tokio::select! {
                () = wake_up.changed() => self.refreshed = None,
                () = tokio::time::sleep(wait) => {}
            }
            if self.refreshed.is_none() {
                refresh_interval = jittered(REFRESH_INTERVAL);
            }
        }
    }

    /// Reads the records if it is time, keeps the turns, and sends what is due. Returns the time until the next round.
    async fn round(&mut self, worker: &WorkerContext, refresh: Duration) -> Result<Duration, BackendError> {
        if self.refreshed.is_none_or(|last| last.elapsed() >= refresh) {
            // Taken before the records are read: a change meanwhile is read in the next round.
            let asked = Instant::now();
            self.book.refresh(worker).await?;
            self.refreshed = Some(asked);
        }
        self.turns.keep(&worker.app, self.book.active_names()).await?;
        self.book.announce(worker, &self.turns).await?;
        let due = self.book.due_names(worker.now(), &self.turns);
        if !due.is_empty() {
            self.book.tick(worker, &self.turns, due).await?;
        }
        let until_refresh =
            self.refreshed.map_or(Duration::ZERO, |last| refresh.saturating_sub(last.elapsed()));
        let until_due = self.book.next(&self.turns).map(|next| next.since(worker.now()));
        let until_turns = self.turns.until_next(!self.book.is_empty());
        let wait = until_due.into_iter().chain([until_refresh, until_turns]).min();
        Ok(wait.unwrap_or(RETRY_INTERVAL).max(MIN_WAIT))
    }
}
