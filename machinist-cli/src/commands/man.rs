//! `machinist man`: writes the manual pages, for packages of distributions.

use std::path::Path;

use clap::CommandFactory;

use crate::{
    args::Cli,
    exit::{CliError, Code},
};

/// Writes `machinist.1`, and a page for each command.
pub(super) fn run(folder: &Path) -> Result<Code, CliError> {
    let written = std::fs::create_dir_all(folder)
        .and_then(|()| clap_mangen::generate_to(Cli::command().disable_help_subcommand(true), folder));
    written.map(|()| Code::Success).map_err(|error| {
        CliError::from_error(Code::Usage, &error)
            .context(format_args!("the manual pages cannot be written to {}", folder.display()))
            .remedy("name a folder that you may write to, such as man")
    })
}
