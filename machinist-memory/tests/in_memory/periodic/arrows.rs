//! Workers that die at each arrow of a tick: no tick is lost, and none is sent twice.

use std::{sync::atomic::Ordering, time::Duration};

use machinist_conformance::arrows::{ArrowStep, Side};
use tokio::time::sleep;

use super::house::{House, MINUTE, SECOND, berlin, every, seconds};

/// A worker ends at the third time of a step, and another goes on.
async fn dies_at(step: ArrowStep, side: Side, nth: u32) {
    let house = House::new();
    let client = house.client().await;
    client.add_periodic(&every("beat", SECOND, SECOND / 100)).await.unwrap();
    let first = house.start_with("first", Some((step, side, nth)), |app| app, |worker| worker).await;
    tokio::time::timeout(MINUTE, first.fate.ended.cancelled()).await.expect("the step is taken");
    let second = house.start("second").await;
    first.kill().await;
    // The turn of the first expires, and its runs are taken over.
    sleep(MINUTE + SECOND * 10).await;
    let ran = house.ran();
    let ids: Vec<_> = ran.iter().map(|(id, _)| id.clone()).collect();
    let last = u32::try_from(ids.len()).unwrap();
    assert!(last > 60, "{step:?} {side:?}: {ids:?}");
    assert_eq!(ids, seconds("beat", 1..=last), "{step:?} {side:?}: a tick is lost");
    second.stop().await;
    // One that was published, and not passed, is published again.
    let twice = if (step, side) == (ArrowStep::PublishTick, Side::After) { 1 } else { 0 };
    let twice = if (step, side) == (ArrowStep::PassCursor, Side::Before) { 1 } else { twice };
    assert!(house.sent_twice().len() <= twice, "{step:?} {side:?}: {:?}", house.sent_twice());
    // A handler may run again only if its process died while it ran.
    assert!(ran.iter().filter(|(_, times)| *times > 1).count() <= 1, "{step:?} {side:?}: {ran:?}");
}

#[tokio::test(start_paused = true)]
async fn no_tick_is_lost_when_a_worker_dies_at_any_arrow() {
    for step in [ArrowStep::TakeTurn, ArrowStep::PublishTick, ArrowStep::PassCursor] {
        for side in [Side::Before, Side::After] {
            for nth in [1, 2, 3] {
                dies_at(step, side, nth).await;
            }
        }
    }
}

/// Ten workers with three periodic tasks, one of which dies each few seconds, and another starts.
#[tokio::test(start_paused = true)]
async fn ten_workers_that_die_in_turn_send_every_tick_once() {
    let house = House::new();
    let client = house.client().await;
    for name in ["a", "b", "c"] {
        client.add_periodic(&every(name, SECOND, Duration::ZERO)).await.unwrap();
    }
    let mut workers = std::collections::VecDeque::new();
    for number in 0..10 {
        workers.push_back(house.start(&format!("w{number}")).await);
    }
    for number in 10..30 {
        sleep(SECOND * 7).await;
        workers.pop_front().unwrap().kill().await;
        workers.push_back(house.start(&format!("w{number}")).await);
    }
    sleep(MINUTE).await;
    let ids: Vec<_> = house.ran().into_iter().map(|(id, _)| id).collect();
    for name in ["a", "b", "c"] {
        let prefix = format!("tick.{name}.");
        let of_name: Vec<_> = ids.iter().filter(|id| id.starts_with(&prefix)).cloned().collect();
        let last = u32::try_from(of_name.len()).unwrap();
        assert!(last >= 180, "{last}");
        assert_eq!(of_name, seconds(name, 1..=last));
    }
    assert!(house.sent_twice().len() <= 20, "one tick at most for each death: {:?}", house.sent_twice());
    for worker in workers {
        worker.kill().await;
    }
}

/// While the broker takes no message, the cursor stays, and the ticks are sent afterwards.
#[tokio::test(start_paused = true)]
async fn no_tick_is_lost_while_the_broker_takes_no_message() {
    let house = House::new();
    let client = house.client().await;
    client.add_periodic(&every("beat", SECOND, Duration::ZERO)).await.unwrap();
    let worker = house.start("w").await;
    sleep(SECOND * 5 + SECOND / 2).await;
    house.closed.store(true, Ordering::SeqCst);
    sleep(SECOND * 30).await;
    assert_eq!(house.ran_once(), seconds("beat", 1..=5));
    let shown = client.periodic_task("beat").await.unwrap().unwrap();
    assert_eq!(shown.ticks.len(), 5, "no tick is passed that was not confirmed");
    house.closed.store(false, Ordering::SeqCst);
    sleep(SECOND * 5).await;
    let ran = house.ran_once();
    assert_eq!(ran, seconds("beat", 1..=u32::try_from(ran.len()).unwrap()));
    assert!(ran.len() >= 38, "{ran:?}");
    worker.stop().await;
}

/// A worker that stops gives its turn up, and another ticks at once.
#[tokio::test(start_paused = true)]
async fn a_turn_is_given_up_at_the_end() {
    let house = House::new();
    house.client().await.add_periodic(&every("beat", SECOND, Duration::ZERO)).await.unwrap();
    let first = house.start("first").await;
    sleep(SECOND * 5).await;
    let second = house.start("second").await;
    sleep(SECOND * 5).await;
    first.stop().await;
    let before = house.ran_once().len();
    sleep(SECOND * 5).await;
    assert!(house.ran_once().len() >= before + 4, "the turn is taken within its interval of asking");
    second.stop().await;
}

/// Returns the ticks of a task that runs at half past two in Berlin, in four hours from an instant on.
async fn nightly_ticks_from(instant: &str) -> Vec<String> {
    let house = House::starting_at(instant);
    house.client().await.add_periodic(&berlin("nightly", "30 2 * * *")).await.unwrap();
    let worker = house.start("w").await;
    sleep(MINUTE * 60 * 4).await;
    worker.kill().await;
    house.ran_once()
}

#[tokio::test(start_paused = true)]
async fn half_past_two_in_the_nights_around_the_change_to_summer_time() {
    assert_eq!(nightly_ticks_from("2026-03-28T00:00:00Z").await, ["tick.nightly.2026-03-28T01:30:00Z"]);
    // There is no half past two: it runs at three.
    assert_eq!(nightly_ticks_from("2026-03-29T00:00:00Z").await, ["tick.nightly.2026-03-29T01:00:00Z"]);
    assert_eq!(nightly_ticks_from("2026-03-30T00:00:00Z").await, ["tick.nightly.2026-03-30T00:30:00Z"]);
}

#[tokio::test(start_paused = true)]
async fn half_past_two_in_the_nights_around_the_change_to_winter_time() {
    assert_eq!(nightly_ticks_from("2026-10-24T00:00:00Z").await, ["tick.nightly.2026-10-24T00:30:00Z"]);
    // Half past two comes twice, and the second time is passed over.
    assert_eq!(nightly_ticks_from("2026-10-25T00:00:00Z").await, ["tick.nightly.2026-10-25T00:30:00Z"]);
    assert_eq!(nightly_ticks_from("2026-10-26T00:00:00Z").await, ["tick.nightly.2026-10-26T01:30:00Z"]);
}
