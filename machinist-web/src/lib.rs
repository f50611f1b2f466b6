//! Dashboard of machinist in a browser, and its JSON API, as an axum `Router`.
//!
//! ```no_run
//! use machinist::{App, AppExt};
//! use machinist_web::{Access, Dashboard};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let app = App::from_env().await?;
//! let access = Access::new().password_file("users.txt".as_ref())?;
//! let dashboard = Dashboard::new(app, access).name("shop, production").router();
//! let service = axum::Router::new().nest("/jobs", dashboard);
//! # let _served = service;
//! # Ok(())
//! # }
//! ```
//!
//! Nobody has access until a way to log in is configured: see [`Access`]. All pages are rendered here, and work without
//! script. The script makes the first page live and shows times in the zone of the reader. `docs/dashboard.md` describes the
//! pages, the API, and what has to be true of a proxy in front of it.

mod access;
mod actions;
mod api;
mod call_args;
mod dashboard;
mod day;
mod guard;
mod link;
mod overview;
mod pages;
mod panel;
mod redaction;
mod rights;
mod route;
mod server;
mod sight;
mod site;
mod visit;
mod web_error;

pub use access::{Access, AccessError, Authenticator, end_sessions, hash_password};
pub use dashboard::Dashboard;
pub use redaction::ArgsRedaction;
pub use rights::{Right, User, UserRole};
pub use server::serve;

/// Description of the API, after OpenAPI 3.1.
const OPENAPI: &str = include_str!("assets/openapi.json");

/// The example of `docs/dashboard.md` is compiled.
#[cfg(doctest)]
#[doc = include_str!("../../docs/dashboard.md")]
struct DocsOfDashboard;
