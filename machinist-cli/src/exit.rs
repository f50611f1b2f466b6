//! How the program ends: a number for scripts, and for people a sentence with what to do.

use std::{error::Error, fmt, process::ExitCode};

use machinist::{
    ConnectError, ControlError, ResultError, SendError, TaskId,
    backend::BackendError,
    broker::{BrokerError, PublishError},
    redact,
    settings::SettingsError,
};

/// Exit codes; those from 64 on are those of `sysexits.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Code {
    Success = 0,
    /// The task failed.
    Failed = 1,
    /// The task has not ended.
    NotFinished = 2,
    /// Nobody knows the task.
    UnknownId = 3,
    Usage = 64,
    /// Broker or backend cannot be reached.
    Unreachable = 69,
    /// A fault of ours.
    Fault = 70,
    /// A worker had to hand running tasks back.
    HandedBack = 75,
    NotPermitted = 77,
    Configuration = 78,
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        Self::from(code as u8)
    }
}

/// Why a command could not do what was asked.
#[derive(Debug)]
pub(crate) struct CliError {
    pub(crate) code: Code,
    /// One sentence, from what was attempted to its cause; no password in it.
    pub(crate) text: String,
    /// What to do about it.
    pub(crate) remedy: Option<String>,
}

impl CliError {
    pub(crate) fn new(code: Code, text: impl Into<String>) -> Self {
        Self { code, text: redact::text(&text.into()).into_owned(), remedy: None }
    }

    /// The error and everything that caused it.
    pub(crate) fn from_error(code: Code, error: &dyn Error) -> Self {
        Self::new(code, chain(error))
    }

    #[must_use]
    pub(crate) fn remedy(self, remedy: impl Into<String>) -> Self {
        Self { remedy: Some(remedy.into()), ..self }
    }

    /// What was being done, in front of it.
    #[must_use]
    pub(crate) fn context(self, what: impl fmt::Display) -> Self {
        Self { text: format!("{what}: {}", self.text), ..self }
    }
}

/// `a: b: c`, without saying twice what a layer repeats of its cause.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

const DOCTOR_HINT: &str = "`machinist doctor` tells more";

impl From<SettingsError> for CliError {
    fn from(error: SettingsError) -> Self {
        Self::from_error(Code::Configuration, &error)
    }
}

impl From<ConnectError> for CliError {
    fn from(error: ConnectError) -> Self {
        let code = connect_code(&error);
        let what = match error {
            ConnectError::Settings(error) => return error.into(),
            ConnectError::Backend { .. } => "backend",
            _ => "broker",
        };
        Self { remedy: remedy(code, what), ..Self::from_error(code, &error) }
    }
}

/// How the program ends when it cannot connect.
pub(crate) fn connect_code(error: &ConnectError) -> Code {
    match error {
        ConnectError::Broker { source, .. } => broker_code(source),
        ConnectError::Backend { source, .. } => backend_code(source),
        _ => Code::Configuration,
    }
}

/// An adapter that refuses names its remedy itself.
fn remedy(code: Code, what: &str) -> Option<String> {
    (code == Code::Unreachable).then(|| {
        format!(
            "is it running there? --{what} URL or MACHINIST_{} names another; {DOCTOR_HINT}",
            what.to_uppercase()
        )
    })
}

fn broker_code(error: &BrokerError) -> Code {
    match error {
        BrokerError::Unavailable(_) => Code::Unreachable,
        BrokerError::Refused { .. } => Code::NotPermitted,
        BrokerError::Configuration(_) => Code::Configuration,
        _ => Code::Fault,
    }
}

fn backend_code(error: &BackendError) -> Code {
    match error {
        BackendError::Unavailable(_) => Code::Unreachable,
        BackendError::Refused { .. } => Code::NotPermitted,
        BackendError::Configuration(_) => Code::Configuration,
        _ => Code::Fault,
    }
}

impl From<BrokerError> for CliError {
    fn from(error: BrokerError) -> Self {
        let code = broker_code(&error);
        Self { remedy: remedy(code, "broker"), ..Self::from_error(code, &error) }
    }
}

impl From<BackendError> for CliError {
    fn from(error: BackendError) -> Self {
        let code = backend_code(&error);
        Self { remedy: remedy(code, "backend"), ..Self::from_error(code, &error) }
    }
}

impl From<ResultError> for CliError {
    fn from(error: ResultError) -> Self {
        match error {
            ResultError::Backend(error) => error.into(),
            ResultError::Unknown { id } => unknown(&id),
            ResultError::Forged { .. } => Self::from_error(Code::Configuration, &error).remedy(
                "are the workers' keys in the ring here (`machinist keys list`)? else somebody without a key wrote it",
            ),
            ResultError::Undecryptable { .. } => Self::from_error(Code::Configuration, &error)
                .remedy("give the key here: file = \"…\" under [[keys]]; `machinist keys list` shows those that are"),
            ResultError::Timeout { .. } => Self::from_error(Code::NotFinished, &error),
            ResultError::Failed { .. } => Self::from_error(Code::Failed, &error),
            _ => Self::from_error(Code::Fault, &error),
        }
    }
}

impl From<ControlError> for CliError {
    fn from(error: ControlError) -> Self {
        match error {
            ControlError::Unknown { id } => unknown(&id),
            ControlError::Send(error) => error.into(),
            ControlError::Broker(error) => error.into(),
            ControlError::Backend(error) => error.into(),
            ControlError::State { ref id, .. } => {
                let remedy = format!("`machinist status {id}` shows what became of it");
                Self::from_error(Code::Usage, &error).remedy(remedy)
            }
            error => Self::from_error(Code::Usage, &error),
        }
    }
}

/// Nobody knows the task.
pub(crate) fn unknown(id: &TaskId) -> CliError {
    CliError::new(
        Code::UnknownId,
        format!("task {id} is unknown: it was never sent, or its record has expired"),
    )
    .remedy("is it another backend or namespace? `machinist config` shows which are asked")
}

impl From<SendError> for CliError {
    fn from(error: SendError) -> Self {
        let text = chain(&error);
        let (code, remedy) = match &error {
            SendError::Name(_) | SendError::Invalid(_) => (Code::Usage, None),
            SendError::TooLarge { .. } => (Code::Usage, None),
            SendError::Key { .. } => {
                (Code::Configuration, Some("`machinist keys check` tells more".to_owned()))
            }
            SendError::Publish { id, source } => match source {
                PublishError::Unknown(_) => (
                    Code::Unreachable,
                    Some(format!(
                        "it may be queued or not; the same command with --id {id} is safe, and runs it once"
                    )),
                ),
                PublishError::Unavailable(_) | PublishError::Blocked { .. } => {
                    (Code::Unreachable, Some(format!("it is not queued; send it again later; {DOCTOR_HINT}")))
                }
                PublishError::TooLarge { .. } => {
                    (Code::Usage, Some("send the name of a file instead of its contents".to_owned()))
                }
                PublishError::Unroutable { .. } => {
                    (Code::Configuration, Some("start a worker of this queue once, or declare it".to_owned()))
                }
                PublishError::Rejected { .. } => (Code::NotPermitted, Some(DOCTOR_HINT.to_owned())),
                _ => (Code::Fault, None),
            },
            _ => (Code::Fault, None),
        };
        Self { remedy, ..Self::new(code, text) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_one_sentence_and_hide_passwords() {
        let inner = BackendError::Unavailable("connection refused by redis://:geheim@cache/0".into());
        let failure = CliError::from(inner);
        assert_eq!(failure.text, "the backend is unavailable: connection refused by redis://:***@cache/0");
        assert_eq!(failure.code, Code::Unreachable);
        assert!(failure.remedy.unwrap().contains("MACHINIST_BACKEND"));
    }

    #[test]
    fn a_send_that_was_not_confirmed_can_be_repeated_by_its_id() {
        let id = TaskId::parse("t-1").unwrap();
        let failure = CliError::from(SendError::Publish {
            id,
            source: PublishError::Unknown("connection lost".into()),
        });
        assert!(failure.remedy.unwrap().contains("--id t-1"));
    }
}
