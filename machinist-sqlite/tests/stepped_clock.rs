//! A step of the host's clock, which is that of the whole process: a separate test program.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::sync::Arc;

use async_trait::async_trait;
use machinist_conformance::{BackendHarness, backend, run_backend};
use machinist_core::backend::Backend;
use machinist_sqlite::{SqliteOptions, SqliteStore};

struct InFile(tempfile::TempDir);

#[async_trait]
impl BackendHarness for InFile {
    async fn connect(&self) -> Arc<dyn Backend> {
        let path = self.0.path().join("m.db");
        Arc::new(SqliteStore::open(path, SqliteOptions::default()).await.unwrap().backend())
    }

    async fn interrupt(&self) -> bool {
        false
    }
}

#[test]
fn the_time_survives_a_step_of_the_hosts_clock() {
    let harness = async { Some(InFile(tempfile::tempdir().unwrap())) };
    run_backend(harness, |harness| Box::pin(backend::the_time_survives_a_step_of_the_hosts_clock(harness)));
}
