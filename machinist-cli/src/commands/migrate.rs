//! `machinist migrate`: the schema in PostgreSQL, for a deployment in which workers may not create tables.

use machinist::{
    postgres::{self, Migrations, PostgresError},
    settings::Settings,
};
use serde_json::json;

use crate::{
    args::MigrateArgs,
    exit::{CliError, Code},
    output,
};

pub(super) async fn run(args: &MigrateArgs, settings: &Settings, json: bool) -> Result<Code, CliError> {
    let all = postgres::migrations(settings)?;
    if all.is_empty() {
        let text = format!(
            "broker {} and backend {} are no PostgreSQL",
            settings.broker.value, settings.backend.value
        );
        return Err(CliError::new(Code::Configuration, text)
            .remedy("name one with --broker postgres://…, MACHINIST_BROKER or broker in machinist.toml"));
    }
    let mut code = Code::Success;
    for migrations in &all {
        if args.print {
            output::raw(&migrations.script(0))?;
        } else if args.check {
            if !check(migrations, json).await? {
                code = Code::NotFinished;
            }
        } else {
            apply(migrations, args.to, json).await?;
        }
    }
    Ok(code)
}

/// Prints the state of a schema; returns whether nothing is missing.
async fn check(migrations: &Migrations, json: bool) -> Result<bool, CliError> {
    let state = migrations.check().await.map_err(|error| failed(&error))?;
    let is_current = state.found == state.needed;
    if json {
        output::json(&json!({ "schema": state.schema, "version": state.found, "needed": state.needed }))?;
    } else {
        let remedy = if is_current { "" } else { "; run `machinist migrate`" };
        output::line(&format!(
            "schema {}: version {} of {}{remedy}",
            state.schema, state.found, state.needed
        ))?;
    }
    Ok(is_current)
}

async fn apply(migrations: &Migrations, to: Option<u32>, json: bool) -> Result<(), CliError> {
    let made = migrations.apply(to).await.map_err(|error| failed(&error))?;
    let state = migrations.check().await.map_err(|error| failed(&error))?;
    if json {
        let made: Vec<u32> = made.iter().map(|migration| migration.version).collect();
        output::json(&json!({ "schema": state.schema, "version": state.found, "made": made }))?;
        return Ok(());
    }
    for migration in &made {
        output::line(&format!("schema {}: version {}, {}", state.schema, migration.version, migration.name))?;
    }
    if made.is_empty() {
        output::line(&format!("schema {}: version {}, nothing to do", state.schema, state.found))?;
    }
    Ok(())
}

/// Gives the error of a server its exit code.
fn failed(error: &PostgresError) -> CliError {
    let code = if error.may_pass() { Code::Unreachable } else { Code::Configuration };
    CliError::new(code, error.to_string())
}
