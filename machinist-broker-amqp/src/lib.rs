//! The broker of machinist over AMQP 0.9.1 (RabbitMQ 3.10 or newer), by lapin.
//!
//! [`AmqpBroker`] is the [`Broker`](machinist_core::broker::Broker) to use where several machines share queues
//! and no task may be lost: quorum queues, confirmed publishes, manual acknowledgements, delays that live in the
//! broker. What stands on the broker, and why, is told in `docs/topology.md`.
//!
//! # What it does by itself
//! - It keeps two connections, one for publishing and one for consuming (opened when first needed), each with a
//!   supervisor that reconnects for ever. A broker that blocks publishers does not stop acknowledgements.
//! - It makes the queues that it names, again when somebody deletes them, and subscribes again.
//! - It tells each publisher the fate of its own message, also where the client library mixes them up.
//!
//! # What it deliberately does not
//! It knows nothing of tasks: a message that comes out of its delay early (the ladder holds 49 days) is
//! delivered, and whoever reads its ETA publishes it again.
//!
//! # What others publish
//! A broker passes on whatever it was given: names that are no text, header tables nested thousands deep. lapin takes
//! the first for a broken connection and overflows its stack over the second, again for every worker. Frames are
//! made harmless before lapin reads them, so such a message arrives like any other that nobody believes.
//!
//! # Example
//! ```no_run
//! # async fn example() -> Result<(), machinist_core::broker::BrokerError> {
//! use machinist_broker_amqp::{AmqpBroker, AmqpOptions};
//!
//! let broker = AmqpBroker::connect("amqp://guest:guest@localhost/%2F", AmqpOptions::default()).await?;
//! # drop(broker);
//! # Ok(())
//! # }
//! ```

mod ack_frames;
mod ack_sender;
mod address;
mod argument_mismatch;
mod backoff;
mod broker;
mod connect;
mod convert;
mod declare;
mod depth;
mod diagnose;
mod error;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
mod health;
mod ladder;
mod options;
mod publish_window;
mod publisher;
mod runtime;
mod sanitize;
mod subscription;
mod supervisor;
mod topology;

pub use broker::AmqpBroker;
pub use options::{AmqpOptions, QueueType, TopologyMode};
