//! Private RabbitMQ, Redis and PostgreSQL servers for the tests.
//!
//! They belong to one directory: data, logs, pid files and chosen ports lie there, so several checkouts can have
//! servers side by side, and no server of the machine is ever touched. No root is needed to run them, nor does it
//! harm. Linux only: processes are recognised by `/proc`.

mod cluster;
mod control;
mod install;
mod ports;
mod postgres;
mod postgres_alone;
mod process;
mod rabbitmq;
mod redis;
mod release;

use std::{
    fmt::Write as _,
    fs::{self, File},
    net::{Ipv4Addr, SocketAddrV4, TcpStream},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

pub use self::{control::Server, postgres_alone::PostgresServer};
pub(crate) use self::{
    install::{SCREENS, SERVERS, install_missing},
    release::{Major, Release},
};
use self::{ports::Ports, process::Process};
use crate::{command::display, interrupt::Interrupt};

/// RabbitMQ needs 3 to 5 s on an idle machine; a busy one with two cores has needed ten times that.
const START_TIMEOUT: Duration = Duration::from_secs(180);
/// A server on loopback that does not answer within this does not answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Says that a directory is ours, so that `--dir` never empties anybody else's.
const MARKER: &str = "machinist-services";

/// The servers of one directory, running or not.
#[derive(Debug, Clone)]
pub struct Services {
    dir: PathBuf,
    release: Release,
    tls: Option<Papers>,
    /// A PostgreSQL is started too.
    postgres: bool,
    /// Of the RabbitMQ in its cluster. Those after the first have neither Redis nor PostgreSQL, and no port mapper.
    number: u8,
}

/// PEM files of a server that speaks TLS, on a port of its own beside the plain one. It lets in only who shows a
/// certificate of the same authority, and to RabbitMQ its common name can be the login.
#[derive(Debug, Clone)]
pub struct Papers {
    /// Of the authority.
    pub ca: PathBuf,
    /// Of the server.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Where servers answer, and what they said they are.
#[derive(Debug, Clone)]
pub struct Endpoints {
    /// Of RabbitMQ.
    pub amqp_url: String,
    /// Of Redis.
    pub redis_url: String,
    /// Of PostgreSQL, if one was started.
    pub postgres_url: Option<String>,
    rabbitmq_version: String,
    redis_version: String,
    postgres_version: Option<String>,
}

impl Endpoints {
    /// For a shell to evaluate.
    pub(crate) fn exports(&self) -> String {
        let mut exports = format!(
            "export MACHINIST_TEST_AMQP_URL='{}'\nexport MACHINIST_TEST_REDIS_URL='{}'\n",
            self.amqp_url, self.redis_url
        );
        if let Some(url) = &self.postgres_url {
            exports.push_str(&format!("export MACHINIST_TEST_POSTGRES_URL='{url}'\n"));
        }
        exports
    }

    /// One line for a person.
    pub fn summary(&self) -> String {
        let Self { rabbitmq_version, redis_version, postgres_version, .. } = self;
        let mut summary = format!("RabbitMQ {rabbitmq_version}, Redis {redis_version}");
        if let Some(version) = postgres_version {
            summary.push_str(&format!(", PostgreSQL {version}"));
        }
        summary
    }
}

/// What `up` came to.
#[derive(Debug)]
pub struct Up {
    /// Where they answer.
    pub endpoints: Endpoints,
    /// How long it took; `None` where everything ran already.
    pub started_in: Option<Duration>,
}

impl Up {
    /// One line for a person.
    pub fn report(&self) -> String {
        let how = self
            .started_in
            .map_or_else(|| "already running".to_owned(), |took| format!("started in {}", display(took)));
        format!("{how}: {}", self.endpoints.summary())
    }
}

impl Services {
    /// Those of `dir`, whether it is there or not.
    ///
    /// # Errors
    /// It is no path.
    pub fn at(dir: &Path) -> Result<Self> {
        // Absolute, because the servers start in directories of their own.
        let dir = std::path::absolute(dir).with_context(|| format!("--dir {} is no path", dir.display()))?;
        Ok(Self { dir, release: Release::of_environment(), tls: None, postgres: false, number: 1 })
    }

    /// A PostgreSQL belongs to them, from their next start on.
    #[must_use]
    pub(crate) fn with_postgres(self) -> Self {
        Self { postgres: true, ..self }
    }

    /// Their RabbitMQ is this one, from its next start on.
    #[must_use]
    pub(crate) fn with_release(self, release: Release) -> Self {
        Self { release, ..self }
    }

    /// They speak TLS too, from their next start on.
    #[must_use]
    pub fn with_tls(self, papers: Papers) -> Self {
        Self { tls: Some(papers), ..self }
    }

    /// The ports for TLS: of RabbitMQ, and of Redis.
    ///
    /// # Errors
    /// Nothing was ever started here.
    pub fn tls_ports(&self) -> Result<(u16, u16)> {
        let ports = Ports::read(&self.dir)?;
        Ok((ports.amqps, ports.rediss))
    }

    /// Starts what does not run, with empty data, and returns once all servers answer. Idempotent.
    ///
    /// # Errors
    /// The directory is somebody else's, or a server did not start; the end of its log is in the text.
    pub fn up(&self, interrupt: &Interrupt) -> Result<Up> {
        let began = Instant::now();
        self.claim()?;
        let _lock = self.lock()?;
        if let Ok(endpoints) = self.endpoints()
            && (endpoints.postgres_url.is_some() || !self.postgres)
        {
            ensure!(
                self.release.accepts(&endpoints.rabbitmq_version),
                "RabbitMQ {} runs in {}: end it first, cargo xtask services down",
                endpoints.rabbitmq_version,
                self.dir.display()
            );
            return Ok(Up { endpoints, started_in: None });
        }
        // Half of it may run: an earlier start that was killed, a server that died.
        self.end_all()?;
        match self.start(interrupt).and_then(|()| self.endpoints()) {
            Ok(endpoints) => Ok(Up { endpoints, started_in: Some(began.elapsed()) }),
            Err(error) => {
                self.end_all()?;
                Err(error)
            }
        }
    }

    /// Ends what [`up`](Self::up) started in this directory. Logs stay.
    ///
    /// # Errors
    /// A server does not end.
    pub fn down(&self) -> Result<()> {
        if !self.dir.join(MARKER).exists() {
            say!("nothing was ever started in {}", self.dir.display());
            return Ok(());
        }
        let _lock = self.lock()?;
        let ended = self.end_all()?;
        say!(
            "{}",
            if ended.is_empty() { "nothing ran".to_owned() } else { format!("ended {}", ended.join(", ")) }
        );
        Ok(())
    }

    /// Prints what runs; whether everything does.
    pub(crate) fn print_status(&self) -> Result<bool> {
        for (name, pid_file) in self.pid_files() {
            let state = match Process::recorded(&pid_file)? {
                Some(process) if process.is_alive() => format!("pid {}", process.pid()),
                Some(_) => "died".to_owned(),
                None => "not running".to_owned(),
            };
            say!("{name:<9} {state}");
        }
        say!("logs      {}", self.dir.display());
        match self.endpoints() {
            Ok(endpoints) => {
                say!("answering {}\n{}", endpoints.summary(), endpoints.exports().trim_end())
            }
            Err(error) => {
                say!("{error:#}");
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Where the running servers are, after asking each.
    ///
    /// # Errors
    /// One of them does not run or does not answer.
    pub fn endpoints(&self) -> Result<Endpoints> {
        let remedy = || format!("not running in {}: cargo xtask services up", self.dir.display());
        for (_, pid_file) in self.pid_files() {
            ensure!(Process::recorded(&pid_file)?.is_some_and(|process| process.is_alive()), remedy());
        }
        let ports = Ports::read(&self.dir).with_context(remedy)?;
        let has_postgres = self.has_postgres();
        Ok(Endpoints {
            amqp_url: rabbitmq::url(&ports),
            redis_url: redis::url(&ports),
            postgres_url: has_postgres.then(|| postgres::url(&ports)),
            rabbitmq_version: rabbitmq::ask(&ports).with_context(remedy)?,
            redis_version: redis::ask(&ports).with_context(remedy)?,
            postgres_version: match has_postgres {
                true => Some(postgres::ask(&ports).with_context(remedy)?),
                false => None,
            },
        })
    }

    /// The pid of a running server: `rabbitmq`, `redis` or `postgres`.
    pub(crate) fn pid(&self, name: &str) -> Result<i32> {
        let process = Process::recorded(&self.pid_file(name))?;
        Ok(process.with_context(|| format!("{name} does not run in {}", self.dir.display()))?.pid())
    }

    fn start(&self, interrupt: &Interrupt) -> Result<()> {
        let ports = Ports::choose()?;
        ports.write(&self.dir)?;
        let epmd = rabbitmq::start_epmd(&self.release, &self.dir, &ports, &self.pid_file("epmd"))?;
        let redis = redis::start(&self.dir, &ports, self.tls.as_ref(), Data::Empty, &self.pid_file("redis"))?;
        if self.postgres {
            let postgres = postgres::start(&self.dir, &ports, Data::Empty, &self.pid_file("postgres"))?;
            self.await_answer("postgres", &postgres, interrupt, || postgres::ask(&ports))?;
        }
        self.await_answer("redis", &redis, interrupt, || redis::ask(&ports))?;
        self.await_answer("epmd", &epmd, interrupt, || connect(ports.epmd).map(drop))?;
        let rabbitmq = self.start_rabbitmq(&ports, Data::Empty)?;
        self.await_answer("rabbitmq", &rabbitmq, interrupt, || rabbitmq::ask(&ports))
    }

    fn start_rabbitmq(&self, ports: &Ports, data: Data) -> Result<Process> {
        let pid_file = self.pid_file("rabbitmq");
        rabbitmq::start(&self.release, &self.dir, &self.node(), ports, self.tls.as_ref(), data, &pid_file)
    }

    /// Name of the RabbitMQ.
    fn node(&self) -> String {
        match self.number {
            1 => "machinist@localhost".to_owned(),
            number => format!("machinist-{number}@localhost"),
        }
    }

    fn await_answer<T>(
        &self,
        name: &str,
        process: &Process,
        interrupt: &Interrupt,
        ask: impl Fn() -> Result<T>,
    ) -> Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        let log = self.dir.join(format!("{name}.log"));
        loop {
            interrupt.check()?;
            let Err(error) = ask() else { return Ok(()) };
            if !process.is_alive() {
                bail!("{name} ended at its start; {}", tail(&log));
            }
            if Instant::now() > deadline {
                let context =
                    format!("{name} did not answer within {}; {}", display(START_TIMEOUT), tail(&log));
                return Err(error.context(context));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Ends and forgets every recorded process; the names of those that ran.
    fn end_all(&self) -> Result<Vec<&'static str>> {
        let mut ended = Vec::new();
        self.end_peers()?;
        for (name, pid_file) in self.pid_files() {
            if let Some(process) = Process::recorded(&pid_file)? {
                if process.end().with_context(|| format!("cannot end {name}"))? {
                    ended.push(name);
                }
                fs::remove_file(&pid_file)
                    .with_context(|| format!("cannot remove {}", pid_file.display()))?;
            }
        }
        if ended.contains(&"postgres")
            && let Ok(ports) = Ports::read(&self.dir)
        {
            postgres::remove_data(&ports)?;
        }
        Ok(ended)
    }

    /// In the order in which they end: epmd last, RabbitMQ takes leave of it.
    fn pid_files(&self) -> Vec<(&'static str, PathBuf)> {
        let names: &[&str] = match self.number {
            1 if self.has_postgres() => &["redis", "postgres", "rabbitmq", "epmd"],
            1 => &["redis", "rabbitmq", "epmd"],
            _ => &["rabbitmq"],
        };
        names.iter().map(|name| (*name, self.pid_file(name))).collect()
    }

    /// Whether a PostgreSQL was started.
    fn has_postgres(&self) -> bool {
        self.number == 1 && self.pid_file("postgres").exists()
    }

    fn pid_file(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.pid"))
    }

    /// Makes the directory, or makes sure that it is ours.
    fn claim(&self) -> Result<()> {
        let marker = self.dir.join(MARKER);
        if marker.exists() {
            return Ok(());
        }
        fs::create_dir_all(&self.dir).with_context(|| format!("cannot make {}", self.dir.display()))?;
        let empty = fs::read_dir(&self.dir).is_ok_and(|mut entries| entries.next().is_none());
        ensure!(
            empty,
            "--dir {}: not empty, and not made by this command: name another one",
            self.dir.display()
        );
        fs::write(&marker, "Private servers of `cargo xtask services`; safe to delete after `down`.\n")
            .with_context(|| format!("cannot write {}", marker.display()))
    }

    /// One `up` or `down` at a time; held until dropped.
    fn lock(&self) -> Result<File> {
        let path = self.dir.join(MARKER);
        let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
        Ok(file)
    }
}

/// With which data a server starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Data {
    Empty,
    /// As the last one left it, however it ended.
    Kept,
}

/// The directory under `dir` for the data of a server that is about to start.
fn data_dir(dir: &Path, name: &str, data: Data) -> Result<PathBuf> {
    let path = dir.join(name);
    if path.exists() && data == Data::Empty {
        fs::remove_dir_all(&path).with_context(|| format!("cannot empty {}", path.display()))?;
    }
    fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
    Ok(path)
}

fn connect(port: u16) -> Result<TcpStream> {
    let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
    let stream = TcpStream::connect_timeout(&address.into(), ANSWER_TIMEOUT)
        .with_context(|| format!("cannot connect to {address}"))?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
    Ok(stream)
}

/// The end of a log, for an error message.
fn tail(log: &Path) -> String {
    let text = fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let mut tail = format!("the end of {}:", log.display());
    for line in &lines[lines.len().saturating_sub(15)..] {
        // Writing to a String cannot fail.
        let _ = write!(tail, "\n    {line}");
    }
    tail
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_directory_is_refused() {
        let foreign = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let error = Services::at(&foreign).unwrap().claim().unwrap_err();
        assert!(error.to_string().contains("not empty"), "{error}");
        assert!(!foreign.join(MARKER).exists());
    }

    #[test]
    fn exports_can_be_evaluated() {
        let endpoints = Endpoints {
            amqp_url: "amqp://h/%2f".to_owned(),
            redis_url: "redis://h/0".to_owned(),
            postgres_url: Some("postgres://h/db".to_owned()),
            rabbitmq_version: "4".to_owned(),
            redis_version: "7".to_owned(),
            postgres_version: Some("15".to_owned()),
        };
        let expected = "export MACHINIST_TEST_AMQP_URL='amqp://h/%2f'\nexport MACHINIST_TEST_REDIS_URL='redis://h/0'\n\
             export MACHINIST_TEST_POSTGRES_URL='postgres://h/db'\n";
        assert_eq!(endpoints.exports(), expected);
    }
}
