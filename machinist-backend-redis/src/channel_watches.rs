//! Wake-ups: one connection that listens to the channels of all watched records.
//!
//! Each record has a separate channel. With one channel for all, every waiting process would receive every
//! wake-up of the whole system. With separate channels, a wake-up without watchers costs Redis one table lookup. Sharded
//! publishing keeps it on the node that holds the record.
//!
//! A wake-up may be missed while the connection is lost. So after each reconnect all watchers are woken once, and
//! they look.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::join_all;
use machinist_adapter::backend::{BackendError, Watch};
use redis::{PushInfo, PushKind, RedisError, RedisResult, Value};
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout},
};

use crate::{
    connect::{ConnectionSource, RedisAddress, RedisConnection, RedisTimeouts},
    error::{backend_error, no_answer, spoils_connection},
};

/// Nothing is sent on this connection by itself, so it is asked now and then whether it is still there.
const PROBE_INTERVAL: Duration = Duration::from_secs(10);

/// Between two attempts to get the connection back.
const RETRY_DELAY: Duration = Duration::from_millis(500);

/// Maximum number of subscription changes in one command.
const MAX_CHANGES_PER_COMMAND: usize = 256;

/// Registry of the watched channels, and the way to the listener.
pub(crate) struct ChannelWatches {
    place: RedisAddress,
    patience: RedisTimeouts,
    clock_key: String,
    board: Arc<WatcherCounts>,
    /// The listener is a task of the runtime that first watched; where that is gone, the next one starts another.
    listener: Mutex<Option<mpsc::UnboundedSender<SubscriptionChange>>>,
}

/// The watched channels.
#[derive(Default)]
struct WatcherCounts(Mutex<HashMap<String, WatchedChannel>>);

struct WatchedChannel {
    signal: watch::Sender<u64>,
    watchers: usize,
}

/// A change of a channel's watchers, and the caller that waits for it.
struct SubscriptionChange {
    channel: String,
    done: Option<oneshot::Sender<RedisResult<()>>>,
}

impl ChannelWatches {
    pub(crate) fn new(place: RedisAddress, patience: RedisTimeouts, clock_key: String) -> Self {
        Self { place, patience, clock_key, board: Arc::default(), listener: Mutex::default() }
    }

    /// Returns a watch that wakes from now on, until it is dropped.
    pub(crate) async fn watch(&self, channel: String) -> Result<Watch, BackendError> {
        let listener = self.listener()?;
        let signal = self.board.add_watcher(&channel);
        let guard = WatcherGuard {
            channel: channel.clone(),
            board: Arc::clone(&self.board),
            listener: listener.clone(),
        };
        let (done, told) = oneshot::channel();
        let gone = || no_answer("the task that listens for wake-ups is gone");
        listener.send(SubscriptionChange { channel, done: Some(done) }).map_err(|_| gone())?;
        // The listener bounds each of its steps; this is for a runtime that does not run it.
        let limit = 4 * (self.patience.connect + self.patience.response);
        let told = timeout(limit, told).await.map_err(|_| no_answer("no subscription in time"))?;
        told.map_err(|_| gone())?.map_err(|e| backend_error(&e))?;
        Ok(Watch::new(signal, Some(Box::new(guard))))
    }

    fn listener(&self) -> Result<mpsc::UnboundedSender<SubscriptionChange>, BackendError> {
        let mut listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = listener.as_ref().filter(|running| !running.is_closed()) {
            return Ok(running.clone());
        }
        let lost = Arc::new(Notify::new());
        let board = Arc::clone(&self.board);
        let told = Arc::clone(&lost);
        let source = ConnectionSource::new(
            &self.place,
            self.patience,
            &self.clock_key,
            Arc::new(move |push| board.hear(&push, &told)),
        )?;
        let (sender, requests) = mpsc::unbounded_channel();
        let task = Listener {
            source,
            board: Arc::clone(&self.board),
            patience: self.patience,
            wire: None,
            subscribed: HashSet::new(),
            was_connected: false,
            retry_at: Instant::now(),
        };
        tokio::spawn(task.run(requests, lost));
        *listener = Some(sender.clone());
        Ok(sender)
    }
}

impl WatcherCounts {
    fn entries(&self) -> MutexGuard<'_, HashMap<String, WatchedChannel>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add_watcher(&self, channel: &str) -> watch::Receiver<u64> {
        let mut entries = self.entries();
        let entry = entries
            .entry(channel.to_owned())
            .or_insert_with(|| WatchedChannel { signal: watch::Sender::new(0), watchers: 0 });
        entry.watchers += 1;
        entry.signal.subscribe()
    }

    /// Removes a watcher. Returns `true` if it was the last one of the channel.
    fn remove_watcher(&self, channel: &str) -> bool {
        let mut entries = self.entries();
        let Some(entry) = entries.get_mut(channel) else { return false };
        entry.watchers -= 1;
        let last = entry.watchers == 0;
        if last {
            entries.remove(channel);
        }
        last
    }

    fn watches(&self, channel: &str) -> bool {
        self.entries().contains_key(channel)
    }

    fn channels(&self) -> Vec<String> {
        self.entries().keys().cloned().collect()
    }

    fn is_empty(&self) -> bool {
        self.entries().is_empty()
    }

    fn wake_all(&self) {
        self.entries().values().for_each(|entry| entry.signal.send_modify(|n| *n += 1));
    }

    /// Called by the connection for whatever comes unasked; must not wait.
    fn hear(&self, push: &PushInfo, lost: &Notify) {
        let channel = match push.data.first() {
            Some(Value::BulkString(name)) => std::str::from_utf8(name).unwrap_or_default(),
            _ => "",
        };
        match push.kind {
            PushKind::SMessage => {
                if let Some(entry) = self.entries().get(channel) {
                    entry.signal.send_modify(|n| *n += 1);
                }
            }
            PushKind::Disconnection => lost.notify_one(),
            // A cluster that moves a slot ends its subscriptions by itself.
            PushKind::SUnsubscribe if self.watches(channel) => lost.notify_one(),
            _ => {}
        }
    }
}

/// A watcher's place on the board.
struct WatcherGuard {
    channel: String,
    board: Arc<WatcherCounts>,
    listener: mpsc::UnboundedSender<SubscriptionChange>,
}

impl std::fmt::Debug for WatcherGuard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WatcherGuard").field("channel", &self.channel).finish_non_exhaustive()
    }
}

impl Drop for WatcherGuard {
    fn drop(&mut self) {
        if self.board.remove_watcher(&self.channel) {
            // A listener that is gone has no subscription left to end.
            let _ = self
                .listener
                .send(SubscriptionChange { channel: std::mem::take(&mut self.channel), done: None });
        }
    }
}

/// The task that owns the listening connection. It alone subscribes and unsubscribes, so that the end of one watch
/// cannot overtake the beginning of the next.
struct Listener {
    source: ConnectionSource,
    board: Arc<WatcherCounts>,
    patience: RedisTimeouts,
    wire: Option<RedisConnection>,
    subscribed: HashSet<String>,
    was_connected: bool,
    retry_at: Instant,
}

impl Listener {
    /// Runs until the backend and every watch is gone.
    async fn run(mut self, mut requests: mpsc::UnboundedReceiver<SubscriptionChange>, lost: Arc<Notify>) {
        let mut probe = interval(PROBE_INTERVAL);
        probe.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut batch = Vec::with_capacity(MAX_CHANGES_PER_COMMAND);
        loop {
            let retry = self.wire.is_none() && !self.board.is_empty();
            tokio::select! {
                count = requests.recv_many(&mut batch, MAX_CHANGES_PER_COMMAND) => match count {
                    0 => return,
                    _ => self.serve(std::mem::replace(&mut batch, Vec::with_capacity(MAX_CHANGES_PER_COMMAND))).await,
                },
                () = lost.notified(), if self.wire.is_some() => self.reconnect().await,
                () = sleep_until(self.retry_at), if retry => self.reconnect().await,
                _ = probe.tick(), if self.wire.is_some() => self.probe().await,
            }
        }
    }

    async fn serve(&mut self, requests: Vec<SubscriptionChange>) {
        if self.wire.is_none() {
            let connected = match self.board.is_empty() {
                true => Ok(()),
                false => self.connect().await,
            };
            for request in requests {
                // Whoever stopped waiting has dropped its place too.
                let _ = request.done.map(|done| done.send(connected.clone()));
            }
            return;
        }
        let channels: HashSet<&str> = requests.iter().map(|request| request.channel.as_str()).collect();
        let changes: Vec<(String, bool)> = channels
            .into_iter()
            .map(|channel| (channel.to_owned(), self.board.watches(channel)))
            .filter(|(channel, wanted)| self.subscribed.contains(channel) != *wanted)
            .collect();
        let failures = self.change(changes).await;
        for SubscriptionChange { channel, done } in requests {
            let outcome = failures.get(&channel).cloned().map_or(Ok(()), Err);
            let _ = done.map(|done| done.send(outcome));
        }
        if failures.values().any(|error| error.is_timeout() || spoils_connection(error)) {
            self.reconnect().await;
        }
    }

    /// Subscribes and unsubscribes in one round trip; tells what could not be done.
    async fn change(&mut self, changes: Vec<(String, bool)>) -> HashMap<String, RedisError> {
        let Some(wire) = &self.wire else { return HashMap::new() };
        let each = changes.into_iter().map(|(channel, wanted)| {
            let mut wire = wire.clone();
            async move {
                let outcome = match wanted {
                    true => wire.subscribe(&channel).await,
                    false => wire.unsubscribe(&channel).await,
                };
                (channel, wanted, outcome)
            }
        });
        let mut failures = HashMap::new();
        for (channel, wanted, outcome) in join_all(each).await {
            match outcome {
                Ok(()) if wanted => {
                    self.subscribed.insert(channel);
                }
                Ok(()) => {
                    self.subscribed.remove(&channel);
                }
                Err(error) => {
                    failures.insert(channel, error);
                }
            }
        }
        failures
    }

    /// Opens the connection and subscribes to all that is watched.
    async fn connect(&mut self) -> RedisResult<()> {
        self.subscribed.clear();
        self.retry_at = Instant::now() + RETRY_DELAY;
        self.wire = Some(self.source.open().await?);
        let channels = self.board.channels();
        for chunk in channels.chunks(MAX_CHANGES_PER_COMMAND) {
            let failures = self.change(chunk.iter().map(|c| (c.clone(), true)).collect()).await;
            if let Some(error) = failures.into_values().next() {
                self.wire = None;
                return Err(error);
            }
        }
        // Whatever was said while there was no connection was not heard.
        if std::mem::replace(&mut self.was_connected, true) {
            self.board.wake_all();
        }
        Ok(())
    }

    async fn reconnect(&mut self) {
        self.wire = None;
        if self.board.is_empty() {
            return;
        }
        if let Err(error) = self.connect().await {
            tracing::warn!(%error, retry = ?RETRY_DELAY, "no connection for wake-ups");
        }
    }

    async fn probe(&mut self) {
        let Some(wire) = &mut self.wire else { return };
        let answer = timeout(self.patience.response, wire.one(redis::cmd("PING"))).await;
        if !matches!(answer, Ok(Ok(_))) {
            self.reconnect().await;
        }
    }
}
