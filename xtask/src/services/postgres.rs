//! A private PostgreSQL.
//!
//! It refuses to run as root. Where this process is root, the server and the tool that makes its data run as `postgres`, the
//! user that its package makes.

use std::{
    env, fs,
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use nix::unistd::{User, geteuid};

use super::{Data, Process, connect, data_dir, ports::Ports};

/// Directories of Debian's versions.
const VERSIONS: &str = "/usr/lib/postgresql";
/// User that the server runs as where this process is root.
const USER: &str = "postgres";

pub(super) fn url(ports: &Ports) -> String {
    format!("postgres://postgres@127.0.0.1:{}/postgres", ports.postgres)
}

/// Starts it; it answers a moment later.
pub(super) fn start(dir: &Path, ports: &Ports, data: Data, pid_file: &Path) -> Result<Process> {
    let home = if geteuid().is_root() {
        let home = data_dir(&env::temp_dir(), &foreign_name(ports), data)?;
        own(&home)?;
        home
    } else {
        data_dir(dir, "postgres", data)?
    };
    if !home.join("PG_VERSION").exists() {
        let made = command("initdb")?
            .args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--pgdata"])
            .arg(&home)
            .current_dir("/")
            .stdin(Stdio::null())
            .output()
            .context("cannot run initdb")?;
        ensure!(made.status.success(), "initdb failed: {}", String::from_utf8_lossy(&made.stderr));
    }
    let mut command = command("postgres")?;
    command.arg("-D").arg(&home).current_dir("/").args(["-p", &ports.postgres.to_string()]);
    // Each test is a few processes of its own, with some connections each.
    for setting in ["listen_addresses=127.0.0.1", "unix_socket_directories=", "max_connections=400"] {
        command.args(["-c", setting]);
    }
    Process::start(&mut command, &dir.join("postgres.log"), pid_file)
}

/// The program of the newest version that is installed, as the user who may run it.
fn command(program: &str) -> Result<Command> {
    let path = program_path(program)
        .with_context(|| format!("{program} is not in {VERSIONS}: install Debian's postgresql"))?;
    if !geteuid().is_root() {
        return Ok(Command::new(path));
    }
    let mut command = Command::new("setpriv");
    command.args([format!("--reuid={USER}"), format!("--regid={USER}")]).arg("--init-groups").arg(path);
    Ok(command)
}

/// Where a program of the newest version is; `None` if none is installed.
pub(super) fn program_path(program: &str) -> Option<PathBuf> {
    let versions = fs::read_dir(VERSIONS).ok()?.flatten();
    let numbered = versions.filter_map(|version| {
        let number: u32 = version.file_name().to_str()?.parse().ok()?;
        let path = version.path().join("bin").join(program);
        path.exists().then_some((number, path))
    });
    numbered.max().map(|(_, path)| path)
}

/// Name of the data of a server that runs as another user, in the directory for temporary files: that user may not be let
/// through to a directory of root.
fn foreign_name(ports: &Ports) -> String {
    format!("machinist-postgres-{}", ports.postgres)
}

/// Removes the data of a server that has ended, if it is not in the directory of the servers.
pub(super) fn remove_data(ports: &Ports) -> Result<()> {
    let home = env::temp_dir().join(foreign_name(ports));
    if geteuid().is_root() && home.exists() {
        fs::remove_dir_all(&home).with_context(|| format!("cannot remove {}", home.display()))?;
    }
    Ok(())
}

/// Gives the data to the user.
fn own(home: &Path) -> Result<()> {
    let user = User::from_name(USER)?.with_context(|| format!("there is no user {USER}"))?;
    let owned = Command::new("chown").arg("-R").arg(format!("{}:{}", user.uid, user.gid)).arg(home).status();
    ensure!(owned.context("cannot run chown")?.success(), "cannot give {} to {USER}", home.display());
    Ok(())
}

/// The version of the server that answers.
pub(super) fn ask(ports: &Ports) -> Result<String> {
    let mut stream = connect(ports.postgres)?;
    stream.write_all(&startup())?;
    let mut answer = Vec::new();
    let mut piece = [0; 1024];
    // It says its version, and then that it is ready.
    while version(&answer).is_none() {
        let read = stream.read(&mut piece).context("PostgreSQL did not answer")?;
        ensure!(read > 0, "what answers is not PostgreSQL, or not ready");
        answer.extend_from_slice(&piece[..read]);
    }
    version(&answer).context("what answers is not PostgreSQL")
}

/// The first message of a client: its length, the version of the protocol, and names with values.
fn startup() -> Vec<u8> {
    let text = b"user\0postgres\0database\0postgres\0\0";
    let mut message = Vec::new();
    let length = u32::try_from(8 + text.len()).unwrap_or(u32::MAX);
    message.extend_from_slice(&length.to_be_bytes());
    message.extend_from_slice(&196_608_u32.to_be_bytes());
    message.extend_from_slice(text);
    message
}

/// The value of `server_version`, once the server has said that it is ready (a message `Z` of five bytes).
fn version(answer: &[u8]) -> Option<String> {
    const KEY: &[u8] = b"server_version\0";
    if !answer.windows(5).any(|window| window == b"Z\0\0\0\x05") {
        return None;
    }
    let start = answer.windows(KEY.len()).position(|window| window == KEY)? + KEY.len();
    let length = answer[start..].iter().position(|byte| *byte == 0)?;
    let text = String::from_utf8_lossy(&answer[start..start + length]).into_owned();
    Some(text.split(' ').next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_ready_server_has_a_version() {
        let ready = b"R\0\0\0\x08\0\0\0\0S\0\0\0\x20server_version\x0015.8 (Debian)\0Z\0\0\0\x05I";
        assert_eq!(version(ready).as_deref(), Some("15.8"));
        assert_eq!(version(&ready[..ready.len() - 6]), None);
        assert_eq!(version(b"E\0\0\0\x60SFATAL\0"), None);
    }
}
