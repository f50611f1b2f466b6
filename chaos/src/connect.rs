//! An application over the servers that the command line names.

use std::{sync::Arc, time::Duration};

use anyhow::Result;
use machinist::{
    App,
    amqp::{AmqpBroker, AmqpOptions},
    broker::Broker,
    redis::{RedisBackend, RedisOptions},
};

/// Where to connect.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Servers {
    #[arg(long)]
    pub(crate) amqp: String,
    #[arg(long)]
    pub(crate) redis: String,
    #[arg(long)]
    pub(crate) namespace: String,
}

impl Servers {
    pub(crate) async fn app(&self, publish_deadline: Duration) -> Result<App> {
        let broker = self.broker(AmqpOptions { publish_deadline, ..AmqpOptions::default() }).await?;
        let options = RedisOptions { prefix: self.namespace.clone(), ..RedisOptions::default() };
        let backend = RedisBackend::connect(&self.redis, options).await?;
        Ok(App::builder(broker, Arc::new(backend)).allow_unsigned().build().await?)
    }

    async fn broker(&self, options: AmqpOptions) -> Result<Arc<dyn Broker>> {
        let options = AmqpOptions { namespace: self.namespace.clone(), ..options };
        Ok(Arc::new(AmqpBroker::connect(&self.amqp, options).await?))
    }
}
