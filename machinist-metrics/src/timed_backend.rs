//! A backend whose calls are timed.

use std::{any::Any, fmt, sync::Arc};

use async_trait::async_trait;
use machinist_core::{
    backend::{Backend, BackendCapabilities, BackendError, Commit, Committed, Index, IndexUpdate, Watch},
    clock::Timestamp,
    diagnose::{Diagnose, Finding},
    id::RecordId,
    record::Facts,
};
use opentelemetry::{
    KeyValue,
    metrics::{BoundHistogram, Histogram},
};
use tokio::time::Instant;

use crate::{catalog::ERROR_TYPE, series::label};

/// Passes every call to another backend, and records how long it takes.
pub(crate) struct TimedBackend {
    inner: Arc<dyn Backend>,
    store: Histogram<f64>,
    system: KeyValue,
    operations: Operations,
}

/// Series of the calls that succeed.
struct Operations {
    commit: BoundHistogram<f64>,
    read: BoundHistogram<f64>,
    index: BoundHistogram<f64>,
    list: BoundHistogram<f64>,
}

const OPERATION: &str = "db.operation.name";

impl TimedBackend {
    pub(crate) fn new(inner: Arc<dyn Backend>, store: Histogram<f64>) -> Self {
        let location = inner.location();
        let scheme = location.split("://").next().unwrap_or_default();
        let system = match scheme {
            "redis" | "rediss" | "redis+sentinel" | "redis+cluster" => "redis",
            "memory" => "memory",
            "postgres" => "postgresql",
            _ if scheme.contains("redis") => "redis",
            _ => "sqlite",
        };
        let system = label("db.system.name", system);
        let bind = |operation| store.bind(&[system.clone(), KeyValue::new(OPERATION, operation)]);
        let operations = Operations {
            commit: bind("commit"),
            read: bind("read"),
            index: bind("update_indexes"),
            list: bind("list"),
        };
        Self { inner, store, system, operations }
    }

    fn note(&self, bound: &BoundHistogram<f64>, name: &'static str, since: Instant, failed: bool) {
        let took = since.elapsed().as_secs_f64();
        if failed {
            let labels = [
                self.system.clone(),
                KeyValue::new(OPERATION, name),
                KeyValue::new(ERROR_TYPE, "unavailable"),
            ];
            self.store.record(took, &labels);
        } else {
            bound.record(took);
        }
    }
}

impl fmt::Debug for TimedBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TimedBackend").field(&self.inner).finish()
    }
}

#[async_trait]
impl Diagnose for TimedBackend {
    fn location(&self) -> String {
        self.inner.location()
    }

    async fn diagnose(&self) -> Vec<Finding> {
        self.inner.diagnose().await
    }
}

#[async_trait]
impl Backend for TimedBackend {
    fn capabilities(&self) -> BackendCapabilities {
        self.inner.capabilities()
    }

    fn adapter(&self) -> Option<&dyn Any> {
        self.inner.adapter()
    }

    async fn commit(&self, batch: Vec<Arc<Commit>>) -> Vec<Result<Committed, BackendError>> {
        let begun = Instant::now();
        let answers = self.inner.commit(batch).await;
        let failed = answers.iter().any(Result::is_err);
        self.note(&self.operations.commit, "commit", begun, failed);
        answers
    }

    async fn read(&self, ids: &[RecordId]) -> Result<Vec<Facts>, BackendError> {
        let begun = Instant::now();
        let answer = self.inner.read(ids).await;
        self.note(&self.operations.read, "read", begun, answer.is_err());
        answer
    }

    async fn read_each(&self, ids: &[RecordId]) -> Result<Vec<Result<Facts, BackendError>>, BackendError> {
        let begun = Instant::now();
        let answer = self.inner.read_each(ids).await;
        self.note(&self.operations.read, "read", begun, answer.is_err());
        answer
    }

    async fn watch(&self, id: &RecordId) -> Result<Watch, BackendError> {
        self.inner.watch(id).await
    }

    async fn now(&self) -> Result<Timestamp, BackendError> {
        self.inner.now().await
    }

    async fn update_indexes(&self, updates: Vec<IndexUpdate>) -> Result<(), BackendError> {
        let begun = Instant::now();
        let answer = self.inner.update_indexes(updates).await;
        self.note(&self.operations.index, "update_indexes", begun, answer.is_err());
        answer
    }

    async fn list(
        &self,
        index: &Index,
        after: Option<(Timestamp, String)>,
        limit: usize,
    ) -> Result<Vec<(Timestamp, String)>, BackendError> {
        let begun = Instant::now();
        let answer = self.inner.list(index, after, limit).await;
        self.note(&self.operations.list, "list", begun, answer.is_err());
        answer
    }
}
