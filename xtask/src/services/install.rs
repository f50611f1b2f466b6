//! The servers as Debian packages, where they are missing.
//!
//! Debian starts a server when its package is installed; here it must not, so a `policy-rc.d` forbids it for as
//! long as the installation takes.

use std::{
    env, fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use nix::unistd::geteuid;

/// The script itself: the `rabbitmq-server` in the PATH of Debian insists on being root or rabbitmq.
pub(super) const RABBITMQ_SERVER: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";
pub(super) const RABBITMQCTL: &str = "/usr/lib/rabbitmq/bin/rabbitmqctl";

const POLICY: &str = "/usr/sbin/policy-rc.d";
/// Exit code 101: "action forbidden by policy".
const POLICY_SCRIPT: &str = "#!/bin/sh\n# made by cargo xtask services install\nexit 101\n";

/// What the tests need.
pub(crate) const SERVERS: [&str; 3] = ["rabbitmq-server", "redis-server", "postgresql"];
/// What the tests need beside the servers: the terminal of `machinist top`, and the browser of the dashboard.
pub(crate) const SCREENS: [&str; 3] = ["tmux", "chromium", "chromium-driver"];

/// Installs what is missing of these packages; does nothing, and needs no right to, where nothing is.
pub(crate) fn install_missing(packages: &[&'static str]) -> Result<()> {
    let missing = missing(packages);
    if missing.is_empty() {
        say!("{} are installed", packages.join(" and "));
        return Ok(());
    }
    let wanted = missing.join(" and ");
    let by_hand = format!("apt-get update && apt-get install --no-install-recommends {}", missing.join(" "));
    ensure!(
        in_path("apt-get"),
        "{wanted} missing, and this is no Debian: install RabbitMQ 3.10, Redis 7 and PostgreSQL 14 or later, \
         tmux and Chromium with its driver; or set MACHINIST_TEST_AMQP_URL, MACHINIST_TEST_REDIS_URL and \
         MACHINIST_TEST_POSTGRES_URL to running ones (docker/compose.yaml has them)"
    );
    let Some(rights) = Rights::find() else {
        bail!("{wanted} missing, and neither root nor sudo without a password: run as root: {by_hand}");
    };
    say!("installing {wanted}");
    let _policy = Policy::forbid_starts(rights)?;
    // Alone it proves nothing: one dead mirror of many fails it, and the package may be known already.
    if !rights.run(&["apt-get", "update"])? {
        say!("apt-get update failed; trying with the package lists as they are");
    }
    let mut install = vec!["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "--yes"];
    install.extend(["--no-install-recommends", "-o", "DPkg::Lock::Timeout=300"]);
    install.extend(&missing);
    ensure!(rights.run(&install)?, "the installation failed, see above; by hand, as root: {by_hand}");
    let still = self::missing(packages);
    ensure!(still.is_empty(), "{} installed, but not where it is expected", still.join(" and "));
    Ok(())
}

/// The packages whose programs are not there.
fn missing(packages: &[&'static str]) -> Vec<&'static str> {
    let is_there = |package: &str| match package {
        "rabbitmq-server" => Path::new(RABBITMQ_SERVER).exists() && in_path("epmd"),
        "postgresql" => super::postgres::program_path("initdb").is_some(),
        "chromium-driver" => in_path("chromedriver"),
        // The others are called like their program.
        package => in_path(package),
    };
    packages.iter().copied().filter(|package| !is_there(package)).collect()
}

fn in_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// How this process may change the system.
#[derive(Debug, Clone, Copy)]
enum Rights {
    Root,
    Sudo,
}

impl Rights {
    fn find() -> Option<Self> {
        if geteuid().is_root() {
            return Some(Self::Root);
        }
        let mut sudo = Command::new("sudo");
        sudo.args(["-n", "true"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        sudo.status().is_ok_and(|status| status.success()).then_some(Self::Sudo)
    }

    /// Runs a command as root, never interrupted: half an installation is worse than a late Ctrl-C.
    fn run(self, argv: &[&str]) -> Result<bool> {
        use std::os::unix::process::CommandExt;

        let argv: Vec<&str> = match self {
            Self::Root => argv.to_vec(),
            Self::Sudo => ["sudo", "-n"].iter().chain(argv).copied().collect(),
        };
        let mut command = Command::new(argv[0]);
        command.args(&argv[1..]).stdin(Stdio::null()).process_group(0);
        Ok(command.status().with_context(|| format!("cannot run {}", argv.join(" ")))?.success())
    }
}

/// While it lives, installed packages start no service. One that was there before is left as it is.
#[derive(Debug)]
struct Policy {
    made_by: Option<Rights>,
}

impl Policy {
    fn forbid_starts(rights: Rights) -> Result<Self> {
        let path = Path::new(POLICY);
        // Ours from a run that was killed is taken over.
        if path.exists() && fs::read_to_string(path).ok().as_deref() != Some(POLICY_SCRIPT) {
            return Ok(Self { made_by: None });
        }
        let script = format!("printf %s '{POLICY_SCRIPT}' > {POLICY} && chmod 755 {POLICY}");
        ensure!(rights.run(&["sh", "-c", &script])?, "cannot write {POLICY}");
        Ok(Self { made_by: Some(rights) })
    }
}

impl Drop for Policy {
    fn drop(&mut self) {
        if let Some(rights) = self.made_by
            && !rights.run(&["rm", "-f", POLICY]).unwrap_or(false)
        {
            say!(
                "warning: {POLICY} could not be removed; it keeps packages from starting services: remove it"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_survives_the_quoting_of_a_shell() {
        assert!(!POLICY_SCRIPT.contains('\''));
    }

    #[test]
    fn programs_are_found_by_path() {
        assert!(in_path("sh"));
        assert!(!in_path("no-such-program-of-machinist"));
    }
}
