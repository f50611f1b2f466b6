//! A worker that ends itself exactly at one arrow of the delivery protocol, when it is told to.
//!
//! The order is a file; whoever takes it away carries it out, so that each order ends one process.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use async_trait::async_trait;
use machinist_conformance::arrows::{Side, Step, Witness};

/// Every arrow that everyday load passes.
pub(crate) const ARROWS: [(Step, Side); 13] = [
    (Step::Receive, Side::After),
    (Step::Start, Side::Before),
    (Step::Start, Side::After),
    (Step::Run, Side::Before),
    (Step::Run, Side::After),
    (Step::Record, Side::Before),
    (Step::Record, Side::After),
    (Step::Follow, Side::Before),
    (Step::Follow, Side::After),
    (Step::Mark, Side::Before),
    (Step::Mark, Side::After),
    (Step::Ack, Side::Before),
    (Step::Ack, Side::After),
];

/// Where the order is.
pub(crate) fn file(dir: &Path) -> PathBuf {
    dir.join("arrow")
}

pub(crate) fn words((step, side): (Step, Side)) -> String {
    let side = match side {
        Side::Before => "before",
        Side::After => "after",
    };
    format!("{side} {}", step.name())
}

/// Orders the end of whichever worker comes first to this arrow.
pub(crate) fn order(dir: &Path, arrow: (Step, Side)) -> Result<()> {
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
    async fn at(&self, step: Step, side: Side) {
        let Ok(order) = std::fs::read_to_string(&self.0) else { return };
        if order == words((step, side)) && std::fs::remove_file(&self.0).is_ok() {
            std::process::abort();
        }
    }
}
