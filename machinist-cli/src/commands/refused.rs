//! Notes about messages that workers did not accept: a sender with another key must not have to search for its tasks.

use std::time::Duration;

use machinist::{App, RefusedMessages, backend::BackendError, clock::Timestamp};

use crate::{
    exit::{CliError, chain},
    output, visible,
};

/// Time for which a dead letter is news.
const REFUSED_NEWS: Duration = Duration::from_secs(24 * 3600);
/// Time for which a waiting message is news. It is offered again each minute.
const WAITING_NEWS: Duration = Duration::from_secs(180);

/// Prints a note about each queue and reason, if there was such a message lately.
pub(super) async fn note(app: &App) -> Result<(), CliError> {
    for count in lately(or_note(app.client().refused_messages().await)?, app.clock().now()) {
        output::note(&format!("machinist: queue {}: {} ({})", count.queue, text(&count), count.remedy()));
    }
    Ok(())
}

/// Returns the counts; none, with a note, if another program has spoilt their record: they are not what was asked for.
fn or_note(counts: Result<Vec<RefusedMessages>, BackendError>) -> Result<Vec<RefusedMessages>, BackendError> {
    match counts {
        Err(error) if error.is_of_one_record() => {
            output::note(&format!(
                "machinist: the messages that no worker accepts are not shown: {}",
                chain(&error)
            ));
            Ok(Vec::new())
        }
        counts => counts,
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_another_program_has_spoilt_stops_no_command() {
        let spoilt = BackendError::Record { reason: "control:refused is a string".to_owned() };
        assert_eq!(or_note(Err(spoilt)).unwrap(), []);
        let refused = BackendError::Refused { reason: "no right".to_owned() };
        assert!(or_note(Err(refused)).is_err());
    }
}
