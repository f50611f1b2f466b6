//! The scenarios: which fault, while load goes on.

use std::{
    panic::resume_unwind,
    path::Path,
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use tokio::runtime::Runtime;
use xtask::{
    interrupt::Interrupt,
    services::{Endpoints, Server, Services},
};

use crate::{
    arrow::{ARROWS, FLOW_ARROWS},
    check::{self, Book, Finals, Leniency, Tally},
    cluster, fleet, flows,
    house::{CONCURRENCY, House, OTHER_QUEUE, Setup, WORKERS},
    limits,
    load::Kind,
    size::Size,
    special,
};

/// Consumption has to be back so long after the fault is gone, in every worker.
const RECOVERY: Duration = Duration::from_secs(15);
/// A worker that is told to stop has stopped within this.
const EXIT: Duration = Duration::from_secs(30);
/// A worker may have so many more files open after a fault than before: connections come and go.
const MORE_FDS: usize = 6;
/// What a worker may need more after a fault than before.
const MORE_MIB: u64 = 48;

/// All that can run at once.
const EVERYTHING: usize = WORKERS * CONCURRENCY;

macro_rules! scenarios {
    ($($variant:ident $name:literal $what:literal)*) => {
        /// One kind of fault under load.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
        pub(crate) enum Scenario { $(#[value(name = $name)] $variant),* }

        impl Scenario {
            pub(crate) const ALL: &[Self] = &[$(Self::$variant),*];

            pub(crate) fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            pub(crate) fn what(self) -> &'static str {
                match self { $(Self::$variant => $what),* }
            }
        }
    };
}

scenarios! {
    Calm "calm" "no fault: nothing may run twice"
    WorkerKill "worker-kill" "workers are killed (SIGKILL), one after the other"
    WorkerTerm "worker-term" "workers are told to stop (SIGTERM), one after the other: a rolling deploy"
    WorkerFreeze "worker-freeze" "a worker is stopped by SIGSTOP for longer than its lease, then goes on"
    RabbitKill "rabbit-kill" "RabbitMQ is killed and started again"
    RabbitClose "rabbit-close" "RabbitMQ closes all connections, several times"
    RabbitStop "rabbit-stop" "RabbitMQ's application is stopped and started (stop_app, start_app)"
    RabbitFreeze "rabbit-freeze" "RabbitMQ is stopped by SIGSTOP: it neither answers nor closes"
    RabbitListeners "rabbit-listeners" "RabbitMQ closes all connections and takes no new ones"
    ClusterKill "cluster-kill" "nodes of a RabbitMQ cluster of three are killed, one after the other, and started again"
    RabbitMemory "rabbit-memory" "RabbitMQ's memory alarm: publishers are blocked"
    RedisKill "redis-kill" "Redis is killed and started again"
    RedisPause "redis-pause" "CLIENT PAUSE: Redis answers nobody"
    RedisScripts "redis-scripts" "SCRIPT FLUSH, several times"
    RedisFlush "redis-flush" "FLUSHALL: every record and session is lost"
    RedisRollback "redis-rollback" "Redis comes back with its data of some seconds ago: lost acknowledged writes"
    RedisOom "redis-oom" "Redis refuses writes for want of memory"
    RedisReadonly "redis-readonly" "Redis becomes a read-only replica for a while"
    RedisReset "redis-reset" "connections to Redis are reset, ten times a second"
    RedisStallOld "redis-stall-old" "connections to Redis become silent; new ones work"
    RedisBlackHole "redis-black-hole" "nothing comes through to Redis or back"
    AmqpReset "amqp-reset" "connections to RabbitMQ are reset, twice a second"
    AmqpStallOld "amqp-stall-old" "connections to RabbitMQ become silent; new ones work"
    AmqpBlackHole "amqp-black-hole" "nothing comes through to RabbitMQ or back"
    BothGone "both-gone" "neither server can be reached"
    Slow "slow" "20 ms more in each direction, and one byte at a time now and then"
    QueueDeleted "queue-deleted" "an empty queue and the exchange are deleted and needed again"
    AckTimeout "ack-timeout" "RabbitMQ takes back what is not acknowledged within a second"
    Undecodable "undecodable" "messages that are none of ours among the tasks"
    Arrows "arrows" "workers end themselves at every arrow of the delivery protocol, one after the other"
    Poison "poison" "tasks that end their process among the others"
    Oom "oom" "tasks that take all the memory of their process among the others"
    MixedPoison "mixed-poison" "tasks that end their process or take its memory, messages with deep headers or none of ours, all at once"
    DeepHeaders "deep-headers" "messages with headers as deep as a frame can hold among the tasks"
    QueueGone "queue-gone" "delayed tasks come due for a queue that is gone, among many whose queue is there"
    DelaysDeleted "delays-deleted" "the queues in which delayed tasks wait are deleted"
    VhostDeleted "vhost-deleted" "the vhost is deleted with all in it, and made again, while delayed tasks wait"
    RedisAway "redis-away" "Redis is killed and stays away for 60 s while long tasks run"
    BusyKill "busy-kill" "a worker that runs 32 tasks is killed (SIGKILL): all run again elsewhere within 25 s"
    FlowsKill "flows-kill" "workers that run workflows are killed (SIGKILL), one after the other"
    FlowsRabbit "flows-rabbit" "RabbitMQ is killed and started again while workflows run"
    FlowsRedis "flows-redis" "Redis is killed and started again while workflows run"
    FlowsFlush "flows-flush" "FLUSHALL while workflows run: what waits for lost results fails, and nothing waits for ever"
    FlowsArrows "flows-arrows" "workers end themselves at every arrow that only workflows pass"
    FleetKill "fleet-kill" "workers that tick each second and hold slots are killed (SIGKILL) at random"
    PauseAll "pause-all" "all workers are paused and resumed under load"
    LimitsKill "limits-kill" "workers that run limited and unique tasks are killed (SIGKILL) at random"
}

impl Scenario {
    /// What only a nightly run or a person tries: it takes longest, or another scenario is of its kind. All others
    /// are for a continuous integration, which has twelve minutes for them.
    const BY_HAND: &[Self] = &[
        Self::Calm,
        Self::WorkerFreeze,
        Self::AmqpStallOld,
        Self::Arrows,
        Self::Oom,
        Self::MixedPoison,
        Self::DelaysDeleted,
        Self::VhostDeleted,
        Self::RedisAway,
        Self::ClusterKill,
        Self::FlowsArrows,
        Self::FlowsFlush,
        Self::PauseAll,
    ];

    pub(crate) fn is_in_ci(self) -> bool {
        !Self::BY_HAND.contains(&self)
    }
}

/// Runs scenarios, as many at once as there are lanes; whether every invariant held. Each lane has its own servers.
pub(crate) fn run_all(scenarios: &[Scenario], size: Size, lanes: usize, dir: &Path) -> Result<bool> {
    std::fs::create_dir_all(dir)?;
    let interrupt = Interrupt::listen()?;
    say!("size {}; ledgers and logs in {}", size.name(), dir.display());
    let began = Instant::now();
    say!("{}", Row::HEAD);
    let waiting = Mutex::new(scenarios.iter().copied());
    let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
    // A thread and a runtime for each, because a scenario blocks while it starts and kills its servers.
    let ran: Vec<Result<Vec<(&str, String)>>> = thread::scope(|scope| {
        let (next, interrupt) = (&next, &interrupt);
        let lane = |number| {
            scope.spawn(move || Runtime::new()?.block_on(run_lane(number, next, size, dir, interrupt)))
        };
        let lanes: Vec<_> = (1..=lanes.clamp(1, scenarios.len())).map(lane).collect();
        lanes.into_iter().map(|lane| lane.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
    });
    let took = began.elapsed().as_secs();
    // Errors come after all lanes, so that each has ended its servers.
    let failed = ran.into_iter().collect::<Result<Vec<_>>>()?.concat();
    interrupt.check()?;
    if failed.is_empty() {
        say!("every invariant held, {} scenarios in {took} s", scenarios.len());
    } else {
        let names: Vec<&str> = failed.iter().map(|(name, _)| *name).collect();
        say!("{} of {} scenarios failed in {took} s: {}", names.len(), scenarios.len(), names.join(", "));
        // Once more, for people who read a log from below.
        for (_, told) in &failed {
            say!("{told}");
        }
    }
    Ok(failed.is_empty())
}

/// Runs one scenario after the other while there is a next one; those that failed, and what they violated.
async fn run_lane(
    number: usize,
    next: &(dyn Fn() -> Option<Scenario> + Sync),
    size: Size,
    dir: &Path,
    interrupt: &Interrupt,
) -> Result<Vec<(&'static str, String)>> {
    let services = Services::at(&dir.join(format!("servers-{number}")))?;
    let up = tokio::task::block_in_place(|| services.up(interrupt))?;
    say!("{}", up.report());
    let mut failed = Vec::new();
    let mut restored = Ok(());
    while restored.is_ok()
        && !interrupt.heard()
        && let Some(scenario) = next()
    {
        if let Err(told) = run_told(scenario, size, dir, &services, &up.endpoints).await {
            say!("{told}");
            failed.push((scenario.name(), told));
        }
        restored = restore(&services, interrupt);
    }
    tokio::task::block_in_place(|| services.down())?;
    restored.map(|()| failed)
}

/// Runs one, and prints its row.
///
/// # Errors
/// What it violated, in lines for a person.
async fn run_told(
    scenario: Scenario,
    size: Size,
    dir: &Path,
    services: &Services,
    endpoints: &Endpoints,
) -> Result<(), String> {
    let ran = if scenario == Scenario::ClusterKill {
        run_in_cluster(scenario, size, dir).await
    } else {
        run(scenario, size, dir, services.clone(), endpoints).await
    };
    match ran {
        Ok(violations) if violations.is_empty() => Ok(()),
        Ok(violations) => {
            let mut told = vec![format!("    {} failed:", scenario.name())];
            told.extend(violations.iter().take(12).map(|violation| format!("    {violation}")));
            if violations.len() > 12 {
                told.push(format!("    and {} more", violations.len() - 12));
            }
            Err(told.join("\n"))
        }
        Err(error) => Err(format!("| {} | {error:#}", scenario.name())),
    }
}

/// Runs one with a cluster instead of the servers of the lane.
async fn run_in_cluster(scenario: Scenario, size: Size, dir: &Path) -> Result<Vec<String>> {
    let interrupt = Interrupt::listen()?;
    let (services, endpoints) = tokio::task::block_in_place(|| cluster::form(dir, &interrupt))?;
    let ran = run(scenario, size, dir, services.clone(), &endpoints).await;
    tokio::task::block_in_place(|| services.down())?;
    ran
}

/// Whatever a scenario has left undone, because it failed in the middle.
fn restore(services: &Services, interrupt: &Interrupt) -> Result<()> {
    tokio::task::block_in_place(|| {
        for server in [Server::RabbitMq, Server::Redis] {
            if services.thaw(server).is_err() {
                services.start_again(server, interrupt)?;
            }
        }
        Ok(())
    })
}

/// One line of the table.
struct Row<'a> {
    scenario: Scenario,
    tally: &'a Tally,
    recovered: Option<u64>,
    drained: Duration,
    exit: Duration,
    cpu: f64,
    rss: u64,
    took: Duration,
}

impl Row<'_> {
    const HEAD: &'static str = "| scenario | attempted | acknowledged | unknown | executed | lost | stuck | duplicated | unexpected | dead | recovered s | drained s | exit s | CPU in fault % | RSS MiB | took s |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|";

    fn print(&self) {
        let Self { scenario, tally, recovered, drained, exit, cpu, rss, took } = self;
        let Tally { attempted, acknowledged, unknown, executed, lost, stuck, .. } = tally;
        let Tally { duplicated, unexpected, dead, .. } = tally;
        let recovered = recovered.map_or("never".to_owned(), |ms| format!("{:.1}", seconds(ms)));
        say!(
            "| {} | {attempted} | {acknowledged} | {unknown} | {executed} | {lost} | {stuck} | {duplicated} | \
             {unexpected} | {dead} | {recovered} | {:.1} | {:.1} | {cpu:.0} | {rss} | {:.0} |",
            scenario.name(),
            drained.as_secs_f64(),
            exit.as_secs_f64(),
            took.as_secs_f64()
        );
    }
}

fn seconds(ms: u64) -> f64 {
    Duration::from_millis(ms).as_secs_f64()
}

/// Runs one; what was violated.
async fn run(
    scenario: Scenario,
    size: Size,
    dir: &Path,
    services: Services,
    endpoints: &Endpoints,
) -> Result<Vec<String>> {
    let began = Instant::now();
    let setup = scenario.setup(size);
    let mut house = House::open(services, endpoints, scenario.name(), size, dir, setup).await?;
    house.pass(size.calm()).await?;
    let before = house.crew.usage();
    let fault_began = Instant::now();
    house.mark("fault").await?;
    scenario.inject(&mut house).await.context("the fault could not be made")?;
    let fault_took = fault_began.elapsed();
    let cpu = busiest(&before, &house.crew.usage(), fault_took);
    let over = house.mark("over").await?;
    let mut violations = Vec::new();
    // Without load nothing is there to be run.
    let recovered = if setup.load { house.every_worker_runs_since(over, RECOVERY).await } else { Ok(0) };
    if let Err(error) = &recovered
        && !setup.poison.is_some_and(Kind::is_deadly)
    {
        house.interrupt.check()?;
        violations.push(format!("{error:#}"));
    }
    house.pass(size.calm()).await?;
    house.stop_sending().await?;

    let app = house.direct.app(Duration::from_secs(10)).await?;
    let mut finals = Finals::default();
    let leniency = scenario.leniency(&house);
    let drained = check::drain(&house, &app, &mut finals, leniency.records_lost, size.drain()).await?;
    if drained > size.drain() {
        // For whoever has to find out why: the servers end with us.
        house.note_broker()?;
    }
    let rss = check_usage(&before, &house.crew.usage(), MORE_MIB, &mut violations);
    let (exit, clean) = house.crew.close(EXIT).await?;
    if !clean || exit >= EXIT {
        violations.push(format!("workers did not stop cleanly within {EXIT:?} (clean: {clean}, {exit:?})"));
    }
    let (_, crashed) = house.crew.ended();
    if !leniency.crashes {
        violations.extend(crashed);
    }
    let ledger = house.read_ledger()?;
    if scenario == Scenario::RedisAway {
        violations.extend(special::judge_redis_away(&ledger, cpu));
    }
    if scenario.kills_workers_in_flows() {
        violations.extend(flows::judge_repeated(&ledger, &house.crew.gone()));
    }
    if scenario == Scenario::FleetKill {
        violations.extend(fleet::judge(&ledger, fleet::slot_count(size.periodic())));
    }
    if scenario == Scenario::LimitsKill {
        violations.extend(limits::judge(&ledger, &app, size).await?);
    }
    let book = Book::read(&ledger);
    let mut tally = check::judge(&book, &app, &house.direct, &mut finals, leniency).await?;
    violations.append(&mut tally.violations);
    if scenario == Scenario::FlowsFlush {
        say!("    {} steps ended as lost, or after one that did", tally.upstream);
    }
    let (recovered, took) = (recovered.ok(), began.elapsed());
    Row { scenario, tally: &tally, recovered, drained, exit, cpu, rss, took }.print();
    app.broker().close().await;
    Ok(violations)
}

/// CPU of the busiest worker that lived all the while, in percent of one core.
fn busiest(before: &Usages, after: &Usages, time: Duration) -> f64 {
    let used = after.iter().filter_map(|(pid, after)| {
        let (_, before) = before.iter().find(|(other, _)| other == pid)?;
        Some(after.cpu.saturating_sub(before.cpu).as_secs_f64() / time.as_secs_f64() * 100.0)
    });
    used.fold(0.0, f64::max)
}

type Usages = [(u32, crate::process::Usage)];

/// The largest worker's memory; what grew is a violation.
fn check_usage(before: &Usages, after: &Usages, more_mib: u64, violations: &mut Vec<String>) -> u64 {
    for (pid, now) in after {
        let Some((_, then)) = before.iter().find(|(other, _)| other == pid) else { continue };
        if now.fds > then.fds + MORE_FDS || now.rss_mib > then.rss_mib + more_mib {
            violations.push(format!("worker {pid} grew: {then:?}, then {now:?}"));
        }
    }
    after.iter().map(|(_, usage)| usage.rss_mib).max().unwrap_or(0)
}

impl Scenario {
    /// Whether the only fault is the end of workers that run workflows, so that each repetition has a dead worker.
    fn kills_workers_in_flows(self) -> bool {
        matches!(self, Self::FlowsKill | Self::FlowsArrows)
    }

    fn setup(self, size: Size) -> Setup {
        let usual = Setup::of(size);
        match self {
            Self::Undecodable => Setup { poison: Some(Kind::Garbage), ..usual },
            Self::DeepHeaders => Setup { poison: Some(Kind::Deep), ..usual },
            Self::Poison => Setup { poison: Some(Kind::Abort), ..usual },
            Self::Arrows => Setup { arrows: true, ..usual },
            Self::Oom => special::oom(usual),
            Self::MixedPoison => Setup { poison: Some(Kind::Abort), ..special::oom(usual) },
            Self::BusyKill => special::busy(usual),
            // Retries of a fraction of a second are not kept, and would be lost with the queues.
            Self::DelaysDeleted | Self::VhostDeleted => Setup { load: false, ..usual },
            Self::FlowsKill | Self::FlowsRabbit | Self::FlowsRedis => flows::setup(usual),
            Self::FlowsFlush => Setup { results_s: Some(flows::RESULTS_KEPT_S), ..flows::setup(usual) },
            Self::FleetKill => fleet::setup(usual, size),
            Self::PauseAll => fleet::crowd(usual, size),
            Self::LimitsKill => limits::setup(usual),
            Self::FlowsArrows => Setup { arrows: true, ..flows::setup(usual) },
            _ => usual,
        }
    }

    /// What this fault explains.
    fn leniency(self, house: &House) -> Leniency {
        let (dismissed, crashed) = house.crew.ended();
        // What runs twice is what ran when its worker died, or when its delivery went to another while its session was
        // lost: never more than all that workers can run at once.
        let duplicates = match self {
            Self::WorkerKill | Self::FlowsKill | Self::FleetKill | Self::LimitsKill => {
                dismissed * CONCURRENCY
            }
            Self::Poison | Self::Oom | Self::MixedPoison | Self::Arrows | Self::FlowsArrows => {
                crashed.len() * CONCURRENCY
            }
            Self::WorkerFreeze => CONCURRENCY,
            // Deliveries come again, and where the host was too busy to renew a session of 3 s, they run again.
            Self::RabbitKill | Self::RabbitStop | Self::RabbitFreeze | Self::RabbitListeners => EVERYTHING,
            Self::RabbitClose | Self::AmqpReset | Self::FlowsRabbit => EVERYTHING,
            // Each end of a node takes the connections to it.
            Self::ClusterKill => EVERYTHING * house.size.rounds() as usize,
            Self::AmqpStallOld | Self::AmqpBlackHole | Self::AckTimeout | Self::BothGone => EVERYTHING,
            // A delivery stays where it is: nobody else can have run it.
            _ => 0,
        };
        Leniency {
            records_lost: matches!(self, Self::RedisFlush | Self::RedisRollback | Self::FlowsFlush),
            paused: self == Self::WorkerFreeze,
            duplicates,
            crashes: matches!(
                self,
                Self::Poison | Self::Oom | Self::MixedPoison | Self::Arrows | Self::FlowsArrows
            ),
        }
    }

    /// Makes the fault and takes it back.
    async fn inject(self, house: &mut House) -> Result<()> {
        let fault = house.size.fault();
        let rounds = house.size.rounds();
        match self {
            Self::Calm | Self::Undecodable | Self::Poison | Self::Oom | Self::DeepHeaders => {
                house.pass(fault).await?;
            }
            Self::MixedPoison => {
                for kind in [Kind::Oom, Kind::Garbage, Kind::Deep] {
                    house.send_only(kind)?;
                }
                // However large the rest is: each deadly task takes five processes, and their leases, one after the other.
                house.pass(Duration::from_secs(15)).await?;
            }
            Self::QueueGone => special::queue_gone(house).await?,
            Self::ClusterKill => cluster::kill_nodes(house).await?,
            Self::DelaysDeleted => special::delays_deleted(house).await?,
            Self::VhostDeleted => special::vhost_deleted(house).await?,
            Self::RedisAway => special::redis_away(house).await?,
            Self::BusyKill => special::busy_kill(house).await?,
            Self::FlowsKill => {
                let app = flows::sender(house).await?;
                for _ in 0..rounds {
                    flows::send(house, &app, house.size.flows()).await?;
                    house.crew.dismiss_oldest(Signal::SIGKILL);
                    house.pass(Duration::from_millis(1500)).await?;
                }
            }
            Self::FlowsRabbit => {
                let app = flows::sender(house).await?;
                flows::send(house, &app, house.size.flows()).await?;
                tokio::task::block_in_place(|| house.services.kill(Server::RabbitMq))?;
                tokio::task::block_in_place(|| {
                    house.services.start_again(Server::RabbitMq, &house.interrupt)
                })?;
                flows::send(house, &app, house.size.flows()).await?;
            }
            Self::FlowsRedis => {
                let app = flows::sender(house).await?;
                flows::send(house, &app, house.size.flows()).await?;
                tokio::task::block_in_place(|| house.services.kill(Server::Redis))?;
                flows::send(house, &app, house.size.flows()).await?;
                house.pass(fault).await?;
                tokio::task::block_in_place(|| house.services.start_again(Server::Redis, &house.interrupt))?;
            }
            Self::FlowsFlush => {
                let app = flows::sender(house).await?;
                // Often, so that some find groups of which a part has ended.
                for _ in 0..rounds {
                    flows::send(house, &app, house.size.flows().div_ceil(2)).await?;
                    house.pass(Duration::from_millis(200)).await?;
                    redis(house, "FLUSHALL")?;
                }
                flows::send(house, &app, 1).await?;
            }
            Self::FlowsArrows => {
                let app = flows::sender(house).await?;
                for arrow in FLOW_ARROWS {
                    flows::send(house, &app, house.size.flows()).await?;
                    house.end_one_at(arrow).await?;
                    house.pass(house.size.lease()).await?;
                }
            }
            Self::FleetKill => fleet::kill_at_random(house).await?,
            Self::PauseAll => fleet::pause_all(house).await?,
            Self::LimitsKill => limits::kill_at_random(house).await?,
            Self::WorkerKill => {
                for _ in 0..rounds {
                    house.crew.dismiss_oldest(Signal::SIGKILL);
                    house.pass(Duration::from_millis(1500)).await?;
                }
            }
            Self::Arrows => {
                for arrow in ARROWS {
                    house.end_one_at(arrow).await?;
                    // Long enough for most that it held to be taken over: few tasks see two of these ends.
                    house.pass(house.size.lease()).await?;
                }
            }
            Self::WorkerTerm => {
                for _ in 0..rounds {
                    house.crew.dismiss_oldest(Signal::SIGTERM);
                    house.pass(Duration::from_secs(3)).await?;
                }
            }
            Self::WorkerFreeze => {
                house.crew.signal_oldest(Signal::SIGSTOP);
                // Until RabbitMQ, for want of heartbeats, has given what it held to others.
                house.pass(house.size.lease() * 3 + Duration::from_secs(25)).await?;
                house.crew.signal_oldest(Signal::SIGCONT);
            }
            Self::RabbitKill => {
                tokio::task::block_in_place(|| house.services.kill(Server::RabbitMq))?;
                tokio::task::block_in_place(|| {
                    house.services.start_again(Server::RabbitMq, &house.interrupt)
                })?;
            }
            Self::RabbitClose => {
                for _ in 0..rounds {
                    ctl(house, &["close_all_connections", "chaos"])?;
                }
            }
            Self::RabbitStop => {
                ctl(house, &["stop_app"])?;
                house.pass(fault).await?;
                ctl(house, &["start_app"])?;
            }
            Self::RabbitFreeze => {
                house.services.freeze(Server::RabbitMq)?;
                house.pass(house.size.freeze()).await?;
                house.services.thaw(Server::RabbitMq)?;
            }
            Self::RabbitListeners => {
                ctl(house, &["suspend_listeners"])?;
                ctl(house, &["close_all_connections", "chaos"])?;
                house.pass(fault).await?;
                ctl(house, &["resume_listeners"])?;
            }
            Self::RabbitMemory => {
                ctl(house, &["set_vm_memory_high_watermark", "0.00001"])?;
                house.pass(fault).await?;
                ctl(house, &["set_vm_memory_high_watermark", "0.4"])?;
            }
            Self::RedisKill => {
                tokio::task::block_in_place(|| house.services.kill(Server::Redis))?;
                house.pass(fault).await?;
                tokio::task::block_in_place(|| house.services.start_again(Server::Redis, &house.interrupt))?;
            }
            Self::RedisPause => {
                redis(house, &format!("CLIENT PAUSE {} ALL", fault.as_millis()))?;
                house.pass(fault).await?;
            }
            Self::RedisScripts => {
                for _ in 0..rounds {
                    redis(house, "SCRIPT FLUSH")?;
                    house.pass(fault / rounds).await?;
                }
            }
            Self::RedisFlush => {
                redis(house, "FLUSHALL")?;
                house.pass(fault).await?;
            }
            Self::RedisRollback => {
                house.services.keep_data(Server::Redis)?;
                house.pass(fault).await?;
                tokio::task::block_in_place(|| house.services.kill(Server::Redis))?;
                house.services.restore_data(Server::Redis)?;
                tokio::task::block_in_place(|| house.services.start_again(Server::Redis, &house.interrupt))?;
            }
            Self::RedisOom => {
                redis(house, "CONFIG SET maxmemory 1mb")?;
                house.pass(fault).await?;
                redis(house, "CONFIG SET maxmemory 0")?;
            }
            Self::RedisReadonly => {
                redis(house, "CONFIG SET replica-serve-stale-data yes")?;
                redis(house, "REPLICAOF 127.0.0.1 1")?;
                house.pass(fault).await?;
                redis(house, "REPLICAOF NO ONE")?;
            }
            Self::RedisReset => {
                let until = Instant::now() + fault;
                while Instant::now() < until {
                    house.redis.reset();
                    house.pass(Duration::from_millis(100)).await?;
                }
            }
            Self::RedisStallOld => {
                house.redis.stall_old();
                house.pass(fault * 2).await?;
                house.redis.cut();
                house.redis.pass();
            }
            Self::RedisBlackHole => {
                house.redis.stall();
                house.pass(fault).await?;
                house.redis.cut();
                house.redis.pass();
            }
            Self::AmqpReset => {
                let until = Instant::now() + fault;
                while Instant::now() < until {
                    house.amqp.reset();
                    house.pass(Duration::from_millis(500)).await?;
                }
            }
            Self::AmqpStallOld => {
                house.amqp.stall_old();
                house.pass(fault * 3).await?;
                house.amqp.cut();
                house.amqp.pass();
            }
            Self::AmqpBlackHole => {
                house.amqp.stall();
                house.pass(fault * 3).await?;
                house.amqp.cut();
                house.amqp.pass();
            }
            Self::BothGone => {
                house.amqp.refuse();
                house.redis.refuse();
                house.pass(fault * 2).await?;
                house.amqp.pass();
                house.redis.pass();
            }
            Self::Slow => {
                for slice in [usize::MAX, 1] {
                    let delay = if slice == 1 { Duration::ZERO } else { Duration::from_millis(20) };
                    house.amqp.slow(delay, slice);
                    house.redis.slow(delay, slice);
                    house.pass(fault / 2).await?;
                }
                house.amqp.pass();
                house.redis.pass();
            }
            Self::QueueDeleted => {
                let namespace = house.direct.namespace.clone();
                ctl(house, &["delete_queue", &format!("{namespace}:{OTHER_QUEUE}")])?;
                house.send_to(OTHER_QUEUE, None)?;
                house.pass(fault / 2).await?;
                let exchange = format!(
                    "rabbit_exchange:delete(rabbit_misc:r(<<\"/\">>, exchange, <<\"{namespace}\">>), false, <<\"chaos\">>)."
                );
                ctl(house, &["eval", &exchange])?;
                house.pass(fault / 2).await?;
            }
            Self::AckTimeout => {
                let set = |timeout: u64, tick: u64| {
                    format!(
                        "application:set_env(rabbit, consumer_timeout, {timeout}), \
                         application:set_env(rabbit, channel_tick_interval, {tick})."
                    )
                };
                ctl(house, &["eval", &set(1000, 300)])?;
                // It holds for new channels.
                ctl(house, &["close_all_connections", "chaos"])?;
                house.pass(fault * 2).await?;
                ctl(house, &["eval", &set(1_800_000, 60_000)])?;
                ctl(house, &["close_all_connections", "chaos"])?;
            }
        }
        Ok(())
    }
}

pub(crate) fn ctl(house: &House, args: &[&str]) -> Result<String> {
    tokio::task::block_in_place(|| house.services.rabbitmqctl(args))
}

fn redis(house: &House, command: &str) -> Result<String> {
    tokio::task::block_in_place(|| house.services.redis_command(command))
}
