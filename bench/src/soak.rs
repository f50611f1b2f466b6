//! A million tasks through one worker: whether its memory grows, and whether a deep queue costs more.
//!
//! First the queue is filled, then drained; then a sender adds a tenth more while the same worker goes on, so that the
//! queue stays shallow.

use std::{io::Write as _, time::Duration};

use anyhow::{Context, Result};
use tokio::time::interval;

use crate::{
    Place,
    order::{Duty, Order, Sample, Servers, System},
    report,
    runner::{Bench, Part},
};

const QUEUE: &str = "bench-soak";

/// In batches of so many what is added while the worker works.
const SHALLOW: usize = 100;
/// How often somebody looks how deep the queue is.
const LOOK: Duration = Duration::from_millis(50);

/// Fills a queue, drains it, keeps it shallow, prints what the worker was like meanwhile.
pub(crate) async fn run(place: &Place, tasks: usize) -> Result<()> {
    let bench = Bench::prepare(place).await?;
    let servers = Servers::Network { amqp: place.amqp.clone(), redis: place.redis.clone() };
    let order = |duty, tasks| Order {
        system: System::Machinist,
        duty,
        servers: servers.clone(),
        queue: QUEUE.to_owned(),
        tasks,
        payload: 100,
        watched: Some([place.rabbitmq_pid, place.redis_pid]),
    };
    report::note(&format!("sending {tasks} tasks"));
    let send = Duty::SendAll { batch: 1000.min(tasks) };
    let sent = Part::start(&order(send, tasks)).await?.done().await?;
    report::note(&format!("sent in {:.0} s; draining", sent.seconds));
    let more = tasks.div_ceil(10);
    let work = Duty::Work { concurrency: 256, sleep_ms: 0, wakes: false };
    let mut worker = Part::start(&order(work, tasks + more)).await?;
    worker.go().await?;
    let mut looks = interval(LOOK);
    while bench.depth(QUEUE).await? > 0 {
        looks.tick().await;
    }
    report::note(&format!("drained; {more} more, while it works"));
    let sender = Part::start(&order(Duty::SendAll { batch: SHALLOW }, more)).await?.done();
    tokio::pin!(sender);
    let mut deepest = 0;
    loop {
        tokio::select! {
            sent = &mut sender => {
                sent?;
                break;
            }
            _ = looks.tick() => deepest = deepest.max(bench.depth(QUEUE).await?),
        };
    }
    let told = worker.told().await?;
    bench.tidy(QUEUE).await?;
    report::Machine::look(&place.servers).print()?;
    let mut out = std::io::stdout();
    writeln!(
        out,
        "\n{tasks} tasks sent in {:.0} s and then drained; {more} more sent while the worker worked, with at most \
         {deepest} in the queue. Processor time in µs per task, from that depth to the next; in the last line RabbitMQ and Redis \
         also serve the sender:\n",
        sent.seconds
    )?;
    writeln!(
        out,
        "| queued | handled | tasks/s | worker | RabbitMQ | Redis | RSS, MiB |\n|---|---|---|---|---|---|---|"
    )?;
    let drained = |share: usize| told.samples.iter().find(|s| s.handled >= tasks * share / 10);
    let deep = (0..10).map(|share| (drained(share), drained(share + 1)));
    for (before, sample) in deep.chain([(drained(10), told.samples.last())]) {
        let (Some(before), Some(sample)) = (before, sample) else { continue };
        if before.handled >= sample.handled {
            continue;
        }
        let handled = (sample.handled - before.handled) as f64;
        let rate = handled / (sample.seconds - before.seconds);
        let each = |cpu_us: fn(&Sample) -> f64| (cpu_us(sample) - cpu_us(before)) / handled;
        writeln!(
            out,
            "| {} | {} | {rate:.0} | {:.1} | {:.1} | {:.1} | {:.1} |",
            if before.handled < tasks {
                (tasks - before.handled).to_string()
            } else {
                format!("≤ {deepest}")
            },
            sample.handled,
            each(|s| s.cpu_us),
            each(|s| s.servers_cpu_us[0]),
            each(|s| s.servers_cpu_us[1]),
            sample.rss_kib as f64 / 1024.0,
        )?;
    }
    let slope = slope(&told.samples, tasks).context("too few samples: soak with more --tasks")?;
    writeln!(
        out,
        "\nPeak RSS {:.1} MiB; over the second half it changed by {slope:+.1} KiB per 100,000 tasks.",
        told.peak_rss_kib as f64 / 1024.0,
    )?;
    Ok(())
}

/// KiB per 100,000 tasks over the second half, by least squares.
fn slope(samples: &[Sample], tasks: usize) -> Option<f64> {
    let half = samples.iter().filter(|s| s.handled >= tasks / 2);
    let points: Vec<(f64, f64)> = half.map(|s| (s.handled as f64 / 1e5, s.rss_kib as f64)).collect();
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|p| p.0), mean(|p| p.1));
    let spread: f64 = points.iter().map(|p| (p.0 - x).powi(2)).sum();
    let together: f64 = points.iter().map(|p| (p.0 - x) * (p.1 - y)).sum();
    (points.len() > 1 && spread > 0.0).then(|| together / spread)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slope_is_that_of_the_second_half() {
        let sample = |handled, rss_kib| Sample { handled, rss_kib, ..Sample::default() };
        let samples: Vec<_> =
            (0..10).map(|n| sample(n * 100_000, if n < 5 { 0 } else { 1000 + 7 * n as u64 })).collect();
        let slope = slope(&samples, 1_000_000).unwrap();
        assert!((slope - 7.0).abs() < 1e-6, "{slope}");
        assert!(super::slope(&samples[..1], 1_000_000).is_none());
    }
}
