//! The dashboard over the in-memory adapters, with a real worker: pages, API, rights, log-in, hostile texts.

mod actions;
mod hostile;
mod login;
mod mount;
mod pages;
mod rights;
mod support;
