//! Faults of one server: killed, started again with the data it had, stopped, told something by its own tool.

use std::{
    fs,
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use super::{Data, Ports, Process, Services, connect, postgres, rabbitmq, redis};
use crate::interrupt::Interrupt;

/// One of the servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Server {
    /// The broker.
    RabbitMq,
    /// The result backend.
    Redis,
    /// Broker and backend in one.
    Postgres,
}

impl Server {
    fn name(self) -> &'static str {
        match self {
            Self::RabbitMq => "rabbitmq",
            Self::Redis => "redis",
            Self::Postgres => "postgres",
        }
    }
}

impl Services {
    /// Ends a server as a power cut would (but what the kernel has, it keeps).
    ///
    /// # Errors
    /// It does not run, or does not end.
    pub fn kill(&self, server: Server) -> Result<()> {
        self.process(server)?.kill()
    }

    /// Starts a server that was killed, with the data it had, and returns once it answers.
    ///
    /// # Errors
    /// It does not start; the end of its log is in the text.
    pub fn start_again(&self, server: Server, interrupt: &Interrupt) -> Result<()> {
        let ports = Ports::read(&self.dir)?;
        let pid_file = self.pid_file(server.name());
        match server {
            Server::RabbitMq => {
                let process = self.start_rabbitmq(&ports, Data::Kept)?;
                self.await_answer(server.name(), &process, interrupt, || rabbitmq::ask(&ports))
            }
            Server::Redis => {
                let process = redis::start(&self.dir, &ports, self.tls.as_ref(), Data::Kept, &pid_file)?;
                self.await_answer(server.name(), &process, interrupt, || redis::ask(&ports))
            }
            Server::Postgres => {
                let process = postgres::start(&self.dir, &ports, Data::Kept, &pid_file)?;
                self.await_answer(server.name(), &process, interrupt, || postgres::ask(&ports))
            }
        }
    }

    /// Copies the data of a running server aside, as far as it has written it.
    ///
    /// # Errors
    /// The copy cannot be made.
    pub fn keep_data(&self, server: Server) -> Result<()> {
        copy(&self.dir.join(server.name()), &self.kept(server))
    }

    /// Gives a server that was killed the data that was kept: what it has acknowledged since is lost.
    ///
    /// # Errors
    /// Nothing was kept, or the copy cannot be made.
    pub fn restore_data(&self, server: Server) -> Result<()> {
        copy(&self.kept(server), &self.dir.join(server.name()))
    }

    fn kept(&self, server: Server) -> PathBuf {
        self.dir.join(format!("{}.kept", server.name()))
    }

    /// Stops a server without ending it: its connections stay open and nothing answers.
    ///
    /// # Errors
    /// It does not run.
    pub fn freeze(&self, server: Server) -> Result<()> {
        self.process(server)?.signal(Signal::SIGSTOP)
    }

    /// Lets a frozen server go on.
    ///
    /// # Errors
    /// It does not run.
    pub fn thaw(&self, server: Server) -> Result<()> {
        self.process(server)?.signal(Signal::SIGCONT)
    }

    /// Tells RabbitMQ something by its own tool, and returns what it printed.
    ///
    /// # Errors
    /// The tool failed; what it said is in the text.
    pub fn rabbitmqctl(&self, args: &[&str]) -> Result<String> {
        let mut command = rabbitmq::ctl(&self.release, &self.dir, &self.node(), &Ports::read(&self.dir)?);
        let output = command.args(args).stdin(Stdio::null()).output().context("cannot run rabbitmqctl")?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "rabbitmqctl {args:?} failed: {said}{errors}");
        Ok(said)
    }

    /// Tells Redis one command, and returns the first of what it answered.
    ///
    /// # Errors
    /// It does not answer, or with an error.
    pub fn redis_command(&self, command: &str) -> Result<String> {
        let mut stream = connect(Ports::read(&self.dir)?.redis)?;
        stream.write_all(format!("{command}\r\n").as_bytes())?;
        let mut answer = vec![0; 64 * 1024];
        let length = stream.read(&mut answer).with_context(|| format!("Redis did not answer {command:?}"))?;
        let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
        ensure!(!answer.starts_with('-'), "Redis refused {command:?}: {answer}");
        Ok(answer)
    }

    fn process(&self, server: Server) -> Result<Process> {
        let process = Process::recorded(&self.pid_file(server.name()))?;
        process
            .filter(Process::is_alive)
            .with_context(|| format!("{} does not run in {}", server.name(), self.dir.display()))
    }
}

/// Replaces a directory by a copy of another.
fn copy(from: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        fs::remove_dir_all(to).with_context(|| format!("cannot empty {}", to.display()))?;
    }
    let copied = Command::new("cp").arg("-r").args([from, to]).status().context("cannot run cp")?;
    ensure!(copied.success(), "cannot copy {} to {}", from.display(), to.display());
    Ok(())
}
