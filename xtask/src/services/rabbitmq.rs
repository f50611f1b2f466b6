//! A private RabbitMQ, with an epmd (Erlang's port mapper) of its own.
//!
//! The server would start an epmd by itself: a daemon whose pid nobody knows and which outlives it. So epmd is
//! started here, first and in the foreground. Nothing under /etc/rabbitmq is read, and no plugin is loaded but the one
//! for logging in by certificate where TLS is spoken.

use std::{
    fs,
    io::{Read, Write},
    path::Path,
    process::Command,
};

use anyhow::{Context, Result, ensure};

use super::{Data, Papers, Process, connect, data_dir, install, ports::Ports, release::Release};

/// What a client says first.
const PROTOCOL_HEADER: &[u8] = b"AMQP\x00\x00\x09\x01";

/// After a crash the broker passes on what it was moving from one delay level to the next only when this is over;
/// three minutes by default, which no test should wait. And it allows 2047 channels for each connection by default: a test that
/// uses up all of them would keep it busy for a minute.
const ADVANCED: &str =
    "[{rabbit, [{dead_letter_worker_publisher_confirm_timeout, 10000}, {channel_max, 200}]}].\n";

pub(super) fn url(ports: &Ports) -> String {
    format!("amqp://guest:guest@127.0.0.1:{}/%2f", ports.amqp)
}

/// Starts the port mapper; it answers a moment later.
pub(super) fn start_epmd(release: &Release, dir: &Path, ports: &Ports, pid_file: &Path) -> Result<Process> {
    let mut command = release.command("epmd");
    command.args(["-port", &ports.epmd.to_string(), "-address", "127.0.0.1"]);
    Process::start(&mut command, &dir.join("epmd.log"), pid_file)
}

/// File in the home of a server with the secret by which its tools, and other nodes, are let in.
pub(super) const SECRET: &str = ".erlang.cookie";

/// Starts the server; it answers after some seconds.
pub(super) fn start(
    release: &Release,
    dir: &Path,
    node: &str,
    ports: &Ports,
    tls: Option<&Papers>,
    data: Data,
    pid_file: &Path,
) -> Result<Process> {
    let home = data_dir(dir, "rabbitmq", data)?;
    let path_of = |name: &str| home.join(name);
    fs::write(path_of("enabled_plugins"), tls.map_or("[].\n", |_| "[rabbitmq_auth_mechanism_ssl].\n"))?;
    fs::write(path_of("rabbitmq.conf"), tls.map(|papers| with_tls(ports, papers)).unwrap_or_default())?;
    fs::write(path_of("advanced.config"), ADVANCED)?;
    fs::write(path_of("rabbitmq-env.conf"), "")?;

    let mut command = release.command(install::RABBITMQ_SERVER);
    // A clean environment: settings of a system's RabbitMQ or of the user's Erlang must not leak in.
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("LANG", "C.UTF-8");
    command
        .current_dir(&home)
        // The secret lies there.
        .env("HOME", &home)
        // The start script replaces itself by the server, whose pid is then ours to know.
        .env("RUNNING_UNDER_SYSTEMD", "true")
        .env("ERL_EPMD_PORT", ports.epmd.to_string())
        .env("ERL_EPMD_ADDRESS", "127.0.0.1")
        .env("RABBITMQ_NODENAME", node)
        .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
        .env("RABBITMQ_NODE_PORT", ports.amqp.to_string())
        .env("RABBITMQ_DIST_PORT", ports.distribution.to_string())
        .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "-kernel inet_dist_use_interface {127,0,0,1}")
        .env("RABBITMQ_MNESIA_BASE", path_of("data"))
        .env("RABBITMQ_LOG_BASE", path_of("log"))
        .env("RABBITMQ_PID_FILE", path_of("pid"))
        .env("RABBITMQ_ENABLED_PLUGINS_FILE", path_of("enabled_plugins"))
        .env("RABBITMQ_CONF_ENV_FILE", path_of("rabbitmq-env.conf"))
        .env("RABBITMQ_CONFIG_FILE", path_of("rabbitmq.conf"))
        .env("RABBITMQ_ADVANCED_CONFIG_FILE", path_of("advanced.config"));
    Process::start(&mut command, &dir.join("rabbitmq.log"), pid_file)
}

/// Settings by which it speaks TLS too.
fn with_tls(ports: &Ports, papers: &Papers) -> String {
    let Papers { ca, certificate, key } = papers;
    format!(
        "listeners.ssl.loopback = 127.0.0.1:{}\nssl_options.cacertfile = {}\nssl_options.certfile = {}\n\
         ssl_options.keyfile = {}\nssl_options.verify = verify_peer\nssl_options.fail_if_no_peer_cert = true\n\
         auth_mechanisms.1 = PLAIN\nauth_mechanisms.2 = EXTERNAL\nssl_cert_login_from = common_name\n",
        ports.amqps,
        ca.display(),
        certificate.display(),
        key.display()
    )
}

/// Rabbitmq's own tool, for the server of `dir`.
pub(super) fn ctl(release: &Release, dir: &Path, node: &str, ports: &Ports) -> Command {
    let mut command = release.command(install::RABBITMQCTL);
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("LANG", "C.UTF-8")
        .env("HOME", dir.join("rabbitmq"))
        .env("ERL_EPMD_PORT", ports.epmd.to_string())
        .env("RABBITMQ_NODENAME", node)
        .env("RABBITMQ_CONF_ENV_FILE", dir.join("rabbitmq").join("rabbitmq-env.conf"));
    command
}

/// The version of the server that answers. Its listener opens last, when everything else is ready.
pub(super) fn ask(ports: &Ports) -> Result<String> {
    let mut stream = connect(ports.amqp)?;
    stream.write_all(PROTOCOL_HEADER)?;
    let mut answer = [0; 2048];
    let mut length = 0;
    // One frame: type, channel, payload size, payload, end. It may come in pieces.
    while length < 7 || length < frame_length(&answer) {
        let read = stream.read(&mut answer[length..]).context("RabbitMQ did not answer")?;
        ensure!(read > 0, "RabbitMQ closed the connection");
        length += read;
    }
    version(&answer[..length]).context("what answers is not RabbitMQ")
}

fn frame_length(answer: &[u8]) -> usize {
    let size = answer[3..7].iter().fold(0, |size, byte| size << 8 | usize::from(*byte));
    (size + 8).min(answer.len())
}

/// Connection.Start (frame of type 1, method 10.10) names it among the server's properties, as a long string.
fn version(answer: &[u8]) -> Option<String> {
    const KEY: &[u8] = b"\x07versionS";
    if answer.first() != Some(&1) || answer.get(7..11) != Some(&[0, 10, 0, 10]) {
        return None;
    }
    let start = answer.windows(KEY.len()).position(|window| window == KEY)? + KEY.len();
    let length = u32::from_be_bytes(answer.get(start..start + 4)?.try_into().ok()?);
    let text = answer.get(start + 4..)?.get(..usize::try_from(length).ok()?)?;
    Some(String::from_utf8_lossy(text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_connection_start_has_a_version() {
        let start = b"\x01\0\0\0\0\0\x20\0\x0a\0\x0a\0\x09\0\0\0\x14\x07versionS\0\0\0\x063.10.8\xce";
        assert_eq!(version(start).as_deref(), Some("3.10.8"));
        assert_eq!(version(PROTOCOL_HEADER), None);
        assert_eq!(version(b"\x01\0\0\0\0\0\x20\0\x0a\0\x0a\x07versionS\0\0\xff\xff3"), None);
    }
}
