//! Random sequences of operations, answered alike by every backend.
//!
//! The other promises were thought of by somebody. These sequences were not: they are drawn, a failing one is
//! shrunk, and what it must answer is what `MemoryBackend` answers. That `MemoryBackend` itself answers right is
//! shown against a naive model in this crate's own tests.

use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::Duration,
};

use bytes::Bytes;
use machinist_core::{
    backend::{Backend, Commit, Committed, Expiry, Index, IndexUpdate},
    clock::{Timestamp, wall},
    id::{RecordId, TaskId},
    record::{FactName, Facts},
};
use machinist_memory::MemoryBackend;
use proptest::{
    collection::vec,
    prelude::{Strategy, any, prop_oneof},
    sample::select,
    test_runner::{Config, TestCaseError, TestRunner},
};
use tokio::runtime::Handle;

use super::BackendHarness;
use crate::wait::{ANSWER_TIMEOUT, within};

/// One operation. Tasks and index members are small numbers, so that operations meet; a [`AgreementWorld`] gives
/// each number a name that no other run has.
#[derive(Debug, Clone)]
pub enum AgreementStep {
    /// Commits of one batch.
    Commit(Vec<Change>),
    /// A read of tasks.
    Read(Vec<usize>),
    /// Notes of one call: index, member, and an instant or its removal.
    UpdateIndexes(Vec<(Index, usize, Option<i64>)>),
    /// A page of an index.
    List(Index, Option<(i64, usize)>, usize),
}

/// A [`Commit`] of a numbered task.
#[derive(Debug, Clone)]
pub struct Change {
    /// The task's number.
    pub task: usize,
    /// [`Commit::unless`].
    pub unless: Vec<FactName>,
    /// [`Commit::require`].
    pub require: Vec<(FactName, Bytes)>,
    /// [`Commit::equal_or_absent`].
    pub equal_or_absent: Vec<(FactName, Bytes)>,
    /// [`Commit::drop`].
    pub drop: Vec<FactName>,
    /// [`Commit::facts`].
    pub facts: Vec<(FactName, Bytes)>,
    /// [`Commit::expiry`]; never short enough to be observed.
    pub expiry: Expiry,
    /// [`Commit::wake`].
    pub wake: bool,
    /// [`Commit::count`].
    pub count: bool,
}

/// A backend's answer to a [`AgreementStep`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AgreementAnswer {
    /// Nothing that could differ.
    Done,
    /// Answers to commits.
    Committed(Vec<Committed>),
    /// Answer to a read.
    Records(Vec<Facts>),
    /// Answer to a list: instants and members by number.
    Listed(Vec<(i64, usize)>),
}

/// Number of tasks and members.
const NUMBERS: usize = 3;
const HOUR: Duration = Duration::from_secs(3600);
const FACTS: [&str; 5] = ["name", "s:1:1", "s:1:2", "o:1", "end"];
const VALUES: [&[u8]; 3] = [b"", b"1", b"\xff\0"];

/// Sequences of up to `longest` operations.
pub fn sequences(longest: usize) -> impl Strategy<Value = Vec<AgreementStep>> {
    vec(step(), 1..=longest)
}

fn step() -> impl Strategy<Value = AgreementStep> {
    let index = || select(&Index::ALL[..]);
    let numbers = || vec(0..NUMBERS, 0..5);
    let update = (index(), 0..NUMBERS, proptest::option::of(0..3i64));
    prop_oneof![
        10 => vec(change(), 1..4).prop_map(AgreementStep::Commit),
        2 => numbers().prop_map(AgreementStep::Read),
        2 => vec(update, 0..4).prop_map(AgreementStep::UpdateIndexes),
        2 => (index(), proptest::option::of((0..3i64, 0..NUMBERS)), 0..5usize)
            .prop_map(|(index, after, limit)| AgreementStep::List(index, after, limit)),
    ]
}

fn change() -> impl Strategy<Value = Change> {
    let name = || select(&FACTS[..]).prop_map(FactName::from);
    let value = || select(&VALUES[..]).prop_map(Bytes::from_static);
    let expiry = select(vec![Expiry::Keep, Expiry::After(HOUR), Expiry::AfterUnlessSet(HOUR)]);
    let pairs = |most| vec((name(), value()), 0..most);
    let names = || vec(name(), 0..2);
    let guards = (names(), pairs(2), pairs(2), names());
    (0..NUMBERS, guards, pairs(4), expiry, any::<(bool, bool)>()).prop_map(
        |(task, (unless, require, equal_or_absent, drop), facts, expiry, (wake, count))| Change {
            task,
            unless,
            require,
            equal_or_absent,
            drop,
            facts,
            expiry,
            wake,
            count,
        },
    )
}

/// The names of one run on one backend.
#[derive(Debug)]
pub struct AgreementWorld {
    tasks: [TaskId; NUMBERS],
    prefix: String,
    /// The instant 0 of this run: earlier runs on the same backend lie before it.
    base: Timestamp,
}

impl AgreementWorld {
    /// Names that nobody else has.
    pub fn fresh() -> Self {
        static LAST: AtomicI64 = AtomicI64::new(0);
        let behind = LAST.fetch_add(10, Ordering::Relaxed);
        Self {
            tasks: std::array::from_fn(|_| TaskId::fresh()),
            prefix: format!("{}:", uuid::Uuid::new_v4()),
            base: Timestamp::from_micros(wall().as_micros() + behind),
        }
    }

    /// Asks a backend.
    ///
    /// # Panics
    /// If it fails, or takes too long.
    pub async fn ask(&self, backend: &dyn Backend, step: &AgreementStep) -> AgreementAnswer {
        within(ANSWER_TIMEOUT, "an answer", self.answer(backend, step)).await
    }

    async fn answer(&self, backend: &dyn Backend, step: &AgreementStep) -> AgreementAnswer {
        const FINE: &str = "a backend that is there answers";
        match step {
            AgreementStep::Commit(changes) => {
                let answers =
                    backend.commit(changes.iter().map(|change| self.commit(change).into()).collect()).await;
                AgreementAnswer::Committed(answers.into_iter().map(|answer| answer.expect(FINE)).collect())
            }
            AgreementStep::Read(tasks) => {
                AgreementAnswer::Records(backend.read(&self.ids(tasks)).await.expect(FINE))
            }
            AgreementStep::UpdateIndexes(updates) => {
                backend
                    .update_indexes(updates.iter().map(|update| self.index_update(update)).collect())
                    .await
                    .expect(FINE);
                AgreementAnswer::Done
            }
            AgreementStep::List(index, after, limit) => {
                let after = after.map_or_else(
                    || (self.at(-1), String::new()),
                    |(at, member)| (self.at(at), self.member(member)),
                );
                let page = backend.list(index, Some(after), *limit).await.expect(FINE);
                AgreementAnswer::Listed(page.into_iter().map(|entry| self.entry(&entry)).collect())
            }
        }
    }

    fn ids(&self, tasks: &[usize]) -> Vec<RecordId> {
        tasks.iter().map(|number| RecordId::from(&self.tasks[*number])).collect()
    }

    fn at(&self, instant: i64) -> Timestamp {
        Timestamp::from_micros(self.base.as_micros() + instant)
    }

    fn member(&self, number: usize) -> String {
        format!("{}{number}", self.prefix)
    }

    fn entry(&self, (at, member): &(Timestamp, String)) -> (i64, usize) {
        let number = member.strip_prefix(&self.prefix).and_then(|number| number.parse().ok());
        (at.as_micros() - self.base.as_micros(), number.expect("only members of this run are listed"))
    }

    fn commit(&self, change: &Change) -> Commit {
        Commit {
            id: RecordId::from(&self.tasks[change.task]),
            unless: change.unless.clone(),
            require: change.require.clone(),
            equal_or_absent: change.equal_or_absent.clone(),
            drop: change.drop.clone(),
            facts: change.facts.clone(),
            expiry: change.expiry,
            wake: change.wake,
            count: change.count,
        }
    }

    fn index_update(&self, (index, member, at): &(Index, usize, Option<i64>)) -> IndexUpdate {
        let index = index.clone();
        let member = self.member(*member);
        match at {
            Some(at) => IndexUpdate::Put { index, at: self.at(*at), member },
            None => IndexUpdate::Remove { index, member },
        }
    }

    /// Removes what would stay forever: the records without expiry and the members of indexes.
    async fn forget(&self, backend: &dyn Backend) {
        let drop = || FACTS.map(FactName::from).to_vec();
        let commits = self.tasks.iter().map(|id| Commit { drop: drop(), ..Commit::new(id.clone()) });
        let answers = backend.commit(commits.map(Into::into).collect()).await;
        let all =
            Index::ALL.iter().flat_map(|index| (0..NUMBERS).map(move |number| (index.clone(), number, None)));
        let updated = backend.update_indexes(all.map(|update| self.index_update(&update)).collect()).await;
        assert!(updated.is_ok() && answers.iter().all(Result::is_ok), "a backend that is there answers");
    }
}

/// Draws `cases` sequences and asks two backends the same; a difference is shrunk to the shortest sequence.
///
/// # Panics
/// If they differ.
async fn expect_agreement(one: &dyn Backend, other: &dyn Backend, cases: u32) {
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 500, ..Config::default() };
    let check = async |steps: &[AgreementStep]| {
        let here = AgreementWorld::fresh();
        let there = AgreementWorld::fresh();
        for (number, step) in steps.iter().enumerate() {
            let answer = here.ask(one, step).await;
            let reference = there.ask(other, step).await;
            if answer != reference {
                let place = format!("step {number} of {steps:#?}");
                return Err(TestCaseError::fail(format!("{answer:?} instead of {reference:?} at {place}")));
            }
        }
        here.forget(one).await;
        Ok(())
    };
    let handle = Handle::current();
    let outcome = tokio::task::block_in_place(|| {
        TestRunner::new(config).run(&sequences(40), |steps| handle.block_on(check(&steps)))
    });
    if let Err(difference) = outcome {
        panic!("{difference}");
    }
}

/// Random sequences of operations get the answers that `MemoryBackend` gives.
pub async fn backend_agrees_with_memory(harness: &dyn BackendHarness) {
    expect_agreement(&*harness.connect().await, &MemoryBackend::new(), 128).await;
}
