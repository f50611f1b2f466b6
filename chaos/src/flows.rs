//! Workflows under faults: what is sent, and what each of their tasks must come to.
//!
//! Every task of a workflow has an id that follows from the root's, so the ledger is told of all of them before the workflow
//! is sent. A task that gets the results of others checks their sum, and fails if it is another.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use machinist::{
    App, Arg, Rest, Signature, State, TaskContext, TaskDef, TaskError,
    workflow::{Policy, StepPlan, Workflow, chain, chord},
};
use serde_json::Value;

use crate::{
    house::{House, QUEUE, Setup},
    ledger::Ledger,
    load::Kind,
};

/// Number of members of each group.
const MEMBERS: usize = 10;
/// How long one workflow is sent again while the broker is away.
const SENT_WITHIN: Duration = Duration::from_secs(90);
/// A callback whose members' records are lost waits for them for as long as results are kept. Here that is shorter than a
/// scenario may take.
pub(crate) const RESULTS_KEPT_S: u64 = 40;
/// What a task does is in the argument that begins with this.
const ROLE: &str = "step:";

/// The one task of all workflows. Its arguments are what it does, and the results of others.
pub(crate) const STEP: TaskDef<Rest<Value>, i64> = TaskDef::new("step");
/// The same task, as it follows others.
const FIRST: TaskDef<String, i64> = TaskDef::new("step");
const NEXT: TaskDef<(String, i64), i64> = TaskDef::new("step");
const ALL: TaskDef<(String, Vec<i64>), i64> = TaskDef::new("step");

/// Runs a step, telling the ledger.
pub(crate) async fn run(
    cx: TaskContext,
    State(ledger): State<Ledger>,
    Rest(args): Rest<Value>,
) -> Result<i64, TaskError> {
    let about = format!("{} {} {} {}", cx.task_id(), cx.attempt(), cx.fencing_token(), std::process::id());
    ledger.say(&[format!("start {about}")]).await?;
    let role = args.iter().filter_map(Value::as_str).find_map(|text| text.strip_prefix(ROLE));
    match role.unwrap_or_default() {
        "one" | "tell" => {}
        "fails" => return Err(TaskError::permanent("never")),
        expected => {
            let sum: i64 = args.iter().map(sum).sum();
            if expected.parse() != Ok(sum) {
                return Err(TaskError::permanent(format!("the results are {sum}, and should be {expected}")));
            }
        }
    }
    tokio::time::sleep(Duration::from_millis(rand::random_range(0..300))).await;
    ledger.say(&[format!("effect {about}")]).await?;
    Ok(1)
}

/// Returns the sum of all results in an argument.
fn sum(arg: &Value) -> i64 {
    match arg {
        Value::Number(number) => number.as_i64().unwrap_or(0),
        Value::Array(values) => values.iter().map(sum).sum(),
        Value::Object(outcome) => outcome.get("results").map_or(0, sum),
        _ => 0,
    }
}

/// A workflow, and its tasks.
struct Flow {
    workflow: Workflow,
    tasks: Vec<(String, Kind)>,
}

impl Flow {
    fn of(steps: Vec<StepPlan>, tasks: impl IntoIterator<Item = (String, Kind)>) -> Result<Self> {
        Ok(Self::with(Workflow::of_steps(steps)?, tasks))
    }

    /// The tasks are given without the root's id.
    fn with(workflow: Workflow, tasks: impl IntoIterator<Item = (String, Kind)>) -> Self {
        let root = workflow.id().clone();
        let tasks = tasks.into_iter().map(|(path, kind)| (format!("{root}.{path}"), kind));
        let tasks = std::iter::once((root.to_string(), Kind::Root)).chain(tasks).collect();
        Self { workflow, tasks }
    }
}

fn role(role: &str) -> String {
    format!("{ROLE}{role}")
}

fn call(what: &str) -> Signature {
    Signature::new("step").arg(role(what)).queue(QUEUE)
}

/// Five tasks, one after the other.
fn chain_of_five() -> Result<Flow> {
    let names = ["a", "b", "c", "d", "e"];
    let steps = names.iter().enumerate().map(|(at, name)| match at.checked_sub(1) {
        None => StepPlan::new(*name, call("one")),
        Some(before) => StepPlan::new(*name, call("1")).after([names[before]]),
    });
    Flow::of(steps.collect(), names.map(|name| (name.to_owned(), Kind::Step)))
}

/// A group, its callback, and what follows that; `policy` says what one failing member means.
fn chord_of_ten(policy: Option<Policy>) -> Result<Flow> {
    let goes_on = policy != Some(Policy::Fail);
    let failing = policy.map(|_| MEMBERS - 1);
    let member = |at| if Some(at) == failing { "fails" } else { "one" };
    let each = (0..MEMBERS).map(|at| vec![Arg::from_value(role(member(at)))]).collect();
    let results = MEMBERS - usize::from(failing.is_some());
    let mut many = StepPlan::new("many", Signature::new("step").queue(QUEUE))
        .each(each)
        .on_failure(policy.unwrap_or_default());
    let mut steps = Vec::new();
    let mut tasks: Vec<(String, Kind)> = (0..MEMBERS)
        .map(|at| (format!("many.{at}"), if Some(at) == failing { Kind::Failing } else { Kind::Step }))
        .collect();
    if failing.is_some() {
        many = many.on_error(["tell"]);
        steps.push(StepPlan::new("tell", call("tell")));
        tasks.push(("tell".to_owned(), Kind::Step));
    }
    steps.push(many);
    steps.push(StepPlan::new("total", call(&results.to_string())).after(["many"]));
    steps.push(StepPlan::new("end", call("1")).after(["total"]));
    let follows = if goes_on { Kind::Step } else { Kind::Never };
    tasks.extend(["total", "end"].map(|name| (name.to_owned(), follows)));
    Flow::of(steps, tasks)
}

/// A group of chains, its callback, and what follows that.
fn nested() -> Flow {
    let queued = |signature: Signature<i64>| signature.queue(QUEUE);
    let member = |_| chain(queued(FIRST.call(role("one")))).then(NEXT.with((role("1"),)).options(queued));
    let members: Vec<_> = (0..MEMBERS).map(member).collect();
    let total = ALL.with((role(&MEMBERS.to_string()),)).options(queued);
    let workflow = chord(members, total).then(NEXT.with((role("1"),)).options(queued));
    let members = (0..MEMBERS).flat_map(|at| [format!("s0.{at}"), format!("s0.{at}.s1")]);
    let tasks = members.chain(["s1".to_owned(), "s2".to_owned()]).map(|path| (path, Kind::Step));
    Flow::with(workflow.typed(), tasks)
}

/// One of each.
fn all() -> Result<Vec<Flow>> {
    Ok(vec![
        chain_of_five()?,
        chord_of_ten(None)?,
        chord_of_ten(Some(Policy::Fail))?,
        chord_of_ten(Some(Policy::Collect))?,
        chord_of_ten(Some(Policy::Tolerate(1)))?,
        nested(),
    ])
}

/// Sends so many of each until each is acknowledged.
pub(crate) async fn send(house: &House, app: &App, count: usize) -> Result<()> {
    let client = app.client();
    for _ in 0..count {
        for flow in all()? {
            let lines = flow.tasks.iter().map(|(id, kind)| format!("try {id} {}", kind.as_str()));
            house.say(&lines.collect::<Vec<_>>()).await?;
            let until = Instant::now() + SENT_WITHIN;
            // The same root: what was sent before is the same workflow.
            while let Err(error) = client.send(flow.workflow.clone()).await {
                house.interrupt.check()?;
                if Instant::now() > until {
                    bail!("a workflow was not sent within {SENT_WITHIN:?}: {error}");
                }
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
            let lines = flow.tasks.iter().map(|(id, _)| format!("ok {id}"));
            house.say(&lines.collect::<Vec<_>>()).await?;
        }
    }
    Ok(())
}

/// What sends: past the proxies, and connected before any fault.
pub(crate) async fn sender(house: &House) -> Result<App> {
    house.direct.app(Duration::from_secs(10)).await
}

/// Nothing but workflows.
pub(crate) fn setup(usual: Setup) -> Setup {
    Setup { load: false, ..usual }
}

/// Judges effects that happened more than once: only a worker that died leaves one that is not recorded.
pub(crate) fn judge_repeated(ledger: &str, gone: &[u32]) -> Vec<String> {
    let gone: HashSet<String> = gone.iter().map(u32::to_string).collect();
    let mut effects: HashMap<&str, Vec<&str>> = HashMap::new();
    for line in ledger.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        if let [_, "effect", id, .., worker] = words[..] {
            effects.entry(id).or_default().push(worker);
        }
    }
    let unexplained = effects.iter().filter_map(|(id, workers)| {
        let (_, before) = workers.split_last()?;
        let alive: Vec<_> = before.iter().filter(|worker| !gone.contains(**worker)).collect();
        (!alive.is_empty()).then(|| format!("{id} had its effect again, and {alive:?} have not died"))
    });
    unexplained.collect()
}
