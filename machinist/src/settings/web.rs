//! `[web]`: settings of the dashboard.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use super::Setting;

/// `[web]`.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct WebSettings {
    /// Address at which it listens.
    pub listen: Setting<SocketAddr>,
    /// Name of the installation, on every page.
    pub name: Option<Setting<String>>,
    /// `true` if nobody may change anything.
    pub read_only: Setting<bool>,
    /// File of people with passwords.
    pub password_file: Option<Setting<PathBuf>>,
    /// File of programs with tokens.
    pub token_file: Option<Setting<PathBuf>>,
    /// Header in which a proxy names the user.
    pub proxy_header: Option<Setting<String>>,
    /// Addresses of the proxy whose header is believed.
    pub proxy_addresses: Option<Setting<Vec<IpAddr>>>,
    /// Role of those whom a proxy has logged in: `viewer`, `operator` or `admin`.
    pub proxy_role: Setting<String>,
}
