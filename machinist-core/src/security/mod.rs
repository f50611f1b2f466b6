//! Verification, encryption, and the acceptance of a message.
//!
//! | module | content |
//! |---|---|
//! | `trust` | the key ring in use: signing, verifying, refusing |
//! | `encryption` | encrypted bodies and outcomes |
//! | `member` | the signatures of members of joins |
//! | `queue_rules` | queues with another format, or with tasks that run unsigned |
//! | `order` | orders to workers, and their signatures |
//! | `dead_mark` | the signatures of dead letters' marks |
//! | `statement` | signed texts in the backend |
//! | `acceptance` | the decision about a message before its body is parsed |
//!
//! Keys and algorithms are in [`sign`](crate::sign).

mod acceptance;
mod dead_mark;
pub(crate) mod encryption;
mod member;
mod order;
mod queue_rules;
mod statement;
mod trust;

pub use order::{WorkerAction, WorkerChange};
pub use queue_rules::QueueOptions;

pub(crate) use acceptance::{Acceptance, accept, open};
pub(crate) use encryption::{encrypt_outcome, is_encrypted};
pub(crate) use order::{OrderNote, SwitchSetting, WorkerOrder, next_number};
pub(crate) use queue_rules::QueueRules;
pub(crate) use statement::{Consequence, Statement};
pub(crate) use trust::{Trust, VerifyError};
