//! Distributed task queue over RabbitMQ and Redis, or one SQLite file: nothing lost, typed end to end.

pub mod redact;
pub mod settings;
pub mod url;
