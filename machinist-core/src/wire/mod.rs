//! The wire: a signature as headers and a body, within maximum sizes.
//!
//! | module | content |
//! |---|---|
//! | `envelope` | headers, read and written; signing and verifying a message |
//! | `pairs` | name/value pairs, which make a message one of version 2 |
//! | `profile` | formats of other programs |
//! | `task_message` | a task in any format, with what follows it |
//! | `body` | what the sender writes once |
//! | `codec` | a body as bytes |
//! | `sizes` | maximum sizes, checked before anything is parsed |
//! | `dead_letter` | the mark of a dead letter |
//! | `stored_message` | a message as a fact of a record |
//!
//! `docs/wire-format.md` defines the format.

mod body;
mod codec;
mod dead_letter;
mod envelope;
mod pairs;
mod profile;
mod sizes;
mod stored_message;
mod task_message;

pub use codec::Codec;
pub use profile::{Profile, ProfileError};
pub use sizes::MaxSizes;
pub use task_message::{NestedGroup, NestedTask, NestedTasks, TaskMessage};

pub(crate) use body::Body;
pub(crate) use dead_letter::{
    DeadMark, Digest, MarkSignature, MarkedMessage, dead_id, dead_letter, without_mark,
};
pub(crate) use envelope::{Envelope, FirstSigner, MessageSignature, Unreadable, attempt_of};
pub(crate) use pairs::Pairs;
pub(crate) use profile::{ForeignTask, read_foreign, write_foreign};
pub(crate) use sizes::Oversize;
pub(crate) use stored_message::{MAX_STORED_BYTES, message_from_fact, message_to_fact, value_to_fact};
