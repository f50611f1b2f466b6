//! Runs cases: starts the measured processes, gives them the word, and reads the meters around it.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use lapin::{
    Connection, ConnectionProperties, ErrorKind, ExchangeKind,
    options::{
        ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions, QueuePurgeOptions,
    },
    protocol::{AMQPErrorKind, AMQPSoftError},
    types::{AMQPValue, FieldTable},
};
use serde::Serialize;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::{sleep, timeout},
};

use crate::{
    Place,
    case::{CASES, Case, Shape, Store},
    meter,
    order::{Duty, Order, Servers, System, Told},
    part, product, report,
    statistics::quantile,
};

/// No process of a case takes longer than this.
const LIMIT: Duration = Duration::from_secs(600);
/// Between two runs, so that neither pays for what the other left to do.
const REST: Duration = Duration::from_millis(500);
/// How much a batch weighs at most.
const BATCH_BYTES: usize = 8 * 1024 * 1024;

/// What one run of a case came to.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Run {
    pub(crate) case: &'static str,
    pub(crate) system: &'static str,
    pub(crate) tasks: usize,
    pub(crate) seconds: f64,
    pub(crate) worker: Option<Share>,
    pub(crate) sender: Option<Share>,
    pub(crate) rabbitmq_cpu_us: Option<f64>,
    pub(crate) redis_cpu_us: Option<f64>,
    /// p50, p90, p99 of lone tasks, or of the starts of callbacks.
    pub(crate) latency_us: Option<[f64; 3]>,
}

/// What one process took.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Share {
    pub(crate) cpu_us: f64,
    pub(crate) peak_rss_kib: u64,
}

impl From<&Told> for Share {
    fn from(told: &Told) -> Self {
        Self { cpu_us: told.cpu_us, peak_rss_kib: told.peak_rss_kib }
    }
}

/// The order of a round. Two take turns; more go there and back, because who always comes after the same one pays or gains
/// by what that one left behind: some background work of the servers, or a rest.
fn in_turn(systems: &[System], round: u32) -> Vec<System> {
    let mut systems = systems.to_vec();
    if systems.len() > 2 && round.is_multiple_of(2) {
        systems.reverse();
    }
    systems
}

/// Runs what was asked for and prints the report.
pub(crate) async fn run(place: &Place, names: &[String], rounds: u32, quick: bool) -> Result<()> {
    let wanted = |case: &&Case| names.is_empty() || names.iter().any(|name| name == case.name);
    let bench = Bench::prepare(place).await?;
    let mut runs = Vec::new();
    for case in CASES.iter().filter(wanted) {
        let tasks = if quick { (case.tasks / 10).max(1) } else { case.tasks };
        let case = Case { tasks, ..*case };
        for round in 1..=rounds {
            for system in in_turn(case.systems, round) {
                let run =
                    bench.measure(&case, system).await.with_context(|| format!("case {}", case.name))?;
                report::note(&report::progress(&run, round, rounds));
                runs.push(run);
            }
        }
    }
    report::publish(place, rounds, quick, &runs)
}

/// The servers, and the number that keeps queues of different runs apart.
pub(crate) struct Bench<'a> {
    place: &'a Place,
    amqp: Connection,
    redis: redis::aio::MultiplexedConnection,
    /// The program whose processes are measured.
    program: PathBuf,
}

impl<'a> Bench<'a> {
    pub(crate) async fn prepare(place: &'a Place) -> Result<Self> {
        ensure!(!place.amqp.is_empty(), "no servers: this program is run by `cargo xtask bench`");
        let amqp = Connection::connect(&place.amqp, ConnectionProperties::default()).await?;
        let settings =
            redis::AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(60)));
        let mut redis = redis::Client::open(place.redis.as_str())?
            .get_multiplexed_async_connection_with_config(&settings)
            .await?;
        // A rewrite of the log takes a core for seconds, in whichever run it falls.
        redis::cmd("CONFIG").arg(&["SET", "auto-aof-rewrite-percentage", "0"]).exec_async(&mut redis).await?;
        Ok(Self { place, amqp, redis, program: std::env::current_exe()? })
    }

    /// Measures the processes of another program from now on.
    pub(crate) fn switch_to(&mut self, program: &Path) {
        self.program = program.to_owned();
    }

    fn order(&self, case: &Case, system: System, duty: Duty, servers: &Servers) -> Order {
        let queue = queue(case, system);
        let (tasks, payload) = (case.tasks, case.payload);
        Order { system, duty, servers: servers.clone(), queue, tasks, payload, watched: None }
    }

    /// Runs one case once.
    pub(crate) async fn measure(&self, case: &Case, system: System) -> Result<Run> {
        let folder = tempfile::tempdir_in(&self.place.dir)?;
        let file = |full| Servers::File { path: folder.path().join("bench.db").display().to_string(), full };
        let network = Servers::Network { amqp: self.place.amqp.clone(), redis: self.place.redis.clone() };
        let send_all =
            Duty::SendAll { batch: (BATCH_BYTES / case.payload.max(1)).clamp(1, 1000).min(case.tasks) };
        let work = |concurrency, sleep_ms, wakes| Duty::Work { concurrency, sleep_ms, wakes };
        let (worker, sender, servers) = match case.shape {
            Shape::Drain { concurrency, sleep_ms } => {
                (Some(work(concurrency, sleep_ms, false)), None, network)
            }
            Shape::SendAll => (None, Some(send_all), network),
            Shape::SendEach { callers } => (None, Some(Duty::SendEach { callers }), network),
            Shape::Lone => (Some(work(16, 0, true)), Some(Duty::Lone), network),
            Shape::Chains { length } => (Some(work(16, 0, true)), Some(Duty::Chains { length }), network),
            Shape::Groups { members } => (Some(work(256, 0, false)), Some(Duty::Groups { members }), network),
            Shape::ChordsLone { members } => {
                (Some(work(16, 0, true)), Some(Duty::ChordsLone { members }), network)
            }
            Shape::Both { store } => {
                let servers = if let Store::File { full } = store { file(full) } else { network };
                (Some(work(256, 0, false)), Some(send_all), servers)
            }
            Shape::Idle { store, seconds } => {
                let servers = if let Store::File { full } = store { file(full) } else { network };
                (Some(Duty::Idle { seconds }), None, servers)
            }
        };
        let declared = match system {
            System::Machinery => Some("classic"),
            System::MachineryQuorum => Some("quorum"),
            _ => None,
        };
        if let Some(kind) = declared {
            self.declare_as_go(&queue(case, system), kind).await?;
        }
        if let Shape::Drain { .. } = case.shape {
            Part::start_program(&self.program, &self.order(case, system, send_all, &servers))
                .await?
                .done()
                .await?;
            sleep(REST).await;
        }
        let order = |duty| self.order(case, system, duty, &servers);
        let run = self.together(case, system, worker.map(order), sender.map(order)).await?;
        self.tidy(&queue(case, system)).await?;
        Ok(run)
    }

    async fn together(
        &self,
        case: &Case,
        system: System,
        worker: Option<Order>,
        sender: Option<Order>,
    ) -> Result<Run> {
        let mut worker = self.start_some(worker.as_ref()).await?;
        let mut sender = self.start_some(sender.as_ref()).await?;
        let rabbitmq = meter::cpu_us(self.place.rabbitmq_pid)?;
        let redis = meter::cpu_us(self.place.redis_pid)?;
        for part in worker.iter_mut().chain(&mut sender) {
            part.go().await?;
        }
        // One after the other: what each tells was measured by itself.
        let sender = Part::told_some(sender).await?;
        let worker = Part::told_some(worker).await?;
        let rabbitmq = meter::cpu_us(self.place.rabbitmq_pid)? - rabbitmq;
        let redis = meter::cpu_us(self.place.redis_pid)? - redis;
        let on_network = !matches!(
            case.shape,
            Shape::Both { store: Store::File { .. } } | Shape::Idle { store: Store::File { .. }, .. }
        );
        let latencies = |told: &Option<Told>| told.as_ref().map(|told| told.latencies_us.clone());
        let latencies = latencies(&sender).filter(|all| !all.is_empty()).or_else(|| latencies(&worker));
        Ok(Run {
            case: case.name,
            system: system.name(),
            tasks: case.tasks,
            seconds: worker.as_ref().or(sender.as_ref()).map_or(0.0, |told| told.seconds),
            worker: worker.as_ref().map(Share::from),
            sender: sender.as_ref().map(Share::from),
            rabbitmq_cpu_us: on_network.then_some(rabbitmq),
            redis_cpu_us: on_network.then_some(redis),
            latency_us: percentiles(latencies.unwrap_or_default()),
        })
    }

    /// Declares exchange and queue as a program of Go does whose configuration asks for this kind of queue.
    async fn declare_as_go(&self, queue: &str, kind: &str) -> Result<()> {
        let channel = self.amqp.create_channel().await?;
        let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let none = FieldTable::default;
        let exchange = product::MACHINERY_EXCHANGE;
        channel.exchange_declare(exchange.into(), ExchangeKind::Direct, durable, none()).await?;
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let mut arguments = none();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString(kind.into()));
        channel.queue_declare(queue.into(), durable, arguments).await?;
        channel
            .queue_bind(queue.into(), exchange.into(), queue.into(), QueueBindOptions::default(), none())
            .await?;
        Ok(channel.close(200, "declared".into()).await?)
    }

    async fn start_some(&self, order: Option<&Order>) -> Result<Option<Part>> {
        match order {
            Some(order) => Part::start_program(&self.program, order).await.map(Some),
            None => Ok(None),
        }
    }

    /// How many messages wait in a queue.
    pub(crate) async fn depth(&self, queue: &str) -> Result<u32> {
        let channel = self.amqp.create_channel().await?;
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let found = channel.queue_declare(queue.into(), passive, FieldTable::default()).await?;
        channel.close(200, "looked".into()).await?;
        Ok(found.message_count())
    }

    /// Drops delayed messages, such as those of callbacks that wait: they would come back in a later run, which would look
    /// for their lost records.
    async fn forget_delayed(&self) -> Result<()> {
        let channel = self.amqp.create_channel().await?;
        for (level, digit) in (0..).flat_map(|level: u8| (1..=3_u8).map(move |digit| (level, digit))) {
            let queue = format!("machinist.delay.{level}.{digit}");
            match channel.queue_purge(queue.as_str().into(), QueuePurgeOptions::default()).await {
                Ok(_) => {}
                // This level and those above it were never needed.
                Err(error) if is_missing(&error) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Leaves servers as empty as they were.
    pub(crate) async fn tidy(&self, queue: &str) -> Result<()> {
        let channel = self.amqp.create_channel().await?;
        for queue in [queue.to_owned(), format!("{queue}.dead"), format!("{queue}.guards")] {
            // Deleting what is not there is no error.
            channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await?;
        }
        channel.close(200, "done".into()).await?;
        self.forget_delayed().await?;
        let mut redis = self.redis.clone();
        redis::cmd("FLUSHALL").exec_async(&mut redis).await?;
        redis::cmd("BGREWRITEAOF").exec_async(&mut redis).await?;
        loop {
            sleep(REST).await;
            let info: String = redis::cmd("INFO").arg("persistence").query_async(&mut redis).await?;
            if info.contains("aof_rewrite_in_progress:0") && info.contains("aof_rewrite_scheduled:0") {
                return Ok(());
            }
        }
    }
}

fn is_missing(error: &lapin::Error) -> bool {
    let missing = AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND);
    matches!(error.kind(), ErrorKind::ProtocolError(error) if *error.kind() == missing)
}

/// The queue of a run.
pub(crate) fn queue(case: &Case, system: System) -> String {
    format!("bench-{}-{}", system.name(), case.name)
}

fn percentiles(mut latencies: Vec<f64>) -> Option<[f64; 3]> {
    latencies.sort_unstable_by(f64::total_cmp);
    let at = |share| quantile(&latencies, share);
    Some([at(0.5)?, at(0.9)?, at(0.99)?])
}

/// A measured process, from outside.
pub(crate) struct Part {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Part {
    /// Starts it and waits until it is connected.
    pub(crate) async fn start(order: &Order) -> Result<Self> {
        Self::start_program(&std::env::current_exe()?, order).await
    }

    /// Starts a process of this program and waits until it is connected.
    pub(crate) async fn start_program(program: &Path, order: &Order) -> Result<Self> {
        let mut child = Command::new(program)
            .arg("part")
            .arg(serde_json::to_string(order)?)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let stdout = child.stdout.take().context("its output is not piped")?;
        let mut part = Self { child, lines: BufReader::new(stdout).lines() };
        ensure!(part.line().await? == part::READY, "a measured process did not get ready");
        Ok(part)
    }

    async fn line(&mut self) -> Result<String> {
        let line = timeout(LIMIT, self.lines.next_line()).await.context("a measured process hangs")??;
        line.context("a measured process ended early")
    }

    /// Gives the word, and waits for what it says at its end.
    pub(crate) async fn done(mut self) -> Result<Told> {
        self.go().await?;
        self.told().await
    }

    /// Gives the word to begin.
    pub(crate) async fn go(&mut self) -> Result<()> {
        let input = self.child.stdin.as_mut().context("its input is not piped")?;
        input.write_all(b"go\n").await?;
        Ok(input.flush().await?)
    }

    /// What it says at its end.
    pub(crate) async fn told(mut self) -> Result<Told> {
        let told = serde_json::from_str(&self.line().await?)?;
        let status = timeout(LIMIT, self.child.wait()).await.context("a measured process does not end")??;
        ensure!(status.success(), "a measured process failed: {status}");
        Ok(told)
    }

    async fn told_some(part: Option<Self>) -> Result<Option<Told>> {
        match part {
            Some(part) => part.told().await.map(Some),
            None => Ok(None),
        }
    }
}
