//! The versions of the schema, and the way from one to the next.
//!
//! A version is a script that runs in one transaction, under a lock, so that processes that start at once do not meet. A schema
//! of a newer program is refused: this one cannot know what its tables mean.

use std::fmt::Write as _;

use tokio_postgres::Client;

use crate::{
    connect::ServerConnector, error::PostgresError, options::PostgresOptions, target::ServerTarget,
    text::quoted,
};

/// One version of the schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Migration {
    /// Version that the schema has after it.
    pub version: u32,
    /// Description in a few words.
    pub name: &'static str,
    script: &'static str,
}

/// All versions, in their order.
const ALL: [Migration; 1] = [Migration {
    version: 1,
    name: "tables of messages and records",
    script: include_str!("migrations/0001_tables.sql"),
}];

/// First half of the key of the lock under which schemas change; the second half stands for the schema.
const LOCK: i32 = 0x6d63_6e73;

/// State of a schema.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MigrationState {
    /// Name of the schema.
    pub schema: String,
    /// Version that it has; 0 if there is none.
    pub found: u32,
    /// Version that this program needs.
    pub needed: u32,
}

/// The migrations of one schema.
pub struct Migrations {
    connector: ServerConnector,
    namespace: String,
}

impl std::fmt::Debug for Migrations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Migrations")
            .field("location", &self.connector.target.location)
            .finish_non_exhaustive()
    }
}

impl Migrations {
    /// Names the schema of a URL. Connects to nothing.
    ///
    /// # Errors
    /// The URL or the certificates cannot be used.
    pub fn new(url: &str, options: PostgresOptions) -> Result<Self, PostgresError> {
        let target = ServerTarget::parse(url, &options.namespace)?;
        Ok(Self { connector: ServerConnector::new(target, options.tls)?, namespace: options.namespace })
    }

    /// Returns the state of the schema. Changes nothing.
    ///
    /// # Errors
    /// The server cannot be reached, or refuses.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn check(&self) -> Result<MigrationState, PostgresError> {
        let client = self.connector.open(Box::new(|_| ())).await?;
        let found = version(&client, &self.connector.target.schema, None).await?;
        Ok(self.state(found))
    }

    /// Brings the schema to a version, by default the newest, and returns the migrations that were made.
    ///
    /// # Errors
    /// The server cannot be reached or refuses, or the schema is newer than the version.
    ///
    /// # Cancel safety
    /// A dropped future leaves each migration made or not made.
    pub async fn apply(&self, to: Option<u32>) -> Result<Vec<Migration>, PostgresError> {
        let to = to.unwrap_or_else(newest);
        if to == 0 || to > newest() {
            return Err(PostgresError::configuration(format!(
                "there is no version {to} of the schema: this program knows 1 to {}",
                newest()
            )));
        }
        let mut client = self.connector.open(Box::new(|_| ())).await?;
        migrate(&mut client, &self.connector.target.schema, &self.namespace, to).await
    }

    /// Returns the scripts that lead from a version to the newest, with the rights that a user needs afterwards.
    pub fn script(&self, from: u32) -> String {
        let schema = quoted(&self.connector.target.schema);
        let mut text = String::new();
        for migration in ALL.iter().filter(|migration| migration.version > from) {
            let statements = statements(migration, &self.connector.target.schema, &self.namespace);
            // Writing to a text does not fail.
            let _ = writeln!(text, "BEGIN;\n{statements}COMMIT;\n");
        }
        let _ = write!(
            text,
            "-- Rights of the user that senders and workers log in as, with topology = \"verify\":\n\
             -- GRANT USAGE ON SCHEMA {schema} TO app;\n\
             -- GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO app;\n\
             -- GRANT USAGE ON ALL SEQUENCES IN SCHEMA {schema} TO app;\n\
             -- GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA {schema} TO app;\n"
        );
        text
    }

    fn state(&self, found: u32) -> MigrationState {
        MigrationState { schema: self.connector.target.schema.clone(), found, needed: newest() }
    }
}

/// Returns the version that this program needs.
fn newest() -> u32 {
    ALL.iter().map(|migration| migration.version).max().unwrap_or(0)
}

fn statements(migration: &Migration, schema: &str, namespace: &str) -> String {
    let quoted_schema = quoted(schema);
    let script = migration.script.replace("{s}", &quoted_schema);
    let literal = format!("'{}'", namespace.replace('\'', "''"));
    let (before, note) = if migration.version == 1 {
        (
            format!("CREATE SCHEMA IF NOT EXISTS {quoted_schema};\n"),
            format!("INSERT INTO {quoted_schema}.meta (version, namespace) VALUES (1, {literal});\n"),
        )
    } else {
        (String::new(), format!("UPDATE {quoted_schema}.meta SET version = {};\n", migration.version))
    };
    format!("{before}{script}{note}")
}

/// Checks the server and its schema when a store connects, and creates what is missing if that is allowed.
pub(crate) async fn ensure(
    client: &mut Client,
    schema: &str,
    namespace: &str,
    may_create: bool,
) -> Result<(), PostgresError> {
    let explained = |error| PostgresError::of(&error);
    let row = client.query_one("SELECT current_setting('server_encoding')", &[]).await.map_err(explained)?;
    let encoding: String = row.try_get(0).map_err(explained)?;
    if encoding != "UTF8" {
        return Err(PostgresError::refused(format!(
            "the database has the encoding {encoding}; machinist needs UTF8: create it with `createdb --encoding=UTF8 \
             --template=template0`"
        )));
    }
    let found = version(client, schema, Some(namespace)).await?;
    if found == newest() {
        return Ok(());
    }
    if may_create {
        let made = migrate(client, schema, namespace, newest()).await?;
        for migration in made {
            tracing::info!(schema, version = migration.version, "the schema in PostgreSQL has a new version");
        }
        return Ok(());
    }
    let state = if found == 0 { "does not exist".to_owned() } else { format!("has version {found}") };
    Err(PostgresError::refused(format!(
        "the schema {schema:?} {state}, this program needs version {}, and topology = \"verify\" forbids to change it: run \
         `machinist migrate` as a user who may",
        newest()
    )))
}

/// Returns the version of a schema, 0 if it does not exist. Refuses one that is newer, or of another namespace.
async fn version(client: &Client, schema: &str, namespace: Option<&str>) -> Result<u32, PostgresError> {
    let explained = |error| PostgresError::of(&error);
    let sql = "SELECT count(*), count(*) FILTER (WHERE c.relname = 'meta') FROM pg_catalog.pg_class c \
               JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relkind = 'r'";
    let row = client.query_one(sql, &[&schema]).await.map_err(explained)?;
    let (tables, meta): (i64, i64) = (row.try_get(0).map_err(explained)?, row.try_get(1).map_err(explained)?);
    if tables == 0 {
        return Ok(0);
    }
    let foreign = || {
        PostgresError::refused(format!(
            "the schema {schema:?} holds the tables of another program; choose another namespace, or ?schema=NAME in the URL"
        ))
    };
    if meta == 0 {
        return Err(foreign());
    }
    let sql = format!("SELECT version, namespace FROM {}.meta", quoted(schema));
    let row = client.query_opt(&sql, &[]).await.map_err(explained)?.ok_or_else(foreign)?;
    let found: i32 = row.try_get(0).map_err(|_| foreign())?;
    let owner: String = row.try_get(1).map_err(|_| foreign())?;
    let found = u32::try_from(found).map_err(|_| foreign())?;
    if found > newest() {
        return Err(PostgresError::refused(format!(
            "the schema {schema:?} has version {found}, and this program knows up to {}: a newer program has changed it; use \
             that version, or another namespace",
            newest()
        )));
    }
    match namespace {
        Some(namespace) if namespace != owner => Err(PostgresError::refused(format!(
            "the schema {schema:?} belongs to the namespace {owner:?}, and this program uses {namespace:?}; take ?schema= out of \
             the URL, or name another schema"
        ))),
        _ => Ok(found),
    }
}

/// Makes the migrations up to a version, each in a transaction under the lock.
async fn migrate(
    client: &mut Client,
    schema: &str,
    namespace: &str,
    to: u32,
) -> Result<Vec<Migration>, PostgresError> {
    let explained = |error| PostgresError::of(&error);
    let mut made = Vec::new();
    loop {
        let transaction = client.transaction().await.map_err(explained)?;
        let lock = "SELECT pg_advisory_xact_lock($1, hashtext($2))";
        transaction.query(lock, &[&LOCK, &schema]).await.map_err(explained)?;
        // What another process did while this one waited for the lock counts.
        let found = version(transaction.client(), schema, Some(namespace)).await?;
        if found > to {
            return Err(PostgresError::refused(format!(
                "the schema {schema:?} has version {found}, and there is no way back to {to}: restore a backup"
            )));
        }
        let Some(next) = ALL.iter().find(|migration| migration.version > found && migration.version <= to)
        else {
            return Ok(made);
        };
        transaction.batch_execute(&statements(next, schema, namespace)).await.map_err(explained)?;
        transaction.commit().await.map_err(explained)?;
        made.push(*next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_follow_each_other() {
        let versions: Vec<u32> = ALL.iter().map(|migration| migration.version).collect();
        assert_eq!(versions, (1..=newest()).collect::<Vec<_>>());
    }

    #[test]
    fn names_of_the_user_cannot_leave_their_quotes() {
        let text = statements(&ALL[0], "a\"; DROP", "o'brien");
        assert!(text.starts_with("CREATE SCHEMA IF NOT EXISTS \"a\"\"; DROP\";"), "{text}");
        assert!(text.contains("VALUES (1, 'o''brien')"));
        assert!(!text.contains("{s}"));
    }
}
