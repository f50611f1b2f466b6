//! A graph with a failure: a step fails, what follows it does not run, somebody is told, and a retry runs only the rest.
//!
//! ```text
//! cargo run -p machinist-examples --bin deploy
//! ```
//!
//! It runs on an SQLite file in the current directory, or on the servers of `MACHINIST_BROKER` and `MACHINIST_BACKEND` (with
//! `--features servers`).

#![allow(clippy::print_stdout, reason = "it shows what it does")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use machinist::{prelude::*, workflow::graph};

const BUILD: TaskDef<String, String> = TaskDef::new("deploy.build");
const CHECK: TaskDef<String, bool> = TaskDef::new("deploy.check");
const UPLOAD: TaskDef<String, String> = TaskDef::new("deploy.upload");
const SWITCH: TaskDef<(bool, String), String> = TaskDef::new("deploy.switch");
const PAGE: TaskDef<String, ()> = TaskDef::new("deploy.page");

const SOON: Duration = Duration::from_secs(30);

/// `true` once the server has room.
#[derive(Clone)]
struct Room(Arc<AtomicBool>);

async fn build(version: String) -> Result<String, TaskError> {
    println!("build {version}");
    Ok(format!("app-{version}.tar"))
}

async fn check(archive: String) -> Result<bool, TaskError> {
    println!("check {archive}");
    Ok(true)
}

async fn upload(State(room): State<Room>, archive: String) -> Result<String, TaskError> {
    println!("upload {archive}");
    if !room.0.load(Ordering::Relaxed) {
        return Err(TaskError::permanent("no space left on the server"));
    }
    Ok(format!("/srv/{archive}"))
}

async fn switch(checked: bool, path: String) -> Result<String, TaskError> {
    println!("switch to {path}");
    Ok(if checked { path } else { "nothing".to_owned() })
}

/// Gets the error's text.
async fn page(error: String) -> Result<(), TaskError> {
    println!("page: {error}");
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let app = App::from_env().await?;
    let room = Room(Arc::default());
    let worker = Worker::builder(&app)
        .state(room.clone())
        .task(BUILD, build)
        .task(CHECK, check)
        .task(UPLOAD, upload)
        .task(SWITCH, switch)
        .task(PAGE, page)
        .build()?;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let worker = tokio::spawn(worker.run_until(async { drop(stopped.await) }));

    let deploy = graph(|graph| {
        let archive = graph.named("build", BUILD.call("7"));
        let checked = graph.named("check", CHECK.after(&archive));
        let uploaded = graph.named("upload", UPLOAD.after(&archive));
        graph.named("switch", SWITCH.after((&checked, &uploaded)))
    });
    let client = app.client();
    // The error callback gets the error's text as its argument.
    let deployed = client.send(deploy.on_error(Signature::new("deploy.page")).name("deploy")).await?;
    let root = deployed.workflow_id().cloned().ok_or_else(|| anyhow::anyhow!("a workflow was sent"))?;
    if let Err(error) = deployed.wait(SOON).await {
        println!("failed: {error}");
    }
    ended(&client, &root).await?;

    // Somebody makes room, and sends the workflow again: what has succeeded is not run a second time.
    room.0.store(true, Ordering::Relaxed);
    let again = client.retry_workflow(&root).await?.typed::<String>();
    println!("deployed to {}", again.wait(SOON).await?);

    drop(stop);
    worker.await??;
    Ok(())
}

/// Waits until every step has ended, and prints how.
async fn ended(client: &Client, root: &machinist::TaskId) -> anyhow::Result<()> {
    for _ in 0..300 {
        let Some(status) = client.workflow(root).await? else { anyhow::bail!("{root} is no workflow") };
        if status.progress.done == status.progress.total {
            for step in status.steps {
                let kind = step.kind.map(|kind| format!(" ({kind})")).unwrap_or_default();
                println!("  {:7} {}{kind}", step.name, step.state);
            }
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    anyhow::bail!("{root} has not ended")
}
