//! Orders: adding, pausing, resuming, removing, triggering; and what a lost backend keeps.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use machinist_core::{
    Client, PublishHook, TaskId, Worker,
    backend::{Backend, Commit, Index, IndexUpdate},
    id::{RecordId, RecordKind},
    periodic::{Periodic, PeriodicError, Schedule, Source},
    record::TaskState,
};
use tokio::time::sleep;

use super::house::{House, MINUTE, SECOND, TICK, at, every, seconds, tick, untyped};

/// Loses everything that the backend knows of a periodic task.
async fn lose(house: &House, name: &str) {
    let id = RecordId::new(RecordKind::Cursor, name);
    let mut commit = Commit::new(id);
    commit.drop = house.facts(name).await.iter().map(|(fact, _)| fact.to_owned().into()).collect();
    house.backend.commit(vec![commit.into()]).await.pop().unwrap().unwrap();
    let update = IndexUpdate::Remove { index: Index::Periodic, member: name.to_owned() };
    house.backend.update_indexes(vec![update]).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_is_added_ticks_from_the_next_second_on() {
    let house = House::new();
    let worker = house.start("w").await;
    sleep(SECOND * 20).await;
    let client = house.client().await;
    let added = client.add_periodic(&every("beat", SECOND, Duration::ZERO)).await.unwrap();
    assert_eq!((added.source, added.next), (Source::Live, Some(at("2026-11-28T21:00:21Z"))));
    sleep(SECOND * 10 + SECOND / 2).await;
    assert_eq!(house.ran_once(), seconds("beat", 21..=30));
    let [listed] = &client.periodic_tasks().await.unwrap()[..] else { panic!("one is listed") };
    assert_eq!(listed.ticks[0].state, Some(TaskState::Success));
    assert_eq!(listed.ticks[0].id.as_str(), "tick.beat.2026-11-28T21:00:30Z");
    assert_eq!(listed.next, Some(at("2026-11-28T21:00:31Z")));
    let shown = client.periodic_task("beat").await.unwrap().unwrap();
    assert_eq!((shown.ticks.len(), shown.problem), (10, None));
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_pause_holds_over_restarts_and_its_ticks_are_left_out() {
    let house = House::new();
    let client = house.client().await;
    client.add_periodic(&every("beat", SECOND, Duration::ZERO)).await.unwrap();
    let worker = house.start("w").await;
    sleep(SECOND * 5 + SECOND / 2).await;
    client.pause_periodic("beat").await.unwrap();
    assert!(client.periodic_task("beat").await.unwrap().unwrap().next.is_none());
    sleep(SECOND * 5).await;
    worker.stop().await;
    let worker = house.start("again").await;
    sleep(SECOND * 30).await;
    assert_eq!(house.ran_once(), seconds("beat", 1..=5));
    client.resume_periodic("beat").await.unwrap();
    sleep(SECOND * 5).await;
    let ran = house.ran_once();
    assert!(ran.len() > 8, "{ran:?}");
    assert!(ran[5..].iter().all(|id| *id > seconds("beat", 40..=40)[0]), "{ran:?}");
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_removed_does_not_come_back() {
    let house = House::new();
    let client = house.client().await;
    client.add_periodic(&every("beat", SECOND, Duration::ZERO)).await.unwrap();
    let (one, two) = (house.start("one").await, house.start("two").await);
    sleep(SECOND * 5 + SECOND / 2).await;
    client.remove_periodic("beat").await.unwrap();
    sleep(MINUTE).await;
    assert_eq!(house.ran_once(), seconds("beat", 1..=5));
    assert_eq!(client.periodic_tasks().await.unwrap(), []);
    let error = client.pause_periodic("beat").await.unwrap_err();
    assert!(matches!(error, PeriodicError::Unknown { .. }), "{error}");
    // Added again, it begins now.
    client.add_periodic(&every("beat", SECOND, Duration::ZERO)).await.unwrap();
    sleep(SECOND * 3).await;
    let ran = house.ran_once();
    assert!(ran.len() >= 7 && ran[5] > seconds("beat", 60..=60)[0], "{ran:?}");
    one.stop().await;
    two.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_unknown_name_is_reported_with_the_nearest() {
    let house = House::new();
    let client = house.client().await;
    client.add_periodic(&every("nightly", SECOND, Duration::ZERO)).await.unwrap();
    let error = client.pause_periodic("nigthly").await.unwrap_err().to_string();
    assert_eq!(error, "there is no periodic task \"nigthly\"; did you mean \"nightly\"?");
    let error = client.remove_periodic("other").await.unwrap_err().to_string();
    assert_eq!(error, "there is no periodic task \"other\"");
}

#[tokio::test(start_paused = true)]
async fn an_extra_tick_is_sent_once_and_leaves_the_schedule_alone() {
    let house = House::new();
    let client = house.client().await;
    client.add_periodic(&every("hourly", MINUTE * 60, Duration::ZERO)).await.unwrap();
    client.pause_periodic("hourly").await.unwrap();
    let (one, two) = (house.start("one").await, house.start("two").await);
    sleep(SECOND * 5).await;
    let triggered = client.trigger_periodic("hourly").await.unwrap();
    sleep(MINUTE * 5).await;
    assert_eq!(house.ran_once(), [triggered.id.to_string()]);
    assert_eq!(triggered.id.to_string(), format!("tick.hourly.{}", short(triggered.tick)));
    let shown = client.periodic_task("hourly").await.unwrap().unwrap();
    assert_eq!(shown.ticks[0].tick, triggered.tick);
    client.resume_periodic("hourly").await.unwrap();
    assert_eq!(client.periodic_task("hourly").await.unwrap().unwrap().next, Some(at("2026-11-28T22:00:00Z")));
    one.stop().await;
    two.stop().await;
    let error = client.trigger_periodic("hourly").await.unwrap_err();
    assert!(matches!(error, PeriodicError::NotTriggered { .. }), "{error}");
}

fn short(instant: machinist_core::clock::Timestamp) -> String {
    jiff::Timestamp::from_microsecond(instant.as_micros()).unwrap().to_string()
}

#[tokio::test(start_paused = true)]
async fn a_lost_backend_loses_no_live_definition_and_no_pause() {
    let house = House::new();
    let client = house.client().await;
    for name in ["beat", "paused"] {
        client.add_periodic(&every(name, SECOND, Duration::ZERO)).await.unwrap();
    }
    client.pause_periodic("paused").await.unwrap();
    let (one, two) = (house.start("one").await, house.start("two").await);
    sleep(SECOND * 5).await;
    for name in ["beat", "paused"] {
        lose(&house, name).await;
    }
    assert_eq!(client.periodic_tasks().await.unwrap(), []);
    sleep(SECOND * 25).await;
    let [beat, paused] = &client.periodic_tasks().await.unwrap()[..] else { panic!("both are back") };
    assert!(beat.restored.is_some() && paused.restored.is_some());
    assert!(beat.paused.is_none() && paused.paused.is_some());
    let ran = house.ran_once();
    assert_eq!(ran, seconds("beat", 1..=u32::try_from(ran.len()).unwrap()));
    assert!(ran.len() >= 28, "{ran:?}");
    // A removal is one, also after that.
    client.remove_periodic("beat").await.unwrap();
    sleep(MINUTE).await;
    assert_eq!(client.periodic_task("beat").await.unwrap(), None);
    one.stop().await;
    two.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_definition_in_code_ticks_and_says_whose_it_is() {
    let house = House::new();
    let code = || every("beat", SECOND, Duration::ZERO);
    let with =
        |name: &'static str| house.start_with(name, None, |app| app, move |worker| worker.periodic(code()));
    let (one, two, bare) = (with("one").await, with("two").await, house.start("bare").await);
    sleep(SECOND * 10 + SECOND / 2).await;
    let client = house.client().await;
    let shown = client.periodic_task("beat").await.unwrap().unwrap();
    assert_eq!((shown.source, shown.problem), (Source::Code, None));
    assert!(matches!(shown.worker.as_deref(), Some("one" | "two")), "{:?}", shown.worker);
    let ran = house.ran_once();
    assert_eq!(ran, seconds("beat", 1..=10));
    let error = client.add_periodic(&code()).await.unwrap_err().to_string();
    assert!(
        error.contains("is defined in the code of worker") && error.contains("change it there"),
        "{error}"
    );
    let error = client.remove_periodic("beat").await.unwrap_err();
    assert!(matches!(error, PeriodicError::Owned { owner: Source::Code, .. }), "{error}");
    // A pause belongs to the name.
    client.pause_periodic("beat").await.unwrap();
    sleep(SECOND * 10).await;
    assert_eq!(house.ran_once().len(), 10);
    client.resume_periodic("beat").await.unwrap();
    sleep(SECOND * 5).await;
    assert!(house.ran_once().len() >= 14);
    // Without a worker that has it, it is shown as such, and can be removed.
    one.kill().await;
    two.kill().await;
    sleep(MINUTE * 5).await;
    let shown = client.periodic_task("beat").await.unwrap().unwrap();
    assert_eq!(shown.problem.as_deref(), Some("no live worker has its definition"));
    client.remove_periodic("beat").await.unwrap();
    assert_eq!(client.periodic_tasks().await.unwrap(), []);
    bare.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_live_definition_keeps_its_name_until_it_is_removed() {
    let house = House::new();
    let client = house.client().await;
    client.add_periodic(&every("beat", SECOND * 10, Duration::ZERO)).await.unwrap();
    let code = every("beat", SECOND, Duration::ZERO);
    let worker = house.start_with("w", None, |app| app, |worker| worker.periodic(code)).await;
    sleep(SECOND * 35).await;
    assert_eq!(house.ran_once(), [10, 20, 30].map(|second| seconds("beat", second..=second).remove(0)));
    assert_eq!(client.periodic_task("beat").await.unwrap().unwrap().source, Source::Live);
    client.remove_periodic("beat").await.unwrap();
    sleep(SECOND * 10).await;
    assert!(house.ran_once().len() >= 10, "the definition in code takes over");
    assert_eq!(client.periodic_task("beat").await.unwrap().unwrap().source, Source::Code);
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_changed_schedule_is_followed_without_a_restart_and_the_same_one_loses_no_tick() {
    let house = House::new();
    let client = house.client().await;
    client.add_periodic(&every("beat", SECOND * 10, Duration::ZERO)).await.unwrap();
    let worker = house.start("w").await;
    for _ in 0..6 {
        sleep(SECOND * 5).await;
        client.add_periodic(&every("beat", SECOND * 10, Duration::ZERO)).await.unwrap();
    }
    sleep(SECOND).await;
    assert_eq!(house.ran_once(), seconds("beat", 1..=30).into_iter().skip(9).step_by(10).collect::<Vec<_>>());
    client.add_periodic(&every("beat", SECOND, Duration::ZERO)).await.unwrap();
    sleep(SECOND * 5).await;
    assert!(house.ran_once().len() >= 7);
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_contradicts_itself_is_refused_before_anything_is_written() {
    let house = House::new();
    let client = house.client().await;
    let schedule = || Schedule::every(SECOND).unwrap();
    let beat = || every("beat", SECOND, Duration::ZERO);
    let error = |result: Result<Periodic, PeriodicError>| result.unwrap_err().to_string();
    assert!(error(Periodic::new("a b", schedule(), untyped())).contains("letters, digits"));
    let late = TICK.call((0,)).countdown(SECOND);
    assert!(error(Periodic::new("beat", schedule(), late)).contains("leave it out"));
    let expired = TICK.call((0,)).expires_at(at("2026-11-28T21:00:00Z"));
    assert!(error(Periodic::new("beat", schedule(), expired)).contains("from each tick"));
    let invalid = [
        beat().jitter(MINUTE * 60 * 25),
        beat().catch_up(MINUTE * 60 * 24 * 8),
        beat().from(at("2026-11-29T00:00:00Z")).until(at("2026-11-28T00:00:00Z")),
        Periodic::new("beat", schedule(), untyped().priority(10)).unwrap(),
        Periodic::new("beat", schedule(), untyped().queue("amq.x")).unwrap(),
    ];
    for invalid in invalid {
        let error = client.add_periodic(&invalid).await.unwrap_err();
        assert!(matches!(error, PeriodicError::Invalid { .. } | PeriodicError::Send(_)), "{error}");
    }
    assert_eq!(client.periodic_tasks().await.unwrap(), []);
}

#[tokio::test(start_paused = true)]
async fn a_hook_that_panics_stops_no_periodic_task() {
    struct Broken;
    impl PublishHook for Broken {
        fn before_publish(&self, _: &TaskId, _: &str, _: &mut BTreeMap<String, String>) {
            panic!("the hook")
        }
    }
    let house = House::new();
    house.client().await.add_periodic(&every("beat", SECOND, Duration::ZERO)).await.unwrap();
    let worker = house.start_with("w", None, |app| app.on_publish(Broken), |worker| worker).await;
    sleep(SECOND * 5 + SECOND / 2).await;
    assert_eq!(house.ran_once(), seconds("beat", 1..=5));
    worker.stop().await;
}

/// The one that came first was replaced before a worker had read it.
#[tokio::test(start_paused = true)]
async fn of_two_triggers_at_once_only_the_one_that_was_sent_succeeds() {
    let house = House::new();
    let client = house.client().await;
    client.add_periodic(&every("hourly", MINUTE * 60, Duration::ZERO)).await.unwrap();
    let trigger = |client: Client| tokio::spawn(async move { client.trigger_periodic("hourly").await });
    let first = trigger(client.clone());
    sleep(SECOND).await;
    let second = trigger(client);
    sleep(SECOND).await;
    let worker = house.start("w").await;
    let (first, second) = (first.await.unwrap(), second.await.unwrap().unwrap());
    assert!(matches!(first, Err(PeriodicError::TriggerReplaced { .. })), "{first:?}");
    sleep(SECOND).await;
    assert_eq!(house.ran_once(), [second.id.to_string()]);
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_reload_forgets_no_live_definition() {
    let house = House::new();
    let client = house.client().await;
    client.add_periodic(&every("beat", SECOND, Duration::ZERO)).await.unwrap();
    let app = house.builder().build().await.unwrap();
    let builder = || Worker::builder(&app);
    let code = || every("code", SECOND, Duration::ZERO);
    let worker = builder().name("w").state(Arc::clone(&house.runs)).task(TICK, tick).periodic(code());
    let worker = worker.build().unwrap();
    let (reloader, stages) = (worker.reloader(), worker.stages());
    let running = tokio::spawn(worker.run_until(std::future::pending()));
    sleep(SECOND * 5).await;
    lose(&house, "beat").await;
    reloader
        .reload(builder(), builder().periodic(every("file", SECOND, Duration::ZERO)), None)
        .await
        .unwrap();
    sleep(MINUTE).await;
    let beat = client.periodic_task("beat").await.unwrap().expect("it is written back");
    assert!(beat.restored.is_some());
    reloader
        .reload(builder().periodic(every("file", SECOND, Duration::ZERO)), builder(), None)
        .await
        .unwrap();
    sleep(SECOND + SECOND / 2).await;
    let before = house.ran_once();
    sleep(SECOND * 10).await;
    let after = house.ran_once();
    let ticks =
        |ran: &[String], name: &str| ran.iter().filter(|id| id.starts_with(&format!("tick.{name}."))).count();
    for (name, more) in [("beat", 10), ("code", 10), ("file", 0)] {
        assert_eq!(ticks(&after, name), ticks(&before, name) + more, "{name}");
    }
    stages.advance();
    running.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_definition_in_code_begins_again_where_its_cursor_is_spoilt() {
    let house = House::new();
    let mut commit = Commit::new(RecordId::new(RecordKind::Cursor, "beat"));
    commit.facts = vec![("cursor".into(), "{".into())];
    house.backend.commit(vec![commit.into()]).await.pop().unwrap().unwrap();
    let code = every("beat", SECOND, Duration::ZERO);
    let worker = house.start_with("w", None, |app| app, |worker| worker.periodic(code)).await;
    sleep(SECOND * 5 + SECOND / 2).await;
    assert_eq!(house.ran_once(), seconds("beat", 1..=5));
    worker.stop().await;
}
