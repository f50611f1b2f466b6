//! Limits under random kills: runs at once by key, starts in a period, and unique tasks.
//!
//! A run of a limited task tells the ledger when it begins and when it ends. It holds its place before the first line and after
//! the second, so more lines at once than places are runs at once.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    time::{Duration, Instant},
};

use anyhow::Result;
use futures_util::future::join_all;
use machinist::{
    App, Signature, State, TaskContext, TaskDef, TaskError, TaskId, Unique, UniqueUntil, WorkerBuilder,
    limit::{Limit, LimitKey, Rate},
    record::fold,
    worker::TaskOptions,
};

use crate::{
    fleet,
    house::{House, QUEUE, Setup},
    ledger::Ledger,
    load::{DO, Kind},
    size::Size,
};

/// Runs at once by key.
const PLACES: TaskDef<(String,), ()> = TaskDef::new("places");
const MAX_RUNNING: u32 = 2;
/// Starts in a period.
const RATED: TaskDef<(String,), ()> = TaskDef::new("rated");
const STARTS_PER_SECOND: u32 = 20;
const BURST: u32 = 5;
/// Key under which the tasks with a rate tell the ledger about their runs.
const RATED_KEY: &str = "rated";
/// Time by which a start may come too soon after the ones before it, as docs/limits.md states: 600 ms, and two starts
/// of 50 ms each.
const TOLERANCE_US: i64 = 700_000;
/// Share of the rate that is used while tasks wait. A short run, with as many kills, only shows it.
const USED: f64 = 0.95;
/// Time for which no task of a key runs while some wait. The sessions of killed workers expire first, and what is parked looks
/// again after half a minute.
const IDLE: u64 = 60_000;
/// Copies of each unique task, sent at once.
const COPIES: usize = 3;
/// Time between two bursts of tasks.
const PAUSE: Duration = Duration::from_millis(500);
/// Tasks of each burst, by kind. Somewhat more than the rate lets start.
const PLACES_PER_BURST: usize = 25;
const RATED_PER_BURST: usize = 11;

/// Workers with limits, and nothing else to do.
pub(crate) fn setup(usual: Setup) -> Setup {
    Setup { limits: true, load: false, ..usual }
}

/// Adds the limited tasks.
pub(crate) fn with_limits(builder: WorkerBuilder) -> Result<WorkerBuilder> {
    let key = LimitKey::template("{0}").map_err(anyhow::Error::msg)?;
    let places = Limit::new().max_running(MAX_RUNNING).key(key);
    let rate = Rate::new(STARTS_PER_SECOND, Duration::from_secs(1)).map_err(anyhow::Error::msg)?;
    let rated = Limit::new().rate(rate).burst(BURST);
    Ok(builder
        .task(PLACES, run)
        .task(RATED, run)
        .options("places", TaskOptions::new().limit(places))
        .options("rated", TaskOptions::new().limit(rated)))
}

async fn run(cx: TaskContext, State(ledger): State<Ledger>, key: String) -> Result<(), TaskError> {
    let (id, attempt, token, pid) = (cx.task_id(), cx.attempt(), cx.fencing_token(), std::process::id());
    let about = format!("{id} {attempt} {token} {pid}");
    let about_run = format!("{key} {pid} {id}/{attempt}/{token}");
    ledger.say(&[format!("start {about}"), format!("begin {about_run}")]).await?;
    let time = if key == RATED_KEY { 0..50 } else { 100..400 };
    tokio::time::sleep(Duration::from_millis(rand::random_range(time))).await;
    ledger.say(&[format!("effect {about}"), format!("end {about_run}")]).await?;
    Ok(())
}

/// Sends limited tasks while workers are killed at random.
pub(crate) async fn kill_at_random(house: &House) -> Result<()> {
    let app = house.direct.app(Duration::from_secs(10)).await?;
    let (sent, killed) = tokio::join!(send(house, &app), fleet::kill_for(house, house.size.ticking()));
    app.broker().close().await;
    sent.and(killed)
}

async fn send(house: &House, app: &App) -> Result<()> {
    let until = Instant::now() + house.size.ticking();
    let mut number = 0;
    while Instant::now() < until {
        let burst_began = Instant::now();
        let keys = (0..PLACES_PER_BURST).map(|_| hot_key(house.size.keys()));
        let places = keys.map(|key| (PLACES.call((key.clone(),)).queue(QUEUE).untyped(), Some(key)));
        let rated = (0..RATED_PER_BURST).map(|_| {
            (RATED.call((RATED_KEY.to_owned(),)).queue(QUEUE).untyped(), Some(RATED_KEY.to_owned()))
        });
        send_all(house, app, places.chain(rated).collect()).await?;
        send_copies(house, app, number).await?;
        number += 1;
        house.pass(PAUSE.saturating_sub(burst_began.elapsed())).await?;
    }
    Ok(())
}

/// Returns a key: a few have so much to do that tasks wait.
fn hot_key(keys: usize) -> String {
    let share: f64 = rand::random_range(0.0..1.0);
    format!("key-{}", (share.powi(4) * keys as f64) as usize)
}

async fn send_all(house: &House, app: &App, tasks: Vec<(Signature, Option<String>)>) -> Result<()> {
    let of_each = |line: &dyn Fn(&TaskId, &str) -> String| -> Vec<String> {
        tasks.iter().map(|(task, key)| line(task.id(), key.as_deref().unwrap_or_default())).collect()
    };
    let tried = of_each(&|id, _| format!("try {id} {}", Kind::Plain.as_str()));
    let waits = of_each(&|id, key| format!("wait {key} {id}"));
    let sent = of_each(&|id, _| format!("ok {id}"));
    // Before they are sent: a task may end before its sender goes on.
    house.say(&[tried, waits].concat()).await?;
    for answer in app.client().send_all(tasks.into_iter().map(|(task, _)| task).collect::<Vec<_>>()).await {
        answer?;
    }
    house.say(&sent).await
}

/// Sends copies of one unique task at once. The ledger is told which task each of them has become.
async fn send_copies(house: &House, app: &App, number: usize) -> Result<()> {
    let rule = Unique::new().key(format!("once-{number}")).until(UniqueUntil::For(Duration::from_secs(3600)));
    let client = app.client();
    let copies = (0..COPIES).map(|_| {
        let call = DO.call((Kind::Plain.as_str().to_owned(),)).queue(QUEUE).unique(rule.clone());
        client.send(call)
    });
    let mut lines = Vec::new();
    for sent in join_all(copies).await {
        let id = sent?.id().clone();
        lines.extend([
            format!("try {id} {}", Kind::Plain.as_str()),
            format!("ok {id}"),
            format!("unique once-{number} {id}"),
        ]);
    }
    house.say(&lines).await
}

/// Judges runs at once, unique tasks and the rate. Prints how long keys were idle, and how much of the rate was used.
pub(crate) async fn judge(ledger: &str, app: &App, size: Size) -> Result<Vec<String>> {
    let mut runs = Runs::default();
    let mut copies: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut rated = Vec::new();
    for line in ledger.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let at: u64 = words.first().and_then(|at| at.parse().ok()).unwrap_or_default();
        match words[..] {
            [_, "wait", key, id] => {
                if key == RATED_KEY {
                    rated.push(id.parse::<TaskId>()?);
                }
                runs.wait(key, id, at);
            }
            [_, "begin", key, pid, run] => runs.begin(key, pid, run, at),
            [_, "end", key, _, run] => runs.end(key, run, at),
            [_, "mark", "killed", pid, _] => runs.killed(pid, at),
            [_, "unique", key, id] => {
                copies.entry(key).or_default().insert(id);
            }
            _ => {}
        }
    }
    let mut violations = runs.violations.clone();
    let twice = copies.iter().filter(|(_, ids)| ids.len() > 1);
    violations.extend(twice.map(|(key, ids)| format!("{key} has become several tasks: {ids:?}")));
    let idle = runs.longest_idle();
    let used = runs.used();
    let (handed_over, gap) = runs.median_gap();
    let rate = judge_rate(&mut violations, app, &rated).await?;
    say!(
        "    {} keys, {} at once of one key at most; longest without a run {:.1} s; from the end of a run to the next one of its \
         key {gap} ms at p50 of {handed_over}; {} unique tasks; {:.0} % of the rate used, {rate} ms too early at most",
        runs.keys.len(),
        runs.most,
        idle as f64 / 1e3,
        copies.len(),
        used * 100.0
    );
    if idle > IDLE {
        violations.push(format!("no task of a key ran for {idle} ms, while some waited"));
    }
    if used < USED && size == Size::Nightly {
        violations.push(format!("only {:.0} % of the rate was used while tasks waited", used * 100.0));
    }
    Ok(violations)
}

/// Looks when the tasks with a rate have started, as their records say. Returns by how many milliseconds one came too early, and
/// adds a violation if that is too much.
async fn judge_rate(violations: &mut Vec<String>, app: &App, ids: &[TaskId]) -> Result<i64> {
    let mut starts = Vec::new();
    for chunk in ids.chunks(200) {
        let records: Vec<_> = chunk.iter().map(machinist::id::RecordId::from).collect();
        for (id, facts) in chunk.iter().zip(app.backend().read(&records).await?) {
            starts.extend(fold(id, &facts).and_then(|record| record.started_at).map(|at| at.as_micros()));
        }
    }
    let early = earliest_us(&mut starts);
    if early > TOLERANCE_US {
        violations.push(format!("a task started {} ms before the rate allows it", early / 1000));
    }
    Ok(early / 1000)
}

/// Returns by how many microseconds a start came before its time, at most, as a bucket counts them.
fn earliest_us(starts: &mut [i64]) -> i64 {
    let (interval, burst) = (1_000_000 / i64::from(STARTS_PER_SECOND), i64::from(BURST));
    starts.sort_unstable();
    let mut due = i64::MIN;
    let mut early = 0;
    for &at in &*starts {
        early = early.max(due.saturating_sub((burst - 1) * interval).saturating_sub(at));
        due = due.max(at) + interval;
    }
    early
}

/// The runs of each key.
#[derive(Default)]
struct Runs<'a> {
    keys: BTreeMap<&'a str, OfKey<'a>>,
    /// Processes that were killed. What they said before may be written down after that.
    killed: HashSet<&'a str>,
    most: usize,
    violations: Vec<String>,
}

#[derive(Default)]
struct OfKey<'a> {
    /// Tasks that have been sent and have not ended.
    open: HashSet<&'a str>,
    /// What runs, and in which process.
    running: HashMap<&'a str, &'a str>,
    /// Time since when none runs, while some wait.
    idle_since: Option<u64>,
    longest_idle: u64,
    begun: Vec<u64>,
    /// Times at which runs have ended while tasks waited, and no other run has begun since.
    freed: VecDeque<u64>,
    /// Times from the end of a run to the beginning of the next one, while tasks waited.
    gaps: Vec<u64>,
    /// Times from which, and until which, some wait.
    busy: Vec<(u64, u64)>,
}

impl<'a> Runs<'a> {
    fn wait(&mut self, key: &'a str, id: &'a str, at: u64) {
        let of_key = self.keys.entry(key).or_default();
        of_key.open.insert(id);
        of_key.look(at);
    }

    fn begin(&mut self, key: &'a str, pid: &'a str, run: &'a str, at: u64) {
        if self.killed.contains(pid) {
            return;
        }
        let of_key = self.keys.entry(key).or_default();
        of_key.running.insert(run, pid);
        of_key.begun.push(at);
        of_key.gaps.extend(of_key.freed.pop_front().map(|freed| at - freed));
        of_key.look(at);
        if key == RATED_KEY {
            return;
        }
        self.most = self.most.max(of_key.running.len());
        if of_key.running.len() > MAX_RUNNING as usize {
            self.violations.push(format!(
                "{key} runs {} times at once: {:?}",
                of_key.running.len(),
                of_key.running
            ));
        }
    }

    fn end(&mut self, key: &'a str, run: &str, at: u64) {
        let of_key = self.keys.entry(key).or_default();
        if of_key.running.remove(run).is_some() {
            of_key.open.remove(run.split('/').next().unwrap_or_default());
            of_key.freed.push_back(at);
        }
        of_key.look(at);
    }

    /// What runs in a killed process has not ended: it waits again.
    fn killed(&mut self, pid: &'a str, at: u64) {
        self.killed.insert(pid);
        for of_key in self.keys.values_mut() {
            of_key.running.retain(|_, process| *process != pid);
            of_key.look(at);
        }
    }

    /// Milliseconds.
    fn longest_idle(&self) -> u64 {
        let limited = self.keys.iter().filter(|(key, _)| **key != RATED_KEY);
        limited.map(|(_, of_key)| of_key.longest_idle).max().unwrap_or_default()
    }

    /// Number of times at which a run of a key that has places began after another one had ended, and the median of the
    /// milliseconds in between. The end is what the run says itself: what follows is its outcome, and then its place is free.
    fn median_gap(&self) -> (usize, u64) {
        let limited = self.keys.iter().filter(|(key, _)| **key != RATED_KEY);
        let mut gaps: Vec<u64> = limited.flat_map(|(_, of_key)| of_key.gaps.iter().copied()).collect();
        gaps.sort_unstable();
        (gaps.len(), gaps.get(gaps.len() / 2).copied().unwrap_or_default())
    }

    /// Share of the rate that was used while tasks waited, and of the burst that had come together before they did.
    fn used(&self) -> f64 {
        let Some(rated) = self.keys.get(RATED_KEY) else { return 0.0 };
        let starts_in = |millis: u64| millis as f64 / 1e3 * f64::from(STARTS_PER_SECOND);
        let (mut begun, mut allowed, mut last_end) = (0, 0.0, None);
        for (from, to) in &rated.busy {
            begun += rated.begun.iter().filter(|at| (from..=to).contains(at)).count();
            let saved = last_end.map_or(f64::INFINITY, |end| starts_in(from - end));
            allowed += starts_in(to - from) + saved.min(f64::from(BURST));
            last_end = Some(to);
        }
        begun as f64 / allowed
    }
}

impl OfKey<'_> {
    fn look(&mut self, at: u64) {
        let waiting = self.open.len() > self.running.len();
        if !waiting {
            self.freed.clear();
        }
        match self.idle_since {
            None if waiting && self.running.is_empty() => self.idle_since = Some(at),
            Some(since) if !waiting || !self.running.is_empty() => {
                self.longest_idle = self.longest_idle.max(at - since);
                self.idle_since = None;
            }
            _ => {}
        }
        // Those that wait are enough for every start until the next line.
        match self.busy.last_mut() {
            Some((_, to)) if waiting && *to == u64::MAX => {}
            Some((_, to)) if !waiting && *to == u64::MAX => *to = at,
            _ if waiting => self.busy.push((at, u64::MAX)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_runs_at_once_are_seen() {
        let mut runs = Runs::default();
        for (at, run) in [(1, "a"), (2, "b"), (3, "c")] {
            runs.wait("k", run, at);
            runs.begin("k", "7", run, at);
        }
        assert_eq!(runs.violations.len(), 1, "{:?}", runs.violations);
        runs.end("k", "a", 4);
        runs.wait("k", "d", 5);
        runs.killed("7", 10);
        runs.begin("k", "7", "e", 11);
        runs.begin("k", "8", "b/2", 35);
        assert_eq!((runs.most, runs.violations.len(), runs.longest_idle()), (3, 1, 25));
    }

    #[test]
    fn the_time_between_two_runs_counts_only_while_tasks_wait() {
        let mut runs = Runs::default();
        for run in ["a", "b", "c", "d"] {
            runs.wait("k", run, 0);
        }
        runs.begin("k", "7", "a", 1);
        runs.begin("k", "7", "b", 1);
        runs.end("k", "a", 10);
        runs.end("k", "b", 20);
        runs.begin("k", "7", "c", 40);
        runs.begin("k", "7", "d", 90);
        assert_eq!(runs.median_gap(), (2, 70));
        runs.end("k", "c", 100);
        runs.wait("k", "e", 200);
        runs.begin("k", "7", "e", 250);
        assert_eq!(runs.median_gap(), (2, 70), "nobody waited at that end");
    }

    #[test]
    fn an_early_start_is_seen() {
        let interval = 1_000_000 / i64::from(STARTS_PER_SECOND);
        let mut on_time: Vec<i64> =
            [0; BURST as usize].into_iter().chain((1..100).map(|n| n * interval)).collect();
        assert_eq!(earliest_us(&mut on_time), 0);
        on_time.push(50 * interval);
        assert_eq!(earliest_us(&mut on_time), interval);
    }

    #[test]
    fn the_used_share_counts_only_while_tasks_wait_and_a_burst_after_a_pause() {
        let mut runs = Runs::default();
        let names: Vec<String> = (0..2 * STARTS_PER_SECOND + BURST).map(|n| n.to_string()).collect();
        // The first one begins a burst, and so does the first after a pause in which nobody waits.
        for began in [0, 60_000] {
            for name in &names {
                runs.wait(RATED_KEY, name, began);
            }
            for (number, run) in names.iter().enumerate() {
                let after = (number as u64).saturating_sub(u64::from(BURST) - 1) * 1000;
                let at = began + after / u64::from(STARTS_PER_SECOND);
                runs.begin(RATED_KEY, "7", run, at);
                runs.end(RATED_KEY, run, at);
            }
        }
        assert!((0.97..=1.0).contains(&runs.used()), "{}", runs.used());
        runs.wait(RATED_KEY, "late", 120_000);
        runs.begin(RATED_KEY, "7", "late", 124_000);
        assert!((0.4..0.6).contains(&runs.used()), "{}", runs.used());
    }
}
