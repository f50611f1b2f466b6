//! The addresses of one broker, and the order in which an attempt to connect tries them.
//!
//! A name may have several addresses, and a cluster several names. Each address gets its share of the time of an attempt,
//! so that one that swallows packets does not use up the time of the others. Addresses that failed come last, the one
//! that failed longest ago first: all connections of a process stay at one node as long as it answers, and leave it at
//! once when it does not.

use std::{
    collections::HashMap,
    fmt,
    net::SocketAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use machinist_adapter::{broker::BrokerError, url_list};
use tokio::time::Instant;

use crate::{address::Address, error::AmqpError};

/// Time of an attempt, which its addresses share.
const ATTEMPT_TIME: Duration = Duration::from_secs(10);
/// Minimum share of an address. An attempt with very many addresses takes longer than [`ATTEMPT_TIME`].
const MIN_SHARE: Duration = Duration::from_secs(2);

/// Addresses of one broker, in the order in which they were named.
#[derive(Debug)]
pub(crate) struct Addresses {
    all: Vec<Address>,
    loopback_only: bool,
    /// Time of the last failure at each endpoint.
    failures: Mutex<HashMap<SocketAddr, Instant>>,
}

/// One address of the network, with the URL that it belongs to.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint {
    pub(crate) address: Address,
    pub(crate) peer: SocketAddr,
}

impl Addresses {
    /// Reads one URL, or several that commas separate: the nodes of a cluster, all with the same vhost. With
    /// `loopback_only` no address of another host is an endpoint.
    pub(crate) fn parse(text: &str, loopback_only: bool) -> Result<Self, BrokerError> {
        let all: Vec<Address> =
            url_list::split(text).into_iter().map(Address::parse).collect::<Result<_, _>>()?;
        if let Some(other) = all.iter().find(|address| address.vhost() != all[0].vhost()) {
            return Err(BrokerError::Configuration(format!(
                "broker {other} has another vhost than {}; name the nodes of one cluster, with one vhost",
                all[0]
            )));
        }
        Ok(Self { all, loopback_only, failures: Mutex::default() })
    }

    /// The vhost, which all addresses share.
    pub(crate) fn vhost(&self) -> &str {
        // INVARIANT: a list has at least one URL.
        self.all[0].vhost()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Address> {
        self.all.iter()
    }

    /// Looks the names up. Returns the endpoints in the order to try them, and the errors of names without one.
    pub(crate) async fn resolve(&self) -> (Vec<Endpoint>, Vec<(Address, AmqpError)>) {
        let mut endpoints: Vec<Endpoint> = Vec::new();
        let mut errors = Vec::new();
        for address in &self.all {
            let found = tokio::net::lookup_host((address.host(), address.port()));
            match tokio::time::timeout(ATTEMPT_TIME, found).await {
                Ok(Ok(peers)) => {
                    for peer in peers {
                        if self.loopback_only && !peer.ip().to_canonical().is_loopback() {
                            errors.push((address.clone(), AmqpError::not_loopback(address, peer)));
                        } else if !endpoints.iter().any(|known| known.peer == peer) {
                            endpoints.push(Endpoint { address: address.clone(), peer });
                        }
                    }
                }
                Ok(Err(error)) => errors.push((address.clone(), AmqpError::lookup(address, error))),
                Err(_) => {
                    let operation = format!("looking up {}", address.host());
                    errors.push((address.clone(), AmqpError::timeout(operation, ATTEMPT_TIME)));
                }
            }
        }
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        (in_order(endpoints, &failures), errors)
    }

    /// Records that an endpoint does not work: the next attempt begins elsewhere.
    pub(crate) fn failed(&self, peer: SocketAddr) {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).insert(peer, Instant::now());
    }
}

/// Returns the endpoints in the order to try them.
fn in_order(mut endpoints: Vec<Endpoint>, failures: &HashMap<SocketAddr, Instant>) -> Vec<Endpoint> {
    // Stable, and an endpoint without a failure is before all others.
    endpoints.sort_by_key(|endpoint| failures.get(&endpoint.peer).copied());
    endpoints
}

/// Returns the time that each of so many endpoints gets.
pub(crate) fn share(endpoints: usize) -> Duration {
    let endpoints = u32::try_from(endpoints.max(1)).unwrap_or(u32::MAX);
    (ATTEMPT_TIME / endpoints).max(MIN_SHARE)
}

/// Prints the addresses without their passwords.
impl fmt::Display for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<String> = self.all.iter().map(Address::to_string).collect();
        f.write_str(&all.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_begins_where_the_last_one_did_not_fail() {
        let address = Address::parse("amqp://h").unwrap();
        let peers: Vec<SocketAddr> = (1..=3).map(|port| SocketAddr::from(([127, 0, 0, 1], port))).collect();
        let endpoints: Vec<_> =
            peers.iter().map(|peer| Endpoint { address: address.clone(), peer: *peer }).collect();
        let now = Instant::now();
        let order = |failures: &[(usize, u64)]| {
            let at = |secs| now + Duration::from_secs(secs);
            let failures = failures.iter().map(|(peer, secs)| (peers[*peer], at(*secs))).collect();
            let ports = in_order(endpoints.clone(), &failures).into_iter().map(|found| found.peer.port());
            ports.collect::<Vec<_>>()
        };
        assert_eq!(order(&[]), [1, 2, 3]);
        assert_eq!(order(&[(0, 1)]), [2, 3, 1]);
        assert_eq!(order(&[(0, 1), (1, 2)]), [3, 1, 2]);
        assert_eq!(order(&[(0, 3), (1, 2), (2, 1)]), [3, 2, 1]);
    }

    #[test]
    fn every_address_gets_its_share() {
        assert_eq!([0, 1, 2, 3, 50].map(|n| share(n).as_millis()), [10_000, 10_000, 5_000, 3_333, 2_000]);
    }

    #[test]
    fn a_list_names_the_nodes_of_one_cluster() {
        let list = Addresses::parse("amqp://u:secret@a/v,amqp://u:secret@b:1/v", false).unwrap();
        assert_eq!(list.to_string(), "amqp://u@a:5672/v,amqp://u@b:1/v");
        assert_eq!(list.vhost(), "v");
        let error = Addresses::parse("amqp://a/v,amqp://u:secret@b/w", false).unwrap_err().to_string();
        assert!(error.contains("another vhost") && !error.contains("secret"), "{error}");
    }

    #[tokio::test]
    async fn a_login_that_must_stay_here_has_no_endpoint_elsewhere() {
        let list = "amqp://u:secret@127.0.0.1/v,amqp://u:secret@192.0.2.7/v";
        let resolved = async |loopback_only| {
            let (endpoints, errors) = Addresses::parse(list, loopback_only).unwrap().resolve().await;
            let peers: Vec<String> = endpoints.iter().map(|endpoint| endpoint.peer.to_string()).collect();
            (peers, errors)
        };
        let (peers, errors) = resolved(true).await;
        assert_eq!(peers, ["127.0.0.1:5672"]);
        let error = crate::error::error_chain(&errors[0].1);
        assert!(
            error.contains("192.0.2.7") && error.contains("amqps://") && !error.contains("secret"),
            "{error}"
        );
        let (peers, errors) = resolved(false).await;
        assert_eq!((peers.len(), errors.len()), (2, 0));
    }
}
