//! The result backend of machinist over Redis.
