//! The client's side of limits: which are in force, and those that people set, change and reset while workers run.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;

use crate::{
    admission::WaitReason,
    backend::{BackendError, Committed},
    client::Client,
    clock::Timestamp,
    control::ControlError,
    error::{ResultError, SendError},
    fleet::WorkerFilter,
    id::{RunId, TaskId},
    left_out::left_out,
    limit::{
        AppliedLimit, KEY_HASH, Limit, LimitTarget,
        bucket::{forget_later, next_start, reset},
        hidden_key, live_limits,
        places::places,
        remove_limit, set_limit, stored_key,
    },
    record::control_record,
    rfc3339,
};

/// Maximum number of waiting tasks that are counted.
const COUNTED: usize = 1000;
/// Time between two tasks that are released after a reset: at most a thousand each second.
const RELEASE_PACE: Duration = Duration::from_millis(1);
/// Time within which workers know a limit that was set live.
const KNOWN_WITHIN: Duration = Duration::from_secs(1);
/// Source of a limit that a person has set.
const LIVE: &str = "live";

/// A limit in force, and its state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LimitInfo {
    /// Target, `task:NAME` or `queue:NAME`.
    pub target: String,
    /// Definition.
    #[serde(flatten)]
    pub limit: Limit,
    /// Key whose state is shown; `None` if the limit has no keys, or none was asked for.
    pub key: Option<String>,
    /// Number of runs that hold places; `None` for a limit with keys if no key was asked for.
    pub running: Option<usize>,
    /// Number of parked tasks, at most 1000. Tasks that wait in a process for a few seconds are not counted.
    pub waiting: Option<usize>,
    /// Time of the next free start.
    #[serde(serialize_with = "rfc3339::if_known")]
    pub next_at: Option<Timestamp>,
    /// `live` if a person has set it, otherwise the workers that have it in their code or configuration.
    pub source: String,
    /// `true` if other workers have another definition for this target. A live limit wins over all of them.
    pub differs: bool,
}

impl Client {
    /// Lists the limits that live workers have and those that were set live.
    ///
    /// # Errors
    /// [`ResultError`] if the backend cannot be asked.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn limits(&self) -> Result<Vec<LimitInfo>, ResultError> {
        let mut found = Vec::new();
        for (target, definitions) in self.known_limits().await? {
            let differs = definitions.len() > 1;
            for (limit, source) in definitions {
                found.push(self.limit_info(&target, limit, source, differs, None).await?);
            }
        }
        Ok(found)
    }

    /// Shows the limits of one target under a key. The keys of encrypted tasks are known to an application that encrypts and
    /// has their signing key.
    ///
    /// # Errors
    /// As [`limits`](Self::limits).
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn limit(
        &self,
        target: &LimitTarget,
        key: Option<&str>,
    ) -> Result<Vec<LimitInfo>, ResultError> {
        let mut found = Vec::new();
        let definitions = self.known_limits().await?.remove(target).unwrap_or_default();
        let differs = definitions.len() > 1;
        for (limit, source) in definitions {
            found.push(self.limit_info(target, limit, source, differs, key).await?);
        }
        Ok(found)
    }

    /// Sets a limit for all workers, in place of what their code and configuration say. Workers know it within a second, and
    /// those that miss the wake-up with their next renewal. What runs goes on.
    ///
    /// After that second, unless the limit is zero, the starts that are reserved more than a few seconds ahead are forgotten, and
    /// the parked tasks are released, at most a thousand each second: they start as the new limit says. The parked tasks of
    /// single keys come back by themselves.
    ///
    /// The limit is signed. A backend that loses its data forgets it.
    ///
    /// # Errors
    /// [`ControlError`]: the limit contradicts itself, cannot be signed, or cannot be stored, or the tasks cannot be released.
    /// Asking again is fine.
    ///
    /// # Cancel safety
    /// A dropped future leaves the limit set or not, and each task released or not.
    pub async fn set_limit(&self, target: &LimitTarget, limit: &Limit) -> Result<(), ControlError> {
        let wrong = |why: String| SendError::Invalid(format!("the limit of {target}: {why}"));
        limit.check().map_err(wrong)?;
        let mut known = self.read(control_record()).await?;
        loop {
            let now = self.app.clock().now();
            let commit = set_limit(target, limit, &known, &self.app.0.trust, now).map_err(wrong)?;
            match self.commit(commit).await? {
                Committed::Done { .. } => break,
                Committed::Refused(newer) => known = newer,
            }
        }
        if limit.is_paused() {
            return Ok(());
        }
        // A task that comes back earlier would find the limit that was before.
        tokio::time::sleep(KNOWN_WITHIN).await;
        let applied = self.applied(target, limit.clone(), None);
        self.forget_later_starts(&applied).await?;
        self.release_limited(&applied).await.map(drop)
    }

    /// Forgets the starts of a limit that are reserved more than a few seconds ahead.
    async fn forget_later_starts(&self, applied: &AppliedLimit) -> Result<(), ControlError> {
        let Some(terms) = applied.terms() else { return Ok(()) };
        let (bucket, by) = (applied.bucket(), RunId::fresh());
        let mut facts = self.read(bucket.clone()).await?;
        while let Some(commit) = forget_later(&facts, &bucket, terms, by.as_str(), self.app.clock().now()) {
            match self.commit(commit).await? {
                Committed::Done { .. } => break,
                Committed::Refused(newer) => facts = newer,
            }
        }
        Ok(())
    }

    /// Releases the tasks that are parked for a limit. Returns their number.
    async fn release_limited(&self, applied: &AppliedLimit) -> Result<usize, ControlError> {
        let mut released = 0;
        for reason in [applied.rate_reason(), applied.places_reason()] {
            released += self.release_parked(&reason, RELEASE_PACE).await?;
        }
        Ok(released)
    }

    /// Removes a limit that was set live, so that those of the workers hold again; forgets the starts that are reserved
    /// under it; and releases its parked tasks, at most a thousand each second. Of a limit with keys, that is done for the
    /// given key. Returns the number of released tasks.
    ///
    /// # Errors
    /// [`ControlError`]. Asking again is fine.
    ///
    /// # Cancel safety
    /// A dropped future leaves the limit removed or not, and each task released or not.
    pub async fn reset_limit(&self, target: &LimitTarget, key: Option<&str>) -> Result<usize, ControlError> {
        self.commit(remove_limit(target)).await?;
        let applied = self.applied(target, Limit::new(), key);
        self.commit(reset(&applied.bucket())).await?;
        self.release_limited(&applied).await
    }

    /// Returns the reasons for which tasks are parked under the known limits, without those of single keys.
    pub(crate) async fn limit_reasons(&self) -> Result<Vec<WaitReason>, ResultError> {
        let reasons = |target: &LimitTarget| {
            let applied = self.applied(target, Limit::new(), None);
            [applied.rate_reason(), applied.places_reason()]
        };
        Ok(self.known_limits().await?.keys().flat_map(reasons).collect())
    }

    /// Returns every definition of each limit, with its source: the live one alone if there is one.
    pub(crate) async fn known_limits(
        &self,
    ) -> Result<BTreeMap<LimitTarget, Vec<(Limit, String)>>, ResultError> {
        let mut known: BTreeMap<LimitTarget, Vec<(Limit, String)>> = BTreeMap::new();
        for worker in self.workers(&WorkerFilter::new()).await? {
            for (target, limit) in worker.limits {
                let Ok(target) = LimitTarget::parse(&target) else { continue };
                let definitions = known.entry(target).or_default();
                match definitions.iter_mut().find(|(known, _)| *known == limit) {
                    Some((_, source)) => source.push_str(&format!(", {}", worker.name)),
                    None => definitions.push((limit, worker.name.clone())),
                }
            }
        }
        let control = self.read(control_record()).await.map_err(ResultError::Backend)?;
        for (target, limit) in live_limits(&control, &self.app.0.trust) {
            known.insert(target, vec![(Limit::clone(&limit), LIVE.to_owned())]);
        }
        Ok(known)
    }

    async fn limit_info(
        &self,
        target: &LimitTarget,
        limit: Limit,
        source: String,
        differs: bool,
        key: Option<&str>,
    ) -> Result<LimitInfo, ResultError> {
        let mut info = LimitInfo {
            target: target.to_string(),
            limit: limit.clone(),
            key: key.map(str::to_owned),
            running: None,
            waiting: None,
            next_at: None,
            source,
            differs,
        };
        if limit.key.is_some() && key.is_none() {
            return Ok(info);
        }
        let applied = self.applied(target, limit, key);
        let records = [applied.bucket(), applied.places()];
        let mut records = self.app.backend().read_each(&records).await.map_err(ResultError::Backend)?;
        let mut last = |what| left_out(what, records.pop().transpose()).map_err(ResultError::Backend);
        let held = last("the places of a limit")?;
        let bucket = last("the starts of a limit")?;
        let now = self.app.clock().now();
        info.next_at = applied.terms().zip(bucket).map(|(terms, bucket)| next_start(&bucket, terms, now));
        info.running = applied.limit.max_running.and(held).map(|held| places(&held).count());
        let mut waiting = 0;
        for reason in [applied.rate_reason(), applied.places_reason()] {
            waiting += self.waiting(&reason).await.map_err(ResultError::Backend)?;
        }
        info.waiting = Some(waiting.min(COUNTED));
        Ok(info)
    }

    async fn waiting(&self, reason: &WaitReason) -> Result<usize, BackendError> {
        Ok(self.parked(reason, COUNTED).await?.len())
    }

    /// Returns the tasks that run under a limit now, under this key.
    ///
    /// # Errors
    /// [`BackendError`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn runs_under_limit(
        &self,
        target: &LimitTarget,
        key: Option<&str>,
    ) -> Result<Vec<TaskId>, BackendError> {
        let facts = self.read(self.applied(target, Limit::new(), key).places()).await?;
        let mut tasks: Vec<_> = places(&facts).filter_map(|(_, holder)| Some(holder?.task)).collect();
        tasks.sort_unstable();
        Ok(tasks)
    }

    /// Returns a limit as it applies to tasks with this key: encrypted ones, if this application encrypts.
    fn applied(&self, target: &LimitTarget, limit: Limit, key: Option<&str>) -> AppliedLimit {
        let trust = &self.app.0.trust;
        let stored = |key| match trust.encrypts() {
            true => hidden_key(trust, KEY_HASH, key),
            false => stored_key(key),
        };
        AppliedLimit::new(target, limit.into(), key.map(stored).as_deref())
    }
}
