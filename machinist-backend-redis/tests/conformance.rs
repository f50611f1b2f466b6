//! The suite that defines what a backend is, over Redis.

mod common;

use std::sync::Arc;

use async_trait::async_trait;
use common::Namespace;
use machinist_conformance::{BackendHarness, Proxy};
use machinist_core::{
    backend::{Backend, Index},
    id::RecordId,
};

struct Harness {
    namespace: Namespace,
    proxy: Proxy,
    through: String,
}

impl Harness {
    /// Replaces a key by one of another type.
    async fn overwrite(&self, name: &str) -> bool {
        let key = format!("{}:{name}", self.namespace.prefix);
        let mut door = self.namespace.side_door().await;
        redis::cmd("SET").arg(key).arg("x").exec_async(&mut door).await.expect("SET");
        true
    }
}

#[async_trait]
impl BackendHarness for Harness {
    async fn connect(&self) -> Arc<dyn Backend> {
        Arc::new(self.namespace.connect(&self.through).await)
    }

    async fn interrupt(&self) -> bool {
        self.proxy.cut();
        true
    }

    async fn spoil(&self, id: &RecordId) -> bool {
        self.overwrite(&format!("{}:{{{}}}", id.kind().as_str(), id.id())).await
    }

    async fn spoil_index(&self, index: &Index) -> bool {
        self.overwrite(&format!("index:{}", index.name())).await
    }

    async fn clean_up(&self) {
        self.namespace.erase().await;
    }
}

async fn harness() -> Option<Harness> {
    let namespace = Namespace::fresh()?;
    let (proxy, through) = Proxy::before(&namespace.url).await.expect("a free port");
    Some(Harness { namespace, proxy, through })
}

machinist_conformance::backend_suite!(harness);
