//! Nothing runs that was not signed by a key the worker trusts: over the in-memory adapters, under paused time.

mod hostile;
mod keys;
mod recipe;
mod support;
mod unsigned;
