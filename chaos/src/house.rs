//! The servers, the proxies before them, and the processes of one scenario.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use machinist::{Signature, TaskId};
use machinist_conformance::{
    Proxy,
    arrows::{ArrowStep, Side},
};
use nix::sys::signal::Signal;
use xtask::{
    interrupt::Interrupt,
    services::{Endpoints, Services},
};

use crate::{
    arrow,
    connect::Servers,
    deep,
    ledger::{self, Ledger},
    load::Kind,
    process::{Process, Usage},
    size::Size,
};

/// Who works, and on what, where a scenario does not say otherwise.
pub(crate) const WORKERS: usize = 3;
pub(crate) const CONCURRENCY: usize = 16;
pub(crate) const QUEUE: &str = "work";
/// A queue that nobody consumes, and that a scenario deletes.
pub(crate) const GONE_QUEUE: &str = "gone";
/// A queue that is empty until a scenario says otherwise.
pub(crate) const OTHER_QUEUE: &str = "other";

/// What a scenario begins with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setup {
    pub(crate) workers: usize,
    pub(crate) concurrency: usize,
    /// The workers' session lease.
    pub(crate) lease: Duration,
    /// How much address space a worker may have.
    pub(crate) memory_mib: Option<u64>,
    /// How long records are kept, if not as by default.
    pub(crate) results_s: Option<u64>,
    /// Whether tasks are sent all the time.
    pub(crate) load: bool,
    /// What is sent besides.
    pub(crate) poison: Option<Kind>,
    /// Whether workers end themselves where they are told to.
    pub(crate) arrows: bool,
    /// Number of periodic tasks and of shards that the workers take part in.
    pub(crate) periodic: usize,
    /// Whether workers have tasks with limits.
    pub(crate) limits: bool,
}

impl Setup {
    pub(crate) fn of(size: Size) -> Self {
        Self {
            workers: WORKERS,
            concurrency: CONCURRENCY,
            lease: size.lease(),
            memory_mib: None,
            results_s: None,
            load: true,
            poison: None,
            arrows: false,
            periodic: 0,
            limits: false,
        }
    }
}

/// Everything that one scenario may break.
pub(crate) struct House {
    pub(crate) services: Services,
    pub(crate) interrupt: Interrupt,
    pub(crate) amqp: Proxy,
    pub(crate) redis: Proxy,
    pub(crate) size: Size,
    pub(crate) crew: Crew,
    /// Where the servers are, without the proxies.
    pub(crate) direct: Servers,
    through: Servers,
    dir: PathBuf,
    notes: Ledger,
    _ledger: Process,
    senders: Vec<Process>,
}

impl House {
    /// Starts a ledger, workers and senders, and returns when the first tasks have run.
    pub(crate) async fn open(
        services: Services,
        endpoints: &Endpoints,
        name: &str,
        size: Size,
        dir: &Path,
        setup: Setup,
    ) -> Result<Self> {
        let dir = dir.join(name);
        if dir.exists() {
            std::fs::remove_dir_all(&dir).with_context(|| format!("cannot empty {}", dir.display()))?;
        }
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let path = dir.display().to_string();
        let serving = Process::start(&["ledger".into(), "--dir".into(), path], &dir.join("ledger.log"))?;
        let notes = Ledger::of(&dir).await?;
        // A proxy stands before one node; of a cluster everybody gets all URLs.
        let urls: Vec<&str> = endpoints.amqp_url.split(',').collect();
        let (amqp, proxied) = Proxy::before(urls[0]).await?;
        let amqp_url = if urls.len() == 1 { proxied } else { endpoints.amqp_url.clone() };
        let (redis, redis_url) = Proxy::before(&endpoints.redis_url).await?;
        let namespace = format!("{name}-{:x}", rand::random::<u32>());
        let results_s = setup.results_s;
        let through = Servers { amqp: amqp_url, redis: redis_url, namespace: namespace.clone(), results_s };
        let direct = Servers {
            amqp: endpoints.amqp_url.clone(),
            redis: endpoints.redis_url.clone(),
            namespace,
            results_s,
        };
        let crew = Crew::hire(worker_args(&through, &dir, setup), setup.workers, dir.clone())?;
        let mut house = Self {
            services,
            interrupt: Interrupt::listen()?,
            amqp,
            redis,
            size,
            crew,
            direct,
            through,
            dir,
            notes,
            _ledger: serving,
            senders: Vec::new(),
        };
        if !setup.load {
            return Ok(house);
        }
        house.send_to(QUEUE, None)?;
        house.send_to(QUEUE, setup.poison)?;
        house.every_worker_runs_since(0, Duration::from_secs(60)).await.context("at the start")?;
        Ok(house)
    }

    /// Starts another sender.
    pub(crate) fn send_to(&mut self, queue: &str, poison: Option<Kind>) -> Result<()> {
        self.send_at(self.size.rate(), queue, poison)
    }

    /// Starts another sender, of nothing but poison.
    pub(crate) fn send_only(&mut self, poison: Kind) -> Result<()> {
        self.send_at(0, QUEUE, Some(poison))
    }

    fn send_at(&mut self, rate: usize, queue: &str, poison: Option<Kind>) -> Result<()> {
        let mut args = vec!["sender".to_owned()];
        args.extend(common_args(&self.through, &self.dir));
        args.extend(["--queue", queue, "--rate", &rate.to_string()].map(str::to_owned));
        if let Some(kind) = poison {
            args.extend(["--poison", kind.as_str()].map(str::to_owned));
        }
        let log = self.dir.join(format!("sender-{}.log", self.senders.len()));
        let stack = (poison == Some(Kind::Deep)).then_some(deep::WRITERS_STACK);
        self.senders.push(Process::start_with(&args, &log, stack)?);
        Ok(())
    }

    /// Sends tasks of one kind past the proxies, each acknowledged; their ids.
    pub(crate) async fn send_now(&self, kind: Kind, queue: &str, count: usize) -> Result<Vec<TaskId>> {
        let app = self.direct.app(Duration::from_secs(10)).await?;
        let signatures: Vec<Signature> = (0..count).map(|_| kind.signature(queue)).collect();
        let ids: Vec<TaskId> = signatures.iter().map(|signature| signature.id().clone()).collect();
        let lines = |word: &dyn Fn(&TaskId) -> String| ids.iter().map(word).collect::<Vec<_>>();
        self.notes.say(&lines(&|id| format!("try {id} {}", kind.as_str()))).await?;
        for answer in app.client().send_all(signatures).await {
            answer?;
        }
        self.notes.say(&lines(&|id| format!("ok {id}"))).await?;
        app.broker().close().await;
        Ok(ids)
    }

    /// Tells the ledger.
    pub(crate) async fn say(&self, lines: &[String]) -> Result<()> {
        self.notes.say(lines).await
    }

    /// Goes on for a while.
    pub(crate) async fn pass(&self, time: Duration) -> Result<()> {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.interrupt.check()?;
            tokio::time::sleep(Duration::from_millis(100).min(time)).await;
        }
        Ok(())
    }

    /// Writes a word into the ledger, and tells when, in its time.
    pub(crate) async fn mark(&self, word: &str) -> Result<u64> {
        self.notes.say(&[format!("mark {word}")]).await?;
        let book = self.read_ledger()?;
        let line = book.lines().rev().find(|line| line.ends_with(&format!(" mark {word}")));
        let at = line.and_then(|line| line.split(' ').next()).and_then(|at| at.parse().ok());
        at.context("the ledger does not hold what it was told")
    }

    /// Writes what RabbitMQ says of itself beside the logs, into `rabbitmq.txt`.
    pub(crate) fn note_broker(&self) -> Result<()> {
        // The workers that dead-letter at least once: what they hold, and whom they wait for.
        let dead_letter_workers = "[{P, erlang:process_info(P, [message_queue_len, current_function]), \
                                   catch sys:get_state(P, 2000)} || {_, P, _, _} <- \
                                   supervisor:which_children(rabbit_fifo_dlx_sup), is_pid(P)].";
        let questions: [&[&str]; 5] = [
            &["eval", dead_letter_workers],
            &["list_queues", "name", "messages_ready", "messages_unacknowledged", "consumers", "state"],
            &["list_consumers", "queue_name", "channel_pid", "ack_required", "prefetch_count", "active"],
            &["list_channels", "pid", "connection", "messages_unacknowledged", "consumer_count"],
            &["list_connections", "name", "state", "channels"],
        ];
        let answers: Result<Vec<String>> = tokio::task::block_in_place(|| {
            questions.iter().map(|question| self.services.rabbitmqctl(question)).collect()
        });
        let path = self.dir.join("rabbitmq.txt");
        std::fs::write(&path, answers?.join("\n")).with_context(|| format!("cannot write {}", path.display()))
    }

    pub(crate) fn read_ledger(&self) -> Result<String> {
        Ok(std::fs::read_to_string(ledger::file(&self.dir))?)
    }

    /// How long after an instant of the ledger each worker that lives now had begun a task, as the slowest of them.
    pub(crate) async fn every_worker_runs_since(&self, since: u64, limit: Duration) -> Result<u64> {
        let until = Instant::now() + limit;
        loop {
            self.interrupt.check()?;
            let book = self.read_ledger()?;
            let first = |pid: u32| {
                let pid = pid.to_string();
                book.lines().find_map(|line| {
                    let mut words = line.split(' ');
                    let at: u64 = words.next()?.parse().ok()?;
                    (at >= since && words.next() == Some("start") && words.next_back() == Some(&*pid))
                        .then(|| at - since)
                })
            };
            let pids = self.crew.pids();
            let firsts: Vec<Option<u64>> = pids.iter().map(|pid| first(*pid)).collect();
            if let Some(firsts) = firsts.iter().copied().collect::<Option<Vec<u64>>>() {
                return Ok(firsts.into_iter().max().unwrap_or(0));
            }
            let silent: Vec<_> = pids.iter().zip(&firsts).filter(|(_, at)| at.is_none()).collect();
            ensure!(Instant::now() < until, "workers consume nothing within {limit:?}: {silent:?}");
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }

    /// Ends a worker at this arrow, whichever comes there first.
    pub(crate) async fn end_one_at(&self, arrow: (ArrowStep, Side)) -> Result<()> {
        arrow::order(&self.dir, arrow)?;
        let until = Instant::now() + Duration::from_secs(60);
        while arrow::file(&self.dir).exists() {
            ensure!(Instant::now() < until, "no worker came to the arrow: {}", arrow::words(arrow));
            self.pass(Duration::from_millis(50)).await?;
        }
        Ok(())
    }

    /// Tells the senders to stop and waits until each has all its answers.
    pub(crate) async fn stop_sending(&mut self) -> Result<()> {
        for sender in &self.senders {
            sender.signal(Signal::SIGTERM);
        }
        for sender in &mut self.senders {
            let status = sender.end(Duration::from_secs(60)).await?;
            ensure!(status.is_some_and(|status| status.success()), "a sender ended with {status:?}");
        }
        Ok(())
    }
}

fn common_args(servers: &Servers, dir: &Path) -> Vec<String> {
    let Servers { amqp, redis, namespace, results_s } = servers;
    let dir = dir.display().to_string();
    [("--amqp", amqp), ("--redis", redis), ("--namespace", namespace), ("--dir", &dir)]
        .into_iter()
        .flat_map(|(name, value)| [name.to_owned(), value.clone()])
        .chain(results_s.iter().flat_map(|seconds| ["--results-s".to_owned(), seconds.to_string()]))
        .collect()
}

fn worker_args(servers: &Servers, dir: &Path, setup: Setup) -> Vec<String> {
    let mut args = vec!["worker".to_owned()];
    args.extend(common_args(servers, dir));
    let lease = setup.lease.as_millis().to_string();
    let concurrency = setup.concurrency.to_string();
    let more =
        ["--queue", QUEUE, "--queue", OTHER_QUEUE, "--lease-ms", &lease, "--concurrency", &concurrency];
    args.extend(more.map(str::to_owned));
    args.extend(
        setup.memory_mib.into_iter().flat_map(|limit| ["--memory-mib".to_owned(), limit.to_string()]),
    );
    if setup.periodic > 0 {
        args.extend(["--periodic".to_owned(), setup.periodic.to_string()]);
    }
    if setup.limits {
        args.push("--limits".to_owned());
    }
    if setup.arrows {
        args.push("--arrows".to_owned());
    }
    args
}

/// The workers. One that has ended is replaced, as a service manager would.
#[derive(Clone)]
pub(crate) struct Crew(Arc<Mutex<Roster>>);

struct Roster {
    workers: Vec<Process>,
    args: Vec<String>,
    dir: PathBuf,
    hired: usize,
    /// Ended by us.
    dismissed: Vec<u32>,
    /// Ended by themselves.
    crashed: Vec<String>,
    /// All that have ended.
    gone: Vec<u32>,
    closed: bool,
}

impl Crew {
    fn hire(args: Vec<String>, count: usize, dir: PathBuf) -> Result<Self> {
        let roster = Roster {
            workers: Vec::new(),
            args,
            dir,
            hired: 0,
            dismissed: Vec::new(),
            crashed: Vec::new(),
            gone: Vec::new(),
            closed: false,
        };
        let crew = Self(Arc::new(Mutex::new(roster)));
        for _ in 0..count {
            crew.roster().hire()?;
        }
        let weak = Arc::downgrade(&crew.0);
        tokio::spawn(async move {
            while let Some(roster) = weak.upgrade() {
                let kept = roster.lock().unwrap_or_else(PoisonError::into_inner).keep();
                if let Err(error) = kept {
                    tracing::error!(%error, "workers cannot be looked after");
                }
                drop(roster);
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        });
        Ok(crew)
    }

    fn roster(&self) -> MutexGuard<'_, Roster> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more; where its log is.
    pub(crate) fn hire_another(&self) -> Result<PathBuf> {
        let mut roster = self.roster();
        roster.hire()?;
        Ok(roster.dir.join(format!("worker-{}.log", roster.hired)))
    }

    /// Workers that have ended, and were replaced.
    pub(crate) fn gone(&self) -> Vec<u32> {
        self.roster().gone.clone()
    }

    pub(crate) fn pids(&self) -> Vec<u32> {
        self.roster().workers.iter().map(Process::pid).collect()
    }

    /// Sends a signal that ends it to the worker that has lived longest.
    pub(crate) fn dismiss_oldest(&self, signal: Signal) {
        let mut roster = self.roster();
        let oldest = roster.workers.iter().find(|worker| !roster.dismissed.contains(&worker.pid()));
        if let Some(oldest) = oldest {
            oldest.signal(signal);
            let pid = oldest.pid();
            roster.dismissed.push(pid);
        }
    }

    /// Kills one of the workers, chosen at random. Returns its process id.
    pub(crate) fn kill_any(&self) -> Option<u32> {
        let mut roster = self.roster();
        let living: Vec<_> =
            roster.workers.iter().filter(|worker| !roster.dismissed.contains(&worker.pid())).collect();
        let worker = living.get(rand::random_range(0..living.len().max(1)))?;
        worker.signal(Signal::SIGKILL);
        let pid = worker.pid();
        roster.dismissed.push(pid);
        Some(pid)
    }

    /// Sends a signal that does not end it to the worker that has lived longest.
    pub(crate) fn signal_oldest(&self, signal: Signal) {
        if let Some(oldest) = self.roster().workers.first() {
            oldest.signal(signal);
        }
    }

    /// How many were ended by us, and how those ended that were not.
    pub(crate) fn ended(&self) -> (usize, Vec<String>) {
        let roster = self.roster();
        (roster.dismissed.len(), roster.crashed.clone())
    }

    pub(crate) fn usage(&self) -> Vec<(u32, Usage)> {
        self.roster().workers.iter().map(|worker| (worker.pid(), worker.usage())).collect()
    }

    /// Ends all with SIGTERM; how long the slowest took, and whether all were clean.
    pub(crate) async fn close(&self, limit: Duration) -> Result<(Duration, bool)> {
        let mut workers = {
            let mut roster = self.roster();
            roster.closed = true;
            std::mem::take(&mut roster.workers)
        };
        let asked = Instant::now();
        for worker in &workers {
            worker.signal(Signal::SIGTERM);
        }
        let mut clean = true;
        for worker in &mut workers {
            let status = worker.end(limit.saturating_sub(asked.elapsed())).await?;
            clean &= status.is_some_and(|status| status.success());
        }
        Ok((asked.elapsed(), clean))
    }
}

impl Roster {
    fn hire(&mut self) -> Result<()> {
        self.hired += 1;
        let log = self.dir.join(format!("worker-{}.log", self.hired));
        self.workers.push(Process::start(&self.args, &log)?);
        Ok(())
    }

    /// Replaces those that have ended.
    fn keep(&mut self) -> Result<()> {
        if self.closed {
            return Ok(());
        }
        let mut gone = Vec::new();
        for (at, worker) in self.workers.iter_mut().enumerate() {
            if let Some(status) = worker.ended()? {
                gone.push(at);
                self.gone.push(worker.pid());
                if !self.dismissed.contains(&worker.pid()) {
                    self.crashed.push(format!("worker {} ended by itself: {status}", worker.pid()));
                }
            }
        }
        for at in gone.into_iter().rev() {
            self.workers.remove(at);
            self.hire()?;
        }
        Ok(())
    }
}
