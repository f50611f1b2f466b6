//! Exhaustive search over the lease of a worker: its renewals, the backend's clock, and the looks of another worker.
//!
//! The commits are the production functions. Time is a small number, a lease lasts three units, and a request is carried
//! out at any time after it was sent; its reply arrives at any time after that, or never. The search checks in every
//! state that a worker that believes its session is alive is right, and that a session that was gone stays so.

use std::{
    collections::{HashSet, VecDeque},
    time::Duration,
};

use super::super::session::{ShownWork, WorkChange, close_session, is_alive, open_session, renew_session};
use crate::{backend::Commit, clock::Timestamp, id::SessionId, record::Facts};

const LEASE: u8 = 3;
/// Time at which the search ends: long enough for two leases.
const END: u8 = 8;

/// Rule that is broken on purpose: the search must find what it prevents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LeaseMutation {
    /// A renewal does not require the lease.
    RenewedUnchecked,
    /// The worker counts its lease from the reply, not from the request.
    CountedFromReply,
    /// A renewal that was refused is taken for one that was made.
    RefusalIgnored,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Request {
    Open,
    Renew,
    Close,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Pending {
    None,
    /// Sent at this time, not carried out.
    Sent(Request, u8),
    /// Carried out, or refused; the reply is under way.
    Answered(Request, u8, bool),
}

/// The world: one session of one worker.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct LeaseState {
    now: u8,
    record: Facts,
    expires: u8,
    pending: Pending,
    /// A request whose reply the worker does not wait for any more. It may still be carried out.
    stray: Option<Request>,
    /// Time until which the worker believes that its session is alive.
    valid_until: u8,
    opened: bool,
    /// `true` once another worker has found an opened session gone.
    seen_gone: bool,
}

impl LeaseState {
    fn carry_out(&mut self, request: Request, mutation: Option<LeaseMutation>) -> bool {
        let session = SessionId::from("s");
        let lease = Duration::from_micros(u64::from(LEASE));
        let mut commit: Commit = match request {
            Request::Open => {
                let work = ShownWork { runs: "0".into(), ids: "[]".into() };
                open_session(&session, lease, "{}".into(), work)
            }
            Request::Renew => {
                let change = WorkChange { runs: Some(self.now.to_string().into()), ids: None };
                renew_session(&session, lease, change)
            }
            Request::Close => close_session(&session),
        };
        if mutation == Some(LeaseMutation::RenewedUnchecked) {
            commit.facts.append(&mut commit.require);
        }
        if !commit.apply(&mut self.record) {
            return false;
        }
        let time = |at: u8| Timestamp::from_micros(i64::from(at));
        let expires = commit.expiry.at(Some(time(self.expires)), time(self.now));
        self.expires = expires.and_then(|at| u8::try_from(at.as_micros()).ok()).expect("a small number");
        true
    }

    fn next(&self, mutation: Option<LeaseMutation>) -> Vec<Self> {
        let mut next = Vec::new();
        let mut step = |change: &dyn Fn(&mut Self)| {
            let mut state = self.clone();
            change(&mut state);
            next.push(state);
        };
        if self.now < END {
            step(&|state| {
                state.now += 1;
                if state.expires <= state.now {
                    state.record = Facts::new();
                }
            });
        }
        match self.pending {
            Pending::None => {
                let requests: &[Request] =
                    if self.opened { &[Request::Renew, Request::Close] } else { &[Request::Open] };
                for request in requests {
                    step(&|state| {
                        // Nothing runs any more when a worker closes its session.
                        if *request == Request::Close {
                            state.valid_until = 0;
                        }
                        state.opened = true;
                        state.pending = Pending::Sent(*request, state.now);
                    });
                }
            }
            Pending::Sent(request, sent) => {
                step(&|state| {
                    let done = state.carry_out(request, mutation);
                    state.pending = Pending::Answered(request, sent, done);
                });
                // Only renewals are repeated under the same session.
                if request == Request::Renew && self.stray.is_none() {
                    step(&|state| (state.pending, state.stray) = (Pending::None, Some(request)));
                }
            }
            Pending::Answered(request, sent, done) => {
                step(&|state| {
                    state.pending = Pending::None;
                    let from =
                        if mutation == Some(LeaseMutation::CountedFromReply) { state.now } else { sent };
                    if request != Request::Close && (done || mutation == Some(LeaseMutation::RefusalIgnored))
                    {
                        state.valid_until = from + LEASE;
                    }
                });
                step(&|state| state.pending = Pending::None);
            }
        }
        if let Some(request) = self.stray {
            step(&|state| {
                state.stray = None;
                state.carry_out(request, mutation);
            });
        }
        if self.opened && !matches!(self.pending, Pending::Sent(Request::Open, _)) && !is_alive(&self.record)
        {
            step(&|state| state.seen_gone = true);
        }
        next
    }

    fn violation(&self) -> Option<&'static str> {
        if self.now < self.valid_until && !is_alive(&self.record) {
            return Some("a worker believes in a session that is gone");
        }
        (self.seen_gone && is_alive(&self.record)).then_some("a session that was gone came back")
    }
}

/// Searches all states. Returns their number, or the violation and the state that shows it.
fn search(mutation: Option<LeaseMutation>) -> Result<usize, (&'static str, LeaseState)> {
    let start = LeaseState {
        now: 1,
        record: Facts::new(),
        expires: 0,
        pending: Pending::None,
        stray: None,
        valid_until: 0,
        opened: false,
        seen_gone: false,
    };
    let mut seen = HashSet::from([start.clone()]);
    let mut open = VecDeque::from([start]);
    while let Some(state) = open.pop_front() {
        for next in state.next(mutation) {
            if let Some(violation) = next.violation() {
                return Err((violation, next));
            }
            if seen.insert(next.clone()) {
                open.push_back(next);
            }
        }
    }
    Ok(seen.len())
}

#[test]
fn a_worker_that_believes_in_its_session_is_right() {
    let states = search(None).unwrap_or_else(|(violation, state)| panic!("{violation}: {state:#?}"));
    assert!(states > 1_000, "only {states} states: the search has lost its steps");
}

#[test]
fn each_rule_of_the_lease_prevents_something() {
    for mutation in
        [LeaseMutation::RenewedUnchecked, LeaseMutation::CountedFromReply, LeaseMutation::RefusalIgnored]
    {
        assert!(search(Some(mutation)).is_err(), "nothing prevents {mutation:?}");
    }
}
