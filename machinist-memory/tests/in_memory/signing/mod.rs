//! Nothing runs that was not signed by a key the worker trusts: over the in-memory adapters, under paused time.

mod again;
mod hostile;
mod keys;
mod recipe;
mod refused;
mod revoking;
mod scope;
mod secrecy;
mod sizes;
mod support;
mod time;
mod unsigned;
mod versions;
mod workflow_recipe;
