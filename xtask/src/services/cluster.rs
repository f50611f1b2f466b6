//! Further nodes of a RabbitMQ, which form a cluster with the first one.
//!
//! Each is a directory of its own inside that of the first node, whose port mapper and secret they share, because nodes
//! that talk to each other must.

use std::{fs, os::unix::fs::PermissionsExt as _};

use anyhow::{Context, Result};

use super::{Data, Services, ports::Ports, rabbitmq};
use crate::interrupt::Interrupt;

impl Services {
    /// Starts a further node of the running RabbitMQ and returns once it has joined. `number` is 2 or more. Its data are
    /// empty, and its directory is inside that of the first, which ends it with the rest.
    ///
    /// # Errors
    /// It does not start or join; the end of its log is in the text.
    pub fn join(&self, number: u8, interrupt: &Interrupt) -> Result<Self> {
        let first = Ports::read(&self.dir)?;
        let peer = self.node_of(number);
        peer.claim()?;
        peer.end_all()?;
        let ports = Ports { epmd: first.epmd, ..Ports::choose()? };
        ports.write(&peer.dir)?;
        let home = super::data_dir(&peer.dir, "rabbitmq", Data::Empty)?;
        let secret = home.join(rabbitmq::SECRET);
        fs::copy(self.dir.join("rabbitmq").join(rabbitmq::SECRET), &secret)
            .with_context(|| format!("cannot write {}", secret.display()))?;
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o400))?;
        let process = peer.start_rabbitmq(&ports, Data::Kept)?;
        peer.await_answer("rabbitmq", &process, interrupt, || rabbitmq::ask(&ports))?;
        for step in [&["stop_app"][..], &["join_cluster", &self.node()], &["start_app"]] {
            peer.rabbitmqctl(step)?;
        }
        peer.await_answer("rabbitmq", &process, interrupt, || rabbitmq::ask(&ports))?;
        Ok(peer)
    }

    /// URL of the RabbitMQ of this directory, running or not.
    ///
    /// # Errors
    /// Nothing was ever started here.
    pub fn amqp_url(&self) -> Result<String> {
        Ok(rabbitmq::url(&Ports::read(&self.dir)?))
    }

    /// Ends the nodes that joined.
    pub(super) fn end_peers(&self) -> Result<()> {
        for peer in (2..=9).map(|number| self.node_of(number)).take_while(|peer| peer.dir.exists()) {
            peer.end_all()?;
        }
        Ok(())
    }

    /// A node of the cluster of this first one, running or not.
    #[must_use]
    pub fn node_of(&self, number: u8) -> Self {
        match number {
            1 => self.clone(),
            _ => Self { dir: self.dir.join(format!("node-{number}")), number, ..self.clone() },
        }
    }
}
