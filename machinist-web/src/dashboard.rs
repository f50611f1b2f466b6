//! The dashboard as an application mounts it: its options, and its router.

use std::{collections::BTreeSet, sync::Arc};

use axum::{Router, extract::DefaultBodyLimit, middleware};
use machinist::{App, QueueName, settings::TraceLink};

use crate::{
    access::Access,
    guard::guard,
    pages,
    route::router,
    site::{Site, SiteOptions},
};

/// Maximum size of a request's body, in bytes: 500 ids of dead letters have room.
pub(crate) const MAX_BODY: usize = 256 * 1024;

/// Dashboard of one installation.
#[derive(Debug)]
pub struct Dashboard {
    app: App,
    access: Access,
    options: SiteOptions,
}

impl Dashboard {
    /// Creates the dashboard of an application. What it changes is signed with the keys of the application, and logged.
    pub fn new(app: App, access: Access) -> Self {
        Self { app, access, options: SiteOptions::default() }
    }

    /// Names the installation, on every page.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.options.name = Some(name.into());
        self
    }

    /// Lets nobody change anything.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.options.read_only = true;
        self
    }

    /// Says that every outcome which is read is verified, because the application has a key ring and accepts nothing unsigned.
    /// Without it, pages say that nothing proves an outcome.
    #[must_use]
    pub fn verifies_outcomes(mut self) -> Self {
        self.options.verifies = true;
        self
    }

    /// Links tasks to their traces.
    #[must_use]
    pub fn trace_link(mut self, link: TraceLink) -> Self {
        self.options.trace_link = Some(link);
        self
    }

    /// Hides the arguments of tasks with these names.
    #[must_use]
    pub fn hide_args(mut self, tasks: impl IntoIterator<Item = String>) -> Self {
        self.options.hidden_args = tasks.into_iter().collect::<BTreeSet<_>>();
        self
    }

    /// Lists these queues, even if nobody has used them yet.
    #[must_use]
    pub fn queues(mut self, queues: impl IntoIterator<Item = QueueName>) -> Self {
        self.options.queues = queues.into_iter().collect();
        self
    }

    /// Returns the router, for an application to nest at any path: links in its pages are relative. Call it once and clone
    /// the router: each call has a cache of its panels.
    ///
    /// The address of a client is known only if the server adds [`ConnectInfo`](axum::extract::ConnectInfo), as
    /// `into_make_service_with_connect_info` does. Without it no header of a proxy is believed.
    pub fn router(self) -> Router {
        let site = Arc::new(Site::new(self.app, self.access, self.options));
        router()
            .fallback(pages::unknown_page)
            .layer(DefaultBodyLimit::max(MAX_BODY))
            .layer(middleware::from_fn_with_state(Arc::clone(&site), guard))
            .with_state(site)
    }
}
