//! Policies: missed ticks, ticks that overlap, jitter, start and end.

use std::time::Duration;

use machinist_core::{
    TaskId,
    periodic::{Misfire, Overlap, Periodic},
    record::TaskState,
};
use tokio::time::sleep;

use super::house::{House, MINUTE, SECOND, at, every};

/// Ticks each ten minutes, of which an hour's is missed; returns the minutes that were sent.
async fn after_an_hour_without_workers(policy: impl Fn(Periodic) -> Periodic) -> Vec<String> {
    let house = House::new();
    let periodic = policy(every("p", MINUTE * 10, Duration::ZERO));
    house.client().await.add_periodic(&periodic).await.unwrap();
    sleep(MINUTE * 65).await;
    let worker = house.start("w").await;
    sleep(MINUTE * 10).await;
    worker.stop().await;
    house.ran_once().iter().map(|id| id["tick.p.2026-11-28T".len()..][..5].to_owned()).collect()
}

#[tokio::test(start_paused = true)]
async fn missed_ticks_follow_the_policy() {
    let sent = after_an_hour_without_workers(|p| p.misfire(Misfire::Skip)).await;
    assert_eq!(sent, ["22:10"]);
    let sent = after_an_hour_without_workers(|p| p).await;
    assert_eq!(sent, ["22:00", "22:10"]);
    let sent = after_an_hour_without_workers(|p| p.misfire(Misfire::All)).await;
    assert_eq!(sent, ["21:10", "21:20", "21:30", "21:40", "21:50", "22:00", "22:10"]);
    let sent = after_an_hour_without_workers(|p| p.misfire(Misfire::All).catch_up(MINUTE * 30)).await;
    assert_eq!(sent, ["21:40", "21:50", "22:00", "22:10"]);
}

/// Ticks each ten seconds, whose tasks run for 25 s; returns the seconds at which they began to exist, and their states.
async fn with_overlap(policy: Overlap) -> Vec<(u32, TaskState)> {
    let house = House::new();
    let client = house.client().await;
    let periodic = every("p", SECOND * 10, SECOND * 25).overlap(policy).until(at("2026-11-28T21:00:50Z"));
    client.add_periodic(&periodic).await.unwrap();
    let worker = house.start("w").await;
    sleep(MINUTE * 5).await;
    let mut states = Vec::new();
    for id in house.ran_once() {
        let second = id["tick.p.2026-11-28T21:00:".len()..][..2].parse().unwrap();
        let record = client.result(TaskId::parse(&id).unwrap()).record().await.unwrap();
        states.push((second, record.state));
    }
    worker.stop().await;
    states
}

#[tokio::test(start_paused = true)]
async fn ticks_that_overlap_follow_the_policy() {
    use TaskState::{Failure, Success};
    let all = [10, 20, 30, 40, 50];
    assert_eq!(with_overlap(Overlap::Allow).await, all.map(|second| (second, Success)));
    assert_eq!(with_overlap(Overlap::Skip).await, [(10, Success), (40, Success)]);
    assert_eq!(
        with_overlap(Overlap::Cancel).await,
        [(10, Failure), (20, Failure), (30, Failure), (40, Failure), (50, Success)]
    );
    // The ticks wait in line. Those that have waited for more than a minute are missed ones.
    let queued = with_overlap(Overlap::Queue).await;
    assert!(queued.starts_with(&[(10, Success), (20, Success), (30, Success)]), "{queued:?}");
    assert_eq!(queued.last(), Some(&(50, Success)));
}

#[tokio::test(start_paused = true)]
async fn jitter_delays_and_is_never_early() {
    let house = House::new();
    let client = house.client().await;
    client.add_periodic(&every("p", MINUTE, Duration::ZERO).jitter(SECOND * 30)).await.unwrap();
    let worker = house.start("w").await;
    sleep(MINUTE * 20 + SECOND * 30).await;
    let mut lateness = Vec::new();
    let ids = house.ran_once();
    for id in &ids {
        let record = client.result(TaskId::parse(id).unwrap()).record().await.unwrap();
        let tick = at(id.strip_prefix("tick.p.").unwrap());
        let sent = record.sent_at.unwrap();
        assert!(sent >= tick, "{id} was sent at {sent}");
        lateness.push(sent.since(tick));
    }
    assert_eq!(ids.len(), 20);
    assert!(lateness.iter().all(|late| *late < SECOND * 31), "{lateness:?}");
    assert!(lateness.iter().filter(|late| **late > SECOND * 5).count() > 5, "{lateness:?}");
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn start_and_end_bound_the_ticks() {
    let house = House::new();
    let client = house.client().await;
    let (from, until) = (at("2026-11-28T21:10:05Z"), at("2026-11-28T21:12:05Z"));
    client.add_periodic(&every("p", MINUTE, Duration::ZERO).from(from).until(until)).await.unwrap();
    let worker = house.start("w").await;
    sleep(MINUTE * 30).await;
    let expected = ["21:10:05", "21:11:05", "21:12:05"].map(|time| format!("tick.p.2026-11-28T{time}Z"));
    assert_eq!(house.ran_once(), expected);
    let shown = client.periodic_task("p").await.unwrap().unwrap();
    assert_eq!((shown.next, shown.upcoming(from.minus(Duration::from_secs(1)), 9).len()), (None, 3));
    worker.stop().await;
}
