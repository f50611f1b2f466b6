//! Exit codes for scripts, and errors with a remedy for people.

use std::{error::Error, fmt, iter::successors, process::ExitCode};

pub(crate) use machinist::error::chain_text as chain;
use machinist::{
    ConnectError, ControlError, ResultError, SendError, TaskId,
    backend::BackendError,
    broker::{BrokerError, PublishError},
    periodic::PeriodicError,
    record::TaskState,
    redact,
    settings::SettingsError,
};

/// Exit code; those from 64 on are those of `sysexits.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Code {
    Success = 0,
    /// The task failed.
    Failed = 1,
    /// The task has not ended.
    NotFinished = 2,
    /// The backend has no record of the task.
    UnknownId = 3,
    Usage = 64,
    /// Broker or backend cannot be reached.
    Unreachable = 69,
    /// A bug in this program.
    Fault = 70,
    /// A worker had to hand running tasks back, or a queue takes no more tasks now.
    TryLater = 75,
    NotPermitted = 77,
    Configuration = 78,
}

/// Exit code of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    Code(Code),
    /// The exit code at which the supervisor of a worker starts it again.
    Restart(u8),
}

impl From<Code> for Exit {
    fn from(code: Code) -> Self {
        Self::Code(code)
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        match exit {
            Exit::Code(code) => code.into(),
            Exit::Restart(code) => code.into(),
        }
    }
}

impl Code {
    /// Returns the exit code for the state of a task or a workflow.
    pub(crate) fn of(state: TaskState) -> Self {
        match state {
            TaskState::Success => Self::Success,
            TaskState::Failure => Self::Failed,
            _ => Self::NotFinished,
        }
    }
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        Self::from(code as u8)
    }
}

/// Error of a command.
#[derive(Debug)]
pub(crate) struct CliError {
    pub(crate) code: Code,
    /// One sentence, from the attempted action to its cause, without passwords.
    pub(crate) text: String,
    /// Advice to the user.
    pub(crate) remedy: Option<String>,
}

impl CliError {
    pub(crate) fn new(code: Code, text: impl Into<String>) -> Self {
        Self { code, text: redact::text(&text.into()).into_owned(), remedy: None }
    }

    /// Creates an error from another and all its causes.
    pub(crate) fn from_error(code: Code, error: &dyn Error) -> Self {
        Self::new(code, chain(error))
    }

    /// Creates an error from that of an application's own code. A wrong setting or an error of a server among its causes has
    /// the exit code that it has in every command; any other error has the code `otherwise`.
    pub(crate) fn from_application(otherwise: Code, error: &(dyn Error + 'static)) -> Self {
        let mut causes = successors(Some(error), |&error| error.source());
        Self::from_error(causes.find_map(known_code).unwrap_or(otherwise), error)
    }

    #[must_use]
    pub(crate) fn remedy(self, remedy: impl Into<String>) -> Self {
        Self { remedy: Some(remedy.into()), ..self }
    }

    /// Puts the attempted action in front of the text.
    #[must_use]
    pub(crate) fn context(self, action: impl fmt::Display) -> Self {
        Self { text: format!("{action}: {}", self.text), ..self }
    }
}

const DOCTOR_HINT: &str = "`machinist doctor` shows details";

impl From<SettingsError> for CliError {
    fn from(error: SettingsError) -> Self {
        Self::from_error(Code::Configuration, &error)
    }
}

impl From<ConnectError> for CliError {
    fn from(error: ConnectError) -> Self {
        let code = connect_code(&error);
        let role = match error {
            ConnectError::Settings(error) => return error.into(),
            ConnectError::Backend { .. } => "backend",
            _ => "broker",
        };
        Self { remedy: remedy(code, role), ..Self::from_error(code, &error) }
    }
}

/// Returns the exit code for a failed connection.
pub(crate) fn connect_code(error: &ConnectError) -> Code {
    match error {
        ConnectError::Broker { source, .. } => broker_code(source),
        ConnectError::Backend { source, .. } => backend_code(source),
        _ => Code::Configuration,
    }
}

/// Returns the exit code of one of our errors that an application passes on.
fn known_code(error: &(dyn Error + 'static)) -> Option<Code> {
    let settings = || error.downcast_ref::<SettingsError>().map(|_| Code::Configuration);
    let connect = || error.downcast_ref::<ConnectError>().map(connect_code);
    let broker = || error.downcast_ref::<BrokerError>().map(broker_code);
    let backend = || error.downcast_ref::<BackendError>().map(backend_code);
    settings().or_else(connect).or_else(broker).or_else(backend)
}

/// Returns the remedy for a server that cannot be reached. The texts of other errors name their own.
fn remedy(code: Code, role: &str) -> Option<String> {
    (code == Code::Unreachable).then(|| {
        format!(
            "is it running there? --{role} URL or MACHINIST_{} names another; {DOCTOR_HINT}",
            role.to_uppercase()
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
        BackendError::Configuration(_) | BackendError::Record { .. } => Code::Configuration,
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
                "are the workers' keys configured here (`machinist keys list`)? if they are, the result was written without a key",
            ),
            ResultError::Undecryptable { .. } => Self::from_error(Code::Configuration, &error)
                .remedy("configure the key: file = \"…\" under [[keys]]; `machinist keys list` shows the configured ones"),
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
                let remedy = format!("`machinist status {id}` shows its state");
                Self::from_error(Code::Usage, &error).remedy(remedy)
            }
            error => Self::from_error(Code::Usage, &error),
        }
    }
}

impl From<PeriodicError> for CliError {
    fn from(error: PeriodicError) -> Self {
        match error {
            PeriodicError::Send(error) => error.into(),
            PeriodicError::Backend(error) => error.into(),
            PeriodicError::Unknown { .. } => Self::from_error(Code::UnknownId, &error)
                .remedy("`machinist periodic list` shows all; `machinist config` shows the backend and namespace in use"),
            PeriodicError::Owned { ref name, .. } => Self::from_error(Code::Usage, &error)
                .remedy(format!("`machinist periodic pause {name}` stops its ticks without a change there")),
            PeriodicError::Untrusted { .. } => Self::from_error(Code::Configuration, &error)
                .remedy("`machinist keys list` shows the configured keys"),
            PeriodicError::NotTriggered { .. } | PeriodicError::TriggerReplaced { .. } => {
                Self::from_error(Code::NotFinished, &error)
            }
            PeriodicError::Contended { .. } => Self::from_error(Code::Unreachable, &error),
            _ => Self::from_error(Code::Usage, &error),
        }
    }
}

/// Returns the error for a task without a record.
pub(crate) fn unknown(id: &TaskId) -> CliError {
    CliError::new(
        Code::UnknownId,
        format!("task {id} is unknown: it was never sent, or its record has expired"),
    )
    .remedy("does it belong to another backend or namespace? `machinist config` shows those in use")
}

impl From<SendError> for CliError {
    fn from(error: SendError) -> Self {
        let text = chain(&error);
        let (code, remedy) = match &error {
            SendError::Name(_) | SendError::Invalid(_) => (Code::Usage, None),
            SendError::TooLarge { .. } => (Code::Usage, None),
            SendError::QueueFull { queue, .. } => (
                Code::TryLater,
                Some(format!(
                    "wait (--wait-for-room 30s), or start more workers; `machinist queues` shows the depth of {queue}"
                )),
            ),
            SendError::BufferFull { .. } | SendError::Dropped { .. } => (Code::TryLater, None),
            SendError::Duplicate { of, .. } => {
                (Code::Failed, Some(format!("`machinist status {of}` shows the task that has the key")))
            }
            SendError::Workers { .. } | SendError::Unique { .. } | SendError::Record { .. } => {
                (Code::Unreachable, Some(DOCTOR_HINT.to_owned()))
            }
            SendError::Key { .. } => {
                (Code::Configuration, Some("`machinist keys check` shows details".to_owned()))
            }
            SendError::Publish { id, source } => match source {
                PublishError::Unknown(_) => (
                    Code::Unreachable,
                    Some(format!(
                        "it may or may not be queued; repeat the command with --id {id}, which runs the task only once"
                    )),
                ),
                PublishError::Nacked { .. } => (
                    Code::Unreachable,
                    Some(format!(
                        "repeat the command later with --id {id}, which runs the task only once; a full queue needs more \
                         workers, or a higher limit"
                    )),
                ),
                PublishError::Unavailable(_) | PublishError::Blocked { .. } => {
                    (Code::Unreachable, Some(format!("it is not queued; send it again later; {DOCTOR_HINT}")))
                }
                PublishError::TooLarge { .. } => {
                    (Code::Usage, Some("send the name of a file instead of its contents".to_owned()))
                }
                PublishError::Unroutable { .. } => (
                    Code::Configuration,
                    Some("start a worker of this queue once, or declare the queue".to_owned()),
                ),
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
    use machinist::error::BoxError;

    use super::*;

    #[test]
    fn errors_are_one_sentence_and_hide_passwords() {
        let inner = BackendError::Unavailable("connection refused by redis://:geheim@cache/0".into());
        let failure = CliError::from(inner);
        assert_eq!(failure.text, "the backend is unavailable: connection refused by redis://:***@cache/0");
        assert_eq!(failure.code, Code::Unreachable);
        assert!(failure.remedy.unwrap().contains("MACHINIST_BACKEND"));
    }

    /// Error of an application with a cause.
    #[derive(Debug)]
    struct OwnError(SettingsError);

    impl fmt::Display for OwnError {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("the shop cannot be opened")
        }
    }

    impl Error for OwnError {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&self.0)
        }
    }

    #[test]
    fn an_error_of_an_application_has_the_exit_code_of_what_caused_it() {
        let setting = || SettingsError::new("machinist.toml:3", "shop.sender is missing");
        let away = || BrokerError::Unavailable("connection refused".into());
        let errors: [(BoxError, Code); 6] = [
            (Box::new(setting()), Code::Configuration),
            (Box::new(ConnectError::from(setting())), Code::Configuration),
            (Box::new(OwnError(setting())), Code::Configuration),
            (Box::new(away()), Code::Unreachable),
            (Box::new(BackendError::Unavailable("connection refused".into())), Code::Unreachable),
            ("the pool is closed".into(), Code::Failed),
        ];
        for (error, code) in errors {
            assert_eq!(CliError::from_application(Code::Failed, &*error).code, code, "{error:?}");
        }
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
