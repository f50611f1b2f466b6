//! What is measured: one line each.

use crate::order::System::{
    self, Ed25519, Ed25519Encrypted, Floor, Hmac, HmacEncrypted, Limited, Machinery, MachineryQuorum,
    Machinist,
};

/// One thing to measure.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) shape: Shape,
    pub(crate) tasks: usize,
    pub(crate) payload: usize,
    /// In the order in which they take turns in the first round.
    pub(crate) systems: &'static [System],
}

/// Who works, and when.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Shape {
    /// The queue is full before the worker begins.
    Drain {
        concurrency: usize,
        sleep_ms: u64,
    },
    SendAll,
    SendEach {
        callers: usize,
    },
    /// Sender and worker begin together.
    Both {
        store: Store,
    },
    Lone,
    /// Chains, one after the other.
    Chains {
        length: usize,
    },
    /// Groups of this many members, each with a callback that is one of the tasks.
    Groups {
        members: usize,
    },
    /// Chords, one after the other: how long after its last member does each callback start?
    ChordsLone {
        members: usize,
    },
    Idle {
        store: Store,
        seconds: u64,
    },
}

/// Where messages and records are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Store {
    Network,
    File { full: bool },
}

const PAIR: &[System] = &[Floor, Machinist];
const ALONE: &[System] = &[Machinist];
const NETWORK: Store = Store::Network;
/// Time for which an idle worker is watched: all that it does once a minute is in it.
const IDLE_SECONDS: u64 = 60;

const fn case(name: &'static str, title: &'static str, shape: Shape, tasks: usize) -> Case {
    Case { name, title, shape, tasks, payload: 100, systems: PAIR }
}

/// The most important first.
pub(crate) const CASES: [Case; 23] = [
    case(
        "drain-256",
        "drain a full queue, concurrency 256",
        Shape::Drain { concurrency: 256, sleep_ms: 0 },
        20_000,
    ),
    case(
        "drain-16",
        "drain a full queue, concurrency 16",
        Shape::Drain { concurrency: 16, sleep_ms: 0 },
        20_000,
    ),
    case(
        "drain-1",
        "drain a full queue, concurrency 1",
        Shape::Drain { concurrency: 1, sleep_ms: 0 },
        20_000,
    ),
    case("send-all", "send in batches of 1000", Shape::SendAll, 20_000),
    case("send-64", "send from 64 callers", Shape::SendEach { callers: 64 }, 20_000),
    case("send-one", "send one by one", Shape::SendEach { callers: 1 }, 2_000),
    case("both", "send and drain at once, concurrency 256", Shape::Both { store: NETWORK }, 20_000),
    case("lone", "lone task: send, run, see the SUCCESS", Shape::Lone, 2_000),
    Case {
        systems: &[Machinist, Hmac, Ed25519, HmacEncrypted, Ed25519Encrypted],
        ..case(
            "signed",
            "unsigned, signed, and encrypted too: send and drain at once",
            Shape::Both { store: NETWORK },
            20_000,
        )
    },
    case(
        "sleep-256",
        "drain tasks of 1 ms, concurrency 256",
        Shape::Drain { concurrency: 256, sleep_ms: 1 },
        10_000,
    ),
    Case {
        payload: 10 * 1024,
        ..case("payload-10k", "send and drain at once, 10 KiB", Shape::Both { store: NETWORK }, 10_000)
    },
    Case {
        payload: 500 * 1024,
        ..case("payload-500k", "send and drain at once, 500 KiB", Shape::Both { store: NETWORK }, 300)
    },
    Case {
        systems: ALONE,
        ..case(
            "sqlite-full",
            "SQLite, `synchronous=FULL`: send and drain at once",
            Shape::Both { store: Store::File { full: true } },
            20_000,
        )
    },
    Case {
        systems: ALONE,
        ..case(
            "sqlite-normal",
            "SQLite, `synchronous=NORMAL`: send and drain at once",
            Shape::Both { store: Store::File { full: false } },
            20_000,
        )
    },
    Case {
        systems: ALONE,
        ..case("chain-10", "chains of 10, one after the other", Shape::Chains { length: 10 }, 1_000)
    },
    Case {
        systems: ALONE,
        payload: 40,
        ..case("group-100", "groups of 100 with a callback", Shape::Groups { members: 100 }, 10_100)
    },
    Case {
        systems: ALONE,
        payload: 40,
        ..case("group-10000", "a group of 10,000 with a callback", Shape::Groups { members: 10_000 }, 10_001)
    },
    Case {
        systems: ALONE,
        payload: 40,
        ..case("single-10000", "10,000 single tasks, for the groups", Shape::Both { store: NETWORK }, 10_000)
    },
    Case {
        systems: ALONE,
        ..case(
            "chord-lone",
            "chords of 10: last member to callback",
            Shape::ChordsLone { members: 10 },
            2_200,
        )
    },
    Case {
        systems: &[Machinist, Machinery, MachineryQuorum],
        ..case(
            "drain-machinery",
            "drain a full queue of Go machinery, concurrency 256",
            Shape::Drain { concurrency: 256, sleep_ms: 0 },
            20_000,
        )
    },
    Case {
        systems: &[Machinist, Limited],
        ..case(
            "limited",
            "a rate for each of 20 keys that lets all start: drain a full queue, concurrency 256",
            Shape::Drain { concurrency: 256, sleep_ms: 0 },
            20_000,
        )
    },
    Case {
        systems: ALONE,
        ..case("idle", "idle worker", Shape::Idle { store: NETWORK, seconds: IDLE_SECONDS }, 1)
    },
    Case {
        systems: ALONE,
        ..case(
            "idle-sqlite",
            "idle worker on SQLite",
            Shape::Idle { store: Store::File { full: true }, seconds: IDLE_SECONDS },
            1,
        )
    },
];

pub(crate) fn names() -> Vec<&'static str> {
    CASES.iter().map(|case| case.name).collect()
}
