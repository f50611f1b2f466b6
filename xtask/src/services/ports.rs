//! The ports of one set of servers.
//!
//! Below 32768, where Linux starts to hand out ports to outgoing connections: a server there could lose its port
//! to a client of somebody else between two starts.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result, bail};

const FIRST: u16 = 20_000;
const COUNT: u16 = 12_000;
/// How often this process has chosen.
static ROUNDS: AtomicU32 = AtomicU32::new(0);

/// Where each server listens, on loopback.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ports {
    pub(super) amqp: u16,
    /// Erlang's distribution, by which rabbitmqctl talks to the server.
    pub(super) distribution: u16,
    pub(super) epmd: u16,
    pub(super) redis: u16,
    pub(super) postgres: u16,
    /// The first two over TLS, where that is asked for.
    pub(super) amqps: u16,
    pub(super) rediss: u16,
}

impl Ports {
    /// Free ones.
    pub(super) fn choose() -> Result<Self> {
        // Beginning somewhere else in each process and each time, so that two that choose at once rarely meet.
        let round = ROUNDS.fetch_add(1, Ordering::Relaxed);
        let begin =
            std::process::id().wrapping_mul(97).wrapping_add(round.wrapping_mul(1009)) % u32::from(COUNT);
        let begin = u16::try_from(begin)?;
        // Kept open until all are chosen, so that no port is chosen twice.
        let mut listeners = Vec::new();
        for step in 0..COUNT {
            let port = FIRST + (begin + step) % COUNT;
            if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
                listeners.push((port, listener));
            }
            if let [
                (amqp, _),
                (distribution, _),
                (epmd, _),
                (redis, _),
                (postgres, _),
                (amqps, _),
                (rediss, _),
            ] = listeners[..]
            {
                return Ok(Self { amqp, distribution, epmd, redis, postgres, amqps, rediss });
            }
        }
        bail!("no seven free ports on 127.0.0.1 between {FIRST} and {}", FIRST + COUNT);
    }

    pub(super) fn write(&self, dir: &Path) -> Result<()> {
        let Self { amqp, distribution, epmd, redis, postgres, amqps, rediss } = self;
        let path = dir.join("ports");
        fs::write(&path, format!("{amqp} {distribution} {epmd} {redis} {postgres} {amqps} {rediss}\n"))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    pub(super) fn read(dir: &Path) -> Result<Self> {
        let path = dir.join("ports");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let ports: Option<Vec<u16>> = text.split_whitespace().map(|port| port.parse().ok()).collect();
        let Some([amqp, distribution, epmd, redis, postgres, amqps, rediss]) = ports.as_deref() else {
            bail!("{} does not hold seven ports: cargo xtask services down, then up", path.display());
        };
        Ok(Self {
            amqp: *amqp,
            distribution: *distribution,
            epmd: *epmd,
            redis: *redis,
            postgres: *postgres,
            amqps: *amqps,
            rediss: *rediss,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chosen_ports_differ_and_stay_below_the_ephemeral_ones() {
        let Ports { amqp, distribution, epmd, redis, postgres, amqps, rediss } = Ports::choose().unwrap();
        let mut all = vec![amqp, distribution, epmd, redis, postgres, amqps, rediss];
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 7);
        assert!(all.iter().all(|port| (FIRST..FIRST + COUNT).contains(port)), "{all:?}");
        const { assert!(FIRST + COUNT <= 32_768) };
    }
}
