//! Ten thousand hostile messages among two thousand good tasks, on every kind of server: the good tasks are run, the
//! hostile messages are dead letters with the right reasons, and nothing else happens.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod corpus;
#[path = "../../../machinist-broker-amqp/tests/shared/namespace.rs"]
mod namespace;
mod raw;
mod secrecy;
mod servers;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use machinist::{
    App, State, TaskDef, TaskError, Worker,
    broker::{Message, Publish, Target},
    id::QueueName,
    record,
    sign::Keyring,
    wait_all,
};
use machinist_conformance::{eventually, within};
use tokio_util::sync::CancellationToken;

use crate::{
    corpus::Corpus,
    servers::{NUMBER, Servers, file, network},
};

/// Number of hostile messages, without replays.
const HOSTILE: usize = 10_000;
/// Number of good tasks.
const GOOD: i64 = 2_000;
/// Number of rounds in which they are sent, so that all kinds meet in the queue.
const ROUNDS: usize = 20;
/// Maximum time of each wait, also on a busy host, which may stop for a minute or two.
const WAIT_TIMEOUT: Duration = Duration::from_secs(600);

pub(crate) const ADD: TaskDef<(i64, i64), i64> = TaskDef::new("add");
/// Task that the key with restrictions may send.
pub(crate) const MAIL: TaskDef<(String,), ()> = TaskDef::new("mail.send");
/// Task that must never run.
pub(crate) const EVIL: TaskDef<(String,), ()> = TaskDef::new("evil");

/// Record of the runs.
#[derive(Debug, Clone, Default)]
struct Ran {
    added: Arc<Mutex<Vec<i64>>>,
    mailed: Arc<AtomicU64>,
    evil: Arc<AtomicU64>,
}

async fn add(State(ran): State<Ran>, a: i64, b: i64) -> Result<i64, TaskError> {
    ran.added.lock().unwrap().push(a);
    Ok(a + b)
}

async fn mail(State(ran): State<Ran>, _to: String) -> Result<(), TaskError> {
    ran.mailed.fetch_add(1, Ordering::SeqCst);
    Ok(())
}

async fn evil(State(ran): State<Ran>, _what: String) -> Result<(), TaskError> {
    ran.evil.fetch_add(1, Ordering::SeqCst);
    Ok(())
}

/// Counts every panic of this process, even if it is caught.
fn count_panics() -> Arc<AtomicU64> {
    let count = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&count);
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        counted.fetch_add(1, Ordering::SeqCst);
        before(panic);
    }));
    count
}

pub(crate) fn queue() -> QueueName {
    QueueName::parse("math").unwrap()
}

async fn app(servers: &Servers, ring: impl Into<Keyring>) -> App {
    let (broker, backend) = servers.open().await;
    // The corpus was signed without a server, so in no vhost.
    App::builder(broker, backend).realm("").default_queue(queue()).keyring(ring).build().await.unwrap()
}

fn publish(message: Message) -> Publish {
    Publish { target: Target::Queue(queue()), message, delay: Duration::ZERO }
}

fn counted<'a>(reasons: impl IntoIterator<Item = &'a str>) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for reason in reasons {
        *counts.entry(reason.to_owned()).or_default() += 1;
    }
    counts
}

async fn no_harm_is_done(servers: Servers) {
    let panics = count_panics();
    let corpus = Corpus::new().await;
    let app = app(&servers, corpus.ring()).await;
    let (attacker, _) = servers.open().await;
    let ran = Ran::default();
    let worker = Worker::builder(&app)
        .queue(queue())
        .task(ADD, add)
        .task(MAIL, mail)
        .task(EVIL, evil)
        .state(ran.clone())
        .concurrency(64)
        .build()
        .unwrap();
    let letters = worker.dead_letter_counts();
    let ready = worker.ready();
    let stop = CancellationToken::new();
    let running = tokio::spawn(worker.run_until(stop.clone().cancelled_owned()));
    within(WAIT_TIMEOUT, "the worker", ready.cancelled()).await;
    // After this first task all connections are open, and the first look after the broker needs no more.
    let first = app.client().send(ADD.call((-1, 0))).await.unwrap();
    assert_eq!(first.wait(WAIT_TIMEOUT).await.unwrap(), -1);
    within(WAIT_TIMEOUT, "upkeep", app.broker().maintain()).await.unwrap();
    let connections = servers.connections();

    let mut expected = Vec::new();
    let mut good = Vec::new();
    let mut replays = 0;
    let mut n = 0;
    for round in 0..ROUNDS {
        let share = GOOD / ROUNDS as i64;
        let calls = (0..share).map(|k| ADD.call((round as i64 * share + k, 1))).collect();
        let sent = app.client().send_all(calls).await;
        good.extend(sent.into_iter().map(Result::unwrap));
        let mut batch = Vec::new();
        while n < HOSTILE * (round + 1) / ROUNDS {
            let (mut message, reason) = corpus.message(n);
            message.headers.insert(NUMBER.into(), (n as i64).into());
            expected.push(reason);
            batch.push(publish(message));
            n += 1;
        }
        // Replayed tasks are run once; of the hiding message only the allowed task is run.
        batch.extend(corpus.replayed.iter().cloned().map(publish));
        replays += corpus.replayed.len();
        batch.push(publish(corpus.hiding(round)));
        for answer in attacker.publish(batch).await {
            answer.unwrap();
        }
        expected.extend(servers.publish_raw(&corpus, round).await);
    }
    assert!(replays >= 1_000);

    for (n, sum) in
        within(WAIT_TIMEOUT, "the good tasks", wait_all(&good, WAIT_TIMEOUT)).await.into_iter().enumerate()
    {
        assert_eq!(sum.unwrap(), n as i64 + 1);
    }
    for sum in &good {
        assert_eq!(sum.state().await.unwrap(), record::TaskState::Success);
    }
    let all = expected.len() as u64;
    let there = eventually(WAIT_TIMEOUT, async || {
        let depth = app.broker().depth(&[queue()]).await.unwrap().remove(0);
        letters.total() >= all && depth.ready == Some(0) && depth.dead >= Some(all)
    });
    assert!(there.await, "{:?} of {:?}", letters.by_reason(), counted(expected));
    assert_eq!(servers.connections(), connections, "no connection was closed");
    stop.cancel();
    let drained = within(WAIT_TIMEOUT, "the end", running).await.unwrap().unwrap();
    assert!(drained.is_clean(), "{drained:?}");

    let found = servers.dead_letters().await;
    let expected = counted(expected);
    let distinct: BTreeMap<&String, &String> =
        found.iter().map(|(message, reason)| (message, reason)).collect();
    assert_eq!(counted(distinct.values().map(|reason| reason.as_str())), expected);
    // A message that was buried twice may be counted twice.
    let counters = letters.by_reason();
    assert!(expected.iter().all(|(reason, count)| counters[reason.as_str()] >= *count), "{counters:?}");
    assert!(letters.total() <= found.len() as u64, "{counters:?}");
    assert_eq!(ran.evil.load(Ordering::SeqCst), 0, "hostile runs");
    assert_eq!(ran.mailed.load(Ordering::SeqCst), ROUNDS as u64);
    let mut added = ran.added.lock().unwrap().clone();
    added.sort_unstable();
    let replayed = corpus.replayed_numbers();
    assert_eq!(added, (-1..GOOD).chain(replayed).collect::<Vec<_>>(), "each once");
    assert_eq!(panics.load(Ordering::SeqCst), 0);
    servers.clean_up().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_messages_do_no_harm_on_rabbitmq_and_redis() {
    if let Some(servers) = network().await {
        no_harm_is_done(servers).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_messages_do_no_harm_on_the_embedded_file() {
    no_harm_is_done(file()).await;
}
