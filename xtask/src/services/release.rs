//! Which RabbitMQ is started: the machine's own, or the one of Debian's unstable suite.
//!
//! The other one is unpacked once, with the libraries it was built for, into a directory that goes with `cargo
//! clean`. Its programs then run in a mount namespace of their own in which its `/usr` lies over the machine's: they
//! see the same data directories, ports and process ids as everybody, and nothing stays mounted when they end.

use std::{
    env,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use nix::unistd::geteuid;

use super::install;
use crate::{
    command::{self, Workspace},
    interrupt::Interrupt,
};

/// Has programs that start servers of their own start the same RabbitMQ: the `/usr` that it is in.
const USR: &str = "MACHINIST_TEST_RABBITMQ_USR";
const SUITE: &str = "sid";

/// A major version of RabbitMQ that is not the machine's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Major {
    #[value(name = "4")]
    Four,
}

/// Where the programs of RabbitMQ and Erlang are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Release {
    /// Where the machine's package has put them.
    Installed,
    /// In this `/usr`, with the libraries they need.
    Usr(PathBuf),
}

impl Release {
    /// What the command that started this program was told to use.
    pub(super) fn of_environment() -> Self {
        env::var_os(USR).map_or(Self::Installed, |usr| Self::Usr(usr.into()))
    }

    /// Makes sure that it can be started: by installing what the machine lacks, or by unpacking it.
    pub(crate) fn provide(
        major: Option<Major>,
        workspace: &Workspace,
        interrupt: &Interrupt,
    ) -> Result<Self> {
        let Some(Major::Four) = major else {
            install::install_missing(&install::SERVERS)?;
            interrupt.check()?;
            return Ok(Self::Installed);
        };
        ensure!(
            geteuid().is_root(),
            "--rabbitmq 4: it is unpacked by debootstrap and mounted, which only root may do: run this as root, or \
             name running servers in MACHINIST_TEST_AMQP_URL and MACHINIST_TEST_REDIS_URL"
        );
        install::install_missing(&["redis-server", "debootstrap"])?;
        interrupt.check()?;
        let usr = workspace.target_dir().join("rabbitmq-4");
        if !usr.exists() {
            unpack(&usr, interrupt)?;
        }
        Ok(Self::Usr(usr))
    }

    /// Has a program use the same, if it starts servers of its own.
    pub(crate) fn tell(&self, command: &mut Command) {
        if let Self::Usr(usr) = self {
            command.env(USR, usr);
        }
    }

    /// Whether this is what was asked for, if it runs already.
    pub(super) fn accepts(&self, version: &str) -> bool {
        match self {
            Self::Installed => true,
            Self::Usr(_) => version.starts_with("4."),
        }
    }

    /// One of its programs, ready to be given arguments.
    pub(super) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        match self {
            Self::Installed => Command::new(program),
            Self::Usr(usr) => {
                // Each of these becomes the next: the process that is started is the server itself.
                let mut command = Command::new("unshare");
                command.args(["--mount", "sh", "-c", r#"mount --bind "$0" /usr && exec "$@""#]);
                command.arg(usr).arg(program);
                command
            }
        }
    }
}

fn unpack(usr: &Path, interrupt: &Interrupt) -> Result<()> {
    say!("unpacking the RabbitMQ of Debian {SUITE} into {}; this takes some minutes, once", usr.display());
    let system = usr.with_extension("half");
    let remove =
        || fs::remove_dir_all(&system).with_context(|| format!("cannot remove {}", system.display()));
    if system.exists() {
        // A run that was ended has left it.
        remove()?;
    }
    // In a mount namespace too: it mounts /dev and /proc, and nobody must find them there who removes files.
    let mut debootstrap = Command::new("unshare");
    debootstrap.args(["--mount", "debootstrap", "--variant=minbase", "--include=rabbitmq-server", SUITE]);
    let made = command::run(debootstrap.arg(&system), interrupt)?;
    interrupt.check()?;
    ensure!(
        made.success(),
        "debootstrap failed, see above and {}: it needs Debian's mirror",
        system.join("debootstrap/debootstrap.log").display()
    );
    fs::rename(system.join("usr"), usr).with_context(|| format!("cannot make {}", usr.display()))?;
    remove()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_programs_are_run_where_its_usr_is_the_usr() {
        let words = |release: &Release| {
            let command = release.command("epmd");
            let words = std::iter::once(command.get_program()).chain(command.get_args());
            words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>()
        };
        assert_eq!(words(&Release::Installed), ["epmd"]);
        let other = words(&Release::Usr("/another usr".into()));
        assert_eq!(other[..2], ["unshare", "--mount"]);
        assert_eq!(other[other.len() - 2..], ["/another usr", "epmd"]);
    }
}
