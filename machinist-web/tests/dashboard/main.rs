//! The dashboard over the in-memory adapters, with a real worker: pages, API, rights, log-in, hostile texts, a real browser.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod actions;
mod browser;
mod hostile;
mod login;
mod mount;
mod pages;
mod rights;
mod support;
