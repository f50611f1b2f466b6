//! Broker of machinist over AMQP 0.9.1 (RabbitMQ 3.10 or newer), with lapin.
//!
//! [`AmqpBroker`] is the [`Broker`](machinist_adapter::broker::Broker) to use if several machines share queues and no task
//! may be lost: quorum queues, confirmed publishes, manual acknowledgements, delays that are held in the broker. The
//! exchanges and queues on the broker, and their reasons, are in `docs/topology.md`.
//!
//! # Behavior
//! - It keeps two connections, one for publishing and one for consuming (opened at the first use), each with a
//!   supervisor that reconnects forever. A broker that blocks publishers does not stop acknowledgements.
//! - It declares the queues that it names. If somebody deletes one, it declares the queue and subscribes again.
//! - It returns to each caller the outcome of the message that it published, even if the client library mixes them up.
//!
//! # Non-goals
//! It knows nothing about tasks: a message that comes out of its delay early (the ladder holds 49 days) is delivered, and
//! the worker that reads its ETA publishes it again.
//!
//! # Messages of other clients
//! A broker passes on whatever it was given: names that are not text, header tables that are nested thousands deep. lapin
//! mistakes the first for a broken connection, and overflows its stack on the second; the same happens to every worker.
//! Frames are sanitized before lapin reads them, so such a message arrives like any other that fails its verification.
//!
//! # Example
//! ```no_run
//! # async fn example() -> Result<(), machinist_adapter::broker::BrokerError> {
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
mod connection;
mod convert;
mod death;
mod declare;
mod delete;
mod depth;
mod diagnose;
mod endpoint;
mod error;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
mod health;
mod ladder;
mod management;
mod options;
mod peek;
mod pending_publish;
mod policies;
mod publish_window;
mod publisher;
mod runtime;
mod sanitize;
mod socket;
mod stuck_delays;
mod subscription;
mod supervisor;
mod topology;
mod upkeep;
mod upkeep_state;

pub use broker::AmqpBroker;
pub use options::{AmqpOptions, ExistingQueue, QueueType, TopologyMode};
