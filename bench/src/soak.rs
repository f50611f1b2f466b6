//! A million tasks through one worker: whether its memory grows, and whether a deep queue costs more.

use std::io::Write as _;

use anyhow::{Context, Result};

use crate::{
    Place,
    order::{Duty, Order, Sample, Servers, System},
    report,
    runner::{Bench, Part},
};

const QUEUE: &str = "bench-soak";

/// Fills a queue, drains it, prints what the worker was like meanwhile.
pub(crate) async fn run(place: &Place, tasks: usize) -> Result<()> {
    let bench = Bench::prepare(place).await?;
    let servers = Servers::Network { amqp: place.amqp.clone(), redis: place.redis.clone() };
    let order = |duty| Order {
        system: System::Machinist,
        duty,
        servers: servers.clone(),
        queue: QUEUE.to_owned(),
        tasks,
        payload: 100,
    };
    report::note(&format!("sending {tasks} tasks"));
    let mut sender = Part::start(&order(Duty::SendAll { batch: 1000.min(tasks) })).await?;
    sender.go().await?;
    let sent = sender.told().await?;
    report::note(&format!("sent in {:.0} s; draining", sent.seconds));
    let mut worker = Part::start(&order(Duty::Work { concurrency: 256, sleep_ms: 0, wakes: false })).await?;
    worker.go().await?;
    let told = worker.told().await?;
    bench.tidy(QUEUE).await?;
    let mut out = std::io::stdout();
    for line in report::Machine::look(&place.servers).lines {
        writeln!(out, "- {line}")?;
    }
    writeln!(out, "\n{tasks} tasks sent in {:.0} s, drained in {:.0} s.\n", sent.seconds, told.seconds)?;
    writeln!(
        out,
        "| handled | tasks/s since the line before | worker µs/task | RSS, MiB |\n|---|---|---|---|"
    )?;
    let mut before: Option<&Sample> = None;
    for tenth in 0..=10 {
        let Some(sample) = told.samples.iter().find(|s| s.handled >= tasks * tenth / 10) else { continue };
        if let Some(before) = before.filter(|before| before.handled < sample.handled) {
            let handled = (sample.handled - before.handled) as f64;
            let rate = handled / (sample.seconds - before.seconds);
            let cpu = (sample.cpu_us - before.cpu_us) / handled;
            let rss = sample.rss_kib as f64 / 1024.0;
            writeln!(out, "| {} | {rate:.0} | {cpu:.1} | {rss:.1} |", sample.handled)?;
        }
        before = Some(sample);
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
    let half = samples.iter().filter(|s| s.handled >= tasks / 2 && s.handled < tasks);
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
        let sample = |handled: usize, rss_kib| Sample { seconds: 0.0, handled, rss_kib, cpu_us: 0.0 };
        let samples: Vec<_> =
            (0..10).map(|n| sample(n * 100_000, if n < 5 { 0 } else { 1000 + 7 * n as u64 })).collect();
        let slope = slope(&samples, 1_000_000).unwrap();
        assert!((slope - 7.0).abs() < 1e-6, "{slope}");
        assert!(super::slope(&samples[..1], 1_000_000).is_none());
    }
}
