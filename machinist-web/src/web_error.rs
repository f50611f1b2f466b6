//! Errors of the dashboard: a status, one sentence, and a remedy. Scripts get them as JSON, people as a page.

use std::error::Error;

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
pub(crate) use machinist::error::chain_text as chain;
use machinist::{
    ControlError, OrderError, PeekError, ResultError, SendError, backend::BackendError,
    periodic::PeriodicError, redact,
};
use serde::Serialize;

/// Error of a request.
#[derive(Debug, Clone)]
pub(crate) struct WebError {
    pub(crate) status: StatusCode,
    /// One sentence, from the attempted action to its cause, without passwords.
    pub(crate) text: String,
    /// Advice to the reader.
    pub(crate) remedy: Option<String>,
}

/// The error as JSON, with the fields of the program's errors.
#[derive(Serialize)]
struct ErrorBody<'a> {
    error: &'a str,
    remedy: Option<&'a str>,
}

impl WebError {
    pub(crate) fn new(status: StatusCode, text: impl AsRef<str>) -> Self {
        Self { status, text: redact::text(text.as_ref()).into_owned(), remedy: None }
    }

    pub(crate) fn forbidden(text: impl AsRef<str>) -> Self {
        Self::new(StatusCode::FORBIDDEN, text)
    }

    pub(crate) fn unknown(text: impl AsRef<str>) -> Self {
        Self::new(StatusCode::NOT_FOUND, text)
    }

    pub(crate) fn wrong(text: impl AsRef<str>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, text)
    }

    /// Creates the error of a server that does not answer.
    pub(crate) fn away(text: impl AsRef<str>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, text)
            .remedy("the page works again as soon as the server answers; `machinist doctor` shows details")
    }

    /// Creates an error from another and all its causes.
    fn of(status: StatusCode, error: &dyn Error) -> Self {
        Self::new(status, chain(error))
    }

    #[must_use]
    pub(crate) fn remedy(self, remedy: impl Into<String>) -> Self {
        Self { remedy: Some(remedy.into()), ..self }
    }
}

impl IntoResponse for WebError {
    fn into_response(self) -> Response {
        let body = ErrorBody { error: &self.text, remedy: self.remedy.as_deref() };
        (self.status, Json(body)).into_response()
    }
}

impl From<BackendError> for WebError {
    fn from(error: BackendError) -> Self {
        match error {
            BackendError::Record { .. } => Self::of(StatusCode::CONFLICT, &error),
            _ => Self::away(chain(&error)),
        }
    }
}

impl From<ResultError> for WebError {
    fn from(error: ResultError) -> Self {
        match error {
            ResultError::Unknown { .. } => Self::of(StatusCode::NOT_FOUND, &error)
                .remedy("check the id; a record is deleted some time after its task has ended"),
            ResultError::Backend(error) => error.into(),
            error => Self::of(StatusCode::CONFLICT, &error),
        }
    }
}

impl From<ControlError> for WebError {
    fn from(error: ControlError) -> Self {
        match error {
            ControlError::Unknown { .. } => Self::of(StatusCode::NOT_FOUND, &error)
                .remedy("check the id; a record is deleted some time after its task has ended"),
            ControlError::Backend(error) => error.into(),
            ControlError::Broker(error) => Self::away(chain(&error)),
            error => Self::of(StatusCode::CONFLICT, &error),
        }
    }
}

impl From<SendError> for WebError {
    fn from(error: SendError) -> Self {
        match error {
            SendError::Name(_) | SendError::Invalid(_) | SendError::TooLarge { .. } => {
                Self::wrong(chain(&error))
            }
            SendError::Workers { .. } | SendError::Unique { .. } | SendError::Publish { .. } => {
                Self::away(chain(&error))
            }
            error => Self::of(StatusCode::CONFLICT, &error),
        }
    }
}

impl From<OrderError> for WebError {
    fn from(error: OrderError) -> Self {
        match error {
            OrderError::Backend(error) => error.into(),
            OrderError::Release(error) => error.into(),
            error => Self::of(StatusCode::CONFLICT, &error),
        }
    }
}

impl From<PeriodicError> for WebError {
    fn from(error: PeriodicError) -> Self {
        match error {
            PeriodicError::Unknown { .. } => Self::of(StatusCode::NOT_FOUND, &error),
            PeriodicError::Backend(error) => error.into(),
            error => Self::of(StatusCode::CONFLICT, &error),
        }
    }
}

impl From<PeekError> for WebError {
    fn from(error: PeekError) -> Self {
        match error {
            PeekError::Backend(error) => error.into(),
            PeekError::Broker(error) => Self::away(chain(&error)),
            error => Self::of(StatusCode::CONFLICT, &error),
        }
    }
}
