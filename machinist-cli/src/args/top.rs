//! Syntax of `machinist top`.

use std::path::PathBuf;

use clap::{Args, ValueHint};

/// `?` shows the keys: small letters look, capital letters act after a question. It asks again every two seconds.
#[derive(Debug, Args)]
pub(crate) struct TopArgs {
    /// Append the log to this file; it never goes to the screen
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) log_file: Option<PathBuf>,
}
