//! Looks at messages that wait, and leaves them in their queue.
//!
//! AMQP has no way to read a message without a delivery. So the messages are taken one by one on a separate channel, and all
//! are handed back by one `basic.nack`. A quorum queue puts them back to its front only if it has a delivery limit; one
//! without a limit moves them to its back. Messages that came back are delivered before all others, in the order in which they
//! came back, so a look takes all of them: otherwise it would put the first behind the rest. Each look counts towards the limit before RabbitMQ 4.3. So the limit is made sure
//! of before the first message is taken, and each message tells how many deliveries are left.

use lapin::{
    BasicProperties, Channel,
    options::{BasicGetOptions, BasicNackOptions},
    types::{AMQPValue, ShortString},
};
use machinist_adapter::{
    broker::{Broker, BrokerError, HeldCounts, PeekedMessage},
    id::QueueName,
};
use serde_json::Value;

use crate::{
    broker::AmqpBroker,
    connection::close_channel,
    convert,
    error::{AmqpError, rpc},
    management,
    options::TopologyMode,
    supervisor::LiveConnection,
};

/// Maximum number of messages that one look takes.
const MAX_TAKEN: usize = 1000;
/// Header with the number of deliveries that have come back.
const RETURNED: &str = "x-delivery-count";
/// Key of a policy that sets a limit.
const POLICY_LIMIT: &str = "delivery-limit";

impl AmqpBroker {
    /// Looks at the first messages of a queue.
    pub(crate) async fn look(
        &self,
        queue: &QueueName,
        limit: u16,
    ) -> Result<Vec<PeekedMessage>, BrokerError> {
        let topology = &self.settings.topology;
        let refused = |reason| BrokerError::Refused { reason };
        if topology.is_existing(queue) {
            return Err(refused(format!(
                "queue {queue} belongs to another program, and a look could move its messages"
            )));
        }
        let name = topology.queue_name(queue).map_err(refused)?;
        let depth = self.depth(std::slice::from_ref(queue)).await?.pop();
        // A count of 0 says nothing: it lags behind messages that have just come back.
        if depth.is_none_or(|depth| depth.ready.is_none()) {
            return Ok(Vec::new());
        }
        let live = self.consuming().await?.current_in_time().await?;
        let delivery_limit = self.limit_in_force(&live, queue, &name).await?;
        let channel = live.connection.open_channel().await.map_err(AmqpError::into_broker_error)?;
        let looked = take_and_hand_back(&channel, &name, limit, delivery_limit).await;
        // Whatever failed, the broker puts back what a closed channel holds.
        close_channel(&channel).await;
        looked.map_err(AmqpError::into_broker_error)
    }

    /// Returns the delivery limit of a queue, made sure of on the broker; `None` for a classic queue, which needs none.
    ///
    /// # Errors
    /// [`BrokerError::Refused`] if another limit is in force, or nobody tells.
    async fn limit_in_force(
        &self,
        live: &LiveConnection,
        queue: &QueueName,
        name: &str,
    ) -> Result<Option<u64>, BrokerError> {
        let topology = &self.settings.topology;
        let Some(declared) = topology.delivery_limit() else { return Ok(None) };
        let seen = self.management_view(live, name).await;
        match self.settings.topology_mode {
            TopologyMode::Declare => live.declared.confirm_queue(&live.connection, name).await?,
            TopologyMode::Verify => {
                let limit = seen.as_ref().and_then(|seen| seen["arguments"]["x-delivery-limit"].as_u64());
                if limit != Some(declared) {
                    let found = limit.map_or_else(
                        || "the management API does not tell its delivery limit".to_owned(),
                        |limit| format!("its delivery limit is {limit}"),
                    );
                    return Err(BrokerError::Refused {
                        reason: format!(
                            "a look could move or bury the messages of queue {queue}: {found}, and it must be {declared}"
                        ),
                    });
                }
            }
        }
        let policy = seen.and_then(|seen| seen["effective_policy_definition"][POLICY_LIMIT].as_u64());
        match policy.filter(|policy| *policy < declared) {
            Some(policy) => Err(BrokerError::Refused {
                reason: format!(
                    "a policy sets delivery-limit = {policy} on queue {queue}, and a look could bury its messages; exclude \
                     the queue from the policy"
                ),
            }),
            None => Ok(Some(declared)),
        }
    }

    /// Returns what the management API says about a queue, if it says anything.
    async fn management_view(&self, live: &LiveConnection, name: &str) -> Option<Value> {
        let port = self.settings.management_port?;
        let columns = "name,arguments,effective_policy_definition";
        let mut found = None;
        // RabbitMQ before 4.0 has the policies among its statistics only.
        for statistics in [false, true] {
            let queues = management::queues(live.connection.endpoint(), port, columns, statistics).await;
            match queues {
                Ok(queues) => found = queues.into_iter().find(|queue| management::name(queue) == name),
                Err(error) => {
                    tracing::debug!(error, "the management API does not tell about a queue");
                    return found;
                }
            }
            if found.as_ref().is_some_and(|queue| !queue["effective_policy_definition"].is_null()) {
                break;
            }
        }
        found
    }

    /// Returns the numbers of unsettled deliveries, as far as the management API tells. Nobody tells for which queue a
    /// message goes down the ladder.
    pub(crate) async fn unsettled(&self, queues: &[QueueName]) -> Result<Vec<HeldCounts>, BrokerError> {
        let unknown = || vec![HeldCounts::default(); queues.len()];
        let Some(port) = self.settings.management_port else { return Ok(unknown()) };
        let live = self.consuming().await?.current_in_time().await?;
        let columns = "name,messages_unacknowledged";
        let told = match management::queues(live.connection.endpoint(), port, columns, true).await {
            Ok(told) => told,
            Err(error) => {
                tracing::debug!(error, "the management API does not tell the unsettled deliveries");
                return Ok(unknown());
            }
        };
        let counts = queues.iter().map(|queue| {
            let name = self.settings.topology.queue_name(queue).ok()?;
            told.iter().find(|one| management::name(one) == name)?["messages_unacknowledged"].as_u64()
        });
        Ok(counts.map(|unacked| HeldCounts { delayed: None, unacked }).collect())
    }
}

/// Takes messages and hands all of them back.
async fn take_and_hand_back(
    channel: &Channel,
    queue: &str,
    limit: u16,
    delivery_limit: Option<u64>,
) -> Result<Vec<PeekedMessage>, AmqpError> {
    let name = ShortString::try_new(queue).unwrap_or_default();
    let limit = usize::from(limit);
    let mut peeked = Vec::new();
    let mut last = None;
    let mut had_come_back = true;
    while peeked.len() < limit || (had_come_back && peeked.len() < MAX_TAKEN) {
        let get = channel.basic_get(name.clone(), BasicGetOptions { no_ack: false });
        let Some(got) = rpc("looking at a message", get).await? else { break };
        last = Some(got.delivery.delivery_tag);
        had_come_back = got.delivery.redelivered;
        let properties = &got.delivery.properties;
        let deliveries_left = delivery_limit.map(|limit| limit.saturating_sub(returned(properties) + 1));
        let message = convert::message(properties, got.delivery.data);
        peeked.push(PeekedMessage { message, deliveries_left });
    }
    if let Some(last) = last {
        // In one frame, so that they return in their order.
        let options = BasicNackOptions { multiple: true, requeue: true };
        rpc("handing messages back", channel.basic_nack(last, options)).await?;
    }
    // All count towards the limit, and those that were asked for are shown.
    let left = peeked.iter().filter_map(|peeked: &PeekedMessage| peeked.deliveries_left).min();
    peeked.truncate(limit);
    if let Some(first) = peeked.first_mut() {
        first.deliveries_left = left;
    }
    Ok(peeked)
}

/// Returns the number of deliveries of a message that have come back.
fn returned(properties: &BasicProperties) -> u64 {
    let headers = properties.headers().as_ref();
    match headers.and_then(|headers| headers.inner().get(RETURNED)) {
        Some(AMQPValue::LongLongInt(count)) => count.unsigned_abs(),
        Some(AMQPValue::LongInt(count)) => u64::from(count.unsigned_abs()),
        Some(AMQPValue::LongUInt(count)) => u64::from(*count),
        Some(AMQPValue::ShortInt(count)) => u64::from(count.unsigned_abs()),
        Some(AMQPValue::ShortUInt(count)) => u64::from(*count),
        Some(AMQPValue::ShortShortInt(count)) => u64::from(count.unsigned_abs()),
        Some(AMQPValue::ShortShortUInt(count)) => u64::from(*count),
        _ => 0,
    }
}
