//! The suites that define what a broker and a backend of machinist are.
//!
//! The docs of the seams in `machinist-adapter` say what an adapter promises, and `docs/adapters.md` shows how to keep it.
//! Each promise is one test here, and an adapter is one when they pass. [`broker_suite!`] and [`backend_suite!`] expand to one named `#[test]` per
//! promise, so that a failure names what was broken.
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use machinist_conformance::BrokerHarness;
//! use machinist_core::{broker::{Broker, Message}, id::QueueName};
//! use machinist_memory::MemoryBroker;
//!
//! struct Harness(MemoryBroker);
//!
//! #[async_trait::async_trait]
//! impl BrokerHarness for Harness {
//!     async fn connect(&self) -> Arc<dyn Broker> {
//!         Arc::new(self.0.connect())
//!     }
//!     async fn interrupt(&self) -> bool {
//!         self.0.interrupt();
//!         true
//!     }
//!     async fn dead_letters(&self, queue: &QueueName) -> Vec<Message> {
//!         self.0.dead_letters(queue)
//!     }
//! }
//!
//! // An adapter with a server begins with `let url = service_url("MACHINIST_TEST_AMQP_URL")?;`
//! async fn harness() -> Option<Harness> {
//!     Some(Harness(MemoryBroker::new()))
//! }
//!
//! machinist_conformance::broker_suite!(harness);
//! # fn main() {}
//! ```
//!
//! [`Proxy`] is how a harness interrupts its own connections on a server that it shares with others;
//! [`Authority`] issues certificates for servers that speak TLS; [`service_url`],
//! [`eventually`], [`within`], [`says`], [`any_bytes`], [`header`] and [`without`] are for an adapter's own tests, too.
//!
//! What a suite does not test: speed, and what only one kind of server can do. That belongs to the adapter.

pub mod arrows;
mod authority;
pub mod backend;
pub mod broker;
mod forged;
mod hostile_bytes;
mod plain;
pub mod producer;
mod proxy;
mod service;
mod suite;
mod wait;

pub use authority::{Authority, Papers};
pub use backend::BackendHarness;
pub use broker::BrokerHarness;
pub use forged::{header, without};
pub use hostile_bytes::any_bytes;
pub use plain::says;
pub use proxy::Proxy;
pub use service::{service_url, skip};
#[doc(hidden)]
pub use suite::{run_backend, run_broker};
pub use wait::{eventually, within};
