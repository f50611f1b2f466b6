//! Turns of a worker: for each periodic task, one worker at a time ticks.
//!
//! A turn is a record that expires unless it is kept. Nothing depends on there being one holder only: it saves work. So
//! every worker has a turn whose record another program has spoilt.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    app::App,
    backend::{BackendError, Commit, Committed},
    id::RunId,
    record::{end_turn, keep_turn, take_turn},
};

/// Time after which a turn that is not kept is over.
const TURN: Duration = Duration::from_secs(10);
/// Interval at which turns are kept, and those of others are asked for.
const KEEP_INTERVAL: Duration = Duration::from_secs(3);

/// Turns of this worker.
pub(super) struct Turns {
    /// Name of the worker with a random part: two processes of one name have different turns.
    holder: String,
    /// End of each turn that the worker has.
    held: HashMap<Arc<str>, Instant>,
    /// Time at which each turn was asked for last.
    asked: HashMap<Arc<str>, Instant>,
    /// Turns whose records cannot be used.
    unusable: HashSet<Arc<str>>,
}

impl Turns {
    pub(super) fn new(worker: &str) -> Self {
        Self {
            holder: format!("{worker} {}", RunId::fresh()),
            held: HashMap::new(),
            asked: HashMap::new(),
            unusable: HashSet::new(),
        }
    }

    /// Returns `true` if this worker has the turn now.
    pub(super) fn has(&self, name: &str) -> bool {
        self.held.get(name).is_some_and(|end| Instant::now() < *end)
    }

    /// Returns the end of a turn.
    pub(super) fn end(&self, name: &str) -> Option<Instant> {
        self.held.get(name).copied()
    }

    /// Returns the time until turns have to be kept or asked for, if there is any.
    pub(super) fn until_next(&self, any: bool) -> Duration {
        let oldest = self.asked.values().min().filter(|_| any);
        oldest.map_or(KEEP_INTERVAL, |asked| KEEP_INTERVAL.saturating_sub(asked.elapsed()))
    }

    /// Keeps the turns of these names, takes those that nobody has, and gives all others up.
    ///
    /// # Errors
    /// [`BackendError`]; turns that were not kept end by themselves.
    pub(super) async fn keep(&mut self, app: &App, names: Vec<Arc<str>>) -> Result<(), BackendError> {
        let now = Instant::now();
        let gone: Vec<_> = self.held.keys().filter(|held| !names.contains(held)).cloned().collect();
        self.asked.retain(|asked, _| names.contains(asked));
        self.unusable.retain(|unusable| names.contains(unusable));
        let ends = gone.iter().map(|name| end_turn(&work(name), &self.holder));
        let asks: Vec<_> = names
            .into_iter()
            .filter(|name| {
                self.asked.get(name).is_none_or(|asked| now.duration_since(*asked) >= KEEP_INTERVAL)
            })
            .collect();
        let keep_or_take = asks.iter().map(|name| match self.held.contains_key(name) {
            true => keep_turn(&work(name), &self.holder, TURN),
            false => take_turn(&work(name), &self.holder, TURN),
        });
        let batch: Vec<Arc<Commit>> = keep_or_take.chain(ends).map(Arc::new).collect();
        if batch.is_empty() {
            return Ok(());
        }
        let answers = app.backend().commit(batch).await;
        for name in gone {
            self.held.remove(&name);
        }
        let mut failed = None;
        for (name, answer) in asks.into_iter().zip(answers) {
            match answer {
                Ok(Committed::Done { .. }) => {
                    self.unusable.remove(&name);
                    self.held.insert(Arc::clone(&name), now + TURN);
                }
                Ok(Committed::Refused(_)) => {
                    self.unusable.remove(&name);
                    // A turn that has expired is taken in the next round, if nobody else has it.
                    self.held.remove(&name);
                }
                Err(error) if error.is_of_one_record() => {
                    if self.unusable.insert(Arc::clone(&name)) {
                        let error = &error as &dyn std::error::Error;
                        tracing::error!(%name, error, "a turn cannot be used: every worker has it");
                    }
                    self.held.insert(Arc::clone(&name), now + TURN);
                }
                Err(error) => {
                    failed = Some(error);
                    continue;
                }
            }
            self.asked.insert(name, now);
        }
        failed.map_or(Ok(()), Err)
    }

    /// Gives all turns up.
    pub(super) async fn give_up_all(&mut self, app: &App) {
        let ends = self.held.drain().map(|(name, _)| Arc::new(end_turn(&work(&name), &self.holder)));
        let batch: Vec<_> = ends.collect();
        if batch.is_empty() {
            return;
        }
        for error in app.backend().commit(batch).await.into_iter().filter_map(Result::err) {
            tracing::debug!(%error, "the turn of a periodic task was not given up; it expires");
        }
    }
}

/// Returns the id of the record of a turn.
fn work(name: &str) -> String {
    format!("periodic.{name}")
}
