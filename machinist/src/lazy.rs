//! An application that connects in the background: a web server starts while the broker is away.

use std::{future::Future, sync::Arc, time::Duration};

use machinist_core::{App, AppBuilder, AsyncResult, SendError, workflow::Sendable};
use tokio::{sync::watch, task::AbortHandle};

use crate::{
    connect::{AppExt, ConnectError, check_keys},
    settings::{Overrides, Settings},
};

/// Time that a sender waits for the first connection, unless set.
const PATIENCE: Duration = Duration::from_secs(5);
/// Waits between attempts to connect: the first one, doubled up to the last one.
const WAITS: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(15));

/// An application whose servers are connected in the background. Cheap to clone.
///
/// Settings and keys are checked at once. Until broker and backend have been reached for the first time, senders wait, at
/// most for the [`patience`](Self::patience); later outages are the adapters' matter. When the last clone is dropped, the
/// attempts end.
///
/// # Examples
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # std::env::set_current_dir(&folder)?;
/// use machinist::{LazyApp, prelude::*};
///
/// const GREET: TaskDef<String, ()> = TaskDef::new("greet");
///
/// // Returns at once, also while the broker is away.
/// let app = LazyApp::from_env()?;
///
/// // In a request:
/// let sent = app.send(GREET.call("Ada")).await?;
/// # drop(sent);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct LazyApp {
    state: watch::Receiver<FirstConnection>,
    _connecting: Option<Arc<Connecting>>,
    patience: Duration,
}

/// Ends the attempts when the last application is dropped.
#[derive(Debug)]
struct Connecting(AbortHandle);

impl Drop for Connecting {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// State of the first connection.
#[derive(Debug, Clone)]
enum FirstConnection {
    /// No attempt has ended yet.
    Trying,
    /// The last attempt failed.
    Failed(Arc<ConnectError>),
    Connected(App),
}

/// Error of a [`LazyApp`] that has no connection yet.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NotConnected {
    /// The last attempt to connect failed. The next one follows.
    #[error("broker and backend were not reached within {waited:?}; the next attempt follows")]
    Failed {
        /// Time that was waited.
        waited: Duration,
        /// Error of the last attempt.
        source: Arc<ConnectError>,
    },
    /// The first attempt to connect goes on.
    #[error("broker and backend were not reached within {waited:?}; the first attempt goes on")]
    Trying {
        /// Time that was waited.
        waited: Duration,
    },
}

/// Error of [`LazyApp::send`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LazySendError {
    /// Nothing was sent, because there is no connection yet.
    #[error("the task was not sent")]
    NotConnected(#[from] NotConnected),
    /// The task was not sent, or the broker's answer is missing.
    #[error(transparent)]
    Send(#[from] SendError),
}

impl From<App> for LazyApp {
    /// Takes an application that is connected, such as that of a test.
    fn from(app: App) -> Self {
        let (_, state) = watch::channel(FirstConnection::Connected(app));
        Self { state, _connecting: None, patience: PATIENCE }
    }
}

impl LazyApp {
    /// Begins to connect to the servers that the `MACHINIST_*` variables and `machinist.toml` name. Call it within a Tokio
    /// runtime.
    ///
    /// # Errors
    /// [`ConnectError`] of a setting or a key that cannot be used. A server that cannot be reached is no error.
    pub fn from_env() -> Result<Self, ConnectError> {
        Self::from_settings(Settings::load(Overrides::default())?)
    }

    /// Begins to connect to the servers of these settings. Call it within a Tokio runtime.
    ///
    /// # Errors
    /// As [`from_env`](Self::from_env).
    pub fn from_settings(settings: Settings) -> Result<Self, ConnectError> {
        Self::from_settings_with(settings, |app| app)
    }

    /// Begins to connect as [`from_settings`](Self::from_settings) does; `adjust` changes the builder of the application:
    /// hooks, codec, observers. It is called for each attempt to connect.
    ///
    /// # Errors
    /// As [`from_env`](Self::from_env).
    pub fn from_settings_with(
        settings: Settings,
        adjust: impl Fn(AppBuilder) -> AppBuilder + Send + Sync + 'static,
    ) -> Result<Self, ConnectError> {
        check_keys(&settings)?;
        let (state, observed) = watch::channel(FirstConnection::Trying);
        let connecting = tokio::spawn(async move {
            connect(state, || App::from_settings_with(&settings, &adjust)).await;
        });
        Ok(Self {
            state: observed,
            _connecting: Some(Arc::new(Connecting(connecting.abort_handle()))),
            patience: PATIENCE,
        })
    }

    /// Sets the time that [`app`](Self::app) and [`send`](Self::send) wait for the first connection. Default: 5 s.
    #[must_use]
    pub fn patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Returns `true` once broker and backend have been reached: for a readiness check.
    pub fn is_connected(&self) -> bool {
        matches!(*self.state.borrow(), FirstConnection::Connected(_))
    }

    /// Returns the application, as soon as it is connected.
    ///
    /// # Errors
    /// [`NotConnected`] if that takes longer than the patience.
    ///
    /// # Cancel safety
    /// Safe: nothing is changed.
    pub async fn app(&self) -> Result<App, NotConnected> {
        let mut state = self.state.clone();
        let connected = state.wait_for(|state| matches!(state, FirstConnection::Connected(_)));
        if let Ok(Ok(state)) = tokio::time::timeout(self.patience, connected).await
            && let FirstConnection::Connected(app) = &*state
        {
            return Ok(app.clone());
        }
        let waited = self.patience;
        let last = self.state.borrow().clone();
        match last {
            FirstConnection::Connected(app) => Ok(app),
            FirstConnection::Failed(source) => Err(NotConnected::Failed { waited, source }),
            FirstConnection::Trying => Err(NotConnected::Trying { waited }),
        }
    }

    /// Sends a signature or a workflow, as [`Client::send`](crate::Client::send) does, as soon as the application is
    /// connected.
    ///
    /// # Errors
    /// [`LazySendError::NotConnected`] if nothing was sent because there is no connection yet, else the error of the
    /// client.
    ///
    /// # Cancel safety
    /// As [`Client::send`](crate::Client::send).
    pub async fn send<S: Sendable>(&self, what: S) -> Result<AsyncResult<S::ResultType>, LazySendError> {
        Ok(self.app().await?.client().send(what).await?)
    }
}

/// Tries to connect until that succeeds.
async fn connect<F: Future<Output = Result<App, ConnectError>>>(
    state: watch::Sender<FirstConnection>,
    attempt: impl Fn() -> F,
) {
    let (mut wait, last_wait) = WAITS;
    loop {
        match attempt().await {
            Ok(app) => {
                state.send_replace(FirstConnection::Connected(app));
                return;
            }
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "cannot connect yet; trying again");
                state.send_replace(FirstConnection::Failed(Arc::new(error)));
            }
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(last_wait);
    }
}
