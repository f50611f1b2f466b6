//! The suite that defines what a backend is, over Redis.

mod common;

use std::sync::Arc;

use async_trait::async_trait;
use common::Namespace;
use machinist_conformance::{BackendHarness, Proxy};
use machinist_core::backend::Backend;

struct Harness {
    namespace: Namespace,
    proxy: Proxy,
    through: String,
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
