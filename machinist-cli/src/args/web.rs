//! Syntax of `machinist web`.

use std::net::SocketAddr;

use clap::{Args, Subcommand};

use super::{flag_help, value::health_address};

/// Every page works without script. At another address than one of this host alone it needs web.password_file,
/// web.token_file or web.proxy_header in machinist.toml.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  machinist web                                      on this host alone, for everybody who uses it
  machinist web user ada --role admin >> users.txt   a line of the password file
  machinist web logout ada                           end all sessions of ada")]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct WebArgs {
    #[command(subcommand)]
    pub(crate) command: Option<WebCommand>,
    #[arg(help = flag_help("--listen"), long, value_name = "IP:PORT", value_parser = health_address)]
    pub(crate) listen: Option<SocketAddr>,
    #[arg(help = flag_help("--read-only"), long)]
    pub(crate) read_only: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum WebCommand {
    /// Print a line of the password file; the password is read from standard input
    User {
        /// Name of the user
        #[arg(value_parser = user_name)]
        name: String,
        /// Role: viewer sees everything, operator retries, replays, revokes and pauses, admin does everything
        #[arg(long, value_parser = ["viewer", "operator", "admin"], default_value = "viewer")]
        role: String,
    },
    /// End all sessions of a user
    Logout {
        /// Name of the user
        #[arg(value_parser = user_name)]
        name: String,
    },
}

/// Reads the name of a user: a colon would end it in the password file.
fn user_name(text: &str) -> Result<String, String> {
    let fits = !text.trim().is_empty() && text.trim() == text && !text.starts_with('#');
    match fits && !text.contains(|c: char| c == ':' || c.is_control()) {
        true => Ok(text.to_owned()),
        false => Err(format!(
            "{text:?} is no name of a user; leave out colons, control characters and outer blanks"
        )),
    }
}
