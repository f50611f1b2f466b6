//! FlowState of the search over workflows: what broker, backend and workers hold, as small plain values.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::Hash,
    rc::Rc,
};

use bytes::Bytes;

use super::FAULTS;
use crate::record::FailureKind;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct FlowMessage {
    pub(super) child: u16,
    pub(super) generation: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct FlowState {
    /// Records by number, each with the number of its facts.
    pub(super) records: BTreeMap<u16, u32>,
    pub(super) queue: Vec<FlowMessage>,
    pub(super) workers: Vec<FlowWorker>,
    /// Sessions that are alive.
    pub(super) alive: u16,
    pub(super) next_session: u8,
    pub(super) faults_left: [u8; FAULTS],
    /// Data was lost, so that what was promised about arguments may end in FAILURE/lost.
    pub(super) lost: bool,
    /// Records of tasks that the backend has lost, and with them the ends.
    pub(super) lost_records: BTreeSet<u16>,
    /// Arguments with which each task that waits was started.
    pub(super) started: BTreeMap<u16, u32>,
    /// Somebody revokes the workflow, and has looked at so many of its tasks.
    pub(super) revoking: Option<u8>,
    /// Number of commits that a join has seen; for one mutation.
    pub(super) joined: BTreeMap<u16, u8>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct FlowWorker {
    pub(super) session: u8,
    pub(super) delivery: Option<FlowDelivery>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct FlowDelivery {
    pub(super) message: FlowMessage,
    pub(super) settled: bool,
    pub(super) stage: FlowStage,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum FlowStage {
    Open,
    /// Looks at its join; `true` after it has looked at the members' records.
    Look(bool),
    /// Lets members join that have ended.
    Rejoin(Vec<(u8, u16)>),
    Wait,
    PublishGuard,
    StoreGuard,
    /// Ends without a run.
    End(FailureKind),
    /// Requests a start, with these gathered arguments.
    Start(Option<u32>),
    /// Runs, and then records that it has ended so.
    Record(u32, FlowEnd),
    /// Does the act at this position of this list; these records wake.
    Follow(u32, u8, Vec<u16>),
    /// Notes the copy that it has published for the record at the front.
    NoteCopy(u8, Vec<u16>),
    Mark,
    Ack,
}

/// Way in which a run ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum FlowEnd {
    Success,
    Failure,
    /// It was told to end.
    Revoked,
}

/// Work after an end, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum FlowAct {
    Publish(u16),
    EndChild(u16, String),
    JoinChild(u16),
    /// The task itself joins, with this end.
    JoinOwn(Bytes),
}

/// Values that states refer to by number.
#[derive(Debug)]
pub(super) struct Interned<T> {
    pub(super) values: RefCell<Vec<Rc<T>>>,
    pub(super) numbers: RefCell<HashMap<Rc<T>, u32>>,
}

impl<T: Eq + Hash> Interned<T> {
    pub(super) fn new() -> Self {
        Self { values: RefCell::default(), numbers: RefCell::default() }
    }

    pub(super) fn number(&self, value: T) -> u32 {
        if let Some(number) = self.numbers.borrow().get(&value) {
            return *number;
        }
        let value = Rc::new(value);
        let mut values = self.values.borrow_mut();
        let number = u32::try_from(values.len()).expect("fewer than 2^32 values");
        values.push(Rc::clone(&value));
        self.numbers.borrow_mut().insert(value, number);
        number
    }

    pub(super) fn get(&self, number: u32) -> Rc<T> {
        Rc::clone(&self.values.borrow()[number as usize])
    }
}
