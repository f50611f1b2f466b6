//! Messages between a worker and the supervisor of one program, over the supervisor's standard input, which is a
//! socket.
//!
//! The worker writes a [`RunOrder`] as one line of JSON, then the program's input, then one byte for each request to
//! end. The supervisor answers with [`Report`]s, one line of JSON each. If the worker is gone, the socket closes, and
//! that is a request to end too.

use std::ffi::OsString;

use serde::{Deserialize, Serialize};

/// First argument of this program when it is started as a supervisor.
pub(crate) const ARGUMENT: &str = "internal-supervise-program";
/// Request to end the program: TERM, and KILL three seconds later.
pub(crate) const TERMINATE: u8 = b't';
/// Request to kill the program at once.
pub(crate) const KILL: u8 = b'k';

/// Program to run, and its surroundings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunOrder {
    pub(crate) program: OsString,
    pub(crate) args: Vec<String>,
    /// The whole environment of the program.
    pub(crate) environment: Vec<(OsString, OsString)>,
    /// Working directory; `None` for that of the worker.
    pub(crate) folder: Option<OsString>,
    /// User that runs the program; `None` for that of the worker.
    pub(crate) user: Option<UserIds>,
    /// Soft limit of open files that the program gets; `None` for that of the worker.
    pub(crate) open_files: Option<u64>,
    /// Number of bytes of its standard input, which follow the line.
    pub(crate) input_bytes: usize,
}

/// User and primary group of a program. It has no other groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UserIds {
    pub(crate) user: u32,
    pub(crate) group: u32,
}

/// Message of a supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Report {
    /// The program is about to be started. If the supervisor ends without this report, nothing of the task has run.
    Starting,
    /// The program runs, with this process id, which is also that of its process group.
    Started(i32),
    /// The program could not be started.
    Failed {
        /// Error number of the system, if it gave one.
        errno: Option<i32>,
        text: String,
    },
    /// The program has ended, and so have the processes that it started.
    Ended {
        /// Wait status of the program.
        status: i32,
        /// Number of its processes that could not be ended.
        left: usize,
    },
}
