//! Commits of many tasks in few round trips.
//!
//! redis-rs writes a command as soon as it comes, and a system call for each costs either side more than the
//! command itself. So commits that come while others are on their way wait for those and then go together; one that
//! comes alone goes at once. In a cluster nothing is gathered: a node that does not answer would hold up the rest.

use std::{
    mem,
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use machinist_core::backend::{BackendError, Commit, Committed};
use tokio::{
    runtime::{Handle, Id},
    sync::{mpsc, oneshot},
};

use crate::{
    batch,
    commit::Keyed,
    error::{meaning, no_answer},
    link::{CHUNK, Links},
};

/// How many groups are on their way at once. With one, a server far away would be idle for most of the time; with
/// many there would be nothing to gather.
const UNDER_WAY: usize = 2;

/// About how many bytes travel together, so that few large commits cannot outlast the patience of all.
const BYTES: usize = 1024 * 1024;

/// Where commits are gathered: one place for each runtime, as for connections.
pub(crate) struct Gathering {
    links: Arc<Links>,
    desks: Mutex<Vec<(Id, mpsc::UnboundedSender<Job>)>>,
}

struct Job {
    keyed: Keyed,
    caller: oneshot::Sender<Result<Committed, BackendError>>,
}

impl Gathering {
    pub(crate) fn new(links: Arc<Links>) -> Self {
        Self { links, desks: Mutex::default() }
    }

    /// Makes one commit of the record under `key`, perhaps together with others.
    pub(crate) async fn commit(&self, key: String, commit: Arc<Commit>) -> Result<Committed, BackendError> {
        let (caller, told) = oneshot::channel();
        let gone = || no_answer("the task that writes records is gone");
        self.desk().send(Job { keyed: Keyed { key, commit }, caller }).map_err(|_| gone())?;
        told.await.map_err(|_| gone())?
    }

    /// The way to this runtime's task, which ends with the last of these.
    fn desk(&self) -> mpsc::UnboundedSender<Job> {
        let runtime = Handle::current().id();
        let mut desks = self.desks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, desk)) = desks.iter().find(|(id, desk)| *id == runtime && !desk.is_closed()) {
            return desk.clone();
        }
        // Those of runtimes that are gone.
        desks.retain(|(_, desk)| !desk.is_closed());
        let (desk, jobs) = mpsc::unbounded_channel();
        tokio::spawn(work(Arc::clone(&self.links), jobs));
        desks.push((runtime, desk.clone()));
        desk
    }
}

async fn work(links: Arc<Links>, mut jobs: mpsc::UnboundedReceiver<Job>) {
    let mut under_way = FuturesUnordered::new();
    let mut group = Vec::with_capacity(CHUNK);
    loop {
        tokio::select! {
            count = jobs.recv_many(&mut group, CHUNK), if under_way.len() < UNDER_WAY => match count {
                0 => break,
                _ => under_way.push(make(&links, mem::replace(&mut group, Vec::with_capacity(CHUNK)))),
            },
            Some(()) = under_way.next() => {}
        }
    }
    // Nobody can ask any more, and some still wait.
    while under_way.next().await.is_some() {}
}

/// Makes the commits of a group and tells each caller.
async fn make(links: &Links, mut jobs: Vec<Job>) {
    // Whoever stopped waiting wanted it made or not made, as it comes.
    jobs.retain(|job| !job.caller.is_closed());
    while !jobs.is_empty() {
        let later = jobs.split_off(together(&jobs));
        let now = mem::replace(&mut jobs, later).into_iter().map(|job| (job.keyed, job.caller));
        let (commits, callers): (Vec<_>, Vec<_>) = now.unzip();
        let outcomes = match batch::make(links, &commits).await {
            Ok(outcomes) => outcomes,
            Err(error) => commits.iter().map(|_| Err(meaning(&error))).collect(),
        };
        for (caller, outcome) in callers.into_iter().zip(outcomes) {
            if let Err(Err(error)) = caller.send(outcome) {
                tracing::debug!(%error, "a commit was not made, and who asked for it has stopped waiting");
            }
        }
    }
}

/// How many jobs from the first one travel together; at least one.
fn together(jobs: &[Job]) -> usize {
    let mut bytes = 0;
    let fits = jobs.iter().take_while(|job| {
        bytes += size(&job.keyed.commit);
        bytes <= BYTES
    });
    fits.count().max(1)
}

fn size(commit: &Commit) -> usize {
    commit.facts.iter().chain(&commit.equal_or_absent).map(|(name, value)| name.len() + value.len()).sum()
}

#[cfg(test)]
mod tests {
    use machinist_core::id::TaskId;

    use super::*;

    #[test]
    fn large_commits_travel_apart() {
        let job = |bytes: usize| {
            let mut commit = Commit::new(TaskId::fresh());
            commit.facts = vec![("end".into(), vec![b'x'; bytes].into())];
            Job { keyed: Keyed { key: "k".to_owned(), commit: commit.into() }, caller: oneshot::channel().0 }
        };
        assert_eq!(together(&[job(10), job(10)]), 2);
        assert_eq!(together(&[job(10), job(BYTES), job(10)]), 1);
        assert_eq!(together(&[job(2 * BYTES), job(10)]), 1, "one that is larger goes alone");
    }
}
