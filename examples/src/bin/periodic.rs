//! A periodic task with a time zone, defined in code, and one that is added while the worker runs.
//!
//! ```text
//! cargo run -p machinist-examples --bin periodic
//! ```

#![allow(clippy::print_stdout, reason = "it shows what it does")]

use std::time::Duration;

use machinist::{
    TaskDef,
    periodic::{Misfire, Overlap, Periodic, Schedule},
    prelude::*,
};

const REPORT: TaskDef<String, ()> = TaskDef::new("report");

async fn report(cx: TaskContext, what: String) -> Result<(), TaskError> {
    println!("{}: report of {what}", cx.task_id());
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let app = App::from_env().await?;

    // Every night at three in Berlin, in summer and in winter. If no worker was there, once within six hours.
    let schedule = Schedule::cron("0 3 * * *")?.time_zone("Europe/Berlin")?;
    let nightly = Periodic::new("nightly", schedule, REPORT.call("the night".to_owned()))?
        .misfire(Misfire::Once)
        .catch_up(Duration::from_secs(6 * 3600))
        .overlap(Overlap::Skip);
    let worker = Worker::builder(&app).task(REPORT, report).periodic(nightly).build()?;
    let ready = worker.ready();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let working = tokio::spawn(worker.run_until(async { drop(stopped.await) }));
    ready.cancelled().await;

    // Live: in the backend, until it is removed.
    let client = app.client();
    let every_second = Schedule::every(Duration::from_secs(1))?;
    client.add_periodic(&Periodic::new("beat", every_second, REPORT.call("the second".to_owned()))?).await?;
    tokio::time::sleep(Duration::from_secs(4)).await;
    let extra = client.trigger_periodic("nightly").await?;
    client.result(extra.id).wait(Duration::from_secs(30)).await?;
    for task in client.periodic_tasks().await? {
        let schedule = task.schedule.as_ref().map(ToString::to_string).unwrap_or_default();
        println!("{} ({}): {schedule}, {} ticks so far", task.name, task.source, task.ticks.len());
    }
    client.remove_periodic("beat").await?;

    drop(stop);
    working.await??;
    Ok(())
}
