//! A sender process: a steady rate of tasks, each answer written down.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use machinist::{
    App, QueueName, SendError, Signature,
    broker::{Message, Publish, PublishError, Target},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::Semaphore,
    task::JoinSet,
};

use crate::{connect::Servers, deep, ledger::Ledger, load::Kind};

const TICK: Duration = Duration::from_millis(100);
/// How long a send is tried in one go.
const DEADLINE: Duration = Duration::from_secs(8);
/// How many batches wait for their answers at once; beyond that the sender waits, as a web server would refuse.
const BATCHES: usize = 200;

/// Sends until SIGTERM, then goes on until every answer is there.
#[derive(Debug, clap::Args)]
pub(crate) struct SenderArgs {
    #[command(flatten)]
    servers: Servers,
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    #[arg(long)]
    queue: String,
    /// Tasks a second.
    #[arg(long)]
    rate: usize,
    /// Sends one of these now and then, besides.
    #[arg(long)]
    poison: Option<Kind>,
}

pub(crate) async fn run(args: SenderArgs) -> Result<u8> {
    let ledger = Ledger::of(&args.dir).await?;
    let app = args.servers.app(DEADLINE).await?;
    let sender = Sender { app, ledger, queue: args.queue, servers: args.servers, deep: Semaphore::new(1) };
    let sender = Arc::new(sender);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut ticks = tokio::time::interval(TICK);
    let mut number = 0_u64;
    let mut sent = JoinSet::new();
    let batches = Arc::new(Semaphore::new(BATCHES));
    for tick in 0_u64.. {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = terminate.recv() => break,
        }
        let mut kinds = Vec::new();
        let due = args.rate as u64 * (tick + 1) / 10;
        while number < due {
            kinds.push(Kind::of_mix(number));
            number += 1;
        }
        // What is poison to a process is rarer: each costs five of them.
        let every = if args.poison.is_some_and(Kind::is_deadly) { 40 } else { 10 };
        kinds.extend(args.poison.filter(|_| tick % every == 5));
        let permit = Arc::clone(&batches).acquire_owned().await?;
        let sender = Arc::clone(&sender);
        sent.spawn(async move {
            let answer = sender.send(kinds).await;
            drop(permit);
            answer
        });
        while let Some(done) = sent.try_join_next() {
            done??;
        }
    }
    while let Some(done) = sent.join_next().await {
        done??;
    }
    sender.app.broker().close().await;
    Ok(0)
}

struct Sender {
    app: App,
    ledger: Ledger,
    queue: String,
    servers: Servers,
    /// One deep message at a time: RabbitMQ works for seconds on each, and would be busy with them for long after.
    deep: Semaphore,
}

impl Sender {
    /// Sends a batch until each task is acknowledged or refused; one in four is given up at its first error.
    async fn send(&self, kinds: Vec<Kind>) -> Result<()> {
        let (tasks, strange): (Vec<Kind>, Vec<Kind>) = kinds.into_iter().partition(|kind| kind.is_task());
        let mut batch: Vec<(Signature, bool)> = Vec::new();
        let mut lines = Vec::new();
        for kind in tasks {
            let signature = kind.signature(&self.queue);
            lines.push(format!("try {} {}", signature.id(), kind.as_str()));
            batch.push((signature, rand::random_ratio(1, 4)));
        }
        self.ledger.say(&lines).await?;
        for kind in strange {
            match kind {
                Kind::Deep => {
                    if let Ok(_only) = self.deep.try_acquire() {
                        self.send_deep().await?;
                    }
                }
                _ => self.send_garbage().await?,
            }
        }
        let give_up = Instant::now() + Duration::from_secs(180);
        while !batch.is_empty() && Instant::now() < give_up {
            let signatures = batch.iter().map(|(signature, _)| signature.clone()).collect();
            let answers = self.app.client().send_all(signatures).await;
            let mut lines = Vec::new();
            let mut again = Vec::new();
            for ((signature, gives_up), answer) in batch.into_iter().zip(answers) {
                let (word, retry) = word(answer.err());
                lines.push(format!("{word} {}", signature.id()));
                if retry && !gives_up {
                    again.push((signature, false));
                }
            }
            self.ledger.say(&lines).await?;
            batch = again;
            if !batch.is_empty() {
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
        }
        Ok(())
    }

    /// A message that no program of ours has written.
    async fn send_garbage(&self) -> Result<()> {
        let id = format!("garbage-{}", rand::random::<u64>());
        let message = Message { id: Some(id.clone()), body: "\u{0}not a task".into(), ..Message::default() };
        let target = Target::Queue(QueueName::parse(&self.queue)?);
        self.ledger.say(&[format!("try {id} garbage")]).await?;
        let publish = Publish { target, message, delay: Duration::ZERO };
        let answer = self.app.broker().publish(vec![publish]).await.pop().and_then(Result::err);
        let word = answer.map_or("ok", |error| word_of(&error).0);
        self.ledger.say(&[format!("{word} {id}")]).await
    }
}

impl Sender {
    /// A message whose headers are tables in tables, as many as a frame can hold.
    async fn send_deep(&self) -> Result<()> {
        let id = format!("deep-{}", rand::random::<u64>());
        self.ledger.say(&[format!("try {id} deep")]).await?;
        deep::publish(&self.servers, &self.queue, &id).await?;
        self.ledger.say(&[format!("ok {id}")]).await
    }
}

/// What an answer is called, and whether sending again makes sense.
fn word(error: Option<SendError>) -> (&'static str, bool) {
    match error {
        None => ("ok", false),
        Some(SendError::Publish { source, .. }) => word_of(&source),
        Some(_) => ("rejected", false),
    }
}

fn word_of(error: &PublishError) -> (&'static str, bool) {
    match error {
        PublishError::Unknown(_) | PublishError::Nacked { .. } => ("unknown", true),
        error if error.is_certain() => {
            tracing::warn!(error = error as &dyn std::error::Error, "rejected");
            ("rejected", false)
        }
        _ => ("unsent", true),
    }
}
