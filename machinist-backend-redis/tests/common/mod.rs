//! What the tests share: a namespace of their own on the server that they share.

use std::time::Duration;

use machinist_backend_redis::{RedisBackend, RedisOptions};
use machinist_conformance::service_url;
use machinist_core::id::TaskId;

/// A random key prefix on the server of `MACHINIST_TEST_REDIS_URL`.
pub(crate) struct Namespace {
    pub(crate) url: String,
    pub(crate) prefix: String,
}

impl Namespace {
    /// `None` where there is no server to test with.
    pub(crate) fn fresh() -> Option<Self> {
        let url = service_url("MACHINIST_TEST_REDIS_URL")?;
        Some(Self { url, prefix: format!("test-{}", TaskId::fresh()) })
    }

    pub(crate) fn options(&self) -> RedisOptions {
        RedisOptions { prefix: self.prefix.clone(), ..RedisOptions::default() }
    }

    pub(crate) async fn connect(&self, url: &str) -> RedisBackend {
        RedisBackend::connect(url, self.options()).await.expect("the test server is there")
    }

    /// A connection beside the backend, to look and to break things.
    pub(crate) async fn side_door(&self) -> redis::aio::MultiplexedConnection {
        let client = redis::Client::open(self.url.as_str()).expect("a URL of a Redis server");
        // A busy disk may stop the server for longer than the 500 ms for which this client waits unless told otherwise.
        let patient = redis::AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(60)));
        client.get_multiplexed_async_connection_with_config(&patient).await.expect("the test server is there")
    }

    /// Deletes what a test left behind.
    pub(crate) async fn erase(&self) {
        let mut door = self.side_door().await;
        let mut cursor = 0_u64;
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg(format!("{}:*", self.prefix)).arg("COUNT").arg(1000);
            let (next, keys): (u64, Vec<String>) = scan.query_async(&mut door).await.expect("SCAN");
            if !keys.is_empty() {
                redis::cmd("DEL").arg(keys).exec_async(&mut door).await.expect("DEL");
            }
            cursor = next;
            if cursor == 0 {
                return;
            }
        }
    }
}
