//! A lane of publishing: one channel, one window at a time, and a memory of what each message has been through.
//!
//! There are a few lanes, and a queue always uses the same two, so that a queue that does not confirm (a quorum
//! queue without its majority) or a message that costs a channel holds up those only.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use lapin::{Channel, options::ConfirmSelectOptions};
use machinist_core::broker::{Publish, PublishError};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until},
};

use crate::{
    backoff::ReconnectBackoff,
    convert,
    declare::DeclareError,
    error::{AmqpError, ServerError, rpc},
    ladder::{DELAY_UNIT, DelayRoute},
    options::TopologyMode,
    publish_window::{self, OutgoingMessage, PublishOutcome},
    supervisor::{ConnectionSettings, LiveConnection, PublishAvailability, SupervisedConnection, chain},
    topology::MessageRoute,
};

/// How many messages, and about how many bytes, are under way at once. Enough to fill the pipe; more only
/// delays the first caller's answer.
const MAX_WINDOW_MESSAGES: usize = 1000;
const MAX_WINDOW_BYTES: usize = 8 * 1024 * 1024;

/// The least time that a window gets, however near its messages' deadlines are.
const MIN_WINDOW_TIME: Duration = Duration::from_secs(5);

/// How long a queue that vanished stays away at least. RabbitMQ tells the consumers of a deleted queue some 30 ms
/// later, and does not tell them at all if by then a queue of that name exists again (seen on 3.10): they would
/// wait for ever.
const DELETED_QUEUE_PAUSE: Duration = Duration::from_millis(500);

/// How long a queue that is not ready yet is left alone.
const NEW_QUEUE_RETRY_PAUSE: Duration = Duration::from_millis(100);

/// What frames need beside the headers.
const FRAME_OVERHEAD_BYTES: usize = 64;

/// One message on its way, and the caller who waits for it.
#[derive(Debug)]
pub(crate) struct PendingPublish {
    publish: Publish,
    /// When it was asked for: from then on its delay counts, whatever it waits for before it is sent.
    asked: Instant,
    deadline: Instant,
    caller: oneshot::Sender<Result<(), PublishError>>,
    past: PublishHistory,
}

/// What a message has been through.
#[derive(Debug, Clone, Copy, Default)]
struct PublishHistory {
    /// It was in a window before.
    tried: bool,
    /// It was written to a socket and not confirmed.
    sent: bool,
    /// As `sent`, and the connection died: nobody knows what the broker did last.
    lost: bool,
    /// It was in a window whose channel the broker closed: it is sent alone, to find out whose fault that was.
    suspect: bool,
    /// What it needs was made anew for it.
    healed: bool,
}

impl PendingPublish {
    pub(crate) fn new(
        publish: Publish,
        deadline: Instant,
        caller: oneshot::Sender<Result<(), PublishError>>,
    ) -> Self {
        Self { publish, asked: Instant::now(), deadline, caller, past: PublishHistory::default() }
    }

    /// What is left of the delay. One that is over meanwhile takes the shortest ride, because that way was made sure of.
    fn ride(&self) -> Option<DelayRoute> {
        let left = self.publish.delay.saturating_sub(self.asked.elapsed());
        DelayRoute::for_delay(left.max(DELAY_UNIT.min(self.publish.delay)))
    }

    /// Tells the caller that this attempt queued nothing. Of an earlier one that nobody confirmed that is not known.
    fn refuse(self, error: PublishError) {
        let error = if self.past.sent { PublishError::Unknown(Box::new(error)) } else { error };
        self.tell(Err(error));
    }

    /// Tells the caller. One who has stopped waiting does not want to know.
    fn tell(self, result: Result<(), PublishError>) {
        let _ = self.caller.send(result);
    }
}

/// The lane's own loop and state.
#[derive(Debug)]
pub(crate) struct Publisher {
    settings: Arc<ConnectionSettings>,
    max_message_size: usize,
    link: Arc<SupervisedConnection>,
    jobs: mpsc::UnboundedReceiver<PendingPublish>,
    pending: VecDeque<PendingPublish>,
    session: Option<PublishChannel>,
    last_trouble: Option<AmqpError>,
    /// After a failure; none while all is well.
    backoff: Option<ReconnectBackoff>,
    next_id: i64,
}

/// A channel on a live connection.
#[derive(Debug, Clone)]
struct PublishChannel {
    live: Arc<LiveConnection>,
    channel: Channel,
}

/// A job of the present window.
#[derive(Debug)]
struct RoutedPublish {
    job: PendingPublish,
    queue: String,
    route: MessageRoute,
}

/// Why the whole of a queue's messages cannot be sent.
#[derive(Debug, Clone)]
enum QueueRefusal {
    Unroutable,
    Rejected(String),
}

impl Publisher {
    pub(crate) fn new(
        settings: Arc<ConnectionSettings>,
        max_message_size: usize,
        link: Arc<SupervisedConnection>,
        jobs: mpsc::UnboundedReceiver<PendingPublish>,
    ) -> Self {
        let pending = VecDeque::new();
        let (session, last_trouble, backoff) = (None, None, None);
        Self { settings, max_message_size, link, jobs, pending, session, last_trouble, backoff, next_id: 1 }
    }

    /// Publishes until nobody can send jobs any more and every caller has an answer.
    pub(crate) async fn run(mut self) {
        while self.gather().await {
            let Some(session) = self.session().await else {
                self.give_up();
                continue;
            };
            let window = self.next_window();
            let (ready, items) = match self.prepare(&session, window).await {
                Ok(prepared) => prepared,
                Err(trouble) => {
                    self.broken(trouble);
                    continue;
                }
            };
            if ready.is_empty() {
                continue;
            }
            let until = ready.iter().map(|one| one.job.deadline).min().unwrap_or_else(Instant::now);
            let until = until.max(Instant::now() + MIN_WINDOW_TIME);
            let items = ready.iter().zip(items).map(|(one, (properties, id))| OutgoingMessage {
                route: &one.route,
                body: &one.job.publish.message.body,
                properties,
                id,
            });
            let items = items.collect();
            let fates =
                Box::pin(publish_window::transmit(&session.live, &session.channel, items, until)).await;
            if let Some(pause) = self.conclude(&session, ready, fates) {
                tokio::time::sleep(pause).await;
            }
        }
    }

    /// Takes in what callers have sent; waits while there is nothing at all to do. `false` at the end.
    async fn gather(&mut self) -> bool {
        if self.pending.is_empty() {
            match self.jobs.recv().await {
                Some(job) => self.pending.push_back(job),
                None => return false,
            }
        }
        // Callers who were just given their answers ask for more at once: their messages go together.
        tokio::task::yield_now().await;
        while let Ok(job) = self.jobs.try_recv() {
            self.pending.push_back(job);
        }
        true
    }

    /// The channel to publish on; meanwhile messages that have waited too long are given their answer. `None`
    /// when there will never be one again.
    async fn session(&mut self) -> Option<PublishChannel> {
        let usable = |session: &PublishChannel| {
            session.channel.status().connected() && session.live.blocked().is_none()
        };
        if let Some(session) = self.session.clone().filter(usable) {
            return Some(session);
        }
        self.session = None;
        let pause = self.backoff.as_mut().map(ReconnectBackoff::next);
        let mut opening = Box::pin(open(Arc::clone(&self.link), pause.unwrap_or_default()));
        loop {
            let earliest = self.pending.iter().map(|job| job.deadline).min();
            tokio::select! {
                opened = &mut opening => {
                    self.session = opened;
                    return self.session.clone();
                }
                Some(job) = self.jobs.recv() => self.pending.push_back(job),
                () = sleep_until(earliest.unwrap_or_else(Instant::now)), if earliest.is_some() => self.expire(),
            }
        }
    }

    fn expire(&mut self) {
        let now = Instant::now();
        for _ in 0..self.pending.len() {
            if let Some(job) = self.pending.pop_front() {
                if job.deadline <= now { self.fail(job) } else { self.pending.push_back(job) }
            }
        }
    }

    fn give_up(&mut self) {
        while let Some(job) = self.pending.pop_front() {
            self.fail(job);
        }
    }

    /// Ends a job that could not be sent in time, or was not confirmed.
    fn fail(&self, job: PendingPublish) {
        let obstacle = self.link.obstacle();
        let trouble = || {
            let last = self.last_trouble.clone();
            Box::new(last.unwrap_or_else(|| AmqpError::silence("publishing", MIN_WINDOW_TIME)))
        };
        let error = match obstacle {
            PublishAvailability::Down(trouble) if job.past.sent => PublishError::Unknown(Box::new(trouble)),
            _ if job.past.sent => PublishError::Unknown(trouble()),
            PublishAvailability::Blocked(reason) => PublishError::Blocked { reason },
            PublishAvailability::Down(trouble) => PublishError::Unavailable(Box::new(trouble)),
            PublishAvailability::None => PublishError::Unavailable(trouble()),
        };
        job.tell(Err(error));
    }

    /// The session failed before anything of the window was sent.
    fn broken(&mut self, trouble: AmqpError) {
        tracing::debug!(error = %chain(&trouble), "a publishing channel failed");
        self.session = None;
        self.last_trouble = Some(trouble);
        self.backoff.get_or_insert_with(ReconnectBackoff::new);
        self.link.suspect();
    }

    fn next_window(&mut self) -> Vec<PendingPublish> {
        let now = Instant::now();
        let mut window = Vec::new();
        let mut bytes = 0;
        while let Some(job) = self.pending.front() {
            let size = job.publish.message.size();
            let alone = job.past.suspect && !window.is_empty();
            if alone
                || window.len() == MAX_WINDOW_MESSAGES
                || (bytes + size > MAX_WINDOW_BYTES && !window.is_empty())
            {
                break;
            }
            let Some(job) = self.pending.pop_front() else { break };
            if job.caller.is_closed() {
                continue;
            }
            if job.past.tried && job.deadline <= now {
                self.fail(job);
                continue;
            }
            bytes += size;
            let suspect = job.past.suspect;
            window.push(job);
            if suspect {
                break;
            }
        }
        window
    }

    /// Checks each message and what it needs on the broker. Those that can never be sent get their answer here.
    ///
    /// # Errors
    /// The broker did not answer; the window is back in the lane.
    async fn prepare(
        &mut self,
        session: &PublishChannel,
        window: Vec<PendingPublish>,
    ) -> Result<(Vec<RoutedPublish>, Vec<(lapin::BasicProperties, i64)>), AmqpError> {
        let mut verdicts: HashMap<(String, Option<u8>), Option<QueueRefusal>> = HashMap::new();
        let (mut ready, mut items) = (Vec::with_capacity(window.len()), Vec::with_capacity(window.len()));
        let mut window = window.into_iter();
        while let Some(mut job) = window.next() {
            job.past.tried = true;
            let publish = &job.publish;
            let queue = match self.settings.plan.queue(publish.target.queue()) {
                Ok(queue) => queue,
                Err(reason) => {
                    job.refuse(PublishError::Rejected { reason });
                    continue;
                }
            };
            let properties = match self.measure(publish, session.live.frame_max()) {
                Ok(properties) => properties,
                Err(error) => {
                    job.refuse(error);
                    continue;
                }
            };
            let need = (queue.clone(), job.ride().map(DelayRoute::highest));
            let verdict = match verdicts.get(&need) {
                Some(verdict) => verdict.clone(),
                None => match ensure(&session.live, &need.0, need.1).await {
                    Ok(verdict) => verdicts.entry(need).or_insert(verdict).clone(),
                    Err(trouble) => {
                        let again = ready.into_iter().map(|(job, _)| job);
                        self.again(again.chain([job]).chain(window).collect());
                        return Err(trouble);
                    }
                },
            };
            match verdict {
                None => {
                    items.push((properties, self.next_id));
                    self.next_id += 1;
                    ready.push((job, queue));
                }
                Some(QueueRefusal::Unroutable) => {
                    let queue = job.publish.target.queue().clone();
                    job.refuse(PublishError::Unroutable { queue });
                }
                Some(QueueRefusal::Rejected(reason)) => job.refuse(PublishError::Rejected { reason }),
            }
        }
        // Only now: what one message needed may have taken a while, and every delay counts meanwhile.
        let routed = ready.into_iter().map(|(job, queue)| {
            let route = self.settings.plan.route(&job.publish.target, &queue, job.ride());
            RoutedPublish { job, queue, route }
        });
        Ok((routed.collect(), items))
    }

    /// The properties of a message that fits: what does not would cost the channel, or even the connection, and
    /// with it every neighbour in flight.
    fn measure(&self, publish: &Publish, frame_max: usize) -> Result<lapin::BasicProperties, PublishError> {
        let size = publish.message.body.len();
        if size > self.max_message_size {
            return Err(PublishError::TooLarge { size, limit: self.max_message_size });
        }
        let (properties, size) = convert::properties(&publish.message, self.next_id)
            .map_err(|reason| PublishError::Rejected { reason })?;
        let limit = frame_max.saturating_sub(FRAME_OVERHEAD_BYTES);
        if size > limit {
            return Err(PublishError::TooLarge { size, limit });
        }
        Ok(properties)
    }

    /// Tells the callers of a window, and takes back what has to be sent again; perhaps not before a pause.
    fn conclude(
        &mut self,
        session: &PublishChannel,
        ready: Vec<RoutedPublish>,
        fates: Vec<PublishOutcome>,
    ) -> Option<Duration> {
        let mut pause = None;
        let alone = ready.len() == 1;
        let mut again = Vec::new();
        for (one, fate) in ready.into_iter().zip(fates) {
            let RoutedPublish { mut job, queue, .. } = one;
            match fate {
                PublishOutcome::Routed => {
                    self.backoff = None;
                    job.tell(Ok(()));
                }
                PublishOutcome::Refused
                    if session.live.declared.is_young(&queue)
                        && Instant::now() + NEW_QUEUE_RETRY_PAUSE < job.deadline =>
                {
                    tracing::debug!(queue, "a queue that was just declared takes no messages yet");
                    pause = pause.max(Some(NEW_QUEUE_RETRY_PAUSE));
                    again.push(job);
                }
                PublishOutcome::Refused => job.refuse(PublishError::Rejected {
                    reason: format!(
                        "negative confirm; queue {queue} is at a limit, or has lost its majority of nodes"
                    ),
                }),
                PublishOutcome::Returned
                    if self.settings.topology == TopologyMode::Declare && !job.past.healed =>
                {
                    // Somebody deleted the queue since we declared it.
                    session.live.declared.forget(&queue);
                    job.past.healed = true;
                    pause = pause.max(Some(DELETED_QUEUE_PAUSE));
                    again.push(job);
                }
                PublishOutcome::Returned => {
                    let queue = job.publish.target.queue().clone();
                    job.refuse(PublishError::Unroutable { queue });
                }
                PublishOutcome::Unsent(trouble) => {
                    self.broken(trouble);
                    again.push(job);
                }
                PublishOutcome::Lost(trouble) => {
                    session.live.declared.forget(&queue);
                    match after_loss(job.past, alone, &trouble) {
                        LossDecision::Resend(past) => {
                            job.past = past;
                            again.push(job);
                        }
                        LossDecision::Report(error) => job.tell(Err(error)),
                    }
                    self.broken(trouble);
                }
            }
        }
        self.again(again);
        pause
    }

    /// Puts jobs back where they came from, in their order.
    fn again(&mut self, jobs: Vec<PendingPublish>) {
        for job in jobs.into_iter().rev() {
            self.pending.push_front(job);
        }
    }
}

/// Opens a channel for publishing as soon as the broker takes messages; `None` when the link is closed.
async fn open(link: Arc<SupervisedConnection>, pause: Duration) -> Option<PublishChannel> {
    tokio::time::sleep(pause).await;
    let mut backoff = ReconnectBackoff::new();
    loop {
        let live = link.unblocked().await.ok()?;
        let opened = async {
            let channel = live.channel().await?;
            rpc("asking for confirms", channel.confirm_select(ConfirmSelectOptions::default())).await?;
            Ok::<_, AmqpError>(channel)
        };
        match opened.await {
            Ok(channel) => return Some(PublishChannel { live, channel }),
            Err(trouble) => {
                tracing::debug!(error = %chain(&trouble), "no channel to publish on yet");
                link.suspect();
                tokio::time::sleep(backoff.next()).await;
            }
        }
    }
}

async fn ensure(
    live: &LiveConnection,
    queue: &str,
    level: Option<u8>,
) -> Result<Option<QueueRefusal>, AmqpError> {
    let ensured = match level {
        None => live.declared.for_publish(live, queue).await,
        Some(level) => live.declared.for_delay(live, queue, level).await,
    };
    match ensured {
        Ok(()) => Ok(None),
        Err(DeclareError::Missing { name }) if name == format!("queue {queue}") => {
            Ok(Some(QueueRefusal::Unroutable))
        }
        Err(DeclareError::Missing { name }) => Ok(Some(QueueRefusal::Rejected(format!(
            "{name} does not exist on the broker; make it, or set topology to \"declare\" to have it made"
        )))),
        Err(DeclareError::Refused { reason }) => Ok(Some(QueueRefusal::Rejected(reason))),
        Err(DeclareError::Broken(trouble)) => Err(trouble),
    }
}

#[derive(Debug)]
enum LossDecision {
    Resend(PublishHistory),
    Report(PublishError),
}

/// What to do with a message whose confirm never came.
///
/// A connection that died says nothing about it: send it again. A channel that the broker closed was closed
/// because of one message of the window: each is sent again alone, and the one that does it again is the one.
fn after_loss(past: PublishHistory, alone: bool, trouble: &AmqpError) -> LossDecision {
    let Some(ServerError { code, text, .. }) = trouble.complaint().filter(|complaint| complaint.soft) else {
        return LossDecision::Resend(PublishHistory { sent: true, lost: true, ..past });
    };
    // A missing exchange is made anew before the next attempt.
    if !alone || (code == 404 && !past.healed) {
        return LossDecision::Resend(PublishHistory {
            sent: true,
            suspect: true,
            healed: past.healed || alone,
            ..past
        });
    }
    LossDecision::Report(match too_large(text) {
        Some((size, limit)) => PublishError::TooLarge { size, limit },
        // An earlier attempt may have succeeded before somebody changed something.
        None if past.lost => PublishError::Unknown(Box::new(trouble.clone())),
        None if code == 403 => PublishError::Rejected {
            reason: format!("this user may not publish there ({text}); grant write on the exchange"),
        },
        None => PublishError::Rejected { reason: text.to_owned() },
    })
}

/// `PRECONDITION_FAILED - message size 17 is larger than configured max size 16`
fn too_large(text: &str) -> Option<(usize, usize)> {
    let (size, rest) = text.split_once("message size ")?.1.split_once(' ')?;
    let limit = rest.rsplit(' ').next()?;
    Some((size.parse().ok()?, limit.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use machinist_core::{
        broker::{Message, Target},
        id::QueueName,
    };

    use super::*;

    #[test]
    fn the_brokers_limit_is_read_from_its_complaint() {
        let text =
            "PRECONDITION_FAILED - message size 200000000 is larger than configured max size 134217728";
        assert_eq!(too_large(text), Some((200_000_000, 134_217_728)));
        assert_eq!(too_large("PRECONDITION_FAILED - other"), None);
    }

    #[test]
    fn what_a_delayed_message_waits_for_before_it_is_sent_is_part_of_its_delay() {
        let rides = |delay: u64, waited: u64| {
            let publish = Publish {
                target: Target::Queue(QueueName::parse("q").unwrap()),
                message: Message::default(),
                delay: Duration::from_millis(delay),
            };
            let mut job = PendingPublish::new(publish, Instant::now(), oneshot::channel().0);
            job.asked = Instant::now().checked_sub(Duration::from_millis(waited)).unwrap();
            job.ride()
        };
        let ride = |delay| DelayRoute::for_delay(Duration::from_millis(delay));
        assert_eq!((rides(0, 0), rides(0, 50)), (None, None));
        // Of 70 s, 40 are over. Level 3 begins at 65 s, level 2 at 4.
        assert_eq!(rides(70_000, 40_000).map(DelayRoute::highest), Some(2));
        assert_eq!((rides(60_000, 60_000), rides(5, 0)), (ride(1), ride(1)));
    }
}
