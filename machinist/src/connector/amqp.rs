//! `amqp://` and `amqps://`: a broker over RabbitMQ.

use std::sync::Arc;

use async_trait::async_trait;
use machinist_broker_amqp::{AmqpBroker, AmqpOptions, ExistingQueue, TopologyMode};
use machinist_core::{QueueName, broker::Broker};

use super::{ConnectRequest, Connector, ConnectorError, schemes::AMQP};
use crate::{
    topology::{QueueAddress, Topology},
    url::Scheme,
};

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
        let existing = |(queue, address): (&QueueName, &QueueAddress)| {
            let existing = ExistingQueue::new(queue.as_str());
            (queue.clone(), existing.through(&address.exchange, &address.routing_key))
        };
        let options = AmqpOptions {
            namespace: request.namespace.to_owned(),
            topology: match request.topology {
                Topology::Declare => TopologyMode::Declare,
                Topology::Verify => TopologyMode::Verify,
            },
            existing_queues: request.existing_queues.iter().map(existing).collect(),
            tls: request.tls()?,
            loopback_only: request.loopback_only,
            ..AmqpOptions::default()
        };
        Ok(Arc::new(AmqpBroker::connect(request.url.expose(), options).await?))
    }
}
