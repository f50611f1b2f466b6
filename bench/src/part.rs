//! The life of a measured process: connect, say so, wait for the word, work, tell.

use std::{
    io::Write as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    sync::Notify,
};

use crate::{
    Place, allocations, floor, meter,
    order::{Order, Sample, System, Told},
    product,
};

/// Says that the process is connected; it then waits for a line of any text.
pub(crate) const READY: &str = "ready";

/// Does what the order says and prints what came of it.
pub(crate) async fn play(place: &Place, order: &str) -> Result<()> {
    let order: Order = serde_json::from_str(order).context("the order cannot be read")?;
    let _counting = allocations::begin(place, &order);
    let told = match order.system {
        System::Floor => floor::play(&order).await?,
        _ => product::play(&order).await?,
    };
    say(&serde_json::to_string(&told)?)
}

/// Tells that all is connected and waits for the word to begin.
pub(crate) async fn begin() -> Result<Stopwatch> {
    say(READY)?;
    let mut word = String::new();
    ensure!(BufReader::new(tokio::io::stdin()).read_line(&mut word).await? > 0, "nobody gave the word");
    Ok(Stopwatch { began: Instant::now(), cpu_us: meter::own_cpu_us()?, allocated: allocations::so_far() })
}

fn say(line: &str) -> Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

/// Time and processor time since the word.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stopwatch {
    began: Instant,
    cpu_us: f64,
    allocated: [u64; 2],
}

impl Stopwatch {
    pub(crate) fn told(self, took: Duration, latencies_us: Vec<f64>, samples: Vec<Sample>) -> Result<Told> {
        let now = allocations::so_far();
        Ok(Told {
            seconds: took.as_secs_f64(),
            cpu_us: meter::own_cpu_us()? - self.cpu_us,
            peak_rss_kib: meter::own_kib("VmHWM")?,
            latencies_us,
            samples,
            allocated: std::array::from_fn(|at| now[at] - self.allocated[at]),
        })
    }

    pub(crate) fn elapsed(self) -> Duration {
        self.began.elapsed()
    }

    /// What this process is like now.
    fn sample(self, handled: usize, watched: Option<[u32; 2]>) -> Result<Sample> {
        let servers = match watched {
            Some([rabbitmq, redis]) => [meter::cpu_us(rabbitmq)?, meter::cpu_us(redis)?],
            None => [0.0; 2],
        };
        Ok(Sample {
            seconds: self.elapsed().as_secs_f64(),
            handled,
            rss_kib: meter::own_kib("VmRSS")?,
            cpu_us: meter::own_cpu_us()? - self.cpu_us,
            servers_cpu_us: servers,
        })
    }
}

/// What handlers count with: knows the first call and the last.
#[derive(Debug, Clone)]
pub(crate) struct Count(Arc<Counted>);

#[derive(Debug)]
struct Counted {
    wanted: usize,
    handled: AtomicUsize,
    first: Mutex<Option<Instant>>,
    took: Mutex<Duration>,
    all: Notify,
}

impl Count {
    pub(crate) fn to(wanted: usize) -> Self {
        Self(Arc::new(Counted {
            wanted,
            handled: AtomicUsize::new(0),
            first: Mutex::default(),
            took: Mutex::default(),
            all: Notify::new(),
        }))
    }

    /// A handler is done.
    pub(crate) fn one(&self) {
        let before = self.0.handled.fetch_add(1, Ordering::Relaxed);
        if before == 0 {
            *self.0.first.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        }
        if before + 1 == self.0.wanted {
            *self.0.took.lock().unwrap_or_else(PoisonError::into_inner) = self.since_first();
            self.0.all.notify_one();
        }
    }

    fn since_first(&self) -> Duration {
        self.0.first.lock().unwrap_or_else(PoisonError::into_inner).map_or(Duration::ZERO, |t| t.elapsed())
    }

    pub(crate) fn handled(&self) -> usize {
        self.0.handled.load(Ordering::Relaxed)
    }

    /// Completes when all are done.
    pub(crate) async fn all(&self) {
        self.0.all.notified().await;
    }

    pub(crate) fn took(&self) -> Duration {
        *self.0.took.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Samples this process twice a second until `work` is done.
pub(crate) async fn sampled<T>(
    watch: Stopwatch,
    order: &Order,
    count: &Count,
    work: impl Future<Output = T>,
) -> Result<(T, Vec<Sample>)> {
    let mut samples = Vec::new();
    let mut tick = tokio::time::interval(Duration::from_millis(500));
    tokio::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return Ok((done, samples)),
            _ = tick.tick() => samples.push(watch.sample(count.handled(), order.watched)?),
        }
    }
}

/// The argument of every task.
pub(crate) fn payload(order: &Order) -> String {
    "x".repeat(order.payload)
}
