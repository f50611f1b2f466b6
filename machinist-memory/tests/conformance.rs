//! Conformance of the in-memory adapters: both suites, and the backend against a naive model.

use std::sync::Arc;

use async_trait::async_trait;
use machinist_adapter::{
    backend::Backend,
    broker::{Broker, Message},
    id::QueueName,
};
use machinist_conformance::{BackendHarness, BrokerHarness};
use machinist_memory::{MemoryBackend, MemoryBroker};

struct InMemory<T>(T);

#[async_trait]
impl BrokerHarness for InMemory<MemoryBroker> {
    async fn connect(&self) -> Arc<dyn Broker> {
        Arc::new(self.0.connect())
    }

    async fn interrupt(&self) -> bool {
        self.0.interrupt();
        true
    }

    async fn dead_letters(&self, queue: &QueueName) -> Vec<Message> {
        self.0.dead_letters(queue)
    }
}

#[async_trait]
impl BackendHarness for InMemory<MemoryBackend> {
    async fn connect(&self) -> Arc<dyn Backend> {
        Arc::new(self.0.clone())
    }

    async fn interrupt(&self) -> bool {
        false
    }
}

async fn broker() -> Option<InMemory<MemoryBroker>> {
    Some(InMemory(MemoryBroker::new()))
}

async fn backend() -> Option<InMemory<MemoryBackend>> {
    Some(InMemory(MemoryBackend::new()))
}

mod broker_suite {
    machinist_conformance::broker_suite!(super::broker);
}

mod backend_suite {
    machinist_conformance::backend_suite!(super::backend);
}

mod model {
    use std::collections::BTreeMap;

    use machinist_adapter::{
        backend::{Committed, Index},
        facts::Facts,
    };
    use machinist_conformance::backend::agreement::{
        AgreementAnswer, AgreementStep, AgreementWorld, Change, sequences,
    };
    use proptest::{prop_assert_eq, proptest};

    /// Naive model of a backend, as plain as the docs of the seam.
    #[derive(Default)]
    struct Model {
        records: BTreeMap<usize, Facts>,
        indexes: BTreeMap<Index, BTreeMap<usize, i64>>,
    }

    impl Model {
        fn answer(&mut self, step: &AgreementStep) -> AgreementAnswer {
            match step {
                AgreementStep::Commit(changes) => {
                    AgreementAnswer::Committed(changes.iter().map(|change| self.commit(change)).collect())
                }
                AgreementStep::Read(tasks) => AgreementAnswer::Records(self.read(tasks)),
                AgreementStep::UpdateIndexes(updates) => {
                    for (index, member, at) in updates {
                        let members = self.indexes.entry(index.clone()).or_default();
                        match at {
                            Some(at) => members.insert(*member, *at),
                            None => members.remove(member),
                        };
                    }
                    AgreementAnswer::Done
                }
                AgreementStep::List(index, after, limit) => {
                    let members = self.indexes.entry(index.clone()).or_default();
                    let mut all: Vec<_> = members.iter().map(|(member, at)| (*at, *member)).collect();
                    all.sort_unstable();
                    all.retain(|entry| after.is_none_or(|after| *entry > after));
                    all.truncate(*limit);
                    AgreementAnswer::Listed(all)
                }
            }
        }

        fn read(&self, tasks: &[usize]) -> Vec<Facts> {
            tasks.iter().map(|task| self.records.get(task).cloned().unwrap_or_default()).collect()
        }

        fn commit(&mut self, change: &Change) -> Committed {
            let record = self.records.entry(change.task).or_default();
            for name in &change.unless {
                if record.has(name) {
                    return Committed::Refused(record.clone());
                }
            }
            for (name, value) in &change.require {
                if record.get(name) != Some(value) {
                    return Committed::Refused(record.clone());
                }
            }
            for (name, value) in &change.equal_or_absent {
                if record.has(name) && record.get(name) != Some(value) {
                    return Committed::Refused(record.clone());
                }
            }
            for name in &change.drop {
                record.remove(name);
            }
            for (name, value) in change.equal_or_absent.iter().chain(&change.facts) {
                if !record.has(name) {
                    record.put(name.clone(), value.clone());
                }
            }
            Committed::Done { count: change.count.then(|| record.iter().count() as u64) }
        }
    }

    proptest! {
        #[test]
        fn the_memory_backend_agrees_with_the_model(steps in sequences(40)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            runtime.block_on(async {
                let backend = super::MemoryBackend::new();
                let world = AgreementWorld::fresh();
                let mut model = Model::default();
                for step in &steps {
                    prop_assert_eq!(world.ask(&backend, step).await, model.answer(step), "to {:?}", step);
                }
                Ok(())
            })?;
        }
    }
}
