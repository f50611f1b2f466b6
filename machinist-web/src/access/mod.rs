//! Access to the dashboard: for everybody on this host, or for those with a password, a token or a trusted proxy.

mod actor;
mod login;
pub(crate) mod origin;
mod passwords;
mod throttle;
mod tokens;
mod watched_file;

use std::{
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum::http::{
    HeaderName,
    header::{AUTHORIZATION, COOKIE},
    request::Parts,
};
use machinist::App;

use crate::{User, UserRole, web_error::WebError};
use passwords::PasswordFile;
use throttle::{TRIES_OF_ADDRESS, TRIES_OF_NAME, Throttle, TryKey};
use tokens::TokenFile;

pub(crate) use actor::{Actor, IdentityProof};
pub(crate) use login::MAX_AGE;
pub use login::end_sessions;
pub use passwords::hash_password;

/// Name of the cookie of a session.
pub(crate) const SESSION_COOKIE: &str = "machinist_session";

/// Error of the configuration of an access.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum AccessError {
    /// A file of users cannot be used.
    #[error("{} {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The problem, with the line.
        problem: String,
    },
    /// A value does not fit.
    #[error("{0}")]
    Invalid(String),
}

/// Decision of an application about who makes a request.
pub trait Authenticator: Send + Sync {
    /// Returns the user who makes the request; `None` if it does not know. A user may be in the extensions of the request,
    /// where a middleware of the application has put it.
    fn user(&self, request: &Parts) -> Option<User>;
}

impl<F: Fn(&Parts) -> Option<User> + Send + Sync> Authenticator for F {
    fn user(&self, request: &Parts) -> Option<User> {
        self(request)
    }
}

/// Proxy that logs people in, and names them in a header.
#[derive(Debug, Clone)]
struct TrustedProxy {
    header: HeaderName,
    addresses: Vec<IpAddr>,
    role: UserRole,
}

/// Access to the dashboard. Ways to log in can be combined; without any, nobody has access.
#[derive(Default)]
pub struct Access {
    is_local: bool,
    passwords: Option<PasswordFile>,
    tokens: Option<TokenFile>,
    proxy: Option<TrustedProxy>,
    authenticator: Option<Arc<dyn Authenticator>>,
    throttle: Throttle,
}

impl Access {
    /// Creates an access that nobody has, until a way to log in is added.
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates the access of everybody on this host, with all rights. It is for a server that listens on a loopback
    /// address: requests for another host are refused, so that no page of another site gets here by a name that leads here.
    pub fn local() -> Self {
        Self { is_local: true, ..Self::default() }
    }

    /// Adds the users of a password file: lines of the form `NAME:ROLE:HASH`, as [`hash_password`] hashes. A changed file is
    /// read again. Nobody but its owner, who is this user or root, may change it.
    ///
    /// # Errors
    /// The file cannot be read, other users can change it, or a line is wrong.
    pub fn password_file(self, path: &Path) -> Result<Self, AccessError> {
        Ok(Self { passwords: Some(PasswordFile::open(path)?), ..self })
    }

    /// Adds the programs of a token file: lines of the form `NAME:ROLE:TOKEN`. They send `Authorization: Bearer TOKEN`. A
    /// changed file is read again. Nobody but its owner, who is this user or root, may change it.
    ///
    /// # Errors
    /// The file cannot be read, other users can change it, or a line is wrong.
    pub fn token_file(self, path: &Path) -> Result<Self, AccessError> {
        Ok(Self { tokens: Some(TokenFile::open(path)?), ..self })
    }

    /// Adds the people whom a proxy has logged in. The header counts only in requests from these addresses, and the proxy
    /// has to remove it from the requests of others. All have the same role.
    ///
    /// # Errors
    /// The header has no name, or there is no address.
    pub fn proxy(self, header: &str, addresses: Vec<IpAddr>, role: UserRole) -> Result<Self, AccessError> {
        let wrong = |problem: &str| AccessError::Invalid(problem.to_owned());
        let header =
            header.parse().map_err(|_| wrong("the name of the proxy's header is no name of a header"))?;
        if addresses.is_empty() {
            return Err(wrong(
                "a header of a proxy needs the addresses of the proxy: from others it is not believed",
            ));
        }
        Ok(Self { proxy: Some(TrustedProxy { header, addresses, role }), ..self })
    }

    /// Lets an application decide who makes a request.
    #[must_use]
    pub fn authenticator(self, authenticator: impl Authenticator + 'static) -> Self {
        Self { authenticator: Some(Arc::new(authenticator)), ..self }
    }

    /// Returns `true` if there is a way to log in, so that the dashboard can be open to a network.
    pub fn is_authenticated(&self) -> bool {
        let Self { passwords, tokens, proxy, authenticator, .. } = self;
        passwords.is_some() || tokens.is_some() || proxy.is_some() || authenticator.is_some()
    }

    /// Returns `true` if people can log in with a password.
    pub(crate) fn has_passwords(&self) -> bool {
        self.passwords.is_some()
    }

    /// Returns `true` if the host that a request names may be asked.
    pub(crate) fn allows_host(&self, host: Option<&str>) -> bool {
        self.is_authenticated() || !self.is_local || host.is_some_and(origin::is_local)
    }

    /// Returns the user who makes a request, and the proof; `None` if nobody is logged in.
    ///
    /// # Errors
    /// A file of users or the backend cannot be read.
    pub(crate) async fn identify(
        &self,
        app: &App,
        request: &Parts,
        from: Option<IpAddr>,
    ) -> Result<Option<(User, IdentityProof)>, WebError> {
        if let Some(user) = self.authenticator.as_ref().and_then(|application| application.user(request)) {
            return Ok(Some((user, IdentityProof::Application)));
        }
        if let (Some(tokens), Some(token)) = (&self.tokens, bearer(request)) {
            let user = tokens.user(token).map_err(|error| WebError::away(error.to_string()))?;
            return Ok(user.map(|user| (user, IdentityProof::Token)));
        }
        if let Some(user) = self.proxy.as_ref().and_then(|proxy| proxy.user(request, from)) {
            return Ok(Some((user, IdentityProof::Proxy)));
        }
        if let (Some(passwords), Some(id)) = (&self.passwords, session_id(request)) {
            let user = login::user(app, passwords, &id).await?;
            return Ok(user.map(|user| (user, IdentityProof::Session)));
        }
        let everybody = (self.is_local && !self.is_authenticated())
            .then(|| (User::new("local", UserRole::Admin), IdentityProof::Local));
        Ok(everybody)
    }

    /// Begins a session for a user with this password, and returns its id.
    ///
    /// # Errors
    /// The password is wrong, too many were wrong, or the backend cannot be asked.
    pub(crate) async fn log_in(
        &self,
        app: &App,
        name: &str,
        password: &str,
        from: Option<IpAddr>,
    ) -> Result<String, LoginError> {
        let Some(passwords) = &self.passwords else { return Err(LoginError::Wrong) };
        let mut keys: Vec<TryKey> = vec![(format!("user {name}"), TRIES_OF_NAME)];
        keys.extend(from.map(|from| (format!("address {from}"), TRIES_OF_ADDRESS)));
        if let Some(wait) = self.throttle.wait(&keys) {
            return Err(LoginError::Wait(wait));
        }
        let Some(entry) = passwords.check(name, password).await.map_err(LoginError::Web)? else {
            self.throttle.count(&keys);
            return Err(LoginError::Wrong);
        };
        login::begin(app, name, &entry).await.map_err(|error| LoginError::Web(error.into()))
    }

    /// Ends the session of a request, if it has one.
    ///
    /// # Errors
    /// The backend cannot be asked.
    pub(crate) async fn log_out(&self, app: &App, request: &Parts) -> Result<(), WebError> {
        match session_id(request) {
            Some(id) => Ok(login::end(app, &id).await?),
            None => Ok(()),
        }
    }
}

/// Reason that nobody is logged in.
#[derive(Debug)]
pub(crate) enum LoginError {
    /// Name or password is wrong; which of them is not told.
    Wrong,
    /// Too many passwords were wrong.
    Wait(Duration),
    /// It could not be checked.
    Web(WebError),
}

impl TrustedProxy {
    fn user(&self, request: &Parts, from: Option<IpAddr>) -> Option<User> {
        let is_trusted = from.is_some_and(|from| self.addresses.contains(&from.to_canonical()));
        // A header that is there twice was not written by the proxy alone.
        let mut names = request.headers.get_all(&self.header).iter();
        let name = names.next().filter(|_| is_trusted && names.next().is_none())?.to_str().ok()?.trim();
        (!name.is_empty()).then(|| User::new(name, self.role))
    }
}

fn bearer(request: &Parts) -> Option<&[u8]> {
    request.headers.get(AUTHORIZATION)?.as_bytes().strip_prefix(b"Bearer ")
}

/// Returns the id of the session in the cookies of a request.
fn session_id(request: &Parts) -> Option<String> {
    let cookies = request.headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs =
        cookies.flat_map(|cookies| cookies.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(name, _)| *name == SESSION_COOKIE).map(|(_, id)| id.to_owned())
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access")
            .field("is_local", &self.is_local)
            .field("passwords", &self.passwords)
            .field("tokens", &self.tokens)
            .field("proxy", &self.proxy)
            .finish_non_exhaustive()
    }
}
