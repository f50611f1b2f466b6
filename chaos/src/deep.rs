//! The message that ends an unprotected consumer: tables in tables, as deep as a frame can hold.

use anyhow::{Result, ensure};
use lapin::{
    BasicProperties,
    options::{BasicPublishOptions, ConfirmSelectOptions},
    types::{AMQPValue, FieldTable},
};

use crate::connect::Servers;

/// What the thread that writes it needs: lapin goes down into the tables by calling itself, and without optimization
/// each level takes several times the stack. Workers get no more than any process.
pub(crate) const WRITERS_STACK: u64 = if cfg!(debug_assertions) { 256 << 20 } else { 64 << 20 };
/// What stands in the frame beside the tables.
const BESIDE: usize = 512;
/// A table within a table: the length of its name, the name, its type, its own length.
const LEVEL: usize = 1 + 1 + 1 + 4;

/// Publishes it past the adapter, which would not, and waits until it lies in a queue.
pub(crate) async fn publish(servers: &Servers, queue: &str, id: &str) -> Result<()> {
    let connection = servers.raw_amqp().await?;
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let frame = usize::try_from(connection.configuration().frame_max())?;
    let mut headers = FieldTable::default();
    for _ in 0..(frame - BESIDE) / LEVEL {
        let mut outer = FieldTable::default();
        outer.insert("t".into(), AMQPValue::FieldTable(headers));
        headers = outer;
    }
    let properties =
        BasicProperties::default().with_message_id(id.into()).with_headers(headers).with_delivery_mode(2);
    let (exchange, key) = (servers.namespace.as_str(), format!("{}:{queue}", servers.namespace));
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let publish = channel.basic_publish(exchange.into(), key.as_str().into(), options, b"deep", properties);
    let confirmed = publish.await?.await?;
    ensure!(confirmed.is_ack(), "the deep message was not taken: {confirmed:?}");
    connection.close(200, "done".into()).await?;
    Ok(())
}
