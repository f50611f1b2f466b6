//! Request for a connection: the URL, and the settings that hold for any server.

use std::{collections::BTreeMap, path::Path};

use machinist_core::QueueName;

use crate::{
    topology::{QueueAddress, Topology},
    url::ServerUrl,
};

/// Request for a connection.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct ConnectRequest<'a> {
    /// URL of the server; [`ServerUrl::expose`] returns it with its password.
    pub url: &'a ServerUrl,
    /// Prefix of all names on the server, which separates applications that share it.
    pub namespace: &'a str,
    /// Treatment of what is missing on the server.
    pub topology: Topology,
    /// Queues that other programs declare, by the names under which tasks are sent to them.
    pub existing_queues: &'a BTreeMap<QueueName, QueueAddress>,
    /// Files of `[tls]`; empty for a scheme without TLS.
    pub tls_files: TlsFiles<'a>,
    /// `true` if the login must not leave this host: the URL has a password and no TLS. The URL names no other host then,
    /// but a server can, as a Sentinel does. The connector dials no address of another host.
    pub loopback_only: bool,
}

/// Files of `[tls]`, in PEM.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct TlsFiles<'a> {
    /// Certificates to trust, instead of the system's.
    pub ca: Option<&'a Path>,
    /// Client certificate and its private key.
    pub identity: Option<(&'a Path, &'a Path)>,
}
