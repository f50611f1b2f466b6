//! The state of a server, for people.

use std::sync::Arc;

use machinist_adapter::diagnose::Finding;
use tokio_postgres::Row;

use crate::{error::PostgresError, link::Link, store::Store};

/// Age of a transaction from which on it is worth a warning: vacuum cannot remove what it may still see.
const OLD_TRANSACTION_SECONDS: f64 = 300.0;
/// Number of dead rows in a table from which on vacuum is behind.
const MANY_DEAD_ROWS: i64 = 200_000;

/// Examines the server of a store.
pub(crate) async fn examine(store: &Store) -> Vec<Finding> {
    match store.ask(|link| async move { questions(&link).await }).await {
        Ok(findings) => findings,
        Err(error) => vec![Finding::error(
            "server",
            error.to_string(),
            "see the message; `machinist migrate --check` tells the state of the schema",
        )],
    }
}

async fn questions(link: &Arc<Link>) -> Result<Vec<Finding>, PostgresError> {
    let mut findings = vec![server(link).await?, schema(link).await?];
    findings.extend(settings(link).await?);
    findings.push(connections(link).await?);
    findings.push(transactions(link).await?);
    findings.push(dead_rows(link).await?);
    findings.push(contents(link).await?);
    Ok(findings)
}

async fn one(link: &Link, sql: &'static str) -> Result<Row, PostgresError> {
    let rows = link.query_again(sql, &[]).await?;
    rows.into_iter().next().ok_or_else(|| PostgresError::lost("the server gave no answer"))
}

async fn server(link: &Link) -> Result<Finding, PostgresError> {
    let row = one(
        link,
        "SELECT current_setting('server_version'), current_setting('server_version_num')::integer, pg_is_in_recovery()",
    )
    .await?;
    let (version, number, standby): (String, i32, bool) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    Ok(if standby {
        Finding::error(
            "server",
            format!("{version}, a standby"),
            "name all servers in the URL, so that the primary is found",
        )
    } else if number < 140_000 {
        Finding::warning("server", version, "machinist is tested with PostgreSQL 14 and later")
    } else {
        Finding::good("server", version)
    })
}

async fn schema(link: &Link) -> Result<Finding, PostgresError> {
    let row = one(link, "SELECT version FROM {s}.meta").await?;
    let version: i32 = row.try_get(0)?;
    Ok(Finding::good("schema", format!("version {version}")))
}

async fn settings(link: &Link) -> Result<Vec<Finding>, PostgresError> {
    let row = one(
        link,
        "SELECT current_setting('synchronous_commit'), current_setting('fsync'), current_setting('statement_timeout'), \
         current_setting('autovacuum')",
    )
    .await?;
    let text = |column: usize| row.try_get::<_, String>(column);
    let (synchronous, fsync, timeout, autovacuum) = (text(0)?, text(1)?, text(2)?, text(3)?);
    let mut findings = vec![if fsync == "off" {
        Finding::error("durability", "fsync is off: a power cut can destroy the database", "set fsync = on")
    } else if synchronous == "off" {
        Finding::warning(
            "durability",
            "synchronous_commit is off: a crash of the server loses what it has confirmed in the last moments",
            "set synchronous_commit = on for this user: ALTER ROLE … SET synchronous_commit = on",
        )
    } else {
        Finding::good("durability", format!("synchronous_commit is {synchronous}"))
    }];
    if timeout != "0" {
        findings.push(Finding::warning(
            "statement_timeout",
            timeout,
            "batches may be cancelled and tried again without end; ALTER ROLE … SET statement_timeout = 0, or at least 10s",
        ));
    }
    if autovacuum != "on" {
        findings.push(Finding::error(
            "autovacuum",
            "off: the tables grow without end",
            "set autovacuum = on",
        ));
    }
    Ok(findings)
}

async fn connections(link: &Link) -> Result<Finding, PostgresError> {
    let row = one(
        link,
        "SELECT count(*), current_setting('max_connections')::bigint FROM pg_catalog.pg_stat_activity \
         WHERE backend_type = 'client backend'",
    )
    .await?;
    let (used, limit): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
    let found = format!("{used} of {limit}");
    Ok(if used * 10 > limit * 8 {
        Finding::warning(
            "connections",
            found,
            "a worker needs five: raise max_connections, or put a pooler before the server",
        )
    } else {
        Finding::good("connections", found)
    })
}

/// Looks for what keeps vacuum from removing dead rows: then the tables grow, and claims get slower and slower.
async fn transactions(link: &Link) -> Result<Finding, PostgresError> {
    let row = one(
        link,
        "SELECT max(age), (array_agg(who ORDER BY age DESC))[1] FROM ( \
           SELECT extract(epoch FROM clock_timestamp() - xact_start)::double precision AS age, \
             format('pid %s of user %s (%s, %s)', pid, usename, coalesce(nullif(application_name, ''), 'no name'), state) AS who \
           FROM pg_catalog.pg_stat_activity \
           WHERE xact_start IS NOT NULL AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL) AND backend_type <> 'autovacuum worker' \
           UNION ALL \
           SELECT extract(epoch FROM clock_timestamp() - prepared)::double precision, format('prepared transaction %L', gid) \
           FROM pg_catalog.pg_prepared_xacts) AS t",
    )
    .await?;
    let (age, who): (Option<f64>, Option<String>) = (row.try_get(0)?, row.try_get(1)?);
    Ok(match (age, who) {
        (Some(age), Some(who)) if age >= OLD_TRANSACTION_SECONDS => Finding::warning(
            "oldest transaction",
            format!(
                "{who} has one open for {age:.0} s: vacuum removes nothing that it may still see, and the tables grow"
            ),
            "end it: SELECT pg_terminate_backend(PID), or ROLLBACK PREPARED; set idle_in_transaction_session_timeout",
        ),
        _ => Finding::good("oldest transaction", "younger than five minutes, as far as this user can see"),
    })
}

async fn dead_rows(link: &Link) -> Result<Finding, PostgresError> {
    let row = one(
        link,
        "SELECT coalesce(sum(n_dead_tup), 0)::bigint FROM pg_catalog.pg_stat_all_tables \
         WHERE relid IN ('{s}.messages'::regclass, '{s}.records'::regclass)",
    )
    .await?;
    let dead: i64 = row.try_get(0)?;
    Ok(if dead > MANY_DEAD_ROWS {
        Finding::warning(
            "dead rows",
            dead.to_string(),
            "vacuum is behind: look for an old transaction, or raise autovacuum_max_workers",
        )
    } else {
        Finding::good("dead rows", dead.to_string())
    })
}

async fn contents(link: &Link) -> Result<Finding, PostgresError> {
    let row = one(
        link,
        "SELECT pg_catalog.pg_total_relation_size('{s}.messages'::regclass) / 1024, \
         pg_catalog.pg_total_relation_size('{s}.records'::regclass) / 1024, \
         (SELECT count(*) FROM {s}.holders WHERE expires > clock_timestamp())",
    )
    .await?;
    let (messages, records, holders): (i64, i64, i64) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    Ok(Finding::good(
        "contents",
        format!("messages {messages} KiB, records {records} KiB, {holders} consuming processes"),
    ))
}
