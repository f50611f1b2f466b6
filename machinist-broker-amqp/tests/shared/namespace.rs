//! Removal of what a test leaves on a RabbitMQ that it shares with others. The tests of several crates include this file.
//!
//! A namespace with delays has up to 105 quorum queues. Some thousands of them slow the broker down, and in the end it takes no
//! more connections: each reserves file handles, used or not.

use lapin::{
    Connection, ConnectionProperties,
    options::{ExchangeDeleteOptions, QueueDeleteOptions},
};

/// Deletes the exchanges of a namespace, its delay queues, and the queue of its undelivered messages. The queues of tasks, and
/// those of their dead letters and guards, stay.
pub(crate) async fn delete_delays(url: &str, namespace: &str) -> Result<(), lapin::Error> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let level = |level| format!("{namespace}.delay.{level}");
    let queues = (0..7).flat_map(|at| (1..=15).map(move |digit| format!("{}.{digit}", level(at))));
    let undelivered = format!("{namespace}.undelivered");
    for queue in queues.chain([undelivered.clone()]) {
        // Answered by the answer to the last request.
        let options = QueueDeleteOptions { nowait: true, ..QueueDeleteOptions::default() };
        channel.queue_delete(queue.into(), options).await?;
    }
    let others = ["due", "dead"].map(|kind| format!("{namespace}.{kind}"));
    for exchange in (0..7).map(level).chain(others).chain([undelivered, namespace.to_owned()]) {
        channel.exchange_delete(exchange.into(), ExchangeDeleteOptions::default()).await?;
    }
    connection.close(200, "deleted".into()).await
}
