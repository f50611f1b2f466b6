//! Periodic tasks beside those of a program of Go.

use std::collections::BTreeSet;

use machinist_core::clock::{Timestamp, wall};

use crate::{
    fleet::Fleet,
    go::{fresh, signature},
};

const CRON: &str = "* * * * * *";
/// Number of ticks that are watched.
const TICKS: i64 = 8;

fn second() -> i64 {
    wall().as_micros() / 1_000_000
}

/// Waits for the beginning of a second.
async fn until(second: i64) {
    tokio::time::sleep(Timestamp::from_micros(second * 1_000_000).since(wall())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tick_is_fired_once_by_a_worker_of_ours_or_of_go() {
    let Some(mut fleet) = Fleet::new("[\"add\"]").await else { return };
    let queue = fleet.go.queue.clone();
    fleet.toml.push_str(&format!(
        "go_program = \"shop\"\n[periodic.report]\ntask = \"add\"\nargs = [1, 1]\ncron = \"{CRON}\"\nqueue = \"{queue}\"\n"
    ));
    let (one, other) = (fleet.work().await, fleet.work().await);
    let go = &fleet.go;
    let tick_id = |second: i64| {
        let instant = jiff::Timestamp::from_second(second).unwrap();
        format!("tick.report.{instant}")
    };
    // From the first tick that ours has taken on, both are there.
    let mut first = second() + 1;
    for _ in 0..60 {
        until(first + 1).await;
        if go.state(&tick_id(first)).await.is_some() {
            break;
        }
        first += 1;
    }
    let mut theirs = BTreeSet::new();
    let last = second() + TICKS;
    for second in second() + 1..=last {
        until(second).await;
        // Go is not always the slower one.
        if go.take_tick("shop", "report", CRON, second + 1).await {
            let mut task = signature("add", &[("int64", 1.into()), ("int64", 1.into())]);
            task["UUID"] = fresh("task").into();
            go.send(task).await;
            theirs.insert(second);
        }
    }
    until(last + 2).await;
    let mut fired = 0;
    for second in first..=last {
        let ours = go.state(&tick_id(second)).await.is_some();
        assert!(!(ours && theirs.contains(&second)), "second {second} was fired twice");
        fired += u32::from(ours || theirs.contains(&second));
    }
    // A machine that is busy may be late for one, and leaves it out.
    assert!(i64::from(fired) >= TICKS / 2, "{fired} ticks were fired: {theirs:?}");
    fleet.kill(one).await;
    fleet.kill(other).await;
    fleet.clean_up().await;
}
