//! Adapters that teach: a result backend whose records are rows of ordered tables, and a wire profile of lines with
//! commas. They follow `docs/adapters.md`, and their tests show what an adapter has to prove.
//!
//! A backend needs `machinist-adapter` alone. Profiles are a trait of `machinist-core`, so a real adapter for a server
//! and a real profile are two crates.

mod backend;
mod profile;

pub use backend::ToyBackend;
pub use profile::CsvProfile;
