//! The tasks that a process has accepted and that its broker has not confirmed yet, and the bounds of their number.
//!
//! Nothing here sends. What leaves the buffer without a confirm is counted, and its sender gets the error.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use tokio::{
    sync::{oneshot, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    error::SendError,
    id::{QueueName, TaskId},
    prepared_signature::RetriedSend,
};

/// Maximum number of buffered tasks that are sent at once.
const TASKS_AT_ONCE: usize = 256;

/// Bounds of the tasks that [`Client::send_buffered`](crate::Client::send_buffered) keeps in memory until the broker has
/// confirmed them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BufferLimits {
    /// Maximum number of tasks. Default: 10,000.
    pub tasks: usize,
    /// Maximum size of their messages, in bytes. Default: 64 MiB. A task takes somewhat more memory than its message.
    pub bytes: usize,
    /// Time for which a task is kept and sent again until it is confirmed. Default: 30 s.
    pub keep_for: Duration,
}

impl Default for BufferLimits {
    fn default() -> Self {
        Self { tasks: 10_000, bytes: 64 * 1024 * 1024, keep_for: Duration::from_secs(30) }
    }
}

/// Numbers of the buffered tasks of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct BufferCounts {
    /// Tasks that were accepted and have not left the buffer.
    pub waiting: usize,
    /// Size of their messages, in bytes.
    pub bytes: usize,
    /// Tasks that were not accepted, because the buffer was full.
    pub refused: u64,
    /// Tasks that were accepted and left the buffer without a confirm.
    pub dropped: u64,
}

/// A buffered task that was confirmed, without the application that reads its result.
#[derive(Debug)]
pub(crate) struct ConfirmedSend {
    pub(crate) result: TaskId,
    pub(crate) root: Option<TaskId>,
    pub(crate) is_duplicate: bool,
    pub(crate) queue: Option<QueueName>,
}

/// Receives the answer about a buffered task.
pub(crate) type BufferedAnswer = oneshot::Receiver<Result<ConfirmedSend, SendError>>;

/// A task in the buffer.
pub(crate) struct BufferedTask {
    pub(crate) send: RetriedSend,
    pub(crate) accepted: Instant,
    pub(crate) deadline: Instant,
    /// Span in which it was accepted.
    pub(crate) span: tracing::Span,
    /// `true` if a try may have queued it.
    pub(crate) may_be_queued: bool,
    pub(crate) last_error: Option<SendError>,
    answer: oneshot::Sender<Result<ConfirmedSend, SendError>>,
    room: UsedRoom,
}

/// The room of a task in the buffer, which is free when the task leaves it.
#[derive(Debug)]
struct UsedRoom {
    buffer: Weak<SendBuffer>,
    bytes: usize,
    is_confirmed: bool,
}

/// The buffer of an application.
pub(crate) struct SendBuffer {
    limits: BufferLimits,
    counts: watch::Sender<BufferCounts>,
    state: Mutex<BufferState>,
}

#[derive(Default)]
struct BufferState {
    /// Tasks that are not being sent just now, the oldest first.
    tasks: VecDeque<BufferedTask>,
    /// `true` while a future sends the tasks.
    is_sending: bool,
    /// Ends all tries, because what is left is dropped.
    cut: CancellationToken,
}

impl SendBuffer {
    pub(crate) fn new(limits: BufferLimits) -> Arc<Self> {
        Arc::new(Self { limits, counts: watch::Sender::default(), state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, BufferState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn counts(&self) -> BufferCounts {
        *self.counts.borrow()
    }

    /// Accepts a task. Returns what receives its answer, and `true` if nobody sends the tasks yet.
    ///
    /// # Errors
    /// [`SendError::BufferFull`].
    pub(crate) fn accept(self: &Arc<Self>, send: RetriedSend) -> Result<(BufferedAnswer, bool), SendError> {
        let bytes = send.prepared.publish.message.size();
        // Locked, so that others accept nothing between the question for room and its use.
        let mut state = self.state();
        let BufferCounts { waiting, bytes: held, .. } = self.counts();
        if waiting >= self.limits.tasks || held.saturating_add(bytes) > self.limits.bytes {
            self.counts.send_modify(|counts| counts.refused += 1);
            return Err(SendError::BufferFull { id: send.prepared.sending.id, tasks: waiting, bytes: held });
        }
        let (answer, receiver) = oneshot::channel();
        let now = Instant::now();
        self.counts.send_modify(|counts| {
            counts.waiting += 1;
            counts.bytes += bytes;
        });
        state.tasks.push_back(BufferedTask {
            send,
            accepted: now,
            deadline: now + self.limits.keep_for,
            span: tracing::Span::current(),
            may_be_queued: false,
            last_error: None,
            answer,
            room: UsedRoom { buffer: Arc::downgrade(self), bytes, is_confirmed: false },
        });
        let is_first = !std::mem::replace(&mut state.is_sending, true);
        Ok((receiver, is_first))
    }

    /// Takes the oldest tasks, to send them, and the token that ends their tries. After an empty answer, the next task that is
    /// accepted begins to send again.
    pub(crate) fn take(&self) -> (Vec<BufferedTask>, CancellationToken) {
        let mut state = self.state();
        let number = state.tasks.len().min(TASKS_AT_ONCE);
        state.is_sending = number > 0;
        (state.tasks.drain(..number).collect(), state.cut.clone())
    }

    /// Gives tasks back that were not sent: those of `first` keep their places, and others go before those of `last`. Returns
    /// them if the buffer was cut off since they were taken.
    pub(crate) fn give_back(
        &self,
        first: Vec<BufferedTask>,
        last: Vec<BufferedTask>,
        cut: &CancellationToken,
    ) -> Vec<BufferedTask> {
        let mut state = self.state();
        if cut.is_cancelled() {
            return first.into_iter().chain(last).collect();
        }
        for task in first.into_iter().rev() {
            state.tasks.push_front(task);
        }
        state.tasks.extend(last);
        Vec::new()
    }

    /// Takes the tasks whose time is over.
    pub(crate) fn take_expired(&self) -> Vec<BufferedTask> {
        let now = Instant::now();
        let mut state = self.state();
        let mut expired = Vec::new();
        let mut kept = VecDeque::with_capacity(state.tasks.len());
        for task in std::mem::take(&mut state.tasks) {
            if task.deadline <= now {
                expired.push(task);
            } else {
                kept.push_back(task);
            }
        }
        state.tasks = kept;
        expired
    }

    /// Returns the next time at which the time of a task is over.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.state().tasks.iter().map(|task| task.deadline).min()
    }

    /// Says that the future which sends the tasks has ended. The next task that is accepted begins another.
    pub(crate) fn sending_ended(&self) {
        self.state().is_sending = false;
    }

    /// Takes all tasks that are not being sent, and ends the tries of the others.
    pub(crate) fn cut_off(&self) -> Vec<BufferedTask> {
        let mut state = self.state();
        std::mem::take(&mut state.cut).cancel();
        Vec::from(std::mem::take(&mut state.tasks))
    }

    /// Completes when no task is in the buffer.
    pub(crate) async fn emptied(&self) {
        // The sender lives in self, so waiting cannot fail.
        drop(self.counts.subscribe().wait_for(|counts| counts.waiting == 0).await);
    }

    fn leaves(&self, room: &UsedRoom) {
        self.counts.send_modify(|counts| {
            counts.waiting = counts.waiting.saturating_sub(1);
            counts.bytes = counts.bytes.saturating_sub(room.bytes);
            counts.dropped += u64::from(!room.is_confirmed);
        });
    }
}

impl BufferedTask {
    /// Answers its sender, and makes room for another.
    pub(crate) fn answer(self, answer: Result<ConfirmedSend, SendError>) {
        let Self { answer: to, mut room, .. } = self;
        room.is_confirmed = answer.is_ok();
        // First the room: who has the answer sees the counts without this task.
        drop(room);
        // A sender that does not ask needs no answer.
        let _ = to.send(answer);
    }

    /// Answers its sender that it was dropped.
    pub(crate) fn drop_unconfirmed(mut self) {
        let id = self.send.prepared.sending.id.clone();
        let waited = self.accepted.elapsed();
        let source = self.last_error.take().map(Box::new);
        let may_be_queued = self.may_be_queued;
        self.answer(Err(SendError::Dropped { id, waited, may_be_queued, source }));
    }
}

impl Drop for UsedRoom {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.upgrade() {
            buffer.leaves(self);
        }
    }
}

impl Drop for SendBuffer {
    fn drop(&mut self) {
        let waiting = self.counts().waiting;
        if waiting > 0 {
            tracing::error!(
                waiting,
                "the application ended with buffered tasks that were not sent; flush the buffer before"
            );
        }
    }
}

impl fmt::Debug for SendBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendBuffer").field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// Arguments are not printed: they belong to the user, and logs do not.
impl fmt::Debug for BufferedTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BufferedTask").field("id", &self.send.prepared.sending.id).finish_non_exhaustive()
    }
}
