//! Who can only write to the backend schedules nothing.

use std::time::Duration;

use machinist_core::{
    App, AppBuilder,
    backend::{Backend, Commit, Index, IndexUpdate},
    id::{RecordId, RecordKind},
    periodic::PeriodicError,
    record::Facts,
    sign::{Algorithm, Key, KeyState, Keyring},
};
use tokio::time::sleep;

use super::house::{House, MINUTE, SECOND, TICK, every, tick};

fn key(id: &str) -> Key {
    Key::with_secret(Algorithm::HmacSha256, id, id.repeat(32).as_bytes()).unwrap()
}

fn with(ring: &Keyring) -> impl FnOnce(AppBuilder) -> AppBuilder + use<> {
    let ring = ring.clone();
    |app| app.keyring(ring)
}

async fn app(house: &House, ring: &Keyring) -> App {
    with(ring)(house.builder()).build().await.unwrap()
}

/// Writes facts over those of a record, as somebody does who has the backend's password.
async fn write(house: &House, name: &str, facts: &Facts) {
    let mut commit = Commit::new(RecordId::new(RecordKind::Cursor, name));
    let there = house.facts(name).await;
    commit.drop = there.iter().map(|(fact, _)| fact.to_owned().into()).collect();
    commit.facts = facts.iter().map(|(fact, value)| (fact.to_owned().into(), value.clone())).collect();
    house.backend.commit(vec![commit.into()]).await.pop().unwrap().unwrap();
    let at = house.backend.now().await.unwrap();
    let update = IndexUpdate::Put { index: Index::Periodic, at, member: name.to_owned() };
    house.backend.update_indexes(vec![update]).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_unsigned_definition_does_not_tick_and_is_shown_as_such() {
    let house = House::new();
    let ring = Keyring::from(key("a"));
    house.client().await.add_periodic(&every("beat", SECOND, Duration::ZERO)).await.unwrap();
    let worker = house.start_with("w", None, with(&ring), |worker| worker).await;
    sleep(MINUTE).await;
    assert_eq!(house.ran_once(), Vec::<String>::new());
    let client = app(&house, &ring).await.client();
    let shown = client.periodic_task("beat").await.unwrap().unwrap();
    assert_eq!(shown.problem.as_deref(), Some("its order is not believed: it carries no signature"));
    // A pause does not sign what somebody else wrote.
    let error = client.pause_periodic("beat").await.unwrap_err();
    assert!(
        error.to_string().contains("is not believed") && error.to_string().contains("remove it"),
        "{error}"
    );
    client.add_periodic(&every("beat", SECOND, Duration::ZERO)).await.unwrap();
    sleep(SECOND * 5).await;
    assert!(house.ran_once().len() >= 4);
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_definition_is_bound_to_its_name_its_namespace_and_its_text() {
    let house = House::new();
    let ring = Keyring::from(key("a"));
    let client = app(&house, &ring).await.client();
    client.add_periodic(&every("beat", MINUTE * 60, Duration::ZERO)).await.unwrap();
    let signed = house.facts("beat").await;
    write(&house, "other", &signed).await;
    let text = String::from_utf8(signed.get("order").unwrap().to_vec()).unwrap();
    let faster = text.replace("3600000000", "1000000");
    assert_ne!(text, faster);
    let mut changed = signed.clone();
    changed.remove("order");
    changed.put("order", faster);
    write(&house, "beat", &changed).await;
    let worker = house.start_with("w", None, with(&ring), |worker| worker).await;
    sleep(MINUTE * 2).await;
    assert_eq!(house.ran_once(), Vec::<String>::new());
    for shown in client.periodic_tasks().await.unwrap() {
        assert!(shown.problem.unwrap().contains("its signature is not that of key a"));
    }
    let elsewhere = with(&ring)(house.builder()).namespace("elsewhere").build().await.unwrap().client();
    write(&house, "beat", &signed).await;
    assert!(elsewhere.periodic_task("beat").await.unwrap().unwrap().problem.is_some());
    assert_eq!(client.periodic_task("beat").await.unwrap().unwrap().problem, None);
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_old_definition_that_is_written_back_does_not_come_to_life() {
    let house = House::new();
    let ring = Keyring::from(key("a"));
    let client = app(&house, &ring).await.client();
    let worker = house.start_with("w", None, with(&ring), |worker| worker).await;
    client.add_periodic(&every("beat", SECOND, Duration::ZERO)).await.unwrap();
    sleep(SECOND * 5).await;
    let old = house.facts("beat").await;
    client.pause_periodic("beat").await.unwrap();
    sleep(SECOND).await;
    let paused = house.ran_once().len();
    write(&house, "beat", &old).await;
    sleep(MINUTE).await;
    assert_eq!(house.ran_once().len(), paused);
    assert!(
        client.periodic_task("beat").await.unwrap().unwrap().paused.is_some(),
        "the pause is written back"
    );
    client.remove_periodic("beat").await.unwrap();
    sleep(SECOND).await;
    write(&house, "beat", &old).await;
    sleep(MINUTE).await;
    assert_eq!(house.ran_once().len(), paused);
    // The mark of the removal is written back, so that a new worker does not follow the old one either.
    let new = house.start_with("new", None, with(&ring), |worker| worker).await;
    sleep(MINUTE).await;
    assert_eq!(house.ran_once().len(), paused);
    worker.stop().await;
    new.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_cursor_that_is_set_back_sends_nothing_again() {
    let house = House::new();
    let client = house.client().await;
    client.add_periodic(&every("beat", SECOND, Duration::ZERO)).await.unwrap();
    let worker = house.start("w").await;
    sleep(SECOND * 3).await;
    let old = house.facts("beat").await;
    sleep(SECOND * 20).await;
    let before = house.ran_once().len();
    write(&house, "beat", &old).await;
    sleep(SECOND * 20).await;
    let ran = house.ran_once();
    assert!(ran.len() >= before + 18, "it goes on");
    assert_eq!(house.sent_twice(), Vec::<String>::new());
    worker.stop().await;
}

/// Also when the record is lost, and the worker knows the order from before.
#[tokio::test(start_paused = true)]
async fn a_definition_ends_with_the_trust_in_its_key() {
    let house = House::new();
    let both = Keyring::new([key("a"), key("b").with_state(KeyState::Verify)]).unwrap();
    let sender = Keyring::new([key("b"), key("a").with_state(KeyState::Verify)]).unwrap();
    app(&house, &sender).await.client().add_periodic(&every("beat", SECOND, Duration::ZERO)).await.unwrap();
    let working = app(&house, &both).await;
    let runs = std::sync::Arc::clone(&house.runs);
    let worker = machinist_core::Worker::builder(&working).state(runs).task(TICK, tick).build().unwrap();
    let worker = tokio::spawn(async move { worker.run_until(std::future::pending()).await.map(drop) });
    sleep(SECOND * 5).await;
    assert!(house.ran_once().len() >= 4);
    working.replace_keyring(Keyring::new([key("a"), Key::revoked("b").unwrap()]).unwrap()).unwrap();
    sleep(SECOND * 2).await;
    let ran = house.ran_once().len();
    write(&house, "beat", &Facts::new()).await;
    sleep(MINUTE).await;
    assert_eq!(house.ran_once().len(), ran);
    assert!(house.facts("beat").await.get("order").is_none(), "it is not written back");
    worker.abort();
}

/// Names from others that no periodic task can have, and facts that nobody can read.
#[tokio::test(start_paused = true)]
async fn garbage_in_the_backend_harms_no_periodic_task() {
    let house = House::new();
    let client = house.client().await;
    client.add_periodic(&every("beat", SECOND, Duration::ZERO)).await.unwrap();
    let garbage: Facts = [("order", "{"), ("cursor", "[1]"), ("own", "null"), ("restored", "x")]
        .into_iter()
        .map(|(name, value)| (name.into(), value.into()))
        .collect();
    let signed = house.facts("beat").await;
    for name in ["x".repeat(5000), "a\nb".to_owned(), String::new(), "tick+1!".to_owned()] {
        write(&house, &name, &signed).await;
        assert_eq!(client.periodic_task(&name).await.unwrap(), None);
    }
    write(&house, "other", &garbage).await;
    let worker = house.start("w").await;
    sleep(SECOND * 10).await;
    assert!(house.ran_once().len() >= 9);
    assert!(client.pause_periodic("other").await.is_err());
    assert_eq!(client.periodic_tasks().await.unwrap().len(), 1);
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_key_schedules_only_what_it_may_send() {
    let house = House::new();
    let mailer = key("m").for_tasks(["mail.*"]).unwrap();
    let full = Keyring::new([key("a"), mailer.clone().with_state(KeyState::Verify)]).unwrap();
    let unrestricted = Keyring::from(key("m"));
    let error = app(&house, &Keyring::from(mailer.clone())).await.client();
    let error = error.add_periodic(&every("beat", SECOND, Duration::ZERO)).await.unwrap_err();
    assert!(matches!(error, PeriodicError::Send(_)), "{error}");
    // A sender that does not keep to it is refused by the workers.
    let client = app(&house, &unrestricted).await.client();
    client.add_periodic(&every("beat", SECOND, Duration::ZERO)).await.unwrap();
    let worker = house.start_with("w", None, with(&full), |worker| worker).await;
    sleep(MINUTE).await;
    assert_eq!(house.ran_once(), Vec::<String>::new());
    let shown = app(&house, &full).await.client().periodic_task("beat").await.unwrap().unwrap();
    assert!(shown.problem.unwrap().contains("key m is not for the task"));
    // Nor does it pause what it may not send: its order would take the place of one that is believed.
    app(&house, &full).await.client().add_periodic(&every("beat", SECOND, Duration::ZERO)).await.unwrap();
    let pausing = Keyring::new([key("a").with_state(KeyState::Verify), mailer]).unwrap();
    let error = app(&house, &pausing).await.client().pause_periodic("beat").await.unwrap_err();
    assert!(error.to_string().contains("key m is not for the task"), "{error}");
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_may_not_sign_a_task_leaves_its_ticks_to_others() {
    let house = House::new();
    let full = Keyring::from(key("a"));
    let mail_only =
        Keyring::new([key("a").with_state(KeyState::Verify), key("m").for_tasks(["mail.*"]).unwrap()])
            .unwrap();
    let verifier = Keyring::new([key("a"), key("m").with_state(KeyState::Verify)]).unwrap();
    let client = app(&house, &full).await.client();
    client.add_periodic(&every("beat", SECOND, Duration::ZERO)).await.unwrap();
    // The first worker that starts has the keys of another task only.
    let mailer = with(&mail_only)(house.builder()).build().await.unwrap();
    let mailer = machinist_core::Worker::builder(&mailer)
        .task_dyn("mail.send", |_: machinist_core::TaskContext, args: Vec<machinist_core::Arg>| async move {
            Ok::<_, machinist_core::TaskError>(machinist_core::Results(args))
        })
        .queue("mail")
        .build()
        .unwrap();
    let mailer = tokio::spawn(async move { mailer.run_until(std::future::pending()).await.map(drop) });
    sleep(SECOND * 10).await;
    let worker = house.start_with("w", None, with(&verifier), |worker| worker).await;
    sleep(SECOND * 20).await;
    assert!(house.ran_once().len() >= 28, "{:?}", house.ran());
    worker.stop().await;
    mailer.abort();
}

#[tokio::test(start_paused = true)]
async fn arguments_are_not_readable_where_the_application_encrypts() {
    let house = House::new();
    let ring = Keyring::new([key("a"), Key::generate(Algorithm::XChaCha20Poly1305, "c").unwrap()]).unwrap();
    let client = app(&house, &ring).await.client();
    client.add_periodic(&every("beat", SECOND, SECOND * 77)).await.unwrap();
    let text = String::from_utf8(house.facts("beat").await.get("order").unwrap().to_vec()).unwrap();
    assert!(!text.contains("77000") && text.contains("sealed"), "{text}");
    let worker = house.start_with("w", None, with(&ring), |worker| worker).await;
    sleep(SECOND * 5).await;
    assert!(house.ran_once().len() >= 4);
    worker.kill().await;
}
