//! The backend itself: each method of the seam in terms of Redis commands.

use std::{collections::HashSet, fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use machinist_adapter::{
    backend::{Backend, BackendCapabilities, BackendError, Commit, Committed, Index, IndexUpdate, Watch},
    clock::Timestamp,
    diagnose::{Diagnose, Finding},
    facts::Facts,
    id::RecordId,
    tls::{Tls, install_provider},
};

use crate::{
    batch,
    batcher::Batcher,
    channel_watches::ChannelWatches,
    command::{command, instant, put, read, remove, score, scored},
    commit::{KeyedCommit, facts},
    connect::{RedisAddress, RedisTimeouts, explain_tls},
    doctor,
    error::{backend_error, key_error},
    keys::RedisKeys,
    link::{MAX_COMMANDS_PER_BATCH, RedisLinks, ReplicaWait},
    target::RedisTarget,
};

/// Maximum time for which a commit waits for the replicas. Other commands of the connection wait as long.
const MAX_REPLICA_WAIT: Duration = Duration::from_secs(1);

/// Options of a connection beyond its URL.
#[derive(Debug, Clone)]
pub struct RedisOptions {
    /// Prefix of every key: the namespace. Default: `machinist`.
    pub prefix: String,
    /// Time after which a command counts as unanswered; it may have been executed. Default: 5 s.
    pub response_timeout: Duration,
    /// Maximum time to open a connection, login included. Default: 3 s.
    pub connect_timeout: Duration,
    /// Certificates of TLS connections: the trusted ones and the client's. Default: the system's, and
    /// none.
    pub tls: Tls,
    /// `true` if only addresses of this host are dialled, also where sentinels or a cluster name others: for a login that
    /// must not leave this host without TLS. Default: `false`.
    pub loopback_only: bool,
}

impl Default for RedisOptions {
    fn default() -> Self {
        Self {
            prefix: "machinist".to_owned(),
            response_timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(3),
            tls: Tls::default(),
            loopback_only: false,
        }
    }
}

/// A result backend in Redis or Valkey.
///
/// One instance serves a whole process. It holds one connection for commands (one for each tokio runtime that
/// uses it) and, once somebody watches a record, one for wake-ups. Connections that are lost are opened again by
/// the next call; nothing is repeated behind the caller's back.
pub struct RedisBackend {
    location: String,
    keys: RedisKeys,
    links: Arc<RedisLinks>,
    batcher: Batcher<KeyedCommit>,
    watches: ChannelWatches,
}

impl RedisBackend {
    /// Connects and logs in.
    ///
    /// | URL | leads to |
    /// |---|---|
    /// | `redis://[USER[:PASSWORD]@]HOST[:PORT][/DB]` | one server; `rediss://…` over TLS |
    /// | `unix:///PATH[?db=N&user=…&pass=…]` | one server on this host; also `redis+unix://` |
    /// | `redis+sentinel://[USER:PASSWORD@]HOST[:PORT],…/MASTER[/DB]` | the master that these sentinels name |
    /// | `redis+cluster://[USER:PASSWORD@]HOST[:PORT],…` | a cluster, found through any of these nodes |
    ///
    /// `rediss+sentinel` and `rediss+cluster` speak TLS. Sentinels with a separate login take
    /// `?sentinel_user=…&sentinel_password=…`. In user and password `@ / : # ?` are written as `%40 %2F %3A %23
    /// %3F`.
    ///
    /// `?wait_replicas=N` (not for a cluster): a commit is answered after N replicas have confirmed it, and fails as
    /// *unavailable* if they have not within a second. Then a failover to one of them loses nothing that was answered.
    ///
    /// Certificates are checked against those of [`RedisOptions::tls`], and against the host's name.
    ///
    /// # Errors
    /// [`BackendError::Configuration`] for a URL or prefix that cannot be used, [`BackendError::Refused`] for a
    /// wrong password, [`BackendError::Unavailable`] where nobody answers in time.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn connect(url: &str, options: RedisOptions) -> Result<Self, BackendError> {
        let RedisOptions { prefix, response_timeout, connect_timeout, tls, loopback_only } = options;
        let keys = RedisKeys::new(&prefix)?;
        for (name, value) in [("response_timeout", response_timeout), ("connect_timeout", connect_timeout)] {
            if value.is_zero() {
                return Err(BackendError::Configuration(format!("{name} is zero; set it to a few seconds")));
            }
        }
        let parsed = RedisTarget::parse(url, response_timeout)?;
        if parsed.tls {
            install_provider();
        }
        let place = RedisAddress::new(&parsed, tls, loopback_only);
        let patience = RedisTimeouts { connect: connect_timeout, response: response_timeout };
        let wait = (parsed.wait_replicas > 0).then(|| ReplicaWait {
            replicas: parsed.wait_replicas,
            timeout: MAX_REPLICA_WAIT.min(response_timeout / 2),
            channel: keys.replication(),
        });
        let links = Arc::new(RedisLinks::new(&place, patience, &keys.index(&Index::Sessions), wait)?);
        if let Err(error) = Box::pin(links.try_one(redis::cmd("TIME"))).await {
            return Err(match Box::pin(explain_tls(&place, &error, patience)).await {
                Some(what) => BackendError::Refused { reason: format!("{} {what}", parsed.location) },
                None => backend_error(&error),
            });
        }
        let watches = ChannelWatches::new(place, patience, keys.index(&Index::Sessions));
        let batcher = Batcher::new(Arc::clone(&links));
        Ok(Self { location: parsed.location, keys, links, batcher, watches })
    }

    /// Returns the connections for commands.
    pub(crate) fn links(&self) -> Arc<RedisLinks> {
        Arc::clone(&self.links)
    }
}

impl fmt::Debug for RedisBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let location = &self.location;
        let prefix = self.keys.prefix();
        f.debug_struct("RedisBackend")
            .field("location", location)
            .field("prefix", &prefix)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Diagnose for RedisBackend {
    fn location(&self) -> String {
        self.location.clone()
    }

    async fn diagnose(&self) -> Vec<Finding> {
        doctor::examine(&self.links, &self.watches, &self.keys).await
    }
}

#[async_trait]
impl Backend for RedisBackend {
    fn capabilities(&self) -> BackendCapabilities {
        BackendCapabilities { durable: true, shared: true }
    }

    async fn commit(&self, mut batch: Vec<Arc<Commit>>) -> Vec<Result<Committed, BackendError>> {
        if batch.len() == 1
            && self.links.can_batch()
            && let Some(commit) = batch.pop()
        {
            let key = self.keys.record(&commit.id);
            return vec![self.batcher.make(KeyedCommit { key, commit }).await];
        }
        let mut outcomes = Vec::with_capacity(batch.len());
        let key = |commit: &Commit| self.keys.record(&commit.id);
        let mut rest: Vec<KeyedCommit> =
            batch.into_iter().map(|commit| KeyedCommit { key: key(&commit), commit }).collect();
        while !rest.is_empty() {
            let later = rest.split_off(together(&rest));
            // On the heap, so that the future of a single commit stays small.
            match Box::pin(batch::make(&self.links, &rest)).await {
                Ok(made) => outcomes.extend(made),
                // Nobody knows whether these were made: what follows must not overtake them.
                Err(error) => {
                    outcomes.extend(rest.iter().chain(&later).map(|_| Err(backend_error(&error))));
                    break;
                }
            }
            rest = later;
        }
        outcomes
    }

    async fn read(&self, ids: &[RecordId]) -> Result<Vec<Facts>, BackendError> {
        self.read_each(ids).await?.into_iter().collect()
    }

    async fn read_each(&self, ids: &[RecordId]) -> Result<Vec<Result<Facts, BackendError>>, BackendError> {
        let mut records = Vec::with_capacity(ids.len());
        for chunk in ids.chunks(MAX_COMMANDS_PER_BATCH) {
            let cmds = chunk.iter().map(|id| read(&self.keys, id)).collect();
            let answers = self.links.try_all(cmds).await.map_err(|e| backend_error(&e))?;
            for (id, answer) in chunk.iter().zip(answers) {
                records.push(match answer.map_err(|e| key_error(&e, &self.keys.record(id))) {
                    Ok(record) => Ok(facts(record)?),
                    Err(error) if error.is_of_one_record() => Err(error),
                    Err(error) => return Err(error),
                });
            }
        }
        Ok(records)
    }

    async fn watch(&self, id: &RecordId) -> Result<Watch, BackendError> {
        self.watches.watch(self.keys.record(id)).await
    }

    async fn now(&self) -> Result<Timestamp, BackendError> {
        instant(self.links.one(redis::cmd("TIME")).await?)
    }

    async fn update_indexes(&self, updates: Vec<IndexUpdate>) -> Result<(), BackendError> {
        let mut first_error = Ok(());
        for chunk in updates.chunks(MAX_COMMANDS_PER_BATCH) {
            let cmds = chunk.iter().map(|update| match update {
                IndexUpdate::Put { index, at, member } => put(&self.keys.index(index), *at, member),
                IndexUpdate::Remove { index, member } => remove(&self.keys.index(index), member),
            });
            let answers = self.links.try_all(cmds.collect()).await.map_err(|e| backend_error(&e))?;
            for (update, answer) in chunk.iter().zip(answers) {
                let (IndexUpdate::Put { index, .. } | IndexUpdate::Remove { index, .. }) = update;
                let done = answer.map(drop).map_err(|e| key_error(&e, &self.keys.index(index)));
                first_error = first_error.and(done);
            }
        }
        first_error
    }

    async fn list(
        &self,
        index: &Index,
        after: Option<(Timestamp, String)>,
        limit: usize,
    ) -> Result<Vec<(Timestamp, String)>, BackendError> {
        let key = self.keys.index(index);
        let mut page = Vec::new();
        let mut offset = 0;
        // Many members may share the instant of `after`, and all of them up to it are read again to be skipped.
        while page.len() < limit {
            let wanted = (limit - page.len()).clamp(64, 4096);
            let mut cmd = command("ZRANGEBYSCORE", &key);
            match &after {
                Some((at, _)) => cmd.arg(score(*at)),
                None => cmd.arg("-inf"),
            };
            cmd.arg("+inf").arg("WITHSCORES").arg("LIMIT").arg(offset).arg(wanted);
            let answer = self.links.try_one(cmd).await.map_err(|e| key_error(&e, &key))?;
            let entries = scored(answer)?;
            let last = entries.len() < wanted;
            offset += entries.len();
            let is_new = |(at, member): &(Timestamp, String)| {
                after.as_ref().is_none_or(|(a, m)| (score(*at), member) > (score(*a), m))
            };
            page.extend(entries.into_iter().filter(is_new).take(limit - page.len()));
            if last {
                break;
            }
        }
        Ok(page)
    }
}

/// Returns the number of commits, from the first, that share one round trip: two of the same record must be made one
/// after the other even when the first has to wait for a script to be loaded.
fn together(commits: &[KeyedCommit]) -> usize {
    let mut keys = HashSet::with_capacity(commits.len().min(MAX_COMMANDS_PER_BATCH));
    commits.iter().take(MAX_COMMANDS_PER_BATCH).take_while(|commit| keys.insert(&commit.key)).count()
}
