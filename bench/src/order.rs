//! What a measured process is told to do, and what it tells afterwards: one line of JSON each way.

use serde::{Deserialize, Serialize};

/// Whose pipeline is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum System {
    /// Written by hand on the bare libraries: the most that the servers give at the same durability.
    Floor,
    /// This project, without keys.
    Machinist,
    /// This project, without keys, with a rate for each key of a task.
    Limited,
    /// This project on a queue of Go machinery, with the states that Go expects.
    Machinery,
    /// The same, on a quorum queue: what is left of the difference when the queue is of the kind that ours is.
    MachineryQuorum,
    /// This project, everything signed with HMAC-SHA256.
    Hmac,
    /// This project, everything signed with Ed25519.
    Ed25519,
    /// This project, everything signed with HMAC-SHA256 and encrypted.
    HmacEncrypted,
    /// This project, everything signed with Ed25519 and encrypted.
    Ed25519Encrypted,
}

impl System {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Floor => "floor",
            Self::Machinist => "machinist",
            Self::Limited => "limited",
            Self::Machinery => "machinery",
            Self::MachineryQuorum => "machinery, quorum",
            Self::Hmac => "hmac",
            Self::Ed25519 => "ed25519",
            Self::HmacEncrypted => "hmac, encrypted",
            Self::Ed25519Encrypted => "ed25519, encrypted",
        }
    }
}

/// Where messages and records go.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Servers {
    Network { amqp: String, redis: String },
    File { path: String, full: bool },
}

/// What a process does.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) enum Duty {
    /// Runs tasks, so many at once, each of which sleeps so long; `wakes` if somebody waits for their ends.
    Work { concurrency: usize, sleep_ms: u64, wakes: bool },
    /// Sends batches, each with one await.
    SendAll { batch: usize },
    /// Sends from so many callers, each of which waits for its own confirm.
    SendEach { callers: usize },
    /// Sends one and waits until it sees the SUCCESS, then the next.
    Lone,
    /// Sends chains of so many tasks, each when the one before it has ended.
    Chains { length: usize },
    /// Sends groups of so many members, each with a callback.
    Groups { members: usize },
    /// Sends chords of so many members, each when the one before it has ended.
    ChordsLone { members: usize },
    /// Subscribes and gets nothing to do.
    Idle { seconds: u64 },
}

/// One measured process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) system: System,
    pub(crate) duty: Duty,
    pub(crate) servers: Servers,
    pub(crate) queue: String,
    pub(crate) tasks: usize,
    /// Bytes of each task's argument.
    pub(crate) payload: usize,
    /// RabbitMQ and Redis, if a worker's samples are to tell their processor time too.
    pub(crate) watched: Option<[u32; 2]>,
}

/// What one process says of its work.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Told {
    /// Of a sender: from the first send to the last answer. Of a worker: from the first call of a handler to the
    /// last.
    pub(crate) seconds: f64,
    /// Processor time of the whole process, from the word to begin to the end of all duties.
    pub(crate) cpu_us: f64,
    pub(crate) peak_rss_kib: u64,
    /// One for each lone task.
    pub(crate) latencies_us: Vec<f64>,
    /// Of a worker, twice a second.
    pub(crate) samples: Vec<Sample>,
    /// Blocks and bytes, in a build that counts them.
    pub(crate) allocated: [u64; 2],
}

/// What a worker was like in the middle of its work.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Sample {
    pub(crate) seconds: f64,
    pub(crate) handled: usize,
    pub(crate) rss_kib: u64,
    pub(crate) cpu_us: f64,
    /// Of RabbitMQ and Redis since they were started, if they are watched.
    pub(crate) servers_cpu_us: [f64; 2],
}
