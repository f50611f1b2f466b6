//! Scenarios that bring tasks of their own, and judge more than the others.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use lapin::options::QueueDeleteOptions;
use machinist::TaskId;
use nix::sys::signal::Signal;
use xtask::services::Server;

use crate::{
    house::{GONE_QUEUE, House, QUEUE, Setup},
    load::{Kind, LATE_DUE, ORPHANS_DUE},
    scenario::ctl,
};

/// Address space, of which a worker uses little.
const MEMORY_MIB: u64 = 8 * 1024;
/// More than the 32 at which at-least-once dead-lettering stops.
const ORPHANS: usize = 60;
/// Number of delayed tasks whose queues are deleted.
const LATE_TASKS: usize = 200;
/// Levels and digits of the queues that hold delays, from 0 and from 1.
const LAST_LEVEL: u8 = 6;
const LAST_DIGIT: u8 = 15;
/// Wait for late tasks whose messages are gone: a task counts as lost a minute after its time, and workers look each minute.
const UNTIL_RESCUED: Duration = Duration::from_secs(LATE_DUE.as_secs() + 60 + 2 * 60);
/// The vhost of the scenarios' servers.
const VHOST: &str = "/";
const AWAY: Duration = Duration::from_secs(60);
const LONG_TASKS: usize = 8;
/// What the ledger is told when Redis has gone, and before it comes back.
const GONE: &str = "redis-gone";
const BACK: &str = "redis-back";
/// So long after Redis has gone a start that it had granted may still be told, in milliseconds.
const LAST_STARTS: u64 = 2000;
/// A worker that waits for Redis has next to nothing to do: percent of one core.
const QUIET_CPU: f64 = 20.0;
const BUSY: usize = 32;
/// So long after its worker was killed a task runs again: the lease, a look at it after each of two waits, a start.
const AGAIN: Duration = Duration::from_secs(25);

/// Workers with a limit for their memory, and tasks that reach it.
pub(crate) fn oom(usual: Setup) -> Setup {
    Setup { poison: Some(Kind::Oom), memory_mib: Some(MEMORY_MIB), ..usual }
}

/// One worker with many tasks, under the lease that is the default.
pub(crate) fn busy(usual: Setup) -> Setup {
    Setup { workers: 1, concurrency: BUSY, lease: Duration::from_secs(15), load: false, ..usual }
}

/// Sends delayed tasks for a queue that is deleted before they are due.
pub(crate) async fn queue_gone(house: &House) -> Result<()> {
    let began = Instant::now();
    house.send_now(Kind::Orphan, GONE_QUEUE, ORPHANS).await?;
    // Not by rabbitmqctl: on a busy machine that takes seconds to start, and what is due by then goes with the queue.
    let connection = house.direct.raw_amqp().await?;
    let queue = format!("{}:{GONE_QUEUE}", house.direct.namespace);
    let channel = connection.create_channel().await?;
    channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await?;
    let took = began.elapsed();
    ensure!(took < ORPHANS_DUE, "the queue was deleted after {took:?}, when messages had come due for it");
    connection.close(200, "done".into()).await?;
    // Until long after all of them were due, and many of the others.
    house.pass(ORPHANS_DUE + Duration::from_secs(8)).await
}

/// Sends delayed tasks, and deletes all queues in which they wait. Workers publish them again from their records.
pub(crate) async fn delays_deleted(house: &House) -> Result<()> {
    let began = Instant::now();
    house.send_now(Kind::Late, QUEUE, LATE_TASKS).await?;
    let connection = house.direct.raw_amqp().await?;
    let channel = connection.create_channel().await?;
    for (level, digit) in (0..=LAST_LEVEL).flat_map(|level| (1..=LAST_DIGIT).map(move |digit| (level, digit)))
    {
        let queue = format!("{}.delay.{level}.{digit}", house.direct.namespace);
        channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await?;
    }
    connection.close(200, "done".into()).await?;
    not_due_yet(began)?;
    house.pass(UNTIL_RESCUED).await
}

/// Sends delayed tasks, and deletes the vhost with everything in it. Once it is there again, workers publish the tasks
/// again from their records.
pub(crate) async fn vhost_deleted(house: &House) -> Result<()> {
    let began = Instant::now();
    house.send_now(Kind::Late, QUEUE, LATE_TASKS).await?;
    ctl(house, &["delete_vhost", VHOST])?;
    not_due_yet(began)?;
    ctl(house, &["add_vhost", VHOST])?;
    ctl(house, &["set_permissions", "-p", VHOST, "guest", ".*", ".*", ".*"])?;
    house.pass(UNTIL_RESCUED).await
}

/// Checks that no late task that was sent at `began` has come due.
fn not_due_yet(began: Instant) -> Result<()> {
    let took = began.elapsed();
    ensure!(took < LATE_DUE, "the queues were deleted after {took:?}, when messages had come due");
    Ok(())
}

/// Kills Redis for a minute while tasks run that take longer.
pub(crate) async fn redis_away(house: &House) -> Result<()> {
    let long = house.send_now(Kind::Long, QUEUE, LONG_TASKS).await?;
    starts(house, &long, None, Duration::from_secs(60)).await.context("long tasks")?;
    tokio::task::block_in_place(|| house.services.kill(Server::Redis))?;
    house.mark(GONE).await?;
    house.pass(AWAY).await?;
    house.mark(BACK).await?;
    tokio::task::block_in_place(|| house.services.start_again(Server::Redis, &house.interrupt))
}

/// What the absence of Redis must not have done.
pub(crate) fn judge_redis_away(ledger: &str, cpu: f64) -> Vec<String> {
    let mut violations = Vec::new();
    if cpu > QUIET_CPU {
        violations.push(format!("a worker used {cpu:.0} % of a core while Redis was away"));
    }
    let words = || ledger.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let long: HashSet<&str> = words()
        .filter(|w| w.get(1) == Some(&"try") && w.get(3) == Some(&"long"))
        .filter_map(|w| w.get(2).copied())
        .collect();
    let instant = |mark: &str| {
        words().find(|w| w[1..] == ["mark", mark]).and_then(|w| w[0].parse().ok()).unwrap_or(u64::MAX)
    };
    let (gone, back) = (instant(GONE), instant(BACK));
    let mut started: HashMap<&str, usize> = HashMap::new();
    let mut through = HashSet::new();
    let (mut meanwhile, mut latest) = (0, 0);
    for line in words() {
        match line[..] {
            [_, "cancelled", id, ..] => violations.push(format!("{id} was cancelled")),
            [at, "start", id, ..] => {
                if long.contains(id) {
                    *started.entry(id).or_default() += 1;
                }
                let after = at.parse::<u64>().unwrap_or(0).saturating_sub(gone);
                if after > 0 && gone.saturating_add(after) < back {
                    latest = latest.max(after);
                    meanwhile += usize::from(after > LAST_STARTS);
                }
            }
            [_, "effect", id, ..] if long.contains(id) => drop(through.insert(id)),
            _ => {}
        }
    }
    if gone == u64::MAX || back == u64::MAX {
        violations.push("the ledger does not say when Redis was away".to_owned());
    }
    if meanwhile > 0 {
        violations.push(format!(
            "{meanwhile} tasks were started while Redis was away, the last {latest} ms after its end"
        ));
    }
    if through.len() != long.len() {
        violations.push(format!("{} of {} long tasks ran through", through.len(), long.len()));
    }
    violations.extend(
        started
            .iter()
            .filter(|(_, count)| **count > 1)
            .map(|(id, count)| format!("{id} was started {count} times")),
    );
    say!(
        "    {} of {} long tasks ran through; no start later than {latest} ms after the end of Redis; CPU \
         of the busiest worker {cpu:.1} %, {QUIET_CPU:.0} % is the bound",
        through.len(),
        long.len(),
    );
    violations
}

/// Kills a worker that runs many tasks, and waits until each runs in another.
pub(crate) async fn busy_kill(house: &House) -> Result<()> {
    let tasks = house.send_now(Kind::Held, QUEUE, BUSY).await?;
    starts(house, &tasks, None, Duration::from_secs(60)).await.context("before the kill")?;
    let killed = *house.crew.pids().first().context("no worker")?;
    ready(house, &house.crew.hire_another()?).await?;
    let at = house.mark("kill").await?;
    house.crew.dismiss_oldest(Signal::SIGKILL);
    let again = starts(house, &tasks, Some(killed), AGAIN).await.context("after the kill")?;
    let slowest = again.values().map(|starts| starts[0].saturating_sub(at)).max().unwrap_or(0);
    // A second start beside a first that lives would be two sessions that run one task.
    ensure!(again.values().all(|starts| starts.len() == 1), "a task runs under two live sessions: {again:?}");
    say!(
        "    {BUSY} of {BUSY} run again within {:.1} s, none under two live sessions",
        Duration::from_millis(slowest).as_secs_f64()
    );
    Ok(())
}

/// When each of these tasks was started, by whoever is not `without`; waits until each was.
async fn starts(
    house: &House,
    tasks: &[TaskId],
    without: Option<u32>,
    limit: Duration,
) -> Result<HashMap<String, Vec<u64>>> {
    let until = Instant::now() + limit;
    let without = without.map(|pid| pid.to_string());
    loop {
        house.interrupt.check()?;
        let book = house.read_ledger()?;
        let mut found: HashMap<String, Vec<u64>> = HashMap::new();
        for line in book.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let [at, "start", id, .., pid] = words[..] else { continue };
            if without.as_deref() != Some(pid) && tasks.iter().any(|task| task.as_str() == id) {
                found.entry(id.to_owned()).or_default().push(at.parse()?);
            }
        }
        if found.len() == tasks.len() {
            return Ok(found);
        }
        if Instant::now() > until {
            bail!("{} of {} tasks run within {limit:?}", found.len(), tasks.len());
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// Waits until a worker says that it consumes.
async fn ready(house: &House, log: &Path) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(60);
    while !std::fs::read_to_string(log).is_ok_and(|text| text.contains(": ready ")) {
        house.interrupt.check()?;
        ensure!(Instant::now() < until, "a new worker is not ready");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}
