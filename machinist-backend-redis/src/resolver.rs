//! Names of servers, looked up so that a password leaves this host by TLS only.
//!
//! Sentinels and nodes of a cluster name further servers, and what they name is dialled and gets the login. The addresses
//! of the URL say nothing about those, so each address is checked where it is dialled.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use redis::{ErrorKind, RedisError, RedisFuture, RedisResult, io::AsyncDNSResolver};

use crate::error::not_loopback;

/// Resolver that refuses addresses of other hosts. Clones share the last refusal.
#[derive(Debug, Clone, Default)]
pub(crate) struct LoopbackResolver(Arc<Mutex<Option<RedisError>>>);

impl LoopbackResolver {
    /// Returns the refusal that is the cause of this error. The client of a cluster says only that a node is missing.
    pub(crate) fn explain(&self, error: RedisError) -> RedisError {
        let is_general = matches!(error.kind(), ErrorKind::ClusterConnectionNotFound | ErrorKind::Io);
        let refusal = is_general.then(|| self.0.lock().unwrap_or_else(PoisonError::into_inner).take());
        refusal.flatten().unwrap_or(error)
    }
}

impl AsyncDNSResolver for LoopbackResolver {
    fn resolve<'a, 'b: 'a>(
        &'a self,
        host: &'b str,
        port: u16,
    ) -> RedisFuture<'a, Box<dyn Iterator<Item = SocketAddr> + Send + 'a>> {
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((host, port)).await?.collect();
            let allowed = loopback(host, found).inspect_err(|refusal| {
                *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(refusal.clone());
            })?;
            Ok(Box::new(allowed.into_iter()) as Box<dyn Iterator<Item = SocketAddr> + Send>)
        })
    }
}

/// Returns the addresses of this host.
fn loopback(host: &str, found: Vec<SocketAddr>) -> RedisResult<Vec<SocketAddr>> {
    let is_allowed = |address: &SocketAddr| address.ip().to_canonical().is_loopback();
    match found.iter().find(|address| !is_allowed(address)) {
        Some(other) if !found.iter().any(is_allowed) => Err(not_loopback(host, *other)),
        _ => Ok(found.into_iter().filter(is_allowed).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_this_host_are_dialled() {
        let parse = |all: &[&str]| all.iter().map(|one| one.parse().expect("an address")).collect();
        let ours: Vec<SocketAddr> = parse(&["127.0.0.1:1", "[::1]:1", "[::ffff:127.0.0.1]:1", "127.9.9.9:1"]);
        assert_eq!(loopback("localhost", ours.clone()).expect("addresses"), ours);
        let mixed = parse(&["10.0.0.7:1", "127.0.0.1:1"]);
        assert_eq!(loopback("redis", mixed).expect("an address"), parse(&["127.0.0.1:1"]));
        let error = loopback("redis", parse(&["[2001:db8::1]:1"])).expect_err("another host");
        assert!(error.to_string().contains("redis ([2001:db8::1]:1)"), "{error}");
    }
}
