//! The floor: the same work by hand on lapin and redis, with the same durability and nothing else.
//!
//! Quorum queue, persistent messages, mandatory, every publish confirmed; PENDING, STARTED and SUCCESS written as
//! plain SETs with an expiry; the acknowledgement after the last of them. No guard against doubles, no retries, no
//! reconnecting, no limits: what a framework adds can be told from what the servers cost.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use futures_util::{
    StreamExt as _,
    future::{try_join, try_join_all},
};
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties,
    options::{
        BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
        QueueDeclareOptions,
    },
    types::{AMQPValue, FieldTable},
};
use redis::{AsyncConnectionConfig, aio::MultiplexedConnection};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use uuid::Uuid;

use crate::{
    order::{Duty, Order, Servers, Told},
    part::{self, Count},
};

const EXPIRY: u64 = 24 * 3600;
const PERSISTENT: u8 = 2;
const WORKER: &str = "bench";

/// A message's body.
#[derive(Debug, Serialize, Deserialize)]
struct Task {
    id: String,
    name: String,
    args: Vec<String>,
}

/// What is remembered about a task.
#[derive(Debug, Serialize)]
struct State<'a> {
    id: &'a str,
    name: &'a str,
    state: &'a str,
    worker: Option<&'a str>,
    at: i64,
}

#[derive(Clone)]
struct Floor {
    channel: Channel,
    redis: MultiplexedConnection,
    queue: String,
    _connection: Arc<Connection>,
}

pub(crate) async fn play(order: &Order) -> Result<Told> {
    let Servers::Network { amqp, redis } = &order.servers else { bail!("the floor has no file") };
    let floor = Floor::connect(amqp, redis, &order.queue).await?;
    match order.duty {
        Duty::Work { concurrency, sleep_ms, wakes } => {
            floor.work(order, concurrency, Duration::from_millis(sleep_ms), wakes).await
        }
        Duty::SendAll { batch } => floor.send_all(order, batch).await,
        Duty::SendEach { callers } => floor.send_each(order, callers).await,
        Duty::Lone => floor.lone(order, redis).await,
        Duty::Idle { .. } => bail!("an idle floor is nothing"),
        Duty::Chains { .. } | Duty::Groups { .. } | Duty::ChordsLone { .. } => {
            bail!("the floor has no workflows")
        }
    }
}

impl Floor {
    async fn connect(amqp: &str, redis: &str, queue: &str) -> Result<Self> {
        let connection = Connection::connect(amqp, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(queue.into(), durable, arguments).await?;
        let settings = AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(30)));
        let redis = client(redis)?.get_multiplexed_async_connection_with_config(&settings).await?;
        Ok(Self { channel, redis, queue: queue.to_owned(), _connection: Arc::new(connection) })
    }

    async fn publish(&self, task: &Task) -> Result<lapin::PublisherConfirm> {
        let properties = BasicProperties::default()
            .with_delivery_mode(PERSISTENT)
            .with_message_id(task.id.as_str().into())
            .with_type(task.name.as_str().into())
            .with_content_type("application/json".into());
        let options = BasicPublishOptions { mandatory: true, immediate: false };
        let body = serde_json::to_vec(task)?;
        Ok(self
            .channel
            .basic_publish("".into(), self.queue.as_str().into(), options, &body, properties)
            .await?)
    }

    async fn send(&self, task: &Task) -> Result<()> {
        let publish = async { confirmed(self.publish(task).await?.await?) };
        let record = async {
            let mut redis = self.redis.clone();
            Ok(set(&task.id, "PENDING").exec_async(&mut redis).await?)
        };
        try_join(publish, record).await.map(drop)
    }

    async fn send_window(&self, tasks: &[Task]) -> Result<()> {
        let publish = async {
            let mut confirms = Vec::with_capacity(tasks.len());
            for task in tasks {
                confirms.push(self.publish(task).await?);
            }
            for confirm in confirms {
                confirmed(confirm.await?)?;
            }
            Ok(())
        };
        let record = async {
            let mut pipeline = redis::Pipeline::with_capacity(tasks.len());
            for task in tasks {
                pipeline.add_command(set(&task.id, "PENDING")).ignore();
            }
            Ok(pipeline.exec_async(&mut self.redis.clone()).await?)
        };
        try_join(publish, record).await.map(drop)
    }

    async fn send_all(&self, order: &Order, batch: usize) -> Result<Told> {
        let payload = part::payload(order);
        let watch = part::begin().await?;
        let mut left = order.tasks;
        while left > 0 {
            let now = left.min(batch);
            let tasks: Vec<Task> = (0..now).map(|_| task(&payload)).collect();
            self.send_window(&tasks).await?;
            left -= now;
        }
        watch.told(watch.elapsed(), Vec::new(), Vec::new())
    }

    async fn send_each(&self, order: &Order, callers: usize) -> Result<Told> {
        let payload = part::payload(order);
        let watch = part::begin().await?;
        let each = |caller: usize| {
            let (floor, payload, tasks) = (self.clone(), payload.clone(), order.tasks);
            async move {
                let sending = tokio::spawn(async move {
                    for _ in (caller..tasks).step_by(callers) {
                        floor.send(&task(&payload)).await?;
                    }
                    anyhow::Ok(())
                });
                sending.await?
            }
        };
        try_join_all((0..callers).map(each)).await?;
        watch.told(watch.elapsed(), Vec::new(), Vec::new())
    }

    async fn lone(&self, order: &Order, url: &str) -> Result<Told> {
        let payload = part::payload(order);
        let mut ended = client(url)?.get_async_pubsub().await?;
        ended.subscribe(channel_of(&self.queue)).await?;
        let mut ended = ended.into_on_message();
        let watch = part::begin().await?;
        let mut latencies = Vec::with_capacity(order.tasks);
        for _ in 0..order.tasks {
            let began = Instant::now();
            let task = task(&payload);
            self.send(&task).await?;
            while ended.next().await.context("nobody listens")?.get_payload::<String>()? != task.id {}
            let record: String =
                redis::cmd("GET").arg(key(&task.id)).query_async(&mut self.redis.clone()).await?;
            ensure!(record.contains("SUCCESS"), "{record}");
            latencies.push(began.elapsed().as_secs_f64() * 1e6);
        }
        watch.told(watch.elapsed(), latencies, Vec::new())
    }

    async fn work(&self, order: &Order, concurrency: usize, sleep: Duration, wakes: bool) -> Result<Told> {
        let count = Count::to(order.tasks);
        let watch = part::begin().await?;
        // Enough that a free slot always finds work.
        let prefetch = u16::try_from((2 * concurrency).max(64))?;
        self.channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
        let options = BasicConsumeOptions::default();
        let mut deliveries = self
            .channel
            .basic_consume(self.queue.as_str().into(), "floor".into(), options, FieldTable::default())
            .await?;
        let slots = Arc::new(Semaphore::new(concurrency));
        let mut running = tokio::task::JoinSet::new();
        let take = async {
            while count.handled() < order.tasks {
                let delivery = tokio::select! {
                    delivery = deliveries.next() => delivery.context("the consumer ended")??,
                    () = count.all() => break,
                };
                let slot = Arc::clone(&slots).acquire_owned().await?;
                let (floor, count) = (self.clone(), count.clone());
                running.spawn(async move {
                    let task: Task = serde_json::from_slice(&delivery.data)?;
                    let mut redis = floor.redis.clone();
                    set(&task.id, "STARTED").exec_async(&mut redis).await?;
                    if !sleep.is_zero() {
                        tokio::time::sleep(sleep).await;
                    }
                    drop(slot);
                    count.one();
                    let mut ended = redis::pipe();
                    ended.add_command(set(&task.id, "SUCCESS")).ignore();
                    if wakes {
                        ended.publish(channel_of(&floor.queue), &task.id).ignore();
                    }
                    ended.exec_async(&mut redis).await?;
                    delivery.ack(BasicAckOptions::default()).await?;
                    anyhow::Ok(())
                });
                while let Some(done) = running.try_join_next() {
                    done??;
                }
            }
            while let Some(done) = running.join_next().await {
                done??;
            }
            anyhow::Ok(())
        };
        let (done, samples) = part::sampled(watch, order, &count, take).await?;
        done?;
        watch.told(count.took(), Vec::new(), samples)
    }
}

fn client(url: &str) -> Result<redis::Client> {
    use redis::IntoConnectionInfo as _;
    let info = url.into_connection_info()?;
    let tcp = redis::io::tcp::TcpSettings::default().set_nodelay(true);
    Ok(redis::Client::open(info.set_tcp_settings(tcp))?)
}

fn task(payload: &str) -> Task {
    Task { id: Uuid::now_v7().to_string(), name: "noop".to_owned(), args: vec![payload.to_owned()] }
}

fn key(id: &str) -> String {
    format!("floor:{id}")
}

fn channel_of(queue: &str) -> String {
    format!("floor:{queue}:ended")
}

fn set(id: &str, state: &str) -> redis::Cmd {
    let at = machinist::clock::wall().as_micros();
    let worker = (state != "PENDING").then_some(WORKER);
    // Plain data always serializes.
    let value = serde_json::to_vec(&State { id, name: "noop", state, worker, at }).unwrap_or_default();
    let mut set = redis::cmd("SET");
    set.arg(key(id)).arg(value).arg("EX").arg(EXPIRY);
    if state == "PENDING" {
        // It is written while the message is on its way, and the worker may be there first.
        set.arg("NX");
    }
    set
}

fn confirmed(confirmation: Confirmation) -> Result<()> {
    match confirmation {
        Confirmation::Ack(None) => Ok(()),
        other => bail!("not queued: {other:?}"),
    }
}
