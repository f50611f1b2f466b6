//! The broker of machinist over AMQP 0.9.1 (RabbitMQ), by lapin.
