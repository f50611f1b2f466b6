//! The command tasks of a worker, as the settings define them: when it starts, and when it reads its settings again.

use machinist::{
    WorkerBuilder,
    settings::{Settings, SettingsError},
};

use crate::{
    command::{CommandTask, Host},
    exit::{CliError, Code},
    open_files, output,
};

/// Makes the concurrency smaller if the limit of open files allows fewer programs. Returns the soft limit that programs get.
pub(super) fn fit_open_files(settings: &mut Settings) -> Result<Option<u64>, CliError> {
    if settings.tasks.values().all(|task| task.command.is_none()) {
        return Ok(None);
    }
    let concurrency = &mut settings.worker.concurrency;
    let fit = open_files::fit(concurrency.value);
    let (wanted, limit) = (concurrency.value, fit.limit);
    let remedy = format!("raise the limit to {} (`ulimit -n`, LimitNOFILE of a unit)", fit.needed);
    if fit.concurrency == 0 {
        let text = format!("this process may open {limit} files, which is too few to run a single program");
        return Err(CliError::new(Code::Configuration, text).remedy(remedy));
    }
    if fit.concurrency < wanted {
        output::note(&format!(
            "machinist: {} tasks run at once instead of {wanted} ({}), because this process may open {limit} files; {remedy}",
            fit.concurrency, concurrency.origin
        ));
        concurrency.value = fit.concurrency;
    }
    Ok(fit.soft_before)
}

/// Returns the handlers of the command tasks. A task without a command belongs to an application.
pub(super) fn command_tasks<'a>(
    settings: &'a Settings,
    host: &Host,
) -> Result<Vec<(&'a String, CommandTask)>, SettingsError> {
    let commands =
        settings.tasks.iter().filter_map(|(name, task)| Some((name, task.command.as_ref()?, task)));
    commands.map(|(name, command, task)| Ok((name, CommandTask::new(name, command, task, host)?))).collect()
}

/// Adds the command tasks.
pub(super) fn with_commands(builder: WorkerBuilder, commands: Vec<(&String, CommandTask)>) -> WorkerBuilder {
    commands.into_iter().fold(builder, |builder, (name, task)| builder.task_dyn(name, task))
}
