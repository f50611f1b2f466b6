//! Syntax of `machinist queues`.

use clap::{Args, Subcommand};
use machinist::QueueName;

use super::value::queue;

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct QueuesArgs {
    #[command(subcommand)]
    pub(crate) command: Option<QueuesCommand>,
    /// First create the queues of `worker.queues` with their exchanges and delay queues, for users without the
    /// permission (with topology = "verify": check them)
    #[arg(long)]
    pub(crate) declare: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum QueuesCommand {
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
