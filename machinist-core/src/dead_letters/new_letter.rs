//! A message on its way among the dead letters.

use std::time::Duration;

use super::DeadLetter;
use crate::{
    app::App,
    broker::{Message, Publish, Target},
    clock::Timestamp,
    id::QueueName,
    record::{DeadReason, ErrorText},
    wire::{DeadMark, MarkedMessage, dead_letter},
};

/// A dead letter before it is published, with its entry of the index.
pub(crate) struct NewDeadLetter {
    pub(crate) publish: Publish,
    pub(crate) entry: DeadLetter,
}

impl NewDeadLetter {
    /// Marks a message as the dead letter of a task of this queue.
    pub(crate) fn of_task(
        app: &App,
        queue: &QueueName,
        message: &Message,
        dead_id: String,
        reason: DeadReason,
        error: ErrorText,
    ) -> Self {
        let marked = MarkedMessage::of(message);
        Self::marked(app, queue, message, marked, dead_id, reason, error)
    }

    /// Marks a message whose claims are not believed as a dead letter of this queue. The same message has the same id,
    /// however often it comes.
    pub(crate) fn refused(
        app: &App,
        queue: &QueueName,
        message: &Message,
        reason: DeadReason,
        error: &str,
    ) -> Self {
        let marked = MarkedMessage::of(message);
        let dead_id = format!("refused-{}", marked.digest.short_text());
        Self::marked(app, queue, message, marked, dead_id, reason, ErrorText::from(error))
    }

    fn marked(
        app: &App,
        queue: &QueueName,
        message: &Message,
        marked: MarkedMessage,
        dead_id: String,
        reason: DeadReason,
        error: ErrorText,
    ) -> Self {
        let at: Timestamp = app.clock().now();
        let mark = DeadMark { dead_id, reason: reason.as_str().to_owned(), error, at, signature: None };
        let mark = app.0.trust.sign_mark(mark, queue, &marked);
        let publish = Publish {
            target: Target::DeadLetters(queue.clone()),
            message: dead_letter(message, &mark),
            delay: Duration::ZERO,
        };
        Self { publish, entry: DeadLetter::new(app, queue, mark, marked, message.size()) }
    }
}
