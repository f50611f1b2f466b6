//! The connection that is kept, and when it is thrown away.
//!
//! All commands of a runtime share one connection: redis-rs writes what is in flight together, so a thousand tasks
//! cost a handful of round trips. Each runtime has its own, because the half of a connection that reads and writes
//! is a task of the runtime that opened it: a lease renewed from a separate thread must not wait for handlers
//! that block another runtime.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use machinist_adapter::backend::BackendError;
use redis::{Cmd, PushKind, RedisError, RedisResult, Script, Value};
use tokio::runtime::{Handle, Id};

use crate::{
    commit::{SCRIPT, SESSION_SCRIPT},
    connect::{ConnectionSource, RedisAddress, RedisConnection, RedisTimeouts},
    error::{backend_error, not_replicated, script_is_unknown, spoils_connection},
};

/// Maximum number of commands in one batch, so that a batch cannot delay every caller.
pub(crate) const MAX_COMMANDS_PER_BATCH: usize = 256;

/// So many commands in a row without an answer, and the connection is given up: a socket into nowhere never says
/// so by itself.
const MAX_TIMEOUTS_IN_A_ROW: u32 = 2;

/// More runtimes than that do not use one backend at once, although each worker has one more for its session; what is
/// older belongs to runtimes that are gone.
const MAX_RUNTIMES: usize = 64;

/// The kept connections of one backend.
pub(crate) struct RedisLinks {
    source: ConnectionSource,
    slots: Mutex<Vec<(Id, Arc<RuntimeLink>)>>,
    /// Counts lost connections; one that was opened before the last loss may be the one.
    disconnects: Arc<AtomicU64>,
    wait: Option<ReplicaWait>,
}

/// Condition of an answer to a commit: so many replicas have confirmed it.
#[derive(Debug, Clone)]
pub(crate) struct ReplicaWait {
    pub(crate) replicas: u32,
    /// Time that the replicas have.
    pub(crate) timeout: Duration,
    /// Channel of the message that marks the place up to which they have to confirm.
    pub(crate) channel: String,
}

/// The place of one runtime's connection.
#[derive(Default)]
struct RuntimeLink {
    link: Mutex<Option<Arc<CommandLink>>>,
    /// One opens, the others wait for it; with the last failure, which all who waited for it share.
    opening: tokio::sync::Mutex<Option<(Instant, RedisError)>>,
}

struct CommandLink {
    wire: RedisConnection,
    disconnects_before: u64,
    timeouts: AtomicU32,
}

impl RedisLinks {
    pub(crate) fn new(
        place: &RedisAddress,
        patience: RedisTimeouts,
        clock_key: &str,
        wait: Option<ReplicaWait>,
    ) -> Result<Self, BackendError> {
        let disconnects = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&disconnects);
        let source = ConnectionSource::new(
            place,
            patience,
            clock_key,
            Arc::new(move |push| {
                if push.kind == PushKind::Disconnection {
                    counted.fetch_add(1, Ordering::Relaxed);
                }
            }),
        )?;
        Ok(Self { source, slots: Mutex::default(), disconnects, wait })
    }

    /// Returns `true` if one server answers everything, so that callers may share a batch.
    pub(crate) fn can_batch(&self) -> bool {
        !self.source.is_cluster()
    }

    /// One command.
    pub(crate) async fn one(&self, cmd: Cmd) -> Result<Value, BackendError> {
        self.try_one(cmd).await.map_err(|e| backend_error(&e))
    }

    /// Returns what an answer to a commit waits for.
    pub(crate) fn replica_wait(&self) -> Option<&ReplicaWait> {
        self.wait.as_ref()
    }

    /// Calls of the script in one round trip, each with its own outcome; `call` makes the one of that number. With
    /// `replicated` they are answered after the replicas have confirmed them, if that is configured.
    pub(crate) async fn scripts(
        &self,
        count: usize,
        replicated: bool,
        call: impl Fn(usize) -> Cmd + Send,
    ) -> RedisResult<Vec<RedisResult<Value>>> {
        let wait = self.wait.as_ref().filter(|_| replicated);
        let mut answers = self.try_confirmed((0..count).map(&call).collect(), wait).await?;
        // Twice, because somebody may empty the script cache between loading and calling.
        for _ in 0..2 {
            let is_unknown = |answer: &RedisResult<Value>| answer.as_ref().is_err_and(script_is_unknown);
            let unknown: Vec<usize> = (0..count).filter(|&i| is_unknown(&answers[i])).collect();
            if unknown.is_empty() {
                break;
            }
            self.load([&SCRIPT, &SESSION_SCRIPT]).await?;
            let repeated = self.try_confirmed(unknown.iter().map(|&i| call(i)).collect(), wait).await?;
            for (i, answer) in unknown.into_iter().zip(repeated) {
                answers[i] = answer;
            }
        }
        Ok(answers)
    }

    /// Commands in one round trip, and then the confirmation of the replicas.
    ///
    /// All of it goes over one connection, because only its server can say so. A repeated commit changes nothing, so the
    /// server would not wait for it: the message after it is replicated in any case, and replicas confirm in order.
    async fn try_confirmed(
        &self,
        mut cmds: Vec<Cmd>,
        wait: Option<&ReplicaWait>,
    ) -> RedisResult<Vec<RedisResult<Value>>> {
        let Some(ReplicaWait { replicas, timeout, channel }) = wait else { return self.try_all(cmds).await };
        let (mut mark, mut confirm) = (redis::cmd("SPUBLISH"), redis::cmd("WAIT"));
        mark.arg(channel).arg("");
        confirm.arg(*replicas).arg(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
        cmds.extend([mark, confirm]);
        let mut answers = self.try_all(cmds).await?;
        let confirmed = answers.pop().transpose()?;
        answers.pop().transpose()?;
        match confirmed {
            Some(Value::Int(count)) if count >= i64::from(*replicas) => Ok(answers),
            Some(Value::Int(count)) => Err(not_replicated(count, *replicas)),
            _ => Err(not_replicated(0, *replicas)),
        }
    }

    /// Commands in one round trip, each with its own outcome.
    pub(crate) async fn try_all(&self, mut cmds: Vec<Cmd>) -> RedisResult<Vec<RedisResult<Value>>> {
        match cmds.len() {
            0 => Ok(Vec::new()),
            // A single command needs no pipeline around it.
            1 => Ok(vec![self.try_one(cmds.swap_remove(0)).await]),
            _ => {
                let link = self.link().await?;
                let answers = link.wire.clone().all(cmds).await;
                match &answers {
                    Err(error) => self.record_outcome(&link, Err(error)),
                    Ok(each) => {
                        each.iter().for_each(|answer| self.record_outcome(&link, answer.as_ref().map(drop)))
                    }
                }
                answers
            }
        }
    }

    pub(crate) async fn try_one(&self, cmd: Cmd) -> RedisResult<Value> {
        let link = self.link().await?;
        let answer = link.wire.clone().one(cmd).await;
        self.record_outcome(&link, answer.as_ref().map(drop));
        answer
    }

    /// Loads scripts, on every master.
    pub(crate) async fn load<const N: usize>(&self, scripts: [&Script; N]) -> RedisResult<()> {
        let link = self.link().await?;
        let mut wire = link.wire.clone();
        for script in scripts {
            let loaded = match &mut wire {
                RedisConnection::Single(connection) => script.load_async(connection).await,
                RedisConnection::Cluster(connection, ..) => script.load_async(connection).await,
            };
            self.record_outcome(&link, loaded.as_ref().map(drop));
            loaded?;
        }
        Ok(())
    }

    /// Throws a connection away that leads nowhere, or to a server that is no longer the master.
    fn record_outcome(&self, link: &Arc<CommandLink>, outcome: Result<(), &RedisError>) {
        let useless = match outcome {
            Ok(()) => {
                link.timeouts.store(0, Ordering::Relaxed);
                false
            }
            Err(error) if error.is_timeout() => {
                link.timeouts.fetch_add(1, Ordering::Relaxed) + 1 >= MAX_TIMEOUTS_IN_A_ROW
            }
            Err(error) => spoils_connection(error),
        };
        if useless {
            let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            for (_, slot) in &*slots {
                slot.kept().take_if(|kept| Arc::ptr_eq(kept, link));
            }
        }
    }

    async fn link(&self) -> RedisResult<Arc<CommandLink>> {
        let slot = self.slot();
        if let Some(link) = self.sound(&slot) {
            return Ok(link);
        }
        let asked = Instant::now();
        let mut failure = slot.opening.lock().await;
        if let Some(link) = self.sound(&slot) {
            return Ok(link);
        }
        // Otherwise each of a thousand waiters would try a dead server for the whole timeout, one after another.
        if let Some((when, error)) = &*failure
            && *when >= asked
        {
            return Err(error.clone());
        }
        let disconnects_before = self.disconnects.load(Ordering::Relaxed);
        // On the heap: what it takes to open a connection weighs over 100 KB, and would be part of every command's
        // future.
        match Box::pin(self.source.open()).await {
            Ok(wire) => {
                let link = Arc::new(CommandLink { wire, disconnects_before, timeouts: AtomicU32::new(0) });
                *slot.kept() = Some(Arc::clone(&link));
                Ok(link)
            }
            Err(error) => {
                *failure = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    fn slot(&self) -> Arc<RuntimeLink> {
        let runtime = Handle::current().id();
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, slot)) = slots.iter().find(|(id, _)| *id == runtime) {
            return Arc::clone(slot);
        }
        if slots.len() >= MAX_RUNTIMES {
            slots.remove(0);
        }
        let slot = Arc::<RuntimeLink>::default();
        slots.push((runtime, Arc::clone(&slot)));
        slot
    }

    /// The kept connection, unless it may be the one that was lost.
    fn sound(&self, slot: &RuntimeLink) -> Option<Arc<CommandLink>> {
        let disconnects = self.disconnects.load(Ordering::Relaxed);
        let link = slot.kept();
        link.as_ref()
            .filter(|link| link.disconnects_before == disconnects || self.source.is_cluster())
            .cloned()
    }
}

impl RuntimeLink {
    fn kept(&self) -> MutexGuard<'_, Option<Arc<CommandLink>>> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
