//! One PostgreSQL without the other servers, for tests that end it.

use std::{
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use super::{Data, Process, START_TIMEOUT, ports::Ports, postgres, tail};

/// A private PostgreSQL in a directory. It ends when this is dropped.
#[derive(Debug)]
pub struct PostgresServer {
    dir: PathBuf,
    ports: Ports,
    process: Process,
}

impl PostgresServer {
    /// Starts one with empty data, and returns once it answers.
    ///
    /// # Errors
    /// It does not start; the end of its log is in the text.
    pub fn start(dir: &Path) -> Result<Self> {
        let ports = Ports::choose()?;
        let process = start(dir, &ports, Data::Empty)?;
        Ok(Self { dir: dir.to_owned(), ports, process })
    }

    /// Where it answers.
    pub fn url(&self) -> String {
        postgres::url(&self.ports)
    }

    /// Ends it as a power cut would (but what the kernel has, it keeps).
    ///
    /// # Errors
    /// It does not end.
    pub fn kill(&self) -> Result<()> {
        self.process.kill()
    }

    /// Starts it again with the data that it had, and returns once it answers.
    ///
    /// # Errors
    /// It does not start.
    pub fn start_again(&mut self) -> Result<()> {
        self.process = start(&self.dir, &self.ports, Data::Kept)?;
        Ok(())
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        let ended = self.process.end().and_then(|_| postgres::remove_data(&self.ports));
        if let Err(error) = ended {
            say!("a PostgreSQL of a test was left behind: {error:#}");
        }
    }
}

/// Starts the server until it stays: after a kill the processes of the last one may still be ending.
fn start(dir: &Path, ports: &Ports, data: Data) -> Result<Process> {
    let deadline = Instant::now() + START_TIMEOUT;
    let mut process = postgres::start(dir, ports, data, &dir.join("postgres.pid"))?;
    while postgres::ask(ports).is_err() {
        ensure!(
            Instant::now() < deadline,
            "postgres did not answer in time; {}",
            tail(&dir.join("postgres.log"))
        );
        thread::sleep(Duration::from_millis(50));
        if !process.is_alive() {
            process = postgres::start(dir, ports, Data::Kept, &dir.join("postgres.pid"))?;
        }
    }
    Ok(process)
}
