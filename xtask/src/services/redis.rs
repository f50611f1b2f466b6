//! A private Redis.

use std::{
    io::{Read, Write},
    path::Path,
    process::Command,
};

use anyhow::{Context, Result};

use super::{Data, Papers, Process, connect, data_dir, ports::Ports};

pub(super) fn url(ports: &Ports) -> String {
    format!("redis://127.0.0.1:{}/0", ports.redis)
}

/// Starts it; it answers a moment later.
pub(super) fn start(
    dir: &Path,
    ports: &Ports,
    tls: Option<&Papers>,
    data: Data,
    pid_file: &Path,
) -> Result<Process> {
    let home = data_dir(dir, "redis", data)?;
    let port = ports.redis.to_string();
    // Append-only, as it is meant to be run in production: the adapter warns about less.
    let mut command = Command::new("redis-server");
    command.current_dir(&home).args([
        "--port",
        &port,
        "--bind",
        "127.0.0.1",
        "--appendonly",
        "yes",
        "--save",
        "",
    ]);
    if let Some(papers) = tls {
        command.args(["--tls-port", &ports.rediss.to_string(), "--tls-auth-clients", "yes"]);
        command.arg("--tls-ca-cert-file").arg(&papers.ca);
        command.arg("--tls-cert-file").arg(&papers.certificate).arg("--tls-key-file").arg(&papers.key);
    }
    Process::start(&mut command, &dir.join("redis.log"), pid_file)
}

/// The version of the server that answers.
pub(super) fn ask(ports: &Ports) -> Result<String> {
    let mut stream = connect(ports.redis)?;
    // A loading server answers INFO but no command that matters: PING tells.
    stream.write_all(b"PING\r\nINFO server\r\nQUIT\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("Redis did not answer")?;
    version(&String::from_utf8_lossy(&answer)).context("what answers is not Redis, or not ready")
}

fn version(answer: &str) -> Option<String> {
    let info = answer.strip_prefix("+PONG\r\n")?;
    info.lines().find_map(|line| line.strip_prefix("redis_version:")).map(|version| version.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_ready_server_has_a_version() {
        let ready = "+PONG\r\n$40\r\n# Server\r\nredis_version:7.0.15\r\n\r\n+OK\r\n";
        assert_eq!(version(ready).as_deref(), Some("7.0.15"));
        assert_eq!(version("-LOADING Redis is loading the dataset in memory\r\n"), None);
        assert_eq!(version("HTTP/1.1 400 Bad Request\r\n"), None);
    }
}
