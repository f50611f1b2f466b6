//! `amqp://` and `amqps://`: a broker over RabbitMQ.

use std::sync::Arc;

use async_trait::async_trait;
use machinist_broker_amqp::{AmqpBroker, AmqpOptions, TopologyMode};
use machinist_core::broker::Broker;

use super::{ConnectRequest, Connector, ConnectorError, schemes::AMQP};
use crate::{topology::Topology, url::Scheme};

#[derive(Debug)]
pub(super) struct AmqpConnector;

#[async_trait]
impl Connector for AmqpConnector {
    fn schemes(&self) -> Vec<Scheme> {
        AMQP.to_vec()
    }

    fn takes_list(&self) -> bool {
        true
    }

    async fn broker(&self, request: &ConnectRequest<'_>) -> Result<Arc<dyn Broker>, ConnectorError> {
        let options = AmqpOptions {
            namespace: request.namespace.to_owned(),
            topology: match request.topology {
                Topology::Declare => TopologyMode::Declare,
                Topology::Verify => TopologyMode::Verify,
            },
            tls: request.tls()?,
            loopback_only: request.loopback_only,
            ..AmqpOptions::default()
        };
        Ok(Arc::new(AmqpBroker::connect(request.url.expose(), options).await?))
    }
}
