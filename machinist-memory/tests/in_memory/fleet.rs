//! Leaders and shards: one holder at a time, takeovers, moves, and the end of what runs.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use machinist_core::{
    App, TaskDef, TaskError, Worker, WorkerBuilder,
    slot::RoleError,
    worker::{Drained, HeldSlot, RunningRole},
};
use machinist_memory::{MemoryBackend, MemoryBroker};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const WORK: TaskDef<(), ()> = TaskDef::new("work");
const MINUTE: Duration = Duration::from_secs(60);

async fn work() -> Result<(), TaskError> {
    Ok(())
}

async fn app() -> App {
    App::builder(Arc::new(MemoryBroker::new()), Arc::new(MemoryBackend::new())).build().await.unwrap()
}

/// Ledger of what runs for each slot.
#[derive(Clone, Default)]
struct Held(Arc<Mutex<Ledger>>);

#[derive(Default)]
struct Ledger {
    /// Worker that runs each slot.
    holders: BTreeMap<u32, String>,
    /// Epochs with which each slot has run.
    epochs: BTreeMap<u32, Vec<u64>>,
    /// Breaches of a promise. A panic would only end what runs.
    faults: Vec<String>,
}

impl Held {
    /// Runs until the slot is lost, and notes if somebody else does, or if the epoch does not rise.
    async fn run(self, worker: String, slot: HeldSlot) {
        let number = slot.number();
        {
            let mut ledger = self.0.lock().unwrap();
            let Ledger { holders, epochs, faults } = &mut *ledger;
            if let Some(holder) = holders.insert(number, worker.clone()) {
                faults.push(format!("{worker} and {holder} hold slot {number}"));
            }
            let epochs = epochs.entry(number).or_default();
            if epochs.last().is_some_and(|last| slot.epoch() <= *last) {
                faults.push(format!("slot {number}: epoch {} follows {epochs:?}", slot.epoch()));
            }
            epochs.push(slot.epoch());
        }
        let _left = Left { held: self, number };
        slot.lost().await;
    }

    fn holders(&self) -> BTreeMap<u32, String> {
        let ledger = self.0.lock().unwrap();
        assert!(ledger.faults.is_empty(), "{:?}", ledger.faults);
        ledger.holders.clone()
    }

    fn moves(&self) -> usize {
        self.0.lock().unwrap().epochs.values().map(Vec::len).sum()
    }

    async fn come_to(&self, wanted: impl Fn(&BTreeMap<u32, String>) -> bool) {
        let comes = async {
            while !wanted(&self.holders()) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(MINUTE, comes).await.unwrap_or_else(|_| panic!("{:?}", self.holders()));
    }
}

struct Left {
    held: Held,
    number: u32,
}

impl Drop for Left {
    fn drop(&mut self) {
        self.held.0.lock().unwrap().holders.remove(&self.number);
    }
}

/// A worker that takes part in a role. It dies when it is aborted.
struct Member {
    worker: JoinHandle<Drained>,
    stop: CancellationToken,
    role: Option<RunningRole>,
}

impl Member {
    fn start(app: &App, name: &str, role: impl FnOnce(&Worker) -> RunningRole) -> Self {
        let builder: WorkerBuilder = Worker::builder(app).name(name).task(WORK, work);
        let worker = builder.build().unwrap();
        let role = Some(role(&worker));
        let stop = CancellationToken::new();
        let until = stop.clone().cancelled_owned();
        Self { worker: tokio::spawn(async move { worker.run_until(until).await.unwrap() }), stop, role }
    }

    fn with_shards(app: &App, name: &str, slots: u32, held: &Held) -> Self {
        let (held, owned) = (held.clone(), name.to_owned());
        Self::start(app, name, move |worker| {
            let run = move |slot| held.clone().run(owned.clone(), slot);
            worker.fleet().shards("poller", slots).run(run).unwrap()
        })
    }

    async fn stop(self) {
        self.stop.cancel();
        assert!(self.worker.await.unwrap().is_clean());
    }
}

fn count(holders: &BTreeMap<u32, String>, worker: &str) -> usize {
    holders.values().filter(|holder| *holder == worker).count()
}

#[tokio::test(start_paused = true)]
async fn shards_are_spread_over_the_live_workers_with_few_moves() {
    let (app, held) = (app().await, Held::default());
    let a = Member::with_shards(&app, "a", 8, &held);
    held.come_to(|holders| count(holders, "a") == 8).await;
    let b = Member::with_shards(&app, "b", 8, &held);
    held.come_to(|holders| count(holders, "a") == 4 && count(holders, "b") == 4).await;
    assert_eq!(held.moves(), 12, "four slots have moved");
    // A killed worker is followed, and nothing else moves.
    b.worker.abort();
    held.come_to(|holders| count(holders, "a") == 8).await;
    assert_eq!(held.moves(), 16);
    // A worker that stops frees its slots before it ends.
    let c = Member::with_shards(&app, "c", 8, &held);
    held.come_to(|holders| count(holders, "c") == 4 && count(holders, "a") == 4).await;
    a.stop().await;
    held.come_to(|holders| count(holders, "c") == 8).await;
    let shown = app.client().fleet_roles().await.unwrap();
    assert!(shown.shards.len() == 8 && shown.leaders.is_empty());
    assert!(
        shown.shards.iter().all(|shard| shard.slot.worker.as_deref() == Some("c") && shard.set == "poller")
    );
    c.stop().await;
    assert!(held.holders().is_empty());
}

#[tokio::test(start_paused = true)]
async fn one_worker_leads_until_it_leaves_or_dies_or_its_run_ends() {
    let (app, held) = (app().await, Held::default());
    let lead = |name: &str, ends: Option<CancellationToken>| {
        let (held, owned) = (held.clone(), name.to_owned());
        Member::start(&app, name, move |worker| {
            let run = move |slot| {
                let (running, ends) = (held.clone().run(owned.clone(), slot), ends.clone());
                async move {
                    match ends {
                        Some(ends) => tokio::select! { () = running => {} () = ends.cancelled() => {} },
                        None => running.await,
                    }
                }
            };
            worker.fleet().leader("billing").run(run).unwrap()
        })
    };
    let ends = CancellationToken::new();
    let a = lead("a", Some(ends.clone()));
    held.come_to(|holders| count(holders, "a") == 1).await;
    let mut b = lead("b", None);
    tokio::time::sleep(MINUTE).await;
    assert_eq!((count(&held.holders(), "a"), held.moves()), (1, 1), "the first one stays");
    let shown = app.client().fleet_roles().await.unwrap();
    let [leader] = &*shown.leaders else { panic!("{shown:?}") };
    assert_eq!((&*leader.name, leader.worker.as_deref()), ("billing", Some("a")));
    assert!(leader.epoch > 0 && leader.since.is_some());
    // What ends by itself gives the lead up.
    ends.cancel();
    held.come_to(|holders| count(holders, "b") == 1).await;
    // So does one that leaves.
    b.role.take().unwrap().leave().await;
    assert_eq!(count(&held.holders(), "b"), 0);
    let c = lead("c", None);
    held.come_to(|holders| count(holders, "c") == 1).await;
    drop((a, b, c));
}

#[tokio::test(start_paused = true)]
async fn a_set_with_another_number_of_slots_waits_and_parameters_are_given() {
    let (app, held) = (app().await, Held::default());
    let old = Member::with_shards(&app, "old", 2, &held);
    held.come_to(|holders| count(holders, "old") == 2).await;
    let new = Member::with_shards(&app, "new", 3, &held);
    tokio::time::sleep(MINUTE).await;
    assert_eq!(count(&held.holders(), "new"), 0);
    old.stop().await;
    held.come_to(|holders| count(holders, "new") == 3).await;
    new.stop().await;
    let seen = Arc::new(Mutex::new((Vec::new(), Vec::new())));
    let told = Arc::clone(&seen);
    let member = Member::start(&app, "regions", move |worker| {
        let role = worker.fleet().shards("regions", 2).parameters(["eu", "us"]);
        let changes = Arc::clone(&told);
        let role = role.on_change(move |slots| {
            changes.lock().unwrap().1.push(slots.iter().filter(|slot| slot.worker.is_some()).count());
        });
        let run = move |slot: HeldSlot| {
            told.lock().unwrap().0.push((slot.number(), slot.parameter().map(str::to_owned)));
            async move { slot.lost().await }
        };
        let running = role.run(run).unwrap();
        let twice = worker.fleet().shards("regions", 2).run(|_| async {});
        assert!(matches!(twice, Err(RoleError::Twice(role)) if role == "shards/regions"));
        running
    });
    let filled = async {
        while seen.lock().unwrap().1.last() != Some(&2) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(MINUTE, filled).await.expect("both are held");
    let slots = seen.lock().unwrap().0.clone();
    assert_eq!(slots, [(0, Some("eu".to_owned())), (1, Some("us".to_owned()))]);
    member.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_function_that_is_told_of_changes_and_panics_costs_no_slot() {
    let (app, held) = (app().await, Held::default());
    let running = held.clone();
    let member = Member::start(&app, "a", move |worker| {
        let role = worker.fleet().shards("poller", 2).on_change(|_| panic!("told"));
        role.run(move |slot| running.clone().run("a".to_owned(), slot)).unwrap()
    });
    held.come_to(|holders| count(holders, "a") == 2).await;
    tokio::time::sleep(MINUTE).await;
    assert_eq!((count(&held.holders(), "a"), held.moves()), (2, 2), "they stay");
    member.stop().await;
}

#[tokio::test(start_paused = true)]
async fn every_slot_is_held_again_within_a_minute_of_a_kill() {
    const SLOTS: u32 = 6;
    let (app, held) = (app().await, Held::default());
    let mut members = Vec::new();
    for number in 0..4 {
        let name = format!("w{number}");
        members.push((Member::with_shards(&app, &name, SLOTS, &held), name));
    }
    held.come_to(|holders| holders.len() == SLOTS as usize).await;
    let mut times = Vec::new();
    for kill in 0_u32..40 {
        // At another place of the renewals and checks each time.
        tokio::time::sleep(Duration::from_millis(5_000 + 737 * u64::from(kill))).await;
        let (dead, name) = members.remove(kill as usize % members.len());
        dead.worker.abort();
        let killed = tokio::time::Instant::now();
        held.come_to(|holders| count(holders, &name) == 0).await;
        held.come_to(|holders| holders.len() == SLOTS as usize).await;
        times.push(killed.elapsed());
        let name = format!("n{kill}");
        members.push((Member::with_shards(&app, &name, SLOTS, &held), name));
    }
    times.sort_unstable();
    let (median, longest) = (times[times.len() / 2], times[times.len() - 1]);
    eprintln!("time until every slot is held again: p50 {median:?}, longest {longest:?}");
    // The time is paused: these are times of the protocol, not of the machine.
    assert!(median <= Duration::from_secs(25) && longest <= MINUTE);
}
