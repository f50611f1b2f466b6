//! A step of the host's clock, which is that of the whole process: a separate test program. The time is the server's.

mod common;

use std::sync::Arc;

use async_trait::async_trait;
use common::Namespace;
use machinist_conformance::{BackendHarness, backend, run_backend};
use machinist_core::backend::Backend;

struct Harness(Namespace);

#[async_trait]
impl BackendHarness for Harness {
    async fn connect(&self) -> Arc<dyn Backend> {
        Arc::new(self.0.connect(&self.0.url).await)
    }

    async fn interrupt(&self) -> bool {
        false
    }

    async fn clean_up(&self) {
        self.0.erase().await;
    }
}

#[test]
fn the_time_survives_a_step_of_the_hosts_clock() {
    let harness = async { Namespace::fresh().map(Harness) };
    run_backend(harness, |harness| Box::pin(backend::the_time_survives_a_step_of_the_hosts_clock(harness)));
}
