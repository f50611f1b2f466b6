//! Syntax of `machinist queues`.

use clap::{Args, Subcommand};
use machinist::QueueName;

use super::value::queue;

/// All that is known about each queue: messages that wait (ready), are delayed, or are held by workers (unacked), dead letters,
/// consumers, messages per second that come and go, the age of the oldest message, and the time until the queue is empty. A
/// number that is not known is `-`, in JSON null, and notes on standard error say why. Ages are upper bounds.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct QueuesArgs {
    #[command(subcommand)]
    pub(crate) command: Option<QueuesCommand>,
    /// First create the queues of `worker.queues` with their exchanges and delay queues, for users without the
    /// permission (with topology = "verify": check them)
    #[arg(long)]
    pub(crate) declare: bool,
    /// Look again every two seconds, until interrupted
    #[arg(long)]
    pub(crate) watch: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum QueuesCommand {
    /// Show the first tasks that wait in a queue, and leave them there
    ///
    /// Each task is shown as its record says. No message is lost or moved. RabbitMQ hides the messages from workers for as long
    /// as that takes, five seconds at most, and counts a look as a delivery before its version 4.3: where messages have few
    /// deliveries left, nobody looks for a day.
    Peek {
        /// Name of the queue
        #[arg(value_parser = queue)]
        name: QueueName,
        /// Maximum number of tasks
        #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=100))]
        limit: u16,
    },
    /// Take the messages out of a queue and end their tasks
    ///
    /// Each task ends in FAILURE/revoked, and `machinist retry ID` sends it again. Tasks that run and messages of
    /// workflows stay. Messages that no worker would believe become dead letters.
    Purge {
        /// Name of the queue
        #[arg(value_parser = queue)]
        name: QueueName,
        /// Also keep the messages as dead letters, with the reason purged
        #[arg(long)]
        dead_letter: bool,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Delete a queue that is empty, has no dead letters, and that no worker consumes
    Delete {
        /// Name of the queue
        #[arg(value_parser = queue)]
        name: QueueName,
    },
    /// Let no worker take tasks from this queue until it is resumed; running ones go on
    Pause {
        /// Name of the queue
        #[arg(value_parser = queue)]
        name: QueueName,
    },
    /// Let workers take tasks from this queue again
    Resume {
        /// Name of the queue
        #[arg(value_parser = queue)]
        name: QueueName,
    },
}
