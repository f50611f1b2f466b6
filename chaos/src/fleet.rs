//! The fleet under random kills (periodic tasks that tick each second, a leader, and shards), and under orders to all.
//!
//! A holder of a slot tells the ledger again and again that it holds it, so overlaps and gaps are in the ledger.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use machinist::{
    TaskId, Worker, WorkerAction, WorkerBuilder, WorkerFilter,
    clock::wall,
    periodic::{Misfire, Periodic, Schedule},
    worker::{HeldSlot, RunningRole},
};

use crate::{
    house::{House, QUEUE, Setup},
    ledger::Ledger,
    load::{DO, Kind},
    size::Size,
};

/// Name of the leader's role.
const LEADER: &str = "chief";
/// Name of the set of shards.
const SHARDS: &str = "shard";
/// Time between two reports of a holder.
const REPORT: Duration = Duration::from_millis(250);
/// Time within which a slot of a killed worker is held again.
const HELD_AGAIN: u64 = 60_000;

/// Workers that tick and hold slots, without other load.
pub(crate) fn setup(usual: Setup, size: Size) -> Setup {
    Setup { workers: size.fleet(), periodic: size.periodic(), load: false, ..usual }
}

fn tick_name(number: usize) -> String {
    format!("beat-{number}")
}

/// Adds tasks that tick each second. What was missed is made up for.
pub(crate) fn with_periodic(builder: WorkerBuilder, count: usize) -> Result<WorkerBuilder> {
    (0..count).try_fold(builder, |builder, number| {
        let schedule = Schedule::every(Duration::from_secs(1))?;
        let call = DO.call((Kind::Plain.as_str().to_owned(),)).queue(QUEUE);
        Ok(builder.periodic(Periodic::new(tick_name(number), schedule, call)?.misfire(Misfire::All)))
    })
}

/// Takes part in the leadership and in the shards.
pub(crate) fn take_part(worker: &Worker, ledger: &Ledger, slots: usize) -> Result<[RunningRole; 2]> {
    let holder = |role: &'static str| {
        let ledger = ledger.clone();
        move |slot| hold(ledger.clone(), role, slot)
    };
    let leader = worker.fleet().leader(LEADER).run(holder(LEADER))?;
    let shards = worker.fleet().shards(SHARDS, u32::try_from(slots)?).run(holder(SHARDS))?;
    Ok([leader, shards])
}

/// Tells the ledger that a slot is held, until it is lost.
async fn hold(ledger: Ledger, role: &'static str, slot: HeldSlot) {
    loop {
        // Before the look: the slot was held at this instant.
        let at = now_ms();
        tokio::select! {
            biased;
            () = slot.lost() => return,
            () = std::future::ready(()) => {}
        }
        let line = format!("hold {role}-{} {} {} {at}", slot.number(), slot.epoch(), std::process::id());
        if let Err(error) = ledger.say(&[line]).await {
            tracing::error!(%error, "the ledger was not told who holds a slot");
            return;
        }
        tokio::time::sleep(REPORT).await;
    }
}

/// Milliseconds since the Unix epoch: all processes of a scenario share the clock of the host.
fn now_ms() -> i64 {
    wall().as_micros() / 1000
}

/// Kills random workers for a while, and waits until the last one is followed.
pub(crate) async fn kill_for(house: &House, time: Duration) -> Result<()> {
    let until = Instant::now() + time;
    let lease = house.size.lease();
    while Instant::now() < until {
        house.pass(lease.mul_f64(rand::random_range(0.3..1.3))).await?;
        let at = now_ms();
        if let Some(pid) = house.crew.kill_any() {
            house.say(&[format!("mark killed {pid} {at}")]).await?;
        }
    }
    house.pass(2 * lease + Duration::from_secs(5)).await
}

/// Kills random workers, then ends the ticking, and tells the ledger which ticks there must be.
pub(crate) async fn kill_at_random(house: &House) -> Result<()> {
    kill_for(house, house.size.ticking()).await?;
    let app = house.direct.app(Duration::from_secs(10)).await?;
    let client = app.client();
    let names = 0..house.size.periodic();
    for number in names.clone() {
        client.pause_periodic(&tick_name(number)).await?;
    }
    house.pass(house.size.lease() + Duration::from_secs(2)).await?;
    let ledger = house.read_ledger()?;
    for name in names.map(tick_name) {
        let periodic = client.periodic_task(&name).await?.with_context(|| format!("{name} is unknown"))?;
        let newest = periodic.ticks.first().with_context(|| format!("{name} has no tick"))?;
        let last =
            second(&newest.id, &name).with_context(|| format!("{} is no tick of {name}", newest.id))?;
        let seen = ledger.lines().filter_map(|line| second(&line.split(' ').nth(2)?.parse().ok()?, &name));
        let first = seen.min().with_context(|| format!("no tick of {name} has run"))?;
        let ids: Vec<String> = (first..=last).map(|second| tick_id(&name, second)).collect();
        let tried = ids.iter().map(|id| format!("try {id} {}", Kind::Plain.as_str()));
        let sent = ids.iter().map(|id| format!("ok {id}"));
        house.say(&tried.chain(sent).collect::<Vec<_>>()).await?;
    }
    app.broker().close().await;
    Ok(())
}

/// A crowd of workers, under load.
pub(crate) fn crowd(usual: Setup, size: Size) -> Setup {
    Setup { workers: size.crowd(), ..usual }
}

/// Pauses all workers under load, and resumes them: each answers within one lease, and none starts a task between.
pub(crate) async fn pause_all(house: &House) -> Result<()> {
    let app = house.direct.app(Duration::from_secs(10)).await?;
    let workers = app.client().workers(&WorkerFilter::new()).await?;
    ensure!(workers.len() == house.size.crowd(), "{} workers are listed", workers.len());
    for action in [WorkerAction::Pause, WorkerAction::Resume] {
        let word = if action == WorkerAction::Pause { "paused" } else { "resumed" };
        let (_, results) = app.client().order_workers(&workers, action, false).await?;
        if let Some(refused) = results.iter().find(|result| !result.done) {
            bail!("a worker was not {word}: {refused:?}");
        }
        let mut times: Vec<Duration> = results.iter().map(|result| result.took).collect();
        times.sort_unstable();
        let (half, longest) = (times[times.len() / 2], times[times.len() - 1]);
        say!("    {} workers {word}: p50 {half:.1?}, longest {longest:.1?}", times.len());
        ensure!(longest <= house.size.lease(), "a worker was {word} only after {longest:?}");
        let since = house.mark(word).await?;
        if word == "paused" {
            house.pass(house.size.lease()).await?;
            let until = house.mark("asleep").await?;
            let ledger = house.read_ledger()?;
            let started = ledger.lines().find(|line| {
                let mut words = line.split(' ');
                let at = words.next().and_then(|at| at.parse().ok());
                words.next() == Some("start") && at.is_some_and(|at| (since..until).contains(&at))
            });
            ensure!(started.is_none(), "a paused worker has started a task: {started:?}");
        }
    }
    app.broker().close().await;
    Ok(())
}

/// The id that the documentation promises: `tick.NAME.INSTANT`.
fn tick_id(name: &str, second: i64) -> String {
    let instant = jiff::Timestamp::from_second(second).unwrap_or_default();
    format!("tick.{name}.{instant}")
}

/// Instant of a tick of this name, in seconds.
fn second(id: &TaskId, name: &str) -> Option<i64> {
    let instant = id.as_str().strip_prefix("tick.")?.strip_prefix(name)?.strip_prefix('.')?;
    Some(instant.parse::<jiff::Timestamp>().ok()?.as_second())
}

/// The time for which one process has held a slot, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Term {
    epoch: u64,
    pid: u32,
    from: u64,
    to: u64,
    /// Longest time between two reports.
    silent: u64,
}

/// Number of slots of the leader and of this number of shards.
pub(crate) fn slot_count(shards: usize) -> usize {
    shards + 1
}

/// Judges who has held what: all slots, never two at a time, epochs that rise, and every slot held again in time, also without a
/// kill. Prints how long that took after a kill.
pub(crate) fn judge(ledger: &str, slots: usize) -> Vec<String> {
    let (terms, killed) = read(ledger);
    let mut violations = Vec::new();
    let mut gaps = Vec::new();
    let begin = terms.values().flatten().map(|term| term.from).min().unwrap_or(0);
    let end = terms.values().flatten().map(|term| term.to).max().unwrap_or(0);
    for (slot, terms) in &terms {
        let mut free = |of: &str, time: u64| {
            if time > HELD_AGAIN {
                violations.push(format!("nobody has held {slot} for {time} ms {of}"));
            }
        };
        free("at the begin", terms[0].from.saturating_sub(begin));
        terms.iter().for_each(|term| free("within a term", term.silent));
        for pair in terms.windows(2) {
            let [one, next] = [pair[0], pair[1]];
            // What follows a kill is counted from the kill on.
            let until = killed.get(&one.pid).map_or(next.from, |at| next.from.min(*at));
            free("between two terms", until.saturating_sub(one.to));
        }
        for pair in terms.windows(2) {
            let [one, next] = [pair[0], pair[1]];
            if next.from <= one.to {
                violations.push(format!("two processes have held {slot}: {one:?}, {next:?}"));
            }
            if let Some(at) = killed.get(&one.pid).filter(|at| **at <= next.from) {
                gaps.push(next.from - at.max(&one.to));
            }
        }
        let last = terms[terms.len() - 1];
        if killed.contains_key(&last.pid) {
            violations.push(format!("nobody holds {slot} after {last:?}"));
        } else if end.saturating_sub(last.to) > HELD_AGAIN {
            violations.push(format!("nobody has held {slot} for {} ms at the end", end - last.to));
        }
    }
    gaps.sort_unstable();
    let seconds = |at: usize| gaps.get(at).map_or(f64::NAN, |gap| *gap as f64 / 1e3);
    let (count, last) = (gaps.len(), gaps.len().saturating_sub(1));
    say!(
        "    {} slots, {} workers killed; {count} slots held again: p50 {:.1} s, longest {:.1} s",
        terms.len(),
        killed.len(),
        seconds(last / 2),
        seconds(last)
    );
    if let Some(longest) = gaps.last().filter(|gap| **gap > HELD_AGAIN) {
        violations.push(format!("a slot was held again only after {longest} ms"));
    }
    if terms.len() != slots {
        violations.push(format!("{} of {slots} slots were held", terms.len()));
    }
    violations
}

/// Terms of each slot, by epoch, and when workers were killed.
fn read(ledger: &str) -> (BTreeMap<&str, Vec<Term>>, HashMap<u32, u64>) {
    let mut terms: BTreeMap<&str, BTreeMap<u64, Term>> = BTreeMap::new();
    let mut killed = HashMap::new();
    for line in ledger.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            [_, "hold", slot, epoch, pid, at] => {
                let (Ok(epoch), Ok(pid), Ok(at)) = (epoch.parse(), pid.parse(), at.parse()) else { continue };
                let term = Term { epoch, pid, from: at, to: at, silent: 0 };
                let term = terms.entry(slot).or_default().entry(epoch).or_insert(term);
                term.silent = term.silent.max(at.saturating_sub(term.to));
                term.to = term.to.max(at);
            }
            [_, "mark", "killed", pid, at] => {
                if let (Ok(pid), Ok(at)) = (pid.parse(), at.parse()) {
                    killed.insert(pid, at);
                }
            }
            _ => {}
        }
    }
    (terms.into_iter().map(|(slot, terms)| (slot, terms.into_values().collect())).collect(), killed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_holders_at_once_are_seen() {
        let good = "1 hold a 1 7 100\n2 hold a 1 7 200\n3 mark killed 7 250\n4 hold a 2 8 300\n";
        assert_eq!(judge(good, 1), Vec::<String>::new());
        let both = judge("1 hold a 1 7 100\n2 hold a 2 8 150\n3 hold a 1 7 200\n", 1);
        assert!(both.len() == 1 && both[0].starts_with("two processes"), "{both:?}");
        let nobody = judge("1 hold a 1 7 100\n2 mark killed 7 150\n", 1);
        assert!(nobody.len() == 1 && nobody[0].starts_with("nobody holds a"), "{nobody:?}");
        let late = judge("1 hold a 1 7 100\n2 mark killed 7 150\n3 hold a 2 8 70000\n", 1);
        assert!(late.len() == 1 && late[0].contains("after 69850 ms"), "{late:?}");
        assert_eq!(judge("", 1).len(), 1);
    }

    #[test]
    fn a_slot_that_nobody_holds_is_seen_without_a_kill() {
        let one = |ledger: &str, slots: usize, says: &str| {
            let found = judge(ledger, slots);
            assert!(found.len() == 1 && found[0].contains(says), "{found:?}");
        };
        one("1 hold a 1 7 100\n", 2, "1 of 2 slots");
        one("1 hold a 1 7 100\n2 hold a 1 7 70100\n", 1, "within a term");
        one("1 hold a 1 7 100\n2 hold a 2 8 70100\n", 1, "between two terms");
        one("1 hold a 1 7 100\n2 mark killed 7 70100\n3 hold a 2 8 70200\n", 1, "between two terms");
        let going_on = (0..3).map(|at| format!("1 hold b 1 8 {}\n", 100 + at * 40_000));
        let going_on: String = going_on.collect();
        one(&format!("{going_on}2 hold a 1 7 100\n"), 2, "at the end");
        one(&format!("{going_on}2 hold a 1 7 80100\n"), 2, "at the begin");
    }

    #[test]
    fn ticks_are_found_by_their_ids() {
        let id = tick_id("beat-1", 1_795_921_200);
        assert_eq!(id, "tick.beat-1.2026-11-29T03:00:00Z");
        let id: TaskId = id.parse().unwrap();
        assert_eq!(second(&id, "beat-1"), Some(1_795_921_200));
        assert_eq!(second(&id, "beat"), None);
    }
}
