//! The arguments that a decided join gives to the task that has waited for it.

use bytes::Bytes;

use crate::{args::Arg, record::FactName};

/// Results that a join gives.
#[derive(Debug, Clone)]
pub(super) struct Gathered {
    /// Arguments after the task's own.
    pub(super) args: Vec<Arg>,
    /// Fact that every start of the task has in common.
    pub(super) fact: (FactName, Bytes),
    /// Trace contexts of the members' runs, to which the run is linked.
    pub(super) links: Vec<String>,
}
