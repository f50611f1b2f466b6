//! Ctrl-C, SIGTERM and SIGHUP as a question that can be asked, so that servers are ended on every way out.
//!
//! Without this, an interrupted test run would leave a RabbitMQ behind.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use anyhow::{Context, Result, ensure};
use signal_hook::{consts, flag};

/// Remembers whether somebody asked this program to stop.
#[derive(Debug)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// From now on signals are remembered instead of ending the program.
    ///
    /// # Errors
    /// If signals cannot be listened for.
    pub fn listen() -> Result<Self> {
        let heard = Arc::new(AtomicBool::new(false));
        for signal in [consts::SIGINT, consts::SIGTERM, consts::SIGHUP] {
            flag::register(signal, Arc::clone(&heard))
                .with_context(|| format!("cannot listen for signal {signal}"))?;
        }
        Ok(Self(heard))
    }

    /// Whether a signal was heard.
    pub fn heard(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// An error once a signal was heard.
    ///
    /// # Errors
    /// A signal was heard.
    pub fn check(&self) -> Result<()> {
        ensure!(!self.heard(), "interrupted");
        Ok(())
    }
}
