//! Sending from a bounded buffer: the caller goes on at once, and the task follows as soon as the broker takes it.
//!
//! A buffer in memory is lost with its process. So it is for those who rather lose a task than wait, it says what it drops, and
//! nothing uses it unasked.

use std::{fmt, marker::PhantomData, sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::{
    Client,
    send_within::{FIRST_WAIT, LONGEST_WAIT, jittered, may_pass},
};
use crate::{
    app::App,
    args::Results,
    error::SendError,
    event::{EventKind, EventTask},
    id::TaskId,
    prepared_signature::Sending,
    result::AsyncResult,
    send_buffer::{BufferCounts, BufferedAnswer, BufferedTask, SendBuffer},
    workflow::Sendable,
};

/// A task that was accepted, and is on its way to the broker. Dropping this changes nothing.
pub struct BufferedSend<R = Results> {
    app: App,
    id: TaskId,
    answer: BufferedAnswer,
    result: PhantomData<fn() -> R>,
}

impl<R> BufferedSend<R> {
    /// Id of the task.
    pub fn id(&self) -> &TaskId {
        &self.id
    }

    /// Waits until the broker has confirmed the task, or it was dropped.
    ///
    /// # Errors
    /// [`SendError::Dropped`] if the time of the buffer was over or the buffer was flushed; otherwise an error that another try
    /// would meet again.
    ///
    /// # Cancel safety
    /// The answer is lost. The task is sent nevertheless.
    pub async fn confirmed(self) -> Result<AsyncResult<R>, SendError> {
        match self.answer.await {
            Ok(answer) => Ok(AsyncResult::confirmed(self.app, answer?).typed()),
            // The runtime that sent the tasks has ended.
            Err(_) => Err(SendError::Dropped {
                id: self.id,
                waited: Duration::ZERO,
                may_be_queued: true,
                source: None,
            }),
        }
    }
}

impl<R> fmt::Debug for BufferedSend<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BufferedSend").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Client {
    /// Accepts a signature or a workflow, and sends it in the background: at once, and again while the broker or the backend is
    /// away or the queue is full, until the task is confirmed or its time in the buffer is over
    /// ([`AppBuilder::buffer`](crate::AppBuilder::buffer)). Every try has the same id, so there is one task.
    ///
    /// Accepted is not sent: the task is lost if the process ends before the broker has confirmed it.
    /// [`BufferedSend::confirmed`] waits for that, and [`flush_buffer`](Self::flush_buffer) for all tasks. A delay counts from
    /// now. The oldest tasks are sent first, up to 256 at once, which may overtake each other. One that has to wait for its queue
    /// is overtaken by others.
    ///
    /// # Errors
    /// [`SendError::BufferFull`], and errors of the signature itself.
    ///
    /// # Cancel safety
    /// A dropped future leaves the task either accepted or not.
    ///
    /// # Examples
    /// ```
    /// # use machinist_core::{TaskDef, TaskError};
    /// # const ADD: TaskDef<(i64, i64), i64> = TaskDef::new("add");
    /// # async fn add(a: i64, b: i64) -> Result<i64, TaskError> { Ok(a + b) }
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let app = machinist_test::TestApp::new(|worker| worker.task(ADD, add)).await;
    /// # let client = app.client();
    /// use std::time::Duration;
    ///
    /// let accepted = client.send_buffered(ADD.call((2, 3))).await?;
    /// println!("accepted {}", accepted.id());
    ///
    /// // Before the process ends:
    /// let counts = client.flush_buffer(Duration::from_secs(10)).await;
    /// assert_eq!((counts.waiting, counts.dropped), (0, 0));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn send_buffered<S: Sendable>(
        &self,
        what: S,
    ) -> Result<BufferedSend<S::ResultType>, SendError> {
        let sendable = what.into_parts();
        let id = sendable.parts.id.clone();
        if self.is_nested(&sendable) {
            return Err(SendError::Invalid(format!(
                "workflow {id} cannot be buffered in the format of another program, which takes several messages; use send_within"
            )));
        }
        // What is wrong with it is told now, not when nobody listens.
        let (answer, is_first) = self.app.0.buffer.accept(self.prepare_retried(sendable)?)?;
        if is_first {
            tokio::spawn(send_all_buffered(self.app.clone()));
        }
        Ok(BufferedSend { app: self.app.clone(), id, answer, result: PhantomData })
    }

    /// Waits until every buffered task is confirmed, at most for `timeout`; what is left then is dropped, and each of its
    /// senders gets [`SendError::Dropped`]. Call it before the process ends. Returns the numbers afterwards.
    ///
    /// # Cancel safety
    /// Safe: without an end, nothing is dropped.
    pub async fn flush_buffer(&self, timeout: Duration) -> BufferCounts {
        let buffer = &self.app.0.buffer;
        if tokio::time::timeout(timeout, buffer.emptied()).await.is_err() {
            self.drop_buffered(buffer.cut_off());
            // What is being sent has been told to end.
            buffer.emptied().await;
        }
        buffer.counts()
    }

    /// Returns the numbers of the buffered tasks.
    pub fn buffer_counts(&self) -> BufferCounts {
        self.app.0.buffer.counts()
    }

    /// Tries to send a task. Returns it if another try may succeed.
    async fn try_buffered(&self, mut task: BufferedTask, cut: &CancellationToken) -> Option<BufferedTask> {
        let sending = Box::pin(self.try_send(&task.send).instrument(task.span.clone()));
        let sent: Option<Result<AsyncResult, SendError>> = tokio::select! {
            // First: what was told to end does not begin.
            biased;
            () = cut.cancelled() => None,
            sent = timeout_at(task.deadline, sending) => sent.ok(),
        };
        match sent {
            None => {
                task.may_be_queued = true;
                self.drop_buffered(vec![task]);
                None
            }
            Some(Ok(sent)) => {
                task.answer(Ok(sent.into_confirmed()));
                None
            }
            Some(Err(error)) if may_pass(&error) => {
                task.may_be_queued |= error.is_unknown();
                task.last_error = Some(error);
                Some(task)
            }
            Some(Err(error)) => {
                self.tell_of_dropped(&task);
                task.answer(Err(error));
                None
            }
        }
    }

    fn drop_buffered(&self, tasks: Vec<BufferedTask>) {
        for task in tasks {
            self.tell_of_dropped(&task);
            task.drop_unconfirmed();
        }
    }

    /// Tells of a task that is dropped: observers of each, people of some.
    fn tell_of_dropped(&self, task: &BufferedTask) {
        let Sending { id, name, queue, .. } = &task.send.prepared.sending;
        let (waited, may_be_queued) = (task.accepted.elapsed(), task.may_be_queued);
        let of = EventTask::new(id, name, queue, 1);
        self.app.emit(EventKind::SendDropped { task: of, waited, may_be_queued });
        if let Some(suppressed) = self.app.0.log_lines.due("buffer", name.as_str()) {
            let error = task.last_error.as_ref().map(|error| error as &dyn std::error::Error);
            tracing::error!(%id, error, suppressed, "a buffered task was dropped");
        }
    }
}

/// The future that sends the buffered tasks. It says when it has ended, also if it is dropped.
struct BufferSender {
    buffer: Arc<SendBuffer>,
    /// `true` if the buffer knows it.
    is_over: bool,
}

impl Drop for BufferSender {
    fn drop(&mut self) {
        if !self.is_over {
            self.buffer.sending_ended();
        }
    }
}

/// Sends the buffered tasks until none is left. While none can be sent, the tries are further and further apart.
async fn send_all_buffered(app: App) {
    let client = app.client();
    let mut sender = BufferSender { buffer: Arc::clone(&app.0.buffer), is_over: false };
    let buffer = Arc::clone(&app.0.buffer);
    let mut wait = FIRST_WAIT;
    loop {
        client.drop_buffered(buffer.take_expired());
        let (tasks, cut) = buffer.take();
        if tasks.is_empty() {
            sender.is_over = true;
            return;
        }
        let number = tasks.len();
        let left = join_all(tasks.into_iter().map(|task| client.try_buffered(task, &cut))).await;
        let (away, one): (Vec<_>, Vec<_>) = left
            .into_iter()
            .flatten()
            .partition(|task| matches!(task.last_error, Some(SendError::Publish { .. })));
        let is_any_sent = away.len() + one.len() < number;
        // Those that wait for their own queue let the others pass, and are asked about once a second.
        let longest = if away.is_empty() { Duration::from_secs(1) } else { LONGEST_WAIT };
        client.drop_buffered(buffer.give_back(away, one, &cut));
        if is_any_sent {
            wait = FIRST_WAIT;
            continue;
        }
        let next = (Instant::now() + jittered(wait.min(longest)))
            .min(buffer.next_deadline().unwrap_or_else(|| Instant::now() + longest));
        tokio::select! {
            () = tokio::time::sleep_until(next) => {}
            () = cut.cancelled() => {}
        }
        wait = (wait * 2).min(longest);
    }
}
