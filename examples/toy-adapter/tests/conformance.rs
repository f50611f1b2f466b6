//! Conformance of the toy backend: one test for each promise.

use std::sync::Arc;

use machinist_adapter::backend::Backend;
use machinist_conformance::BackendHarness;
use machinist_toy_adapter::ToyBackend;

struct Harness(ToyBackend);

#[async_trait::async_trait]
impl BackendHarness for Harness {
    async fn connect(&self) -> Arc<dyn Backend> {
        Arc::new(self.0.clone())
    }

    async fn interrupt(&self) -> bool {
        false
    }
}

async fn harness() -> Option<Harness> {
    Some(Harness(ToyBackend::default()))
}

machinist_conformance::backend_suite!(harness);
