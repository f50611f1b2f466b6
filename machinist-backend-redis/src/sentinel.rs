//! Connections to the master that sentinels name.
//!
//! The client library looks the master up too, but logs in to what the sentinels name before anybody can check the
//! address. This is the procedure of Redis' guidelines for clients: ask one sentinel after the other, and check the role.

use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _,
    RedisConnectionInfo, RedisError, RedisResult, Role, TlsCertificates, aio::MultiplexedConnection,
    io::tcp::TcpSettings,
};

/// Sentinels, and what they are asked for.
#[derive(Clone)]
pub(crate) struct Sentinels {
    /// Each with its own login.
    pub(crate) sentinels: Vec<ConnectionInfo>,
    /// Name of the master.
    pub(crate) master: String,
    /// Login to the master, with its database.
    pub(crate) login: RedisConnectionInfo,
    pub(crate) tcp: TcpSettings,
}

/// Settings of connections to sentinels and to the master.
pub(crate) struct SentinelSettings {
    pub(crate) sentinel: AsyncConnectionConfig,
    pub(crate) master: AsyncConnectionConfig,
    pub(crate) encrypted: bool,
    pub(crate) certificates: Option<TlsCertificates>,
}

impl Sentinels {
    /// Connects to the master that the first sentinel names that leads to one.
    pub(crate) async fn connect(&self, settings: &SentinelSettings) -> RedisResult<MultiplexedConnection> {
        let mut failed: RedisError = std::io::Error::other("no sentinels").into();
        for sentinel in &self.sentinels {
            match self.connect_through(sentinel, settings).await {
                Ok(connection) => return Ok(connection),
                Err(error) => {
                    tracing::debug!(sentinel = %sentinel.addr(), %error, "a sentinel leads to no master");
                    failed = error;
                }
            }
        }
        Err(failed)
    }

    async fn connect_through(
        &self,
        sentinel: &ConnectionInfo,
        settings: &SentinelSettings,
    ) -> RedisResult<MultiplexedConnection> {
        let watchman = settings.client(sentinel.clone())?;
        let mut sentinel = watchman.get_multiplexed_async_connection_with_config(&settings.sentinel).await?;
        let mut question = redis::cmd("SENTINEL");
        question.arg("GET-MASTER-ADDR-BY-NAME").arg(&self.master);
        let Some((host, port)) = question.query_async::<Option<(String, u16)>>(&mut sentinel).await? else {
            return Err(failure(format!("the sentinels know no master {}", self.master)));
        };
        let address = match settings.encrypted {
            true => ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
            false => ConnectionAddr::Tcp(host, port),
        };
        let named = address.to_string();
        let info = address.into_connection_info()?;
        let info = info.set_redis_settings(self.login.clone()).set_tcp_settings(self.tcp.clone());
        let client = settings.client(info)?;
        let mut master = client.get_multiplexed_async_connection_with_config(&settings.master).await?;
        match redis::cmd("ROLE").query_async(&mut master).await {
            Ok(Role::Primary { .. }) => Ok(master),
            // The sentinels have not noticed yet, or a failover is under way.
            Ok(_) => Err(failure(format!("{named}, which the sentinels call master, is none"))),
            // The user may not ask. A replica refuses the first write, and then the connection is replaced.
            Err(error) if error.code() == Some("NOPERM") => Ok(master),
            Err(error) => Err(error),
        }
    }
}

impl SentinelSettings {
    fn client(&self, server: ConnectionInfo) -> RedisResult<Client> {
        match &self.certificates {
            Some(certificates) => Client::build_with_tls(server, certificates.clone()),
            None => Client::open(server),
        }
    }
}

fn failure(said: String) -> RedisError {
    std::io::Error::other(said).into()
}
