//! `machinist log`: prints the log of a task. With `--follow` it prints new lines while the task runs.

use std::time::Duration;

use machinist::{
    AsyncResult, LogLine, ResultError, TaskLog,
    settings::Settings,
    view::{LogLineView, TaskLogView},
};

use super::connect_reader;
use crate::{
    args::LogArgs,
    exit::{CliError, Code},
    output,
    people::People,
    visible,
};

/// Time after which a follower looks whether the task has ended.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

pub(super) async fn run(args: &LogArgs, settings: &Settings, json: bool) -> Result<Code, CliError> {
    let app = connect_reader(settings).await?;
    let result = app.result(args.id.clone());
    if args.follow {
        follow(&result, args, json).await?;
    } else {
        let log = result.log().await?;
        note_locked(&log);
        let wanted: Vec<&LogLine> = log.lines.iter().filter(|line| args.wants(line)).collect();
        if json {
            output::json(&TaskLogView::new(&log, wanted))?;
        } else {
            let mut printer = LogPrinter::new(&log);
            wanted.into_iter().try_for_each(|line| printer.print(line))?;
        }
    }
    app.broker().close().await;
    Ok(Code::Success)
}

/// Prints lines until the task has ended; in JSON one object per line.
async fn follow(result: &AsyncResult, args: &LogArgs, json: bool) -> Result<(), CliError> {
    let mut log = result.log().await?;
    note_locked(&log);
    let mut printer = LogPrinter::new(&log);
    let mut seen = None;
    loop {
        for line in log.lines.iter().filter(|line| seen.is_none_or(|seen| place(line) > seen)) {
            if args.wants(line) {
                if json { output::json(&LogLineView::from(line)) } else { printer.print(line) }?;
            }
        }
        seen = seen.max(log.lines.last().map(place));
        // The state first: lines that are stored before the end are seen after it.
        let ended = match result.record().await {
            Ok(record) => record.state.is_final(),
            Err(ResultError::Unknown { .. }) => true,
            Err(error) => return Err(error.into()),
        };
        let limit = if ended { Duration::ZERO } else { LOOK_INTERVAL };
        let newer = result.log_changed(&log, limit).await?;
        if ended && newer == log {
            return Ok(());
        }
        log = newer;
    }
}

fn place(line: &LogLine) -> (u32, u32, u64) {
    (line.attempt, line.run, line.number)
}

fn note_locked(log: &TaskLog) {
    if let Some(locked) = &log.locked {
        output::note(&format!("machinist: lines are not shown: {}", visible::one_line(locked)));
    }
}

impl LogArgs {
    fn wants(&self, line: &LogLine) -> bool {
        self.level.is_none_or(|level| line.level <= level)
            && self.attempt.is_none_or(|attempt| line.attempt == attempt)
    }
}

/// Prints lines for people, those of each run under a header if there is more than one.
struct LogPrinter {
    people: People,
    last: Option<(u32, u32)>,
}

impl LogPrinter {
    /// Begins with what the log says about lines that are gone.
    fn new(log: &TaskLog) -> Self {
        note_missing(log.missing);
        Self { people: People::at_output(), last: None }
    }

    fn print(&mut self, line: &LogLine) -> Result<(), CliError> {
        let run = (line.attempt, line.run);
        if self.last != Some(run) && (self.last.is_some() || run != (1, 1)) {
            let again = if line.run > 1 { format!(", run {}", line.run) } else { String::new() };
            output::line(&format!("attempt {}{again}:", line.attempt))?;
        }
        self.last = Some(run);
        note_missing(line.missing);
        let (time, text) = (self.people.time(&line.at.to_string()), visible::one_line(&line.text));
        output::line(&format!("{time}  {:<5}  {text}", line.level.as_str().to_uppercase()))
    }
}

/// Says that lines are missing.
fn note_missing(count: u64) {
    if count > 0 {
        output::note(&format!(
            "machinist: {count} older lines were cut: the log of a task has at most 64 KiB"
        ));
    }
}
