//! Notes about messages that workers did not accept: a sender with another key must not have to search for its tasks.

use std::time::Duration;

use machinist::{App, RefusedMessages, clock::Timestamp};

use crate::{exit::CliError, output, visible};

/// Time for which a dead letter is news.
const REFUSED_NEWS: Duration = Duration::from_secs(24 * 3600);
/// Time for which a waiting message is news. It is offered again each minute.
const WAITING_NEWS: Duration = Duration::from_secs(180);

/// Prints a note about each queue and reason, if there was such a message lately.
pub(super) async fn note(app: &App) -> Result<(), CliError> {
    for count in lately(app.client().refused_messages().await?, app.clock().now()) {
        output::note(&format!("machinist: queue {}: {} ({})", count.queue, text(&count), count.remedy()));
    }
    Ok(())
}

/// Leaves out old news.
pub(super) fn lately(counts: Vec<RefusedMessages>, now: Timestamp) -> Vec<RefusedMessages> {
    let is_news = |count: &RefusedMessages| {
        now.since(count.last) <= if count.waiting { WAITING_NEWS } else { REFUSED_NEWS }
    };
    counts.into_iter().filter(is_news).collect()
}

/// Returns the text for a person.
pub(super) fn text(count: &RefusedMessages) -> String {
    let RefusedMessages { reason, waiting, count, last, error, .. } = count;
    let what = if *waiting { "offered again for an hour" } else { "dead letters" };
    format!(
        "{reason}: messages that no worker accepts, {what}: {count}, the last at {last}: {}",
        visible::one_line(error)
    )
}
