//! The words, decisions, worker and client of machinist.
//!
//! This crate knows no network: brokers and backends are behind two seams, [`broker`] and [`backend`].

pub mod backend;
pub mod broker;
pub mod clock;
pub mod diagnose;
pub mod error;
pub mod id;
pub mod record;
