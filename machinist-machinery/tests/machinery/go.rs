//! A model of the client and the worker of Go machinery, on the bare libraries, written from the samples and from what is
//! known of the program. It loses what Go loses: it acknowledges whatever happened.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::StreamExt;
use lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind,
    options::{
        BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
        ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
    },
    types::{AMQPValue, FieldTable},
};
use redis::AsyncCommands;
use serde_json::{Value, json};

/// Time for which Go keeps a state.
const EXPIRY: u64 = 3600;

/// The handlers of a worker: results, or an error.
pub(crate) type Handler = fn(&[Value]) -> Result<Vec<(&'static str, Value)>, String>;

/// A program of Go: its connection to RabbitMQ and to Redis.
#[derive(Clone)]
pub(crate) struct Go {
    channel: Channel,
    redis: redis::aio::MultiplexedConnection,
    pub(crate) exchange: String,
    pub(crate) queue: String,
    /// Names of the tasks that its worker has run, by id.
    pub(crate) ran: Arc<Mutex<HashMap<String, u32>>>,
}

/// A new signature with all fields of Go.
pub(crate) fn signature(name: &str, args: &[(&str, Value)]) -> Value {
    let args: Vec<_> =
        args.iter().map(|(kind, value)| json!({"Name": "", "Type": kind, "Value": value})).collect();
    json!({
        "UUID": "", "Name": name, "RoutingKey": "", "ETA": null, "GroupUUID": "", "GroupTaskCount": 0,
        "Args": args, "Headers": {}, "Priority": 0, "Immutable": false, "RetryCount": 0, "RetryTimeout": 0,
        "OnSuccess": null, "OnError": null, "ChordCallback": null, "BrokerMessageGroupId": "",
        "SQSReceiptHandle": "", "StopTaskDeletionOnError": false, "IgnoreWhenTaskNotRegistered": false,
    })
}

pub(crate) fn fresh(kind: &str) -> String {
    format!("{kind}_{}", machinist::TaskId::fresh())
}

/// The record of a task.
pub(crate) fn state_record(
    id: &str,
    name: &str,
    state: &str,
    results: &Value,
    error: &str,
    created: &Value,
) -> Value {
    json!({
        "TaskUUID": id, "TaskName": name, "State": state, "Results": results, "Error": error,
        "CreatedAt": created, "TTL": 0,
    })
}

/// The record of a group.
pub(crate) fn group_record(id: &str, members: &[String], created: &str) -> Value {
    json!({
        "GroupUUID": id, "TaskUUIDs": members, "ChordTriggered": false, "Lock": false,
        "CreatedAt": created, "TTL": 0,
    })
}

/// The name of the queue that holds messages for this routing key for so long, and its arguments.
pub(crate) fn delay_queue(exchange: &str, key: &str, millis: i64) -> (String, FieldTable) {
    let mut arguments = FieldTable::default();
    let text = |text: &str| AMQPValue::LongString(text.into());
    arguments.insert("x-dead-letter-exchange".into(), text(exchange));
    arguments.insert("x-dead-letter-routing-key".into(), text(key));
    arguments.insert("x-message-ttl".into(), AMQPValue::LongLongInt(millis));
    arguments.insert("x-expires".into(), AMQPValue::LongLongInt(2 * millis));
    (format!("delay.{millis}.{exchange}.{key}"), arguments)
}

impl Go {
    /// Connects, and declares the exchange and the queue as Go does.
    pub(crate) async fn start(amqp: &str, redis: &str, name: &str) -> Self {
        let connection = Connection::connect(amqp, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        let exchange = format!("{name}-exchange");
        let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let kind = ExchangeKind::Direct;
        channel
            .exchange_declare(exchange.as_str().into(), kind, durable, FieldTable::default())
            .await
            .unwrap();
        // A busy disk may stop the server for longer than the 500 ms for which this client waits unless told otherwise.
        let patient = redis::AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(60)));
        let redis = redis::Client::open(redis).unwrap();
        let redis = redis.get_multiplexed_async_connection_with_config(&patient).await.unwrap();
        let go = Self { channel, redis, exchange, queue: name.to_owned(), ran: Arc::default() };
        go.declare(name, name, FieldTable::default()).await;
        go
    }

    async fn declare(&self, queue: &str, key: &str, arguments: FieldTable) {
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        self.channel.queue_declare(queue.into(), durable, arguments).await.unwrap();
        let (queue, exchange, key) = (queue.into(), self.exchange.as_str().into(), key.into());
        self.channel
            .queue_bind(queue, exchange, key, QueueBindOptions::default(), FieldTable::default())
            .await
            .unwrap();
    }

    /// Deletes the queue and its dead letters, and these queues of others.
    pub(crate) async fn clean_up(&self, others: &[String]) {
        let own = [self.queue.clone(), format!("{}.dead", self.queue)];
        for queue in own.iter().chain(others) {
            let queue = queue.as_str();
            self.channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
        }
    }

    /// Sends a task as the client and the worker do: PENDING, then the message. Returns its id.
    pub(crate) async fn send(&self, mut task: Value) -> String {
        if task["UUID"] == "" {
            task["UUID"] = fresh("task").into();
        }
        if task["RoutingKey"] == "" {
            task["RoutingKey"] = self.queue.as_str().into();
        }
        let id = task["UUID"].as_str().unwrap().to_owned();
        self.write(&id, task["Name"].as_str().unwrap(), "PENDING", Value::Null, "").await;
        let key = task["RoutingKey"].as_str().unwrap().to_owned();
        let key = match task["ETA"].as_str() {
            None => key,
            Some(eta) => {
                let due: machinist_core::clock::Timestamp =
                    machinist_core::clock::Timestamp::from_micros(micros(eta));
                let millis = due.since(machinist_core::clock::wall()).as_millis() as i64;
                let (delayed, arguments) = delay_queue(&self.exchange, &key, millis);
                self.declare(&delayed, &delayed, arguments).await;
                delayed
            }
        };
        self.publish(&key, task.to_string().as_bytes()).await;
        id
    }

    pub(crate) async fn publish(&self, key: &str, body: &[u8]) {
        let properties =
            BasicProperties::default().with_content_type("application/json".into()).with_delivery_mode(2);
        let (exchange, key) = (self.exchange.as_str().into(), key.into());
        let options = BasicPublishOptions::default();
        self.channel.basic_publish(exchange, key, options, body, properties).await.unwrap().await.unwrap();
    }

    /// Sends a group, with a callback if it is a chord. Returns the ids of the members.
    pub(crate) async fn send_group(&self, members: Vec<Value>, callback: Option<Value>) -> Vec<String> {
        self.send_group_as(&fresh("group"), members, callback).await
    }

    /// Sends a group with this id.
    pub(crate) async fn send_group_as(
        &self,
        group: &str,
        mut members: Vec<Value>,
        callback: Option<Value>,
    ) -> Vec<String> {
        let ids: Vec<String> = members.iter().map(|_| fresh("task")).collect();
        let meta = group_record(group, &ids, "2026-11-20T23:37:13.465526106Z");
        let _: () = self.redis.clone().set_ex(group, meta.to_string(), EXPIRY).await.unwrap();
        let count = members.len();
        for (member, id) in members.iter_mut().zip(&ids) {
            member["UUID"] = id.as_str().into();
            member["GroupUUID"] = group.into();
            member["GroupTaskCount"] = count.into();
            member["ChordCallback"] = callback.clone().unwrap_or(Value::Null);
            self.send(member.clone()).await;
        }
        ids
    }

    /// Writes a state. Time and name of the first one stay.
    pub(crate) async fn write(&self, id: &str, name: &str, state: &str, results: Value, error: &str) {
        let old = self.state(id).await.filter(|_| state != "PENDING");
        let created = old.map_or_else(|| json!("2026-11-20T23:37:14.5Z"), |old| old["CreatedAt"].clone());
        let state = state_record(id, name, state, &results, error, &created);
        let _: () = self.redis.clone().set_ex(id, state.to_string(), EXPIRY).await.unwrap();
    }

    pub(crate) async fn state(&self, id: &str) -> Option<Value> {
        let text: Option<String> = self.redis.clone().get(id).await.unwrap();
        text.map(|text| serde_json::from_str(&text).unwrap())
    }

    /// Waits until a task has this state.
    pub(crate) async fn until(&self, id: &str, state: &str) {
        for _ in 0..6000 {
            match self.state(id).await {
                Some(found) if found["State"] == state => return,
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
        panic!("{id} was not {state}: {:?}", self.state(id).await)
    }

    /// Returns the time until a record expires.
    pub(crate) async fn time_to_live(&self, id: &str) -> Duration {
        let millis: i64 = self.redis.clone().pttl(id).await.unwrap();
        Duration::from_millis(u64::try_from(millis).expect("it expires"))
    }

    /// Waits as the client does, by polling: ten minutes at most, because a busy host may stop for one or two.
    pub(crate) async fn wait(&self, id: &str) -> Value {
        for _ in 0..6000 {
            match self.state(id).await {
                Some(state) if state["State"] == "SUCCESS" || state["State"] == "FAILURE" => return state,
                _ => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
        panic!("{id} has not ended: {:?}", self.state(id).await)
    }

    /// Runs a worker until the task that this future belongs to is aborted.
    pub(crate) async fn work(self, handlers: HashMap<&'static str, Handler>) {
        self.channel.basic_qos(8, BasicQosOptions::default()).await.unwrap();
        let (queue, tag) = (self.queue.as_str().into(), "".into());
        let options = BasicConsumeOptions::default();
        let mut deliveries =
            self.channel.basic_consume(queue, tag, options, FieldTable::default()).await.unwrap();
        while let Some(Ok(delivery)) = deliveries.next().await {
            let task: Value = serde_json::from_slice(&delivery.data).unwrap();
            self.process(task, &handlers).await;
            delivery.ack(BasicAckOptions::default()).await.unwrap();
        }
    }

    async fn process(&self, mut task: Value, handlers: &HashMap<&'static str, Handler>) {
        let text = |field: &str| task[field].as_str().unwrap().to_owned();
        let (id, name) = (text("UUID"), text("Name"));
        *self.ran.lock().unwrap().entry(id.clone()).or_default() += 1;
        self.write(&id, &name, "RECEIVED", Value::Null, "").await;
        self.write(&id, &name, "STARTED", Value::Null, "").await;
        let args = task["Args"].as_array().cloned().unwrap_or_default();
        let args: Vec<Value> = args.iter().map(|arg| arg["Value"].clone()).collect();
        match handlers[name.as_str()](&args) {
            Ok(results) => {
                let results: Vec<Value> =
                    results.iter().map(|(kind, value)| json!({"Type": kind, "Value": value})).collect();
                self.write(&id, &name, "SUCCESS", results.clone().into(), "").await;
                for mut callback in task["OnSuccess"].as_array().cloned().unwrap_or_default() {
                    if task["Immutable"] == false {
                        append(&mut callback, &results);
                    }
                    self.send(callback).await;
                }
                self.chord(&task).await;
            }
            Err(error) if task["RetryCount"].as_i64() > Some(0) => {
                task["RetryCount"] = (task["RetryCount"].as_i64().unwrap() - 1).into();
                let timeout =
                    [1, 2, 3, 5, 8, 13].into_iter().find(|n| Some(*n) > task["RetryTimeout"].as_i64());
                task["RetryTimeout"] = timeout.unwrap_or(21).into();
                let due =
                    machinist_core::clock::wall().plus(Duration::from_secs(timeout.unwrap_or(21) as u64));
                task["ETA"] = due.to_string().into();
                self.write(&id, &name, "RETRY", Value::Null, &error).await;
                self.send(task).await;
            }
            Err(error) => {
                self.write(&id, &name, "FAILURE", Value::Null, &error).await;
                for mut callback in task["OnError"].as_array().cloned().unwrap_or_default() {
                    let args = callback["Args"].as_array().cloned().unwrap_or_default();
                    let first = json!({"Name": "", "Type": "string", "Value": error});
                    callback["Args"] = std::iter::once(first).chain(args).collect();
                    self.send(callback).await;
                }
            }
        }
    }

    /// Takes a tick of a periodic task, as a program of this name does: the lock ends just before the next tick.
    pub(crate) async fn take_tick(&self, program: &str, entry: &str, cron: &str, next: i64) -> bool {
        let (mut redis, key) = (self.redis.clone(), format!("machinery_lock_{program}{entry}{cron}"));
        let now = || machinist_core::clock::wall().as_micros() * 1000;
        let end = next * 1_000_000_000 - 1;
        let lock = redis::Script::new("return redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2])");
        let left = ((end + 1 - now()) / 1_000_000).max(1);
        let set: Option<String> = lock.key(&key).arg(end).arg(left).invoke_async(&mut redis).await.unwrap();
        if set.is_some() {
            return true;
        }
        let held: Option<i64> = redis.get(&key).await.unwrap();
        if held.is_none_or(|held| held == 0 || now() <= held) {
            return false;
        }
        let before: Option<i64> = redis.getset(&key, end).await.unwrap();
        before.is_some_and(|before| now() > before)
    }

    /// Triggers the callback of a chord after its last member.
    async fn chord(&self, task: &Value) {
        let group = task["GroupUUID"].as_str().unwrap();
        if group.is_empty() || task["ChordCallback"].is_null() {
            return;
        }
        let meta = self.state(group).await.unwrap();
        let mut states = Vec::new();
        for id in meta["TaskUUIDs"].as_array().unwrap() {
            states.extend(self.state(id.as_str().unwrap()).await);
        }
        let ended = |state: &&Value| state["State"] == "SUCCESS" || state["State"] == "FAILURE";
        if states.iter().filter(ended).count() as u64 != task["GroupTaskCount"].as_u64().unwrap() {
            return;
        }
        let lock: redis::Script =
            redis::Script::new("return redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', 8000)");
        let release = redis::Script::new(
            "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0",
        );
        let (mut redis, token) = (self.redis.clone(), fresh("lock"));
        while lock
            .key("TriggerChordMutex")
            .arg(&token)
            .invoke_async::<Option<String>>(&mut redis)
            .await
            .unwrap()
            .is_none()
        {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let mut meta = self.state(group).await.unwrap();
        let triggered = meta["ChordTriggered"] == true;
        meta["ChordTriggered"] = true.into();
        if !triggered {
            let _: () = redis.set_ex(group, meta.to_string(), EXPIRY).await.unwrap();
        }
        let _: i64 = release.key("TriggerChordMutex").arg(&token).invoke_async(&mut redis).await.unwrap();
        if !triggered && states.iter().all(|state| state["State"] == "SUCCESS") {
            let mut callback = task["ChordCallback"].clone();
            for state in &states {
                append(&mut callback, state["Results"].as_array().unwrap());
            }
            self.send(callback).await;
        }
    }
}

fn append(callback: &mut Value, results: &[Value]) {
    let args = callback["Args"].as_array().cloned().unwrap_or_default();
    let results =
        results.iter().map(|result| json!({"Name": "", "Type": result["Type"], "Value": result["Value"]}));
    callback["Args"] = args.into_iter().chain(results).collect();
}

fn micros(text: &str) -> i64 {
    text.parse::<jiff::Timestamp>().unwrap().as_microsecond()
}
