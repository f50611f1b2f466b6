//! What this application believes: verification, encryption, and the admission of a message.
//!
//! | module | content |
//! |---|---|
//! | `trust` | the key ring in use: signing, verifying, refusing |
//! | `encryption` | encrypted bodies and outcomes |
//! | `admission` | the decision about a message before its body is parsed |
//!
//! Keys and algorithms are in [`sign`](crate::sign).

mod admission;
pub(crate) mod encryption;
mod trust;

pub(crate) use admission::{Admission, admit};
pub(crate) use encryption::{encrypt_outcome, is_encrypted};
pub(crate) use trust::{Trust, VerifyError};
