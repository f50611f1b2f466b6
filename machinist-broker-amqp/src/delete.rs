//! Deletion of a queue that is empty.
//!
//! RabbitMQ deletes a quorum queue whatever is in it: it does not support the flags `if-empty` and `if-unused` there. So the
//! queue is unbound first. From then on no exchange routes a message to it: a publisher is told that its message is
//! unroutable, and a delayed message that comes due goes to the queue of undelivered ones. Then the queue is looked at
//! once more, and it is bound again if it is not empty. After an interruption between the steps, the next worker or sender
//! of the queue binds it again.

use lapin::{
    Channel,
    options::QueueDeleteOptions,
    types::{FieldTable, ShortString},
};
use machinist_adapter::{
    broker::{Broker, BrokerError, QueueDeletion},
    id::QueueName,
};

use crate::{
    broker::AmqpBroker,
    error::{AmqpError, rpc},
    ladder,
    options::TopologyMode,
};

impl AmqpBroker {
    /// Deletes a queue and the queue of its dead letters, if they are empty.
    pub(crate) async fn delete_if_empty(&self, queue: &QueueName) -> Result<QueueDeletion, BrokerError> {
        let topology = &self.settings.topology;
        let refused = |reason| BrokerError::Refused { reason };
        if self.settings.topology_mode == TopologyMode::Verify {
            let reason = "topology = \"verify\" forbids the deletion of queues; the owner of the topology deletes them";
            return Err(refused(reason.to_owned()));
        }
        if topology.is_existing(queue) {
            return Err(refused(format!("queue {queue} belongs to another program, which deletes it")));
        }
        let name = topology.queue_name(queue).map_err(refused)?;
        let dead = topology.dead_letter_queue_name(queue).map_err(refused)?;
        let live = self.consuming().await?.current_in_time().await?;
        let look = async || {
            let depth = self.depth(std::slice::from_ref(queue)).await?.pop();
            Ok::<_, BrokerError>(depth.map_or(QueueDeletion::Deleted, |depth| QueueDeletion::decide(&depth)))
        };
        match look().await? {
            QueueDeletion::Deleted => {}
            stays => return Ok(stays),
        }
        let channel = live.connection.open_channel().await.map_err(AmqpError::into_broker_error)?;
        for (bound, exchange) in [(&name, topology.task_exchange()), (&dead, topology.dead_letter_exchange())]
        {
            unbind(&channel, bound, exchange, &name).await?;
            unbind(&channel, bound, topology.due_exchange(), &ladder::pattern_due(bound)).await?;
        }
        live.declared.forget(&name);
        match look().await? {
            QueueDeletion::Deleted => {}
            stays => {
                live.declared.for_consume(&live.connection, &name).await?;
                return Ok(stays);
            }
        }
        for gone in [&name, &dead] {
            let delete = channel.queue_delete(short(gone), QueueDeleteOptions::default());
            rpc("deleting a queue", delete).await.map_err(AmqpError::into_broker_error)?;
        }
        Ok(QueueDeletion::Deleted)
    }
}

async fn unbind(channel: &Channel, queue: &str, exchange: String, key: &str) -> Result<(), BrokerError> {
    let unbind = channel.queue_unbind(short(queue), short(&exchange), short(key), FieldTable::default());
    rpc("unbinding a queue", unbind).await.map_err(AmqpError::into_broker_error)
}

fn short(text: &str) -> ShortString {
    ShortString::try_new(text).unwrap_or_default()
}
