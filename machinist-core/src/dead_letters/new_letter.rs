//! A message on its way among the dead letters.

use std::time::Duration;

use super::DeadLetter;
use crate::{
    broker::{Message, Publish, Target},
    id::QueueName,
    wire::{DeadMark, dead_letter},
};

/// A dead letter before it is published, with its entry of the index.
pub(crate) struct NewDeadLetter {
    pub(crate) publish: Publish,
    pub(crate) entry: DeadLetter,
}

impl NewDeadLetter {
    /// Marks a message as a dead letter of this queue.
    pub(crate) fn new(queue: &QueueName, message: &Message, mark: DeadMark) -> Self {
        let publish = Publish {
            target: Target::DeadLetters(queue.clone()),
            message: dead_letter(message, &mark),
            delay: Duration::ZERO,
        };
        Self { publish, entry: DeadLetter::of(queue, message, mark) }
    }
}
