//! Fixtures over RabbitMQ and Redis.

#![cfg(feature = "servers")]

use std::time::Duration;

use machinist_broker_amqp::{AmqpBroker, AmqpOptions};
use machinist_core::{QueueName, TaskDef, TaskError, broker::Broker};
use machinist_test::TestServers;

const DOUBLE: TaskDef<i64, i64> = TaskDef::new("double");
const PATIENCE: Duration = Duration::from_secs(300);

async fn double(n: i64) -> Result<i64, TaskError> {
    Ok(2 * n)
}

#[tokio::test]
async fn tests_share_servers_and_nothing_else() {
    let Some(one) = TestServers::connect().await else { return };
    let Some(two) = TestServers::connect().await else { return };
    let waits = two.client().send(DOUBLE.call(1)).await.unwrap();
    let worker = one.start(|worker| worker.task(DOUBLE, double)).await;
    let sent = one.client().send(DOUBLE.call(21)).await.unwrap();
    assert_eq!(sent.wait(PATIENCE).await.unwrap(), 42);
    worker.stop().await;
    assert!(!waits.record().await.unwrap().state.is_final());
    let default = [QueueName::parse("default").unwrap()];
    assert_eq!(two.app().broker().depth(&default).await.unwrap()[0].ready, Some(1));
    one.clean_up().await;
    two.clean_up().await;
}

#[tokio::test]
async fn what_is_cleaned_up_leaves_no_queue() {
    let Some(servers) = TestServers::connect().await else { return };
    let client = servers.client();
    for queue in ["mail", "default"] {
        client.send(DOUBLE.call(1).queue(queue)).await.unwrap();
    }
    let namespace = servers.namespace().to_owned();
    servers.clean_up().await;
    // A queue that is not there has no depth.
    let url = std::env::var("MACHINIST_TEST_AMQP_URL").unwrap();
    let options = AmqpOptions { namespace, ..AmqpOptions::default() };
    let broker = AmqpBroker::connect(&url, options).await.unwrap();
    let queues = ["mail", "default"].map(|name| QueueName::parse(name).unwrap());
    for depth in broker.depth(&queues).await.unwrap() {
        assert_eq!(depth.ready, None, "{depth:?}");
    }
}
