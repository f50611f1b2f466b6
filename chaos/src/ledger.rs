//! The ledger: what really happened, in a process and a file that no fault touches.
//!
//! Everybody tells it in lines over TCP, and goes on once it has written them. A line is a few words:
//!
//! | line | says |
//! |---|---|
//! | `try ID KIND` | a sender is about to send it for the first time |
//! | `ok ID`, `rejected ID`, `unsent ID`, `unknown ID` | what a send answered |
//! | `start ID ATTEMPT TOKEN WORKER` | a handler runs |
//! | `cancelled ID ATTEMPT TOKEN WORKER` | it was told to end while it ran |
//! | `wait KEY ID` | a limited task is about to be sent |
//! | `begin KEY WORKER RUN`, `end KEY WORKER RUN` | a limited task runs |
//! | `unique KEY ID` | the task that a unique send has become |
//! | `hold SLOT EPOCH WORKER TIME` | a worker holds a slot of the fleet |
//! | `effect ID ATTEMPT TOKEN WORKER` | it has done what it is for |
//!
//! The file holds them behind the milliseconds since the ledger began.

use std::{
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::Mutex,
};

const FILE: &str = "ledger";
const ADDRESS: &str = "ledger.address";

/// Where the ledger of a directory is.
pub(crate) fn file(dir: &Path) -> PathBuf {
    dir.join(FILE)
}

/// Serves for ever.
pub(crate) async fn serve(dir: &Path) -> Result<()> {
    let path = file(dir);
    let out = std::fs::OpenOptions::new().create(true).append(true).open(&path);
    let out = Arc::new(out.with_context(|| format!("cannot write {}", path.display()))?);
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let address = listener.local_addr()?.to_string();
    // Renamed, so that nobody reads half of it.
    std::fs::write(dir.join("ledger.address.new"), address)?;
    std::fs::rename(dir.join("ledger.address.new"), dir.join(ADDRESS))?;
    let began = Instant::now();
    loop {
        let (stream, _) = listener.accept().await?;
        let out = Arc::clone(&out);
        tokio::spawn(async move {
            if let Err(error) = write_down(stream, &out, began).await {
                tracing::error!(%error, "a connection of the ledger ended");
            }
        });
    }
}

async fn write_down(stream: TcpStream, mut out: &std::fs::File, began: Instant) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    let mut entry = Vec::new();
    let mut line = String::new();
    loop {
        line.clear();
        // An error means that a worker was killed.
        let Ok(read) = stream.read_line(&mut line).await else { return Ok(()) };
        if read == 0 {
            return Ok(());
        }
        if line.trim().is_empty() {
            // One write in append mode: lines of others do not come between.
            out.write_all(&entry)?;
            entry.clear();
            if stream.get_mut().write_all(b".").await.is_err() {
                return Ok(());
            }
        } else {
            writeln!(entry, "{} {}", began.elapsed().as_millis(), line.trim_end())?;
        }
    }
}

/// A connection to the ledger. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Ledger(Arc<Mutex<TcpStream>>);

impl Ledger {
    /// Waits for the ledger of a directory and connects.
    pub(crate) async fn of(dir: &Path) -> Result<Self> {
        let path = dir.join(ADDRESS);
        for _ in 0..200 {
            if let Ok(address) = std::fs::read_to_string(&path) {
                let address: SocketAddr = address.parse().context("the ledger's address")?;
                let stream = TcpStream::connect(address).await.context("cannot reach the ledger")?;
                stream.set_nodelay(true)?;
                return Ok(Self(Arc::new(Mutex::new(stream))));
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        anyhow::bail!("there is no ledger in {}", dir.display())
    }

    /// Writes lines down, and returns once they are.
    pub(crate) async fn say(&self, lines: &[String]) -> Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        let mut stream = self.0.lock().await;
        stream.write_all(format!("{}\n\n", lines.join("\n")).as_bytes()).await?;
        let written = stream.read_u8().await?;
        ensure!(written == b'.', "the ledger answered {written}");
        Ok(())
    }
}
