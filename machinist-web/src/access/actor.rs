//! Author of a request, with the proof of the identity and the address.

use std::net::IpAddr;

use crate::{Right, User, web_error::WebError};

/// Proof of a user's identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IdentityProof {
    /// The dashboard is for everybody on this host.
    Local,
    /// A session that began with a password.
    Session,
    /// A bearer token, which no browser sends by itself.
    Token,
    /// A header of a trusted proxy.
    Proxy,
    /// The application has decided.
    Application,
}

/// Author of a request.
#[derive(Debug, Clone)]
pub(crate) struct Actor {
    pub(crate) user: User,
    pub(crate) proof: IdentityProof,
    /// Address that the request came from, if the server tells it.
    pub(crate) from: Option<IpAddr>,
    /// `true` if nobody may change anything.
    pub(crate) read_only: bool,
}

impl Actor {
    /// Returns `true` if the author has the right, and the dashboard is not read-only.
    pub(crate) fn may(&self, right: Right) -> bool {
        !self.read_only && self.user.has(right)
    }

    /// Refuses an action for which the author has no right.
    ///
    /// # Errors
    /// The right is missing, or the dashboard is read-only.
    pub(crate) fn check(&self, right: Right) -> Result<(), WebError> {
        if self.read_only {
            return Err(WebError::forbidden("this dashboard is read-only")
                .remedy("use a dashboard that is not started with --read-only, or the command line"));
        }
        if self.user.has(right) {
            return Ok(());
        }
        let text = format!("user {:?} does not have the right {right}", self.user.name());
        Err(WebError::forbidden(text).remedy("log in as somebody who has it, or ask for another role"))
    }
}
