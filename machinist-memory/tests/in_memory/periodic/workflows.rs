//! Periodic workflows: each tick is one workflow, and its end is the end of the whole.

use std::time::Duration;

use machinist_core::{
    TaskDef,
    periodic::{Overlap, Periodic, PeriodicError, Schedule},
    record::TaskState,
    sign::{Algorithm, Key, KeyState, Keyring},
    workflow::{StepPlan, Workflow, chain},
};
use tokio::time::sleep;

use super::house::{House, MINUTE, SECOND, TICK, at};

const SECRET: TaskDef<(), ()> = TaskDef::new("secret");

/// Two steps, of which the second takes this time.
fn two_steps(last: Duration) -> Workflow {
    let step = |name: &str, takes: Duration| {
        StepPlan::new(name, TICK.call((u64::try_from(takes.as_millis()).unwrap(),)))
    };
    let steps = vec![step("first", Duration::ZERO), step("last", last).after(["first"]).immutable()];
    Workflow::of_steps(steps).unwrap()
}

fn every(interval: Duration, workflow: Workflow) -> Periodic {
    Periodic::new("p", Schedule::every(interval).unwrap(), workflow).unwrap()
}

fn steps_at(seconds: &[u32]) -> Vec<String> {
    let steps =
        |second: &u32| ["first", "last"].map(|step| format!("tick.p.2026-11-28T21:00:{second}Z.{step}"));
    seconds.iter().flat_map(steps).collect()
}

#[tokio::test(start_paused = true)]
async fn every_tick_is_one_workflow() {
    let until = at("2026-11-28T21:00:30Z");
    let periodic = every(SECOND * 10, two_steps(SECOND)).until(until);
    // Live, and in code.
    for live in [true, false] {
        let house = House::new();
        let client = house.client().await;
        if live {
            let added = client.add_periodic(&periodic).await.unwrap();
            assert_eq!(added.task.as_str(), "machinist.workflow");
        }
        let worker = house
            .start_with(
                "w",
                None,
                |app| app,
                |worker| {
                    if live { worker } else { worker.periodic(periodic.clone()) }
                },
            )
            .await;
        sleep(SECOND * 30 + SECOND / 2).await;
        let ticks = client.periodic_task("p").await.unwrap().unwrap().ticks;
        let states: Vec<_> = ticks.iter().map(|tick| tick.state).collect();
        // The last step of the newest one runs.
        assert_eq!(states, [TaskState::Started, TaskState::Success, TaskState::Success].map(Some));
        sleep(MINUTE).await;
        assert_eq!(house.ran_once(), steps_at(&[10, 20, 30]));
        assert_eq!(house.sent_twice(), Vec::<String>::new());
        let whole = client.workflow(&ticks[0].id).await.unwrap().unwrap();
        assert_eq!((whole.state, whole.progress.done, whole.progress.total), (TaskState::Success, 2, 2));
        worker.stop().await;
    }
}

/// Ticks each ten seconds, whose workflows take 25 s; returns what was run, and the states of the ticks, the newest first.
async fn with_overlap(policy: Overlap) -> (Vec<String>, Vec<TaskState>) {
    let house = House::new();
    let client = house.client().await;
    let periodic = every(SECOND * 10, two_steps(SECOND * 25)).overlap(policy);
    client.add_periodic(&periodic.until(at("2026-11-28T21:00:50Z"))).await.unwrap();
    let worker = house.start("w").await;
    sleep(MINUTE * 5).await;
    let ticks = client.periodic_task("p").await.unwrap().unwrap().ticks;
    worker.stop().await;
    (house.ran_once(), ticks.iter().map(|tick| tick.state.unwrap()).collect())
}

#[tokio::test(start_paused = true)]
async fn a_tick_overlaps_with_the_whole_workflow() {
    use TaskState::{Failure, Success};
    assert_eq!(with_overlap(Overlap::Skip).await, (steps_at(&[10, 40]), vec![Success; 2]));
    let (ran, states) = with_overlap(Overlap::Cancel).await;
    assert_eq!(ran, steps_at(&[10, 20, 30, 40, 50]));
    assert_eq!(states, [Success, Failure, Failure, Failure, Failure]);
    let (ran, _) = with_overlap(Overlap::Queue).await;
    assert!(ran.starts_with(&steps_at(&[10, 20, 30])), "{ran:?}");
}

#[tokio::test(start_paused = true)]
async fn a_key_schedules_only_steps_that_it_may_send() {
    let key = |id: &str| Key::with_secret(Algorithm::HmacSha256, id, id.repeat(32).as_bytes()).unwrap();
    let ring = |own: Key, other: Key| Keyring::new([own, other.with_state(KeyState::Verify)]).unwrap();
    let house = House::new();
    let client = |ring: Keyring| async { house.builder().keyring(ring).build().await.unwrap().client() };
    let workflow = || chain(TICK.call((0,))).then(SECRET.with(()));
    // A key that may not send the second step signs no order.
    let some = || key("b").for_tasks(["tick"]).unwrap();
    let error =
        client(ring(some(), key("a"))).await.add_periodic(&every_second(workflow())).await.unwrap_err();
    assert!(matches!(error, PeriodicError::Send(_)), "{error}");
    // Its allow-list as the sender has it does not matter.
    client(ring(key("b"), key("a"))).await.add_periodic(&every_second(workflow())).await.unwrap();
    let worker =
        house.start_with("w", None, |app| app.keyring(ring(key("a"), some())), |worker| worker).await;
    sleep(MINUTE).await;
    assert_eq!(house.ran_once(), Vec::<String>::new());
    worker.stop().await;
    let trusting =
        house.start_with("x", None, |app| app.keyring(ring(key("a"), key("b"))), |worker| worker).await;
    sleep(SECOND * 5).await;
    assert!(!house.ran_once().is_empty());
    trusting.stop().await;
}

fn every_second<R>(workflow: Workflow<R>) -> Periodic {
    Periodic::new("p", Schedule::every(SECOND).unwrap(), workflow).unwrap()
}
