//! Keys that are revoked, and lists that are narrowed, while tasks wait in a worker.

use std::sync::Arc;

use machinist_core::{
    App, AsyncResult, SendError, State, TaskDef, TaskError,
    record::TaskState,
    sign::{Key, KeyError, KeyState, Keyring},
};
use tokio::sync::Semaphore;

use super::support::{ADD, Harness, Running, SOON, hmac};

/// Number of short runs after which a worker knows its runs to be short.
const WARM_UP: usize = 8;

/// Ends when it is let go.
const HOLD: TaskDef<(), u32> = TaskDef::new("hold");

#[derive(Clone)]
struct LetGo(Arc<Semaphore>);

async fn hold(State(let_go): State<LetGo>) -> Result<u32, TaskError> {
    let_go.0.acquire().await.unwrap().forget();
    Ok(7)
}

fn verify(key: &Key) -> Key {
    key.clone().with_state(KeyState::Verify)
}

fn ring<'a>(keys: impl IntoIterator<Item = &'a Key>) -> Keyring {
    Keyring::new(keys.into_iter().cloned()).unwrap()
}

/// A worker whose only slot is taken, and which holds a task that waits for it.
struct OneWaits {
    let_go: LetGo,
    holds: AsyncResult<u32>,
    waiting: AsyncResult<i64>,
    _running: Running,
}

impl OneWaits {
    async fn start(harness: &Harness, app: &App, sender: &App) -> Self {
        let let_go = LetGo(Arc::new(Semaphore::new(WARM_UP)));
        let worker = harness.worker(app).task(HOLD, hold).state(let_go.clone()).concurrency(1);
        let running = Running::start(worker);
        // After short runs a worker holds more than it has slots for.
        for _ in 0..WARM_UP {
            app.client().send(HOLD.call(())).await.unwrap().wait(SOON).await.unwrap();
        }
        let holds = app.client().send(HOLD.call(())).await.unwrap();
        harness.eventually(async || holds.state().await.unwrap() == TaskState::Started).await;
        let waiting = sender.client().send(ADD.call((2, 3))).await.unwrap();
        harness.eventually(async || waiting.state().await.unwrap() == TaskState::Received).await;
        Self { let_go, holds, waiting, _running: running }
    }
}

#[tokio::test(start_paused = true)]
async fn what_waits_in_a_worker_is_checked_again_before_it_starts() {
    let (stolen, own) = (hmac("stolen"), hmac("own"));
    let revoked = ring([&own, &Key::revoked("stolen").unwrap()]);
    let limited = ring([&own, &verify(&stolen).for_tasks(["hold"]).unwrap()]);
    let unknown = ring([&own]);
    for (newer, reason) in [(revoked, "revoked-key"), (limited, "not-allowed"), (unknown, "unknown-key")] {
        let harness = Harness::new();
        let sender = harness.app(ring([&stolen, &verify(&own)])).await;
        let app = harness.app(ring([&own, &verify(&stolen)])).await;
        let OneWaits { let_go, holds, .. } = OneWaits::start(&harness, &app, &sender).await;

        app.replace_keyring(newer).unwrap();
        let_go.0.add_permits(1);
        assert_eq!(holds.wait(SOON).await.unwrap(), 7, "what runs goes on");
        assert_eq!(harness.dead("math", 1).await, [reason]);
        assert_eq!(harness.added(), 0, "{reason}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_newer_ring_does_not_stop_what_it_trusts() {
    let harness = Harness::new();
    let (web, own) = (hmac("web"), hmac("own"));
    let sender = harness.app(ring([&web, &verify(&own)])).await;
    let app = harness.app(ring([&own, &verify(&web)])).await;
    let OneWaits { let_go, waiting, .. } = OneWaits::start(&harness, &app, &sender).await;
    app.replace_keyring(ring([&own, &verify(&web), &Key::revoked("other").unwrap()])).unwrap();
    let_go.0.add_permits(1);
    assert_eq!(waiting.wait(SOON).await.unwrap(), 5);
}

#[tokio::test(start_paused = true)]
async fn the_only_key_can_be_revoked_and_nothing_is_lost_until_there_is_another() {
    let harness = Harness::new();
    let (stolen, new) = (hmac("stolen"), hmac("new"));
    let thief = harness.app(stolen.clone()).await;
    let app = harness.app(stolen.clone()).await;
    let let_go = LetGo(Arc::new(Semaphore::new(0)));
    let _running = Running::start(harness.worker(&app).task(HOLD, hold).state(let_go.clone()));
    let running = app.client().send(HOLD.call(())).await.unwrap();
    harness.eventually(async || running.state().await.unwrap() == TaskState::Started).await;

    let refused = app.replace_keyring(Key::revoked("stolen").unwrap());
    assert!(matches!(refused, Err(KeyError::NoneActive)), "{refused:?}");
    assert!(matches!(app.client().send(ADD.call((1, 1))).await, Err(SendError::Key { .. })));
    thief.client().send(ADD.call((6, 6))).await.unwrap();
    let_go.0.add_permits(1);
    harness.settle().await;
    // Its end waits for a key that signs it, and what came meanwhile waits too.
    assert_eq!(running.state().await.unwrap(), TaskState::Started);
    assert_eq!((harness.added(), harness.broker.dead_letters(&super::support::queue("math")).len()), (0, 0));

    app.replace_keyring(ring([&new, &Key::revoked("stolen").unwrap()])).unwrap();
    assert_eq!(running.wait(SOON).await.unwrap(), 7);
    assert_eq!(harness.dead("math", 1).await, ["revoked-key"]);
    let sum = app.client().send(ADD.call((2, 3))).await.unwrap();
    assert_eq!(sum.wait(SOON).await.unwrap(), 5);
    assert_eq!(harness.added(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_ring_that_cannot_sign_replaces_none_but_its_revocations_apply() {
    let harness = Harness::new();
    let (web, own) = (hmac("web"), hmac("own"));
    let sender = harness.app(ring([&web, &verify(&own)])).await;
    let app = harness.app(ring([&own, &verify(&web)])).await;
    let _running = harness.work(&app);
    let refused = app.replace_keyring(ring([&verify(&own), &Key::revoked("web").unwrap()]));
    assert!(matches!(refused, Err(KeyError::NoneActive)), "{refused:?}");
    sender.client().send(ADD.call((2, 3))).await.unwrap();
    assert_eq!(harness.dead("math", 1).await, ["revoked-key"]);
    let sum = app.client().send(ADD.call((2, 3))).await.unwrap();
    assert_eq!(sum.wait(SOON).await.unwrap(), 5, "the old one still signs");
}
