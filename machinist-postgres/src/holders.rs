//! SQL of the processes that hold messages.

use std::time::Duration;

use machinist_adapter::broker::Target;

use crate::{
    error::PostgresError,
    link::Link,
    messages::{is_dead, targets},
    text::escape,
};

/// Returns the list of consumed queues as it is stored: one entry for each subscription.
pub(crate) fn queues<'a>(consumed: impl Iterator<Item = &'a Target>) -> Vec<String> {
    consumed
        .map(|target| {
            let name = escape(target.queue().as_str());
            // No name of a queue ends like this.
            if is_dead(target) { format!("{name}.dead") } else { name.into_owned() }
        })
        .collect()
}

/// Adds a holder and returns its id.
pub(crate) async fn register(link: &Link, lease: Duration, queues: &[String]) -> Result<i64, PostgresError> {
    let sql = "INSERT INTO {s}.holders (expires, queues) VALUES (clock_timestamp() + make_interval(secs => $1), $2) RETURNING id";
    let rows = link.query(sql, &[&lease.as_secs_f64(), &queues]).await?;
    let row = rows.first().ok_or_else(|| PostgresError::lost("the server did not name the new holder"))?;
    row.try_get(0).map_err(|error| PostgresError::of(&error))
}

/// Renews a lease. Returns `false` if it is over.
pub(crate) async fn renew(
    link: &Link,
    holder: i64,
    lease: Duration,
    queues: &[String],
) -> Result<bool, PostgresError> {
    let sql = "UPDATE {s}.holders SET expires = clock_timestamp() + make_interval(secs => $2), queues = $3 \
               WHERE id = $1 RETURNING 1";
    let rows = link.query(sql, &[&holder, &lease.as_secs_f64(), &queues]).await?;
    Ok(!rows.is_empty())
}

/// Hands back the messages of a holder that it does not know. Returns their queues.
pub(crate) async fn release_unknown(
    link: &Link,
    holder: i64,
    known: &[i64],
) -> Result<Vec<Target>, PostgresError> {
    let sql = "SELECT queue, dead FROM {s}.release($1, $2)";
    targets(&link.query(sql, &[&holder, &known]).await?)
}

/// Ends the leases that are over, and hands back what nobody holds. Returns the queues of the messages.
pub(crate) async fn reap(link: &Link) -> Result<Vec<Target>, PostgresError> {
    targets(&link.query("SELECT queue, dead FROM {s}.reap()", &[]).await?)
}

/// Takes a holder out, and hands back what it holds. Returns the queues of the messages.
pub(crate) async fn leave(link: &Link, holder: i64) -> Result<Vec<Target>, PostgresError> {
    link.query("DELETE FROM {s}.holders WHERE id = $1", &[&holder]).await?;
    release_unknown(link, holder, &[]).await
}

/// Makes messages of a holder dead letters.
pub(crate) async fn bury(link: &Link, holder: i64, messages: &[i64]) -> Result<(), PostgresError> {
    let sql = "UPDATE {s}.messages SET dead = true, holder = NULL WHERE holder = $1 AND id = ANY ($2)";
    link.query(sql, &[&holder, &messages]).await.map(drop)
}
