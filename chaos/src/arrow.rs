//! A worker that ends itself exactly at one arrow of the delivery protocol, when it is told to.
//!
//! The order is a file; whoever takes it away carries it out, so that each order ends one process.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use async_trait::async_trait;
use machinist_conformance::arrows::{ArrowStep, Side, Witness};

/// Every arrow that everyday load passes.
pub(crate) const ARROWS: [(ArrowStep, Side); 13] = [
    (ArrowStep::Receive, Side::After),
    (ArrowStep::Start, Side::Before),
    (ArrowStep::Start, Side::After),
    (ArrowStep::Run, Side::Before),
    (ArrowStep::Run, Side::After),
    (ArrowStep::Record, Side::Before),
    (ArrowStep::Record, Side::After),
    (ArrowStep::Follow, Side::Before),
    (ArrowStep::Follow, Side::After),
    (ArrowStep::Mark, Side::Before),
    (ArrowStep::Mark, Side::After),
    (ArrowStep::Ack, Side::Before),
    (ArrowStep::Ack, Side::After),
];

/// Every further arrow that workflows pass.
pub(crate) const FLOW_ARROWS: [(ArrowStep, Side); 8] = [
    (ArrowStep::Continue, Side::Before),
    (ArrowStep::Continue, Side::After),
    (ArrowStep::Never, Side::Before),
    (ArrowStep::Never, Side::After),
    (ArrowStep::Join, Side::Before),
    (ArrowStep::Join, Side::After),
    (ArrowStep::PublishGuard, Side::After),
    (ArrowStep::StoreGuard, Side::After),
];

/// Where the order is.
pub(crate) fn file(dir: &Path) -> PathBuf {
    dir.join("arrow")
}

pub(crate) fn words((step, side): (ArrowStep, Side)) -> String {
    let side = match side {
        Side::Before => "before",
        Side::After => "after",
    };
    format!("{side} {}", step.name())
}

/// Orders the end of whichever worker comes first to this arrow.
pub(crate) fn order(dir: &Path, arrow: (ArrowStep, Side)) -> Result<()> {
    // Renamed, so that nobody reads half an order.
    let draft = dir.join("arrow.new");
    std::fs::write(&draft, words(arrow)).context("cannot write an order")?;
    std::fs::rename(draft, file(dir)).context("cannot give an order")
}

/// Carries the orders out.
#[derive(Debug)]
pub(crate) struct Executor(pub(crate) PathBuf);

#[async_trait]
impl Witness for Executor {
    async fn at(&self, step: ArrowStep, side: Side) {
        let Ok(order) = std::fs::read_to_string(&self.0) else { return };
        if order == words((step, side)) && std::fs::remove_file(&self.0).is_ok() {
            std::process::abort();
        }
    }
}
