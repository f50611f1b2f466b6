//! The tables: Markdown for people, JSON beside it for whoever compares.

use std::{fmt::Write as _, fs, io::Write as _, process::Command};

use anyhow::{Context, Result};

use crate::{
    Place,
    case::{CASES, Case, Shape},
    order::System,
    runner::{Run, Share},
};

/// Prints a line for whoever waits; results go to the other output.
pub(crate) fn note(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Prints a result.
pub(crate) fn print(text: &str) -> Result<()> {
    Ok(writeln!(std::io::stdout(), "{text}")?)
}

/// One line when a run is done.
pub(crate) fn progress(run: &Run, round: u32, rounds: u32) -> String {
    let each = |share: Option<Share>| share.map_or(0.0, |share| share.cpu_us / run.tasks as f64);
    let mut line = format!(
        "{:<14} {round}/{rounds} {:<9} {:>7.0} tasks/s  µs/task: worker {:.0} sender {:.0} rabbitmq {:.0} redis {:.1}",
        run.case,
        run.system,
        rate(run),
        each(run.worker),
        each(run.sender),
        run.rabbitmq_cpu_us.unwrap_or_default() / run.tasks as f64,
        run.redis_cpu_us.unwrap_or_default() / run.tasks as f64,
    );
    if let Some([p50, p90, p99]) = run.latency_us {
        let _ = write!(line, "  p50 {p50:.0} p90 {p90:.0} p99 {p99:.0} µs");
    }
    line
}

/// Prints the report and writes it, with every single run, into the directory of the place.
pub(crate) fn publish(place: &Place, rounds: u32, quick: bool, runs: &[Run]) -> Result<()> {
    let machine = Machine::look(&place.servers);
    let markdown = markdown(&machine, rounds, quick, runs)?;
    let json = serde_json::json!({
        "machine": machine.lines,
        "rounds": rounds,
        "quick": quick,
        "runs": runs,
    });
    let paths = ["bench.md", "bench.json"].map(|name| place.dir.join(name));
    fs::write(&paths[0], &markdown).with_context(|| format!("cannot write {}", paths[0].display()))?;
    fs::write(&paths[1], serde_json::to_vec_pretty(&json)?)
        .with_context(|| format!("cannot write {}", paths[1].display()))?;
    writeln!(std::io::stdout(), "{markdown}")?;
    note(&format!("written: {} and {}", paths[0].display(), paths[1].display()));
    Ok(())
}

fn markdown(machine: &Machine, rounds: u32, quick: bool, runs: &[Run]) -> Result<String> {
    let mut text = machine.list();
    writeln!(
        text,
        "- {rounds} rounds of each case, the two pipelines in turn; medians, in brackets the range"
    )?;
    if quick {
        writeln!(text, "- `--quick`: a tenth of the tasks, too short to be believed")?;
    }
    writeln!(text, "\n| case | tasks | floor, tasks/s | machinist, tasks/s | machinist / floor |")?;
    writeln!(text, "|---|---|---|---|---|")?;
    let measured: Vec<Measured<'_>> =
        CASES.iter().map(|case| Measured::of(case, runs)).filter(|m| !m.ours.is_empty()).collect();
    let is_rate = |m: &&Measured<'_>| {
        !matches!(m.case.shape, Shape::Lone | Shape::Idle { .. } | Shape::ChordsLone { .. })
            && m.signed.is_empty()
    };
    for m in measured.iter().filter(is_rate) {
        let (floor, ours) = (spread(&m.floor, rate, 0), spread(&m.ours, rate, 0));
        let ratio = ratios(&m.floor, &m.ours, rate);
        writeln!(
            text,
            "| `{}`: {} | {} | {floor} | {ours} | {ratio} |",
            m.case.name,
            m.case.title,
            m.tasks()
        )?;
    }
    for m in measured.iter().filter(|m| !m.signed.is_empty()) {
        let (what, base) = m.compared();
        writeln!(
            text,
            "\n| {} | tasks/s | {what} / {base} | worker, µs/task | sender, µs/task |",
            m.case.title
        )?;
        writeln!(text, "|---|---|---|---|---|")?;
        let cpu = |share: Option<Share>, tasks| share.map_or(f64::NAN, |share| share.cpu_us / tasks as f64);
        for (name, runs) in [(base, &m.ours)].into_iter().chain(m.signed.iter().map(|(n, r)| (*n, r))) {
            writeln!(
                text,
                "| {name} | {} | {} | {} | {} |",
                spread(runs, rate, 0),
                ratios(&m.ours, runs, rate),
                spread(runs, |run| cpu(run.worker, run.tasks), 1),
                spread(runs, |run| cpu(run.sender, run.tasks), 1),
            )?;
        }
    }
    for m in measured.iter().filter(|m| matches!(m.case.shape, Shape::Lone)) {
        writeln!(
            text,
            "\n| {} | floor, µs | machinist, µs | machinist / floor |\n|---|---|---|---|",
            m.case.title
        )?;
        for (at, name) in ["p50", "p90", "p99"].into_iter().enumerate() {
            let latency = |run: &Run| run.latency_us.map_or(f64::NAN, |all| all[at]);
            let (floor, ours) = (spread(&m.floor, latency, 0), spread(&m.ours, latency, 0));
            writeln!(text, "| {name} | {floor} | {ours} | {} |", ratios(&m.floor, &m.ours, latency))?;
        }
    }
    text.push_str(&workflows(runs)?);
    writeln!(text, "\nProcessor time in µs per task, floor → machinist, and the most memory in MiB:\n")?;
    writeln!(
        text,
        "| case | worker | sender | RabbitMQ | Redis | worker, MiB | sender, MiB |\n|---|---|---|---|---|---|---|"
    )?;
    for m in measured.iter().filter(|m| !matches!(m.case.shape, Shape::Idle { .. })) {
        let per_task =
            |total: fn(&Run) -> Option<f64>| m.change(move |run| Some(total(run)? / run.tasks as f64), 1);
        let memory = |share: fn(&Run) -> Option<Share>| {
            m.change(move |run| Some(share(run)?.peak_rss_kib as f64 / 1024.0), 0)
        };
        writeln!(
            text,
            "| `{}` | {} | {} | {} | {} | {} | {} |",
            m.case.name,
            per_task(|run| Some(run.worker?.cpu_us)),
            per_task(|run| Some(run.sender?.cpu_us)),
            per_task(|run| run.rabbitmq_cpu_us),
            per_task(|run| run.redis_cpu_us),
            memory(|run| run.worker),
            memory(|run| run.sender),
        )?;
    }
    for m in measured.iter().filter(|m| matches!(m.case.shape, Shape::Idle { .. })) {
        let share = |run: &Run| run.worker.map_or(f64::NAN, |w| w.cpu_us / run.seconds / 1e4);
        writeln!(text, "\n{}: {} % of a core", m.case.title, spread(&m.ours, share, 2))?;
    }
    Ok(text)
}

/// What workflows cost against single tasks of the same run; nothing if that was not measured.
fn workflows(runs: &[Run]) -> Result<String> {
    let of = |case: &str| -> Vec<&Run> {
        runs.iter().filter(|run| run.case == case && run.system == System::Machinist.name()).collect()
    };
    let time = |run: &Run| run.seconds / run.tasks as f64;
    let cpu = |run: &Run| {
        let worker = run.worker.map_or(f64::NAN, |share| share.cpu_us);
        let servers = run.rabbitmq_cpu_us.unwrap_or(f64::NAN) + run.redis_cpu_us.unwrap_or(f64::NAN);
        (worker + servers) / run.tasks as f64
    };
    let mut rows = Vec::new();
    let mut row = |what: &str, base: &str, case: &str, value: &dyn Fn(&Run) -> f64| {
        let (base, runs) = (of(base), of(case));
        if !base.is_empty() && !runs.is_empty() {
            rows.push(format!("| {what} | {} |", ratios(&base, &runs, value)));
        }
    };
    row("`chain-10` / `lone`: time per task", "lone", "chain-10", &time);
    row(
        "`group-100` / `single-10000`: worker's and servers' processor time",
        "single-10000",
        "group-100",
        &cpu,
    );
    row("`group-10000` / `single-10000`: the same", "single-10000", "group-10000", &cpu);
    row("`group-10000` / `group-100`: time per task", "group-100", "group-10000", &time);
    let p50 = |run: &Run| run.latency_us.map_or(f64::NAN, |all| all[0] / 1e3);
    let chords = of("chord-lone");
    if !chords.is_empty() {
        rows.push(format!(
            "| `chord-lone`: callback's start after the last member, p50, ms | {} |",
            spread(&chords, p50, 1)
        ));
    }
    if rows.is_empty() {
        return Ok(String::new());
    }
    Ok(format!("\n| workflows | |\n|---|---|\n{}\n", rows.join("\n")))
}

/// The runs of one case, round by round.
struct Measured<'a> {
    case: &'a Case,
    floor: Vec<&'a Run>,
    ours: Vec<&'a Run>,
    /// By algorithm, with limits, or on a queue of another program.
    signed: Vec<(&'static str, Vec<&'a Run>)>,
}

impl<'a> Measured<'a> {
    fn of(case: &'a Case, runs: &'a [Run]) -> Self {
        let of = |system: System| -> Vec<_> {
            runs.iter().filter(|r| r.case == case.name && r.system == system.name()).collect()
        };
        let others = [
            System::Limited,
            System::Machinery,
            System::MachineryQuorum,
            System::Hmac,
            System::Ed25519,
            System::HmacEncrypted,
            System::Ed25519Encrypted,
        ];
        let signed = others.map(|system| (system.name(), of(system)));
        let signed = signed.into_iter().filter(|(_, runs)| !runs.is_empty()).collect();
        Self { case, floor: of(System::Floor), ours: of(System::Machinist), signed }
    }

    /// What is compared, and what it is compared with.
    fn compared(&self) -> (&'static str, &'static str) {
        let has = |system: System| self.signed.iter().any(|(name, _)| *name == system.name());
        if has(System::Machinery) {
            ("machinery", "own wire")
        } else if has(System::Limited) {
            ("limited", "not limited")
        } else {
            ("signed", "unsigned")
        }
    }

    fn tasks(&self) -> usize {
        self.ours.first().map_or(0, |run| run.tasks)
    }

    /// `floor → machinist`, where there is something to tell.
    fn change(&self, value: impl Fn(&Run) -> Option<f64>, decimals: usize) -> String {
        let middle = |runs: &[&Run]| median(runs.iter().filter_map(|run| value(run)).collect());
        match (middle(&self.floor), middle(&self.ours)) {
            (Some(floor), Some(ours)) => format!("{floor:.decimals$} → {ours:.decimals$}"),
            (None, Some(ours)) => format!("{ours:.decimals$}"),
            _ => "–".to_owned(),
        }
    }
}

fn rate(run: &Run) -> f64 {
    run.tasks as f64 / run.seconds
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    let (low, high) = (values.get(values.len().checked_sub(1)? / 2)?, values.get(values.len() / 2)?);
    Some((low + high) / 2.0)
}

/// `median (least–most)`.
fn spread(runs: &[&Run], value: impl Fn(&Run) -> f64, decimals: usize) -> String {
    show(runs.iter().map(|run| value(run)).collect(), decimals)
}

/// Each round's two runs were neighbours in time, so their ratio is more trustworthy than that of the medians.
fn ratios(base: &[&Run], runs: &[&Run], value: impl Fn(&Run) -> f64) -> String {
    show(base.iter().zip(runs).map(|(base, run)| value(run) / value(base)).collect(), 2)
}

/// The same of values that are there. What a case does not measure is no number.
fn show(mut values: Vec<f64>, decimals: usize) -> String {
    values.retain(|value| !value.is_nan());
    values.sort_unstable_by(f64::total_cmp);
    match (values.first().copied(), values.last().copied(), median(values)) {
        (Some(least), Some(most), Some(middle)) => {
            format!("{middle:.decimals$} ({least:.decimals$}–{most:.decimals$})")
        }
        _ => "–".to_owned(),
    }
}

/// Where and with what it was measured.
pub(crate) struct Machine {
    pub(crate) lines: Vec<String>,
}

impl Machine {
    /// Prints it as the list above a table.
    pub(crate) fn print(&self) -> Result<()> {
        print(self.list().trim_end())
    }

    fn list(&self) -> String {
        self.lines.iter().map(|line| format!("- {line}\n")).collect()
    }

    pub(crate) fn look(servers: &str) -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let (cpus, memory) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split(':').nth(1)).unwrap_or("?").trim().to_owned()
        };
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let gib = field(&memory, "MemTotal").split(' ').next().and_then(|kib| kib.parse::<f64>().ok());
        let said = |program: &str, args: &[&str]| {
            let output = Command::new(program).args(args).output().ok();
            output
                .map_or_else(String::new, |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        };
        Self {
            lines: vec![
                format!(
                    "{cores} cores ({}) shared by servers, worker and sender; {:.0} GiB; Linux {}",
                    field(&cpus, "model name"),
                    gib.unwrap_or_default() / 1024.0 / 1024.0,
                    read("/proc/sys/kernel/osrelease").trim(),
                ),
                format!("{servers}; {}; machinist {}", said("rustc", &["--version"]), env!("CARGO_PKG_VERSION")),
                "both pipelines: quorum queue, persistent, mandatory, every publish confirmed, acknowledged after \
                 SUCCESS is recorded; Redis with `appendonly yes`, `appendfsync everysec`; records expire"
                    .to_owned(),
                "argument of each task: 100 bytes of text where the case does not say otherwise".to_owned(),
            ],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_ranges() {
        assert_eq!(show(vec![3.0, 1.0, 2.0], 0), "2 (1–3)");
        assert_eq!(show(vec![1.0, 2.0], 1), "1.5 (1.0–2.0)");
        assert_eq!(show(Vec::new(), 1), "–");
        assert_eq!(show(vec![f64::NAN], 1), "–");
    }
}
