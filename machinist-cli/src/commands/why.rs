//! `machinist why`: says why a task or a queue stands still, and what to do.

use machinist::{ConnectError, ResultError, Servers, Why, WhyClass, WhyReason, settings::Settings};

use super::{check_outlives_process, delays};
use crate::{
    args::WhyArgs,
    exit::{CliError, Code, chain, connect_code},
    output, visible,
};

pub(super) async fn run(args: &WhyArgs, settings: &Settings, json: bool) -> Result<Code, CliError> {
    check_outlives_process(settings)?;
    let why = match Servers::reach(settings).await.reader(settings).await {
        Ok(app) => {
            let why = match (&args.id, &args.queue) {
                (Some(id), _) => app.client().why(id).await?,
                (None, Some(queue)) => app.client().why_queue(queue).await.map_err(ResultError::Backend)?,
                // INVARIANT: the syntax requires one of them.
                (None, None) => return Err(CliError::new(Code::Usage, "name a task or --queue")),
            };
            if why.reason == WhyReason::Overdue || why.also.contains(&WhyReason::Overdue) {
                delays::note(&app).await;
            }
            app.broker().close().await;
            why
        }
        Err(error) if connect_code(&error) == Code::Unreachable => {
            let backend = matches!(error, ConnectError::Backend { .. });
            let problem = machinist::redact::text(&chain(&error)).into_owned();
            Why::away(args.id.as_ref(), args.queue.as_ref(), backend, &problem)
        }
        Err(error) => return Err(error.into()),
    };
    if json {
        output::json(&why)?;
    } else {
        let Why { reason, class, sentence, advice, .. } = &why;
        let sentence = visible::one_line(sentence);
        output::line(&format!("{} ({}): {sentence}", reason.as_str(), class.as_str()))?;
        output::line(&format!("  {}", visible::one_line(advice)))?;
        if !why.also.is_empty() {
            let also: Vec<&str> = why.also.iter().map(|reason| reason.as_str()).collect();
            output::line(&format!("  also: {}", also.join(", ")))?;
        }
    }
    Ok(match (why.reason, why.class) {
        (WhyReason::UnknownId, _) => Code::UnknownId,
        (_, WhyClass::Broken) => Code::Unreachable,
        _ => Code::Success,
    })
}
