//! An application over the servers that the command line names.

use std::{sync::Arc, time::Duration};

use anyhow::Result;
use lapin::{Connection, ConnectionProperties};
use machinist::{
    App, AppBuilder,
    amqp::{AmqpBroker, AmqpOptions},
    backend::Backend,
    broker::Broker,
    redis::{RedisBackend, RedisOptions},
};
use machinist_conformance::arrows::{Witness, Witnessed};

/// Where to connect.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Servers {
    #[arg(long)]
    pub(crate) amqp: String,
    #[arg(long)]
    pub(crate) redis: String,
    #[arg(long)]
    pub(crate) namespace: String,
    /// How long records are kept, if not as by default.
    #[arg(long)]
    pub(crate) results_s: Option<u64>,
}

impl Servers {
    /// A connection past the adapter, to the first node of a cluster.
    pub(crate) async fn raw_amqp(&self) -> Result<Connection> {
        let url = self.amqp.split(',').next().unwrap_or_default();
        Ok(Connection::connect(url, ConnectionProperties::default()).await?)
    }

    pub(crate) async fn app(&self, publish_deadline: Duration) -> Result<App> {
        let (broker, backend) = self.connect(publish_deadline).await?;
        Ok(self.kept(App::builder(broker, backend)).allow_unsigned().build().await?)
    }

    /// The same, with a witness before broker and backend.
    pub(crate) async fn app_seen_by(
        &self,
        witness: &Arc<dyn Witness>,
        publish_deadline: Duration,
    ) -> Result<App> {
        let (broker, backend) = self.connect(publish_deadline).await?;
        let broker = Witnessed::new(Arc::clone(witness), broker);
        let backend = Witnessed::new(Arc::clone(witness), backend);
        Ok(self.kept(App::builder(Arc::new(broker), Arc::new(backend))).allow_unsigned().build().await?)
    }

    fn kept(&self, builder: AppBuilder) -> AppBuilder {
        match self.results_s {
            Some(seconds) => builder.results_ttl(Duration::from_secs(seconds)),
            None => builder,
        }
    }

    async fn connect(&self, publish_deadline: Duration) -> Result<(Arc<dyn Broker>, Arc<dyn Backend>)> {
        let namespace = self.namespace.clone();
        let options = AmqpOptions { publish_deadline, namespace, ..AmqpOptions::default() };
        let broker = AmqpBroker::connect(&self.amqp, options).await?;
        let options = RedisOptions { prefix: self.namespace.clone(), ..RedisOptions::default() };
        let backend = RedisBackend::connect(&self.redis, options).await?;
        Ok((Arc::new(broker), Arc::new(backend)))
    }
}
