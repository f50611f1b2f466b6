//! Notes about what holds delayed tasks up in the broker: they wait in no queue that a user sees.

use std::time::Duration;

use machinist::{
    App,
    diagnose::{Finding, Level},
};
use tokio::time::timeout;

use crate::output;

/// Time for which a command waits for the broker's answer. A queue that lets nothing through is looked at twice.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// Prints a note about each delay queue that is missing, or that holds messages longer than its delay explains. A broker that
/// does not answer in time is not waited for.
pub(super) async fn note(app: &App) {
    let Ok(findings) = timeout(ANSWER_TIMEOUT, app.broker().diagnose_delays()).await else { return };
    for Finding { level, subject, found, remedy } in findings {
        if level == Level::Error {
            output::note(&format!("machinist: {subject}: {found} ({remedy})"));
        }
    }
}
