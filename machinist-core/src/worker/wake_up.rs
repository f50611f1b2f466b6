//! Wake-ups for a record that a worker also looks at in intervals.
//!
//! A backend that is away gives no watch. That is no error here: the next look comes all the same, and asks for it again.

use crate::{
    backend::{Backend, Watch},
    id::RecordId,
};

/// Wake-ups for one record, as far as the backend gives them.
#[derive(Debug)]
pub(super) struct WakeUp {
    pub(super) record: RecordId,
    watch: Option<Watch>,
}

impl WakeUp {
    pub(super) fn new(record: RecordId) -> Self {
        Self { record, watch: None }
    }

    /// Asks for wake-ups, unless they come already. Call it before the record is read.
    pub(super) async fn open(&mut self, backend: &dyn Backend) {
        if self.watch.is_none() {
            match backend.watch(&self.record).await {
                Ok(watch) => self.watch = Some(watch),
                Err(error) => tracing::debug!(record = %self.record, %error, "no wake-ups for a record"),
            }
        }
    }

    /// Completes when the record may have changed. Never completes without a watch, so the caller needs a bound.
    ///
    /// # Cancel safety
    /// Safe: a dropped future loses no wake-up.
    pub(super) async fn changed(&mut self) {
        match &mut self.watch {
            Some(watch) => watch.changed().await,
            None => std::future::pending().await,
        }
    }
}
