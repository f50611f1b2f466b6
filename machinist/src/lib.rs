//! Distributed task queue over RabbitMQ and Redis, or one SQLite file: nothing lost, typed end to end.
