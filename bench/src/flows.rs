//! Workflows to measure: chains, groups with callbacks, chords one after the other.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Result;
use machinist::{
    Arg, Client, Signature,
    workflow::{StepPlan, Workflow},
};

use crate::{
    order::{Order, Told},
    part,
};

/// No workflow takes longer than this.
const PATIENCE: Duration = Duration::from_secs(300);

/// How long after the last member of its group each callback has started.
#[derive(Debug, Clone, Default)]
pub(crate) struct Gaps(Arc<Mutex<Measured>>);

#[derive(Debug, Default)]
struct Measured {
    last_member: Option<Instant>,
    gaps_us: Vec<f64>,
}

impl Gaps {
    /// A member has ended.
    pub(crate) fn member(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).last_member = Some(Instant::now());
    }

    /// A callback starts.
    pub(crate) fn callback(&self) {
        let mut measured = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let gap = measured.last_member.map(|at| at.elapsed().as_secs_f64() * 1e6);
        measured.gaps_us.extend(gap);
    }

    /// All of them, in µs.
    pub(crate) fn all_us(&self) -> Vec<f64> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner).gaps_us)
    }
}

fn task(name: &str, order: &Order) -> Signature {
    Signature::new(name).queue(&order.queue)
}

/// Sends chains, each when the one before it has ended.
pub(crate) async fn chains(client: &Client, order: &Order, length: usize) -> Result<Told> {
    let payload = part::payload(order);
    let watch = part::begin().await?;
    for _ in 0..order.tasks / length {
        let step = |at: usize| {
            let step = StepPlan::new(format!("s{at}"), task("noop", order).arg(payload.as_str()));
            match at.checked_sub(1) {
                Some(before) => step.after([format!("s{before}")]).immutable(),
                None => step,
            }
        };
        let chain = Workflow::of_steps((0..length).map(step).collect())?;
        client.send(chain).await?.wait_record(PATIENCE).await?;
    }
    watch.told(watch.elapsed(), Vec::new(), Vec::new())
}

fn chord(order: &Order, members: usize, payload: &str) -> Result<Workflow> {
    let each = (0..members).map(|_| vec![Arg::from_value(payload.to_owned())]).collect();
    Ok(Workflow::of_steps(vec![
        StepPlan::new("many", task("noop", order)).each(each),
        StepPlan::new("last", task("callback", order)).after(["many"]),
    ])?)
}

/// Sends groups, each with a callback.
pub(crate) async fn groups(client: &Client, order: &Order, members: usize) -> Result<Told> {
    let payload = part::payload(order);
    let members = members.min(order.tasks - 1);
    let watch = part::begin().await?;
    for _ in 0..order.tasks / (members + 1) {
        client.send(chord(order, members, &payload)?).await?;
    }
    watch.told(watch.elapsed(), Vec::new(), Vec::new())
}

/// Sends chords, each when the callback of the one before it has ended.
pub(crate) async fn chords_lone(client: &Client, order: &Order, members: usize) -> Result<Told> {
    let payload = part::payload(order);
    let watch = part::begin().await?;
    for _ in 0..order.tasks / (members + 1) {
        client.send(chord(order, members, &payload)?).await?.wait_record(PATIENCE).await?;
    }
    watch.told(watch.elapsed(), Vec::new(), Vec::new())
}
