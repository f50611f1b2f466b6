//! One queue, two languages: tasks of Go machinery (version 2) in workers and clients of machinist.
//!
//! [`MachineryProfile`] is the format of a queue of Go machinery. [`MachineryMirror`] shows the states of its tasks in the
//! Redis of Go, with callbacks and chords. Integers of 64 bits never pass through a float, and
//! fields that are not known here are kept on the way. No code of machinery is part of this crate: it was written from
//! messages and records of the real program.

mod callback;
mod json;
mod mark;
mod mirror;
mod profile;
#[cfg(test)]
mod samples;
mod signature;
mod state;
mod tick;
mod value;

pub use mirror::MachineryMirror;
pub use profile::MachineryProfile;
