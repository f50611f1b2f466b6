//! Syntax of `machinist limits`.

use clap::{Args, Subcommand};
use machinist::limit::LimitTarget;

/// Limits hold for all workers together. They are in the code or the machinist.toml of the workers, or set live. A live
/// limit wins over the others.
#[derive(Debug, Subcommand)]
pub(crate) enum LimitsCommand {
    /// List the limits of the live workers and the live limits
    List,
    /// Show one limit, and what runs under it
    Show(LimitKeyArgs),
    /// Set a limit for all workers at once, until it is reset
    Set {
        /// Task or queue: task:NAME or queue:NAME
        #[arg(value_name = "TARGET", value_parser = LimitTarget::parse)]
        target: LimitTarget,
        /// Options: rate=5/s, burst=10, cost=2, max_running=1 (0 pauses) and limit_key={0}
        #[arg(value_name = "KEY=VALUE", required = true)]
        options: Vec<String>,
    },
    /// Remove a live limit, forget reserved starts, and release the tasks that wait
    Reset(LimitKeyArgs),
}

#[derive(Debug, Args)]
pub(crate) struct LimitKeyArgs {
    /// Task or queue: task:NAME or queue:NAME
    #[arg(value_name = "TARGET", value_parser = LimitTarget::parse)]
    pub(crate) target: LimitTarget,
    /// Key, for a limit that has one bucket for each key
    #[arg(long, value_name = "KEY")]
    pub(crate) key: Option<String>,
}
