//! A publisher: one channel that sends one window of messages at a time, and resends what was lost.
//!
//! There are a few publishers, and a queue always uses the same two. So a queue that does not confirm (a quorum queue
//! without its majority), or a message that makes the broker close the channel, holds up only the queues that share them.

use std::{
    collections::{HashMap, VecDeque},
    mem,
    sync::Arc,
    time::Duration,
};

use lapin::{BasicProperties, Channel, options::ConfirmSelectOptions};
use machinist_adapter::broker::{Publish, PublishError, Target};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};

use crate::{
    backoff::ReconnectBackoff,
    connection::close_channel,
    convert,
    declare::DeclareError,
    error::{AmqpError, error_chain, rpc},
    ladder::DelayRoute,
    options::TopologyMode,
    pending_publish::{LossDecision, PendingPublish, after_loss},
    publish_window::{self, OutgoingMessage, PublishOutcome},
    supervisor::{ConnectionSettings, LiveConnection, PublishAvailability, SupervisedConnection},
    topology::MessageRoute,
};

/// Maximum number of messages in a window. Enough to fill the pipe; more only delays the first caller's result.
const MAX_WINDOW_MESSAGES: usize = 1000;

/// Maximum size of a window, in bytes; a single message may be larger.
const MAX_WINDOW_BYTES: usize = 8 * 1024 * 1024;

/// Minimum time that a window gets, however near the deadlines of its messages are.
const MIN_WINDOW_TIME: Duration = Duration::from_secs(5);

/// Minimum time for which a queue that vanished stays away. RabbitMQ tells the consumers of a deleted queue some 30 ms
/// later, and does not tell them at all if a queue of that name exists again by then (seen on 3.10): they would wait
/// forever.
const DELETED_QUEUE_PAUSE: Duration = Duration::from_millis(500);

/// Time between two attempts to publish to a queue that is not ready yet.
const NEW_QUEUE_RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Room in a frame for everything except the headers, in bytes.
const FRAME_OVERHEAD_BYTES: usize = 64;

/// Loop and state of one publisher.
#[derive(Debug)]
pub(crate) struct Publisher {
    settings: Arc<ConnectionSettings>,
    max_message_size: usize,
    supervised: Arc<SupervisedConnection>,
    calls: mpsc::UnboundedReceiver<PendingPublish>,
    pending: VecDeque<PendingPublish>,
    channel: Option<PublishChannel>,
    last_error: Option<AmqpError>,
    /// Set after a failure, until a message is confirmed.
    backoff: Option<ReconnectBackoff>,
    next_id: i64,
}

/// A channel with confirms, on a live connection.
#[derive(Debug, Clone)]
struct PublishChannel {
    live: Arc<LiveConnection>,
    channel: Channel,
}

/// A message of the current window that can be sent.
#[derive(Debug)]
struct CheckedPublish {
    pending: PendingPublish,
    /// Name of its task queue on the broker.
    queue: String,
    properties: BasicProperties,
    id: i64,
}

/// A message of the current window that is ready to send.
#[derive(Debug)]
struct RoutedPublish {
    checked: CheckedPublish,
    route: MessageRoute,
}

/// Parts of the topology that a message needs.
#[derive(Debug, PartialEq, Eq, Hash)]
struct RequiredTopology {
    /// Name of the task queue on the broker.
    queue: String,
    /// Highest level of the ladder that the message goes through.
    top_level: Option<u8>,
}

/// Reason that no message of a queue can be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
enum QueueRefusal {
    /// The queue does not exist.
    Unroutable,
    /// Something on the way to the queue is missing: an exchange, a level of the ladder. It can be there later.
    NotYet(String),
    Rejected(String),
}

impl QueueRefusal {
    /// Explains why a message for this queue cannot be sent.
    ///
    /// # Errors
    /// The broker did not answer.
    fn of(error: DeclareError, queue: &str) -> Result<Self, AmqpError> {
        Ok(match error {
            DeclareError::Missing { name, .. } if name == format!("queue {queue}") => Self::Unroutable,
            DeclareError::Missing { reason, .. } => Self::NotYet(reason),
            DeclareError::Refused { reason } => Self::Rejected(reason),
            DeclareError::Failed(error) => return Err(error),
        })
    }
}

impl Publisher {
    pub(crate) fn new(
        settings: Arc<ConnectionSettings>,
        max_message_size: usize,
        supervised: Arc<SupervisedConnection>,
        calls: mpsc::UnboundedReceiver<PendingPublish>,
    ) -> Self {
        Self {
            settings,
            max_message_size,
            supervised,
            calls,
            pending: VecDeque::new(),
            channel: None,
            last_error: None,
            backoff: None,
            next_id: 1,
        }
    }

    /// Publishes until the broker is closed and every caller has a result.
    pub(crate) async fn run(mut self) {
        while self.receive().await {
            let Some(channel) = self.channel().await else {
                self.fail_all();
                continue;
            };
            let window = self.next_window();
            let mut routed = match self.prepare(&channel, window).await {
                Ok(routed) => routed,
                Err(error) => {
                    self.channel_failed(error);
                    continue;
                }
            };
            if routed.is_empty() {
                continue;
            }
            let outcomes = Box::pin(transmit(&channel, &mut routed)).await;
            if let Some(pause) = self.conclude(&channel, routed, outcomes) {
                tokio::time::sleep(pause).await;
            }
        }
        if let Some(channel) = self.channel {
            close_channel(&channel.channel).await;
        }
    }

    /// Receives the messages of callers; waits if there is nothing else to do. Returns `false` at the end.
    async fn receive(&mut self) -> bool {
        if self.pending.is_empty() {
            match self.calls.recv().await {
                Some(pending) => self.pending.push_back(pending),
                None => return false,
            }
        }
        // Callers that just got their results call again at once: their messages go together.
        tokio::task::yield_now().await;
        while let Ok(pending) = self.calls.try_recv() {
            self.pending.push_back(pending);
        }
        true
    }

    /// Returns the channel to publish on, and meanwhile fails messages whose deadline passes. `None` once the broker is
    /// closed.
    async fn channel(&mut self) -> Option<PublishChannel> {
        let is_usable = |channel: &PublishChannel| {
            channel.channel.status().connected() && channel.live.connection.blocked().is_none()
        };
        if let Some(channel) = self.channel.clone().filter(is_usable) {
            return Some(channel);
        }
        self.channel = None;
        let pause = self.backoff.as_mut().map(ReconnectBackoff::next);
        let mut opening = Box::pin(open(Arc::clone(&self.supervised), pause.unwrap_or_default()));
        loop {
            let earliest = self.pending.iter().map(|pending| pending.deadline).min();
            tokio::select! {
                opened = &mut opening => {
                    self.channel = opened;
                    return self.channel.clone();
                }
                Some(pending) = self.calls.recv() => self.pending.push_back(pending),
                () = sleep_until(earliest.unwrap_or_else(Instant::now)), if earliest.is_some() => self.fail_expired(),
            }
        }
    }

    fn fail_expired(&mut self) {
        let now = Instant::now();
        for _ in 0..self.pending.len() {
            if let Some(pending) = self.pending.pop_front() {
                if pending.deadline <= now { self.fail(pending) } else { self.pending.push_back(pending) }
            }
        }
    }

    fn fail_all(&mut self) {
        while let Some(pending) = self.pending.pop_front() {
            self.fail(pending);
        }
    }

    /// Ends a message that could not be sent in time, or was not confirmed.
    fn fail(&self, pending: PendingPublish) {
        let last_error = || {
            let error = self.last_error.clone();
            Box::new(error.unwrap_or_else(|| AmqpError::timeout("publishing", MIN_WINDOW_TIME)))
        };
        let error = match self.supervised.availability() {
            PublishAvailability::Down(error) if pending.history.sent => {
                PublishError::Unknown(Box::new(error))
            }
            _ if pending.history.sent => PublishError::Unknown(last_error()),
            PublishAvailability::Blocked(reason) => PublishError::Blocked { reason },
            PublishAvailability::Down(error) => PublishError::Unavailable(Box::new(error)),
            PublishAvailability::Available => PublishError::Unavailable(last_error()),
        };
        pending.answer(Err(error));
    }

    /// Drops the channel after a failure.
    fn channel_failed(&mut self, error: AmqpError) {
        tracing::debug!(error = %error_chain(&error), "a publishing channel failed");
        self.channel = None;
        self.last_error = Some(error);
        self.backoff.get_or_insert_with(ReconnectBackoff::new);
        self.supervised.probe_now();
    }

    fn next_window(&mut self) -> Vec<PendingPublish> {
        let now = Instant::now();
        let mut window = Vec::new();
        let mut bytes = 0;
        while let Some(next) = self.pending.front() {
            let size = next.publish.message.size();
            let is_full = window.len() == MAX_WINDOW_MESSAGES || bytes + size > MAX_WINDOW_BYTES;
            if !window.is_empty() && (is_full || next.history.suspect) {
                break;
            }
            let Some(pending) = self.pending.pop_front() else { break };
            if pending.caller.is_closed() {
                continue;
            }
            if pending.history.tried && pending.deadline <= now {
                self.fail(pending);
                continue;
            }
            bytes += size;
            let is_suspect = pending.history.suspect;
            window.push(pending);
            if is_suspect {
                break;
            }
        }
        window
    }

    /// Checks each message and the topology that it needs. Messages that can never be sent get their result here.
    ///
    /// # Errors
    /// The broker did not answer; the messages of the window are pending again.
    async fn prepare(
        &mut self,
        channel: &PublishChannel,
        window: Vec<PendingPublish>,
    ) -> Result<Vec<RoutedPublish>, AmqpError> {
        let mut refusals: HashMap<RequiredTopology, Option<QueueRefusal>> = HashMap::new();
        let mut checked: Vec<CheckedPublish> = Vec::with_capacity(window.len());
        let mut window = window.into_iter();
        while let Some(mut pending) = window.next() {
            pending.history.tried = true;
            let (queue, properties) = match self.check(&pending.publish, channel) {
                Ok(passed) => passed,
                Err(error) => {
                    pending.refuse(error);
                    continue;
                }
            };
            let top_level = pending.delay_route().map(DelayRoute::top_level);
            let required = RequiredTopology { queue: queue.clone(), top_level };
            let refusal = match refusals.get(&required) {
                Some(refusal) => refusal.clone(),
                None => match ensure(&channel.live, &required).await {
                    Ok(refusal) => refusals.entry(required).or_insert(refusal).clone(),
                    Err(error) => {
                        let before = checked.into_iter().map(|checked| checked.pending);
                        self.put_back(before.chain([pending]).chain(window).collect());
                        return Err(error);
                    }
                },
            };
            match refusal {
                None => {
                    checked.push(CheckedPublish { pending, queue, properties, id: self.next_id });
                    self.next_id += 1;
                }
                Some(QueueRefusal::Unroutable) => pending.refuse_unroutable(),
                Some(QueueRefusal::NotYet(reason)) => pending.refuse(PublishError::Nacked { reason }),
                Some(QueueRefusal::Rejected(reason)) => pending.refuse(PublishError::Rejected { reason }),
            }
        }
        // Routed only now: declaring the topology may have taken a while, which counts for every delay.
        let topology = &self.settings.topology;
        let routed = checked.into_iter().map(|checked| {
            let pending = &checked.pending;
            let route = topology.route(&pending.publish.target, &checked.queue, pending.delay_route());
            RoutedPublish { checked, route }
        });
        Ok(routed.collect())
    }

    /// Returns the queue's name on the broker and the properties of a message that fits. One that does not fit would make
    /// the broker close the channel, or even the connection, with every neighbour in flight.
    fn check(
        &self,
        publish: &Publish,
        channel: &PublishChannel,
    ) -> Result<(String, BasicProperties), PublishError> {
        let rejected = |reason| PublishError::Rejected { reason };
        let queue = self.settings.topology.queue_name(publish.target.queue()).map_err(rejected)?;
        publish.message.check_depth()?;
        let size = publish.message.body.len();
        // The broker has taken a dead letter before, in another queue, and tells if it is too large now.
        if size > self.max_message_size && !matches!(publish.target, Target::DeadLetters(_)) {
            return Err(PublishError::TooLarge { size, limit: self.max_message_size });
        }
        let (properties, size) = convert::properties(&publish.message, self.next_id).map_err(rejected)?;
        let limit = channel.live.connection.frame_max().saturating_sub(FRAME_OVERHEAD_BYTES);
        if size > limit {
            return Err(PublishError::TooLarge { size, limit });
        }
        Ok((queue, properties))
    }

    /// Gives the callers of a window their results, and puts back the messages to send again. Returns the time to wait
    /// before that.
    fn conclude(
        &mut self,
        channel: &PublishChannel,
        routed: Vec<RoutedPublish>,
        outcomes: Vec<PublishOutcome>,
    ) -> Option<Duration> {
        let declared = &channel.live.declared;
        let is_alone = routed.len() == 1;
        let mut pause = None;
        let mut again = Vec::new();
        for (routed, outcome) in routed.into_iter().zip(outcomes) {
            let CheckedPublish { mut pending, queue, .. } = routed.checked;
            match outcome {
                PublishOutcome::Routed => {
                    self.backoff = None;
                    pending.answer(Ok(()));
                }
                PublishOutcome::Refused
                    if declared.is_new(&queue)
                        && Instant::now() + NEW_QUEUE_RETRY_PAUSE < pending.deadline =>
                {
                    tracing::debug!(queue, "a queue that was just declared takes no messages yet");
                    pause = pause.max(Some(NEW_QUEUE_RETRY_PAUSE));
                    again.push(pending);
                }
                PublishOutcome::Refused => {
                    let delayed = pending.delay_route().map_or("", |_| ", or a queue of the delays,");
                    pending.refuse(PublishError::Nacked {
                        reason: format!(
                            "negative confirm; queue {queue}{delayed} is at a limit, or has lost its majority of nodes"
                        ),
                    });
                }
                PublishOutcome::Returned
                    if self.settings.topology_mode == TopologyMode::Declare
                        && !pending.history.redeclared =>
                {
                    // Somebody deleted the queue since we declared it.
                    declared.forget(&queue);
                    pending.history.redeclared = true;
                    pause = pause.max(Some(DELETED_QUEUE_PAUSE));
                    again.push(pending);
                }
                PublishOutcome::Returned => pending.refuse_unroutable(),
                PublishOutcome::Unsent(error) => {
                    self.channel_failed(error);
                    again.push(pending);
                }
                PublishOutcome::Unconfirmed(error) => {
                    declared.forget(&queue);
                    match after_loss(pending.history, is_alone, &error) {
                        LossDecision::Resend(history) => {
                            pending.history = history;
                            again.push(pending);
                        }
                        LossDecision::Report(error) => pending.answer(Err(error)),
                    }
                    self.channel_failed(error);
                }
            }
        }
        self.put_back(again);
        pause
    }

    /// Puts messages back to the front of the pending ones, in their order.
    fn put_back(&mut self, messages: Vec<PendingPublish>) {
        for pending in messages.into_iter().rev() {
            self.pending.push_front(pending);
        }
    }
}

/// Sends a window and waits for its outcomes.
async fn transmit(channel: &PublishChannel, routed: &mut [RoutedPublish]) -> Vec<PublishOutcome> {
    let deadlines = routed.iter().map(|routed| routed.checked.pending.deadline);
    let earliest = deadlines.min().unwrap_or_else(Instant::now);
    let until = earliest.max(Instant::now() + MIN_WINDOW_TIME);
    let messages = routed.iter_mut().map(|RoutedPublish { checked, route }| OutgoingMessage {
        route,
        body: &checked.pending.publish.message.body,
        properties: mem::take(&mut checked.properties),
        id: checked.id,
    });
    let messages = messages.collect();
    publish_window::transmit(&channel.live.connection, &channel.channel, messages, until).await
}

/// Opens a channel for publishing as soon as the broker takes messages; `None` once the connection is closed.
async fn open(supervised: Arc<SupervisedConnection>, pause: Duration) -> Option<PublishChannel> {
    tokio::time::sleep(pause).await;
    let mut backoff = ReconnectBackoff::new();
    loop {
        let live = supervised.unblocked().await.ok()?;
        let opened = async {
            let channel = live.connection.open_channel().await?;
            rpc("asking for confirms", channel.confirm_select(ConfirmSelectOptions::default())).await?;
            Ok::<_, AmqpError>(channel)
        };
        match opened.await {
            Ok(channel) => return Some(PublishChannel { live, channel }),
            Err(error) => {
                tracing::debug!(error = %error_chain(&error), "no channel to publish on yet");
                supervised.probe_now();
                tokio::time::sleep(backoff.next()).await;
            }
        }
    }
}

/// Makes sure that the required topology exists, and returns the reason if it cannot be.
async fn ensure(
    live: &LiveConnection,
    required: &RequiredTopology,
) -> Result<Option<QueueRefusal>, AmqpError> {
    let RequiredTopology { queue, top_level } = required;
    let ensured = match top_level {
        None => live.declared.for_publish(&live.connection, queue).await,
        Some(level) => live.declared.for_delay(&live.connection, queue, *level).await,
    };
    match ensured {
        Ok(()) => Ok(None),
        Err(error) => QueueRefusal::of(error, queue).map(Some),
    }
}
