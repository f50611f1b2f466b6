//! Seams that brokers and result backends implement, and the values that cross them.
//!
//! An adapter depends on this crate alone: it moves opaque messages or remembers write-once facts, and knows nothing
//! about the delivery protocol, codecs or keys. `machinist-core` builds the protocol on the same seams.
//!
//! | module | content |
//! |---|---|
//! | [`broker`] | the seam to message brokers: publish, consume, settle |
//! | [`backend`] | the seam to result backends: commit, read, watch, sessions, indexes |
//! | [`facts`] | the set of facts that a record holds |
//! | [`diagnose`] | findings about a server, for people |
//! | [`id`] | names and identities |
//! | [`clock`] | backend time as one process knows it |
//! | [`columns`] | facts and headers in columns of a database |
//! | [`header`] | names of machinist's message headers |
//! | [`error`] | errors as sources, and their text |
//! | [`url_list`] | lists of URLs in one text |
//! | `tls` | certificates and keys of TLS connections (feature `tls`) |
//!
//! The suites of `machinist-conformance` define what an adapter promises.

pub mod backend;
pub mod broker;
pub mod clock;
pub mod columns;
pub mod diagnose;
pub mod error;
pub mod facts;
pub mod header;
pub mod id;
#[cfg(feature = "tls")]
pub mod tls;
pub mod url_list;
