//! What the ledger and the records say together.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use lapin::options::BasicGetOptions;
use machinist::{
    App, TaskId,
    backend::Backend,
    id::RecordId,
    record::{FailureKind, Record, TaskState, fold},
};

use crate::{
    connect::Servers,
    house::{GONE_QUEUE, House, OTHER_QUEUE, QUEUE},
    load::Kind,
};

/// How many records are asked for at once.
const CHUNK: usize = 200;

/// What the ledger says about one task.
#[derive(Debug, Default)]
struct Entry {
    kind: Option<Kind>,
    acknowledged: bool,
    unknown: bool,
    /// Every answer said that it is certainly not queued.
    denied: bool,
    rejected: bool,
    /// Tokens, in the order of the ledger.
    starts: Vec<(u64, String)>,
    effects: usize,
}

/// Whether it has no record that ends: what counts is in which queue it lies.
fn is_found_elsewhere(kind: Kind) -> bool {
    !kind.is_task() || kind == Kind::Orphan
}

/// The whole ledger.
#[derive(Debug, Default)]
pub(crate) struct Book(BTreeMap<String, Entry>);

/// What a scenario forgives.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Leniency {
    /// The backend lost what it had acknowledged: the judge is the ledger alone.
    pub(crate) records_lost: bool,
    /// How many effects may have happened once more than needed.
    pub(crate) duplicates: usize,
    /// A worker was paused: what it was granted before, it may tell the ledger after its successor has begun. That is
    /// what tokens are for, so one that comes late is no violation; one that was given twice is.
    pub(crate) paused: bool,
    /// Workers may end by themselves.
    pub(crate) crashes: bool,
}

/// Jepsen's words, and what was violated.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) attempted: usize,
    pub(crate) acknowledged: usize,
    pub(crate) unknown: usize,
    pub(crate) rejected: usize,
    pub(crate) executed: usize,
    pub(crate) lost: usize,
    pub(crate) stuck: usize,
    pub(crate) duplicated: usize,
    pub(crate) unexpected: usize,
    pub(crate) dead: usize,
    /// Steps that the backend's loss has ended.
    pub(crate) upstream: usize,
    pub(crate) violations: Vec<String>,
}

impl Book {
    pub(crate) fn read(text: &str) -> Self {
        let mut book = Self::default();
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let [_, word, id, rest @ ..] = &words[..] else { continue };
            if ["mark", "hold", "wait", "begin", "end", "unique"].contains(word) {
                continue;
            }
            let entry = book.0.entry((*id).to_owned()).or_default();
            match *word {
                "try" => {
                    entry.kind = rest.first().and_then(|kind| Kind::parse(kind));
                    entry.denied = true;
                }
                "ok" => {
                    entry.acknowledged = true;
                    entry.denied = false;
                }
                "unknown" => {
                    entry.unknown = true;
                    entry.denied = false;
                }
                "rejected" => entry.rejected = true,
                "start" => {
                    let token = rest.get(1).and_then(|token| token.parse().ok()).unwrap_or(0);
                    entry.starts.push((token, rest.join(" ")));
                }
                "effect" => entry.effects += 1,
                _ => {}
            }
        }
        book
    }

    /// Tasks with a record to be looked at.
    fn acknowledged(&self) -> Vec<TaskId> {
        let tasks = self
            .0
            .iter()
            .filter(|(_, entry)| entry.acknowledged && !entry.kind.is_some_and(is_found_elsewhere));
        tasks.filter_map(|(id, _)| id.parse().ok()).collect()
    }
}

/// How a task has ended.
type Final = (TaskState, Option<FailureKind>);

/// The final states that were ever seen. A later look that contradicts one is a violation.
#[derive(Debug, Default)]
pub(crate) struct Finals {
    seen: HashMap<TaskId, Final>,
    pub(crate) contradictions: Vec<String>,
}

impl Finals {
    /// Looks at records; those that have not ended.
    async fn look(&mut self, backend: &dyn Backend, ids: &[TaskId]) -> Result<Vec<TaskId>> {
        let mut open = Vec::new();
        for chunk in ids.chunks(CHUNK) {
            for (id, facts) in chunk.iter().zip(backend.read(&records_of(chunk)).await?) {
                let record = fold(id, &facts);
                let now =
                    record.as_ref().map_or((TaskState::Pending, None), |record| (record.state, record.kind));
                match self.seen.get(id) {
                    Some(before) if *before != now => {
                        self.contradictions.push(format!("{id} was {before:?}, then {now:?}"));
                    }
                    None if now.0.is_final() => {
                        self.seen.insert(id.clone(), now);
                    }
                    _ => {}
                }
                if !now.0.is_final() {
                    open.push(id.clone());
                }
            }
        }
        Ok(open)
    }
}

/// Waits until every acknowledged task has ended, or the time is over.
pub(crate) async fn drain(
    house: &House,
    app: &App,
    finals: &mut Finals,
    by_effects: bool,
    limit: Duration,
) -> Result<Duration> {
    let began = Instant::now();
    loop {
        house.interrupt.check()?;
        let book = Book::read(&house.read_ledger()?);
        let open = finals.look(app.backend().as_ref(), &book.acknowledged()).await?;
        let waiting = open.iter().filter(|id| !by_effects || book.owes(id, finals.seen.contains_key(id)));
        let waiting = waiting.count();
        if (waiting == 0 && book.orphans() <= brought(app, &book).await?) || began.elapsed() > limit {
            return Ok(began.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// How many tasks lie in the queue that was deleted.
async fn brought(app: &App, book: &Book) -> Result<u64> {
    if book.orphans() == 0 {
        return Ok(0);
    }
    let depths = app.broker().depth(&[GONE_QUEUE.parse()?]).await?;
    Ok(depths.first().and_then(|depth| depth.ready).unwrap_or_default())
}

impl Book {
    /// How many acknowledged tasks are for the queue that was deleted.
    fn orphans(&self) -> u64 {
        let is_orphan = |entry: &&Entry| entry.acknowledged && entry.kind == Some(Kind::Orphan);
        self.0.values().filter(is_orphan).count() as u64
    }

    /// Whether a task owes its effect or, if it never runs, its end. The end of a root may be lost before anybody looks.
    fn owes(&self, id: &TaskId, seen: bool) -> bool {
        let Some(entry) = self.0.get(id.as_str()) else { return false };
        match entry.kind {
            Some(Kind::Root) | None => false,
            Some(Kind::Never) => !seen,
            Some(Kind::Step) => entry.effects == 0 && !seen,
            Some(kind) => entry.effects == 0 && kind.is_innocent(),
        }
    }
}

/// The judgement, when all is quiet.
pub(crate) async fn judge(
    book: &Book,
    app: &App,
    servers: &Servers,
    finals: &mut Finals,
    leniency: Leniency,
) -> Result<Tally> {
    let mut tally = Tally::default();
    let ids = book.acknowledged();
    finals.look(app.backend().as_ref(), &ids).await?;
    if !leniency.records_lost {
        tally.violations.append(&mut finals.contradictions);
    }
    let mut records: HashMap<String, Record> = HashMap::new();
    for chunk in ids.chunks(CHUNK) {
        for (id, facts) in chunk.iter().zip(app.backend().read(&records_of(chunk)).await?) {
            records.extend(fold(id, &facts).map(|record| (id.to_string(), record)));
        }
    }
    let queues = [QUEUE, OTHER_QUEUE].map(|queue| format!("{queue}.dead"));
    let dead = lying_in(servers, &queues).await.context("dead letters")?;
    let again: &[String] = if book.orphans() > 0 { &[GONE_QUEUE.to_owned()] } else { &[] };
    let brought = lying_in(servers, again).await.context("the queue that was deleted")?;
    tally.dead = dead.len();
    for (id, entry) in &book.0 {
        if entry.kind == Some(Kind::Orphan) {
            tally.add_orphan(id, entry, brought.contains(id));
        } else {
            let seen = id.parse().ok().and_then(|id: TaskId| finals.seen.get(&id).copied());
            tally.add(id, entry, records.get(id), seen, &dead, leniency);
        }
    }
    for id in &dead {
        match book.0.get(id).and_then(|entry| entry.kind) {
            Some(kind) if kind.is_buried() => {}
            // One that waits for what the backend has lost fails in the end.
            Some(Kind::Step | Kind::Never) if leniency.records_lost => {}
            kind => tally.violations.push(format!("innocent dead letter {id} ({kind:?})")),
        }
    }
    if tally.duplicated > leniency.duplicates {
        let allowed = leniency.duplicates;
        tally.violations.push(format!("{} duplicates, the faults explain {allowed}", tally.duplicated));
    }
    Ok(tally)
}

impl Tally {
    /// What came due for a queue that is gone is brought there: the queue is made again, and nobody consumes it here.
    fn add_orphan(&mut self, id: &str, entry: &Entry, brought: bool) {
        self.attempted += 1;
        self.acknowledged += usize::from(entry.acknowledged);
        if entry.acknowledged && !brought {
            self.lost += 1;
            self.violations.push(format!("{id} (orphan) is not in its queue"));
        }
    }

    fn add(
        &mut self,
        id: &str,
        entry: &Entry,
        record: Option<&Record>,
        seen: Option<Final>,
        dead: &BTreeSet<String>,
        leniency: Leniency,
    ) {
        let Some(kind) = entry.kind else {
            self.unexpected += 1;
            return self.violations.push(format!("{id} was executed and never sent"));
        };
        let executed = !entry.starts.is_empty();
        self.attempted += 1;
        self.acknowledged += usize::from(entry.acknowledged);
        self.unknown += usize::from(entry.unknown && !entry.acknowledged);
        self.rejected += usize::from(entry.rejected);
        self.executed += usize::from(executed);
        self.duplicated += entry.effects.saturating_sub(1);
        if entry.denied && executed {
            self.unexpected += 1;
            self.violations.push(format!("{id} was executed, and its sender was told that it is not queued"));
        }
        if entry.rejected {
            self.violations.push(format!("{id} ({}) was rejected", kind.as_str()));
        }
        for pair in entry.starts.windows(2) {
            if pair[0].0 == pair[1].0 || (pair[0].0 > pair[1].0 && !leniency.paused) {
                let (first, second) = (&pair[0].1, &pair[1].1);
                self.violations.push(format!("{id}: the token did not rise: {first}, then {second}"));
            }
        }
        if !entry.acknowledged {
            return;
        }
        if !kind.is_task() {
            if !dead.contains(id) {
                self.lost += 1;
                self.violations.push(format!("{id} is no dead letter"));
            }
            return;
        }
        self.judge_end(id, kind, entry, record, seen, leniency);
        if kind.is_buried() && !dead.contains(id) {
            self.violations.push(format!("{id} ({}) is no dead letter", kind.as_str()));
        }
    }

    fn judge_end(
        &mut self,
        id: &str,
        kind: Kind,
        entry: &Entry,
        record: Option<&Record>,
        seen: Option<Final>,
        leniency: Leniency,
    ) {
        let lost = |(_, kind): Final| match kind {
            Some(FailureKind::Upstream) => true,
            Some(FailureKind::Lost) => leniency.records_lost,
            _ => false,
        };
        let state = record.map_or(TaskState::Pending, |record| record.state);
        let outcome = record.and_then(|record| record.kind);
        let executed = !entry.starts.is_empty();
        let why = || {
            format!(
                "{id} ({}) is {state:?} {outcome:?}, {} starts, {} effects",
                kind.as_str(),
                entry.starts.len(),
                entry.effects
            )
        };
        let done = if leniency.records_lost {
            match kind {
                Kind::Root => true,
                Kind::Step => entry.effects > 0 || seen.is_some_and(lost),
                Kind::Never => seen.is_some_and(lost),
                kind if kind.is_innocent() => entry.effects > 0,
                _ => executed,
            }
        } else {
            state.is_final()
        };
        if !done {
            if executed {
                self.stuck += 1;
            } else {
                self.lost += 1;
            }
            self.violations.push(format!("not ended: {}", why()));
        } else if kind == Kind::Never && (executed || !seen.is_some_and(lost)) {
            self.violations.push(format!("can only have ended because of another: {}", why()));
        } else if state == TaskState::Success && entry.effects == 0 && kind != Kind::Root {
            self.violations.push(format!("success without effect: {}", why()));
        } else if kind == Kind::Step && leniency.records_lost && seen.is_some_and(lost) {
            self.upstream += 1;
        } else if kind.is_innocent() && state == TaskState::Failure {
            self.violations.push(format!("an innocent failed: {}", why()));
        } else if !kind.is_innocent() && state == TaskState::Success {
            self.violations.push(format!("cannot have succeeded: {}", why()));
        }
    }
}

/// The ids of all messages in these queues, read past the adapter. They stay where they are.
async fn lying_in(servers: &Servers, queues: &[String]) -> Result<BTreeSet<String>> {
    let connection = servers.raw_amqp().await?;
    let channel = connection.create_channel().await?;
    let mut found = BTreeSet::new();
    for queue in queues {
        let name = format!("{}:{queue}", servers.namespace);
        // What was got and not acknowledged goes back when the connection closes.
        while let Some(got) = channel.basic_get(name.as_str().into(), BasicGetOptions::default()).await? {
            found.extend(got.delivery.properties.message_id().as_ref().map(ToString::to_string));
        }
    }
    connection.close(200, "done".into()).await?;
    Ok(found)
}

fn records_of(tasks: &[TaskId]) -> Vec<RecordId> {
    tasks.iter().map(RecordId::from).collect()
}
