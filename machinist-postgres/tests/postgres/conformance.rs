//! Both conformance suites. Every connection is a separate store, as in another process.

use std::sync::Arc;

use async_trait::async_trait;
use machinist_conformance::{BackendHarness, BrokerHarness, Proxy};
use machinist_core::{
    backend::{Backend, Index},
    broker::{Broker, Consume, Message},
    id::{QueueName, RecordId},
};

use crate::support::{self, Schema};

struct Harness {
    schema: Schema,
    proxy: Proxy,
    through: String,
}

async fn harness() -> Option<Harness> {
    let schema = Schema::fresh()?;
    let (proxy, through) = support::proxy(&schema.url).await;
    Some(Harness { schema, proxy, through })
}

#[async_trait]
impl BrokerHarness for Harness {
    async fn connect(&self) -> Arc<dyn Broker> {
        Arc::new(self.schema.connect_through(&self.through).await.broker())
    }

    /// A cut alone loses no claim: it is as if the process had been away for longer than its lease.
    async fn interrupt(&self) -> bool {
        self.schema.expire_leases().await;
        self.proxy.cut();
        true
    }

    async fn dead_letters(&self, queue: &QueueName) -> Vec<Message> {
        // This harness reads the dead letters as messages of a task queue.
        let opened = QueueName::parse(&format!("{queue}.opened")).unwrap();
        let moved = format!(
            "UPDATE {{s}}.messages SET dead = false, queue = '{opened}' WHERE dead AND queue = '{queue}'"
        );
        self.schema.run(&moved).await;
        let broker = self.schema.connect().await.broker();
        let consume = Consume { queues: vec![opened.clone()], prefetch: u16::MAX };
        let count = format!("SELECT count(*) FROM {{s}}.messages WHERE queue = '{opened}'");
        let count = self.schema.count(&count).await;
        let mut consumer = broker.consume(consume).await.unwrap();
        let mut letters = Vec::new();
        for _ in 0..count {
            letters.push(consumer.next().await.unwrap().message);
        }
        letters
    }

    async fn clean_up(&self) {
        self.schema.drop().await;
    }
}

#[async_trait]
impl BackendHarness for Harness {
    async fn connect(&self) -> Arc<dyn Backend> {
        Arc::new(self.schema.connect_through(&self.through).await.backend())
    }

    async fn interrupt(&self) -> bool {
        self.proxy.cut();
        true
    }

    async fn spoil(&self, id: &RecordId) -> bool {
        let door = self.schema.side_door().await;
        // With a new version: a write that has read the row before must not undo this.
        let sql = format!(
            "INSERT INTO \"{}\".records (kind, name, facts) VALUES ($1, $2, 'x') \
             ON CONFLICT (kind, name) DO UPDATE SET facts = 'x', version = DEFAULT",
            self.schema.name
        );
        door.execute(&sql, &[&id.kind().as_str(), &id.id()]).await.unwrap();
        true
    }

    async fn spoil_index(&self, index: &Index) -> bool {
        let door = self.schema.side_door().await;
        let sql = format!("INSERT INTO \"{}\".notes (list, member, at) VALUES ($1, $2, 1)", self.schema.name);
        door.execute(&sql, &[&&*index.name(), &"\\x"]).await.unwrap();
        true
    }

    async fn clean_up(&self) {
        self.schema.drop().await;
    }
}

mod broker_suite {
    machinist_conformance::broker_suite!(super::harness);
}

mod backend_suite {
    machinist_conformance::backend_suite!(super::harness);
}
