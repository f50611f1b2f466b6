//! Comparison of two versions: their processes run in pairs, A B then B A, against the same servers.
//!
//! A pair shares the state of the machine, so the ratio within a pair tells versions apart where two medians would not.
//! Processor time decides, because the time of a run depends on whatever else the machine does.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{
    Place,
    case::{self, CASES, Case},
    order::System,
    report,
    runner::{Bench, Run},
    statistics::Ratio,
};

/// Upper end of an interval that still counts as "not slower".
const NOT_SLOWER: f64 = 1.03;

/// Options of a comparison.
#[derive(Debug, Args)]
pub(crate) struct Compare {
    /// The old version's `machinist-bench`; `cargo xtask bench compare` takes a checkout too, and builds it.
    old: PathBuf,
    /// The new version's.
    new: PathBuf,
    /// Cases to compare.
    #[arg(
        value_name = "CASE",
        default_values = ["drain-256", "lone", "send-all"],
        value_parser = clap::builder::PossibleValuesParser::new(case::names())
    )]
    cases: Vec<String>,
    /// Number of pairs of runs; each pair runs both versions once.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pairs: u32,
    /// Run a tenth of the tasks: to see that it works, not to believe it.
    #[arg(long)]
    quick: bool,
    /// Exit with 1 unless every case is shown to be not slower.
    #[arg(long)]
    require: bool,
}

/// Share of worker and sender together.
const OURS: &str = "worker and sender";
/// Share of all processes together.
const ALL: &str = "all";

/// Compares two programs and prints a table.
pub(crate) async fn run(place: &Place, compare: &Compare) -> Result<()> {
    // Copies, so that a build during the comparison does not change what is measured.
    let folder = tempfile::tempdir_in(&place.dir)?;
    let old = copy(&compare.old, &folder.path().join("old"))?;
    let new = copy(&compare.new, &folder.path().join("new"))?;
    let mut bench = Bench::prepare(place).await?;
    let mut lines = Vec::new();
    let mut proven = true;
    for case in CASES.iter().filter(|case| compare.cases.iter().any(|name| name == case.name)) {
        let tasks = if compare.quick { (case.tasks / 10).max(1) } else { case.tasks };
        let case = Case { tasks, ..*case };
        let mut pairs = Vec::new();
        // The first pair warms the servers up, and does not count.
        for pair in 0..=compare.pairs {
            let old_first = pair % 2 == 1;
            let programs = if old_first { [&old, &new] } else { [&new, &old] };
            let mut runs = Vec::new();
            for program in programs {
                bench.switch_to(program);
                runs.push(bench.measure(&case, System::Hmac).await?);
            }
            if !old_first {
                runs.reverse();
            }
            if pair == 0 {
                continue;
            }
            for (name, run) in ["old", "new"].iter().zip(&runs) {
                report::note(&format!("{name} {}", report::progress(run, pair, compare.pairs)));
            }
            pairs.push(runs);
        }
        let shares = shares(&pairs);
        // Both: a slower worker must not hide behind the servers.
        let verdict = shares
            .iter()
            .filter(|(name, _)| *name == OURS || *name == ALL)
            .map(|(_, ratio)| verdict(*ratio))
            .max()
            .unwrap_or(Verdict::Noise);
        proven &= verdict == Verdict::NotSlower;
        lines.push(format!(
            "\n`{}`, {} tasks, {} pairs: {}",
            case.name,
            case.tasks,
            pairs.len(),
            verdict.text()
        ));
        lines.push("| share | new / old | 95 % interval |\n|---|---|---|".to_owned());
        for (name, ratio) in shares {
            if let Some(Ratio { mean, low, high }) = ratio {
                lines.push(format!("| {name} | {mean:.3} | {low:.3} to {high:.3} |"));
            }
        }
    }
    report::print(&format!(
        "Processor time per task, signed with HMAC-SHA256; throughput beside it.\n{}",
        lines.join("\n")
    ))?;
    if compare.require && !proven {
        bail!("not every case is shown to be not slower");
    }
    Ok(())
}

/// Copies a program.
fn copy(program: &Path, to: &Path) -> Result<PathBuf> {
    std::fs::copy(program, to)
        .with_context(|| format!("{} is no program: build `machinist-bench` first", program.display()))?;
    Ok(to.to_owned())
}

/// The answer of one case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    NotSlower,
    Noise,
    Slower,
}

impl Verdict {
    const fn text(self) -> &'static str {
        match self {
            Self::NotSlower => "not slower (the intervals of worker and sender, and of all, lie below 1.03)",
            Self::Slower => "slower (an interval lies above 1)",
            Self::Noise => "noise forbids a statement",
        }
    }
}

fn verdict(all: Option<Ratio>) -> Verdict {
    match all {
        Some(ratio) if ratio.high < NOT_SLOWER => Verdict::NotSlower,
        Some(ratio) if ratio.low > 1.0 => Verdict::Slower,
        _ => Verdict::Noise,
    }
}

/// Ratios by share: each process, their sum, and throughput. Each pair holds the old run and the new one.
fn shares(pairs: &[Vec<Run>]) -> Vec<(&'static str, Option<Ratio>)> {
    let ratio = |value: &dyn Fn(&Run) -> f64| {
        let values: Vec<_> = pairs.iter().map(|runs| (value(&runs[0]), value(&runs[1]))).collect();
        Ratio::of(&values)
    };
    let worker = |run: &Run| run.worker.map_or(0.0, |share| share.cpu_us);
    let sender = |run: &Run| run.sender.map_or(0.0, |share| share.cpu_us);
    let rabbitmq = |run: &Run| run.rabbitmq_cpu_us.unwrap_or_default();
    let redis = |run: &Run| run.redis_cpu_us.unwrap_or_default();
    vec![
        ("worker", ratio(&worker)),
        ("sender", ratio(&sender)),
        (OURS, ratio(&|run| worker(run) + sender(run))),
        ("RabbitMQ", ratio(&rabbitmq)),
        ("Redis", ratio(&redis)),
        (ALL, ratio(&|run| worker(run) + sender(run) + rabbitmq(run) + redis(run))),
        ("throughput", ratio(&|run| run.tasks as f64 / run.seconds)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_interval_below_the_bound_is_not_slower() {
        let ratio = |mean, low, high| Some(Ratio { mean, low, high });
        assert_eq!(verdict(ratio(0.98, 0.95, 1.02)), Verdict::NotSlower);
        assert_eq!(verdict(ratio(1.01, 0.97, 1.06)), Verdict::Noise);
        assert_eq!(verdict(ratio(1.08, 1.04, 1.12)), Verdict::Slower);
        assert_eq!(verdict(None), Verdict::Noise);
    }
}
