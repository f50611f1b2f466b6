//! Limits that people set while workers run: signed statements in the control record.

use std::{collections::HashMap, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{Limit, LimitTarget};
use crate::{
    backend::Commit,
    clock::Timestamp,
    record::{Facts, control_record, json, name},
    security::{Statement, Trust},
};

/// Kind of the statements about limits.
const STATEMENT: &str = "machinist.limit";

/// A limit that a person has set, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LiveLimit {
    #[serde(flatten)]
    pub(crate) limit: Limit,
    /// Time at which it was set.
    pub(crate) set_at: Timestamp,
}

/// Returns the limits that people have set, from the control record. One that is not believed is left out, and said.
pub(crate) fn live_limits(
    control: &Facts,
    trust: &Trust,
    now: Timestamp,
) -> HashMap<LimitTarget, Arc<Limit>> {
    let believed = |target: &str, stored: &bytes::Bytes| -> Result<(LimitTarget, Arc<Limit>), String> {
        let parsed = LimitTarget::parse(target)?;
        trust.check_statement(Statement { kind: STATEMENT, subject: target }, stored, now, None)?;
        let live: LiveLimit = serde_json::from_slice(stored).map_err(|error| error.to_string())?;
        live.limit.check()?;
        Ok((parsed, Arc::new(live.limit)))
    };
    let stated = control.iter().filter_map(|(fact, stored)| Some((fact.strip_prefix(name::LIMIT)?, stored)));
    let found = stated.filter_map(|(target, stored)| match believed(target, stored) {
        Ok(limit) => Some(limit),
        Err(why) => {
            tracing::warn!(target_of_limit = target, %why, "a limit that was set live is not believed");
            None
        }
    });
    found.collect()
}

/// Creates the commit that sets a limit live.
///
/// # Errors
/// The reason that it cannot be signed.
pub(crate) fn set_limit(
    target: &LimitTarget,
    limit: &Limit,
    known: &Facts,
    trust: &Trust,
    now: Timestamp,
) -> Result<Commit, String> {
    let subject = target.to_string();
    let text = json(&LiveLimit { limit: limit.clone(), set_at: now });
    let signed = trust.sign_statement(Statement { kind: STATEMENT, subject: &subject }, text)?;
    let fact = format!("{}{subject}", name::LIMIT);
    let mut commit = Commit::new(control_record());
    match known.get(&fact) {
        Some(value) => {
            commit.require = vec![(fact.clone().into(), value.clone())];
            commit.drop = vec![fact.clone().into()];
        }
        None => commit.unless = vec![fact.clone().into()],
    }
    commit.facts = vec![(fact.into(), signed)];
    commit.wake = true;
    Ok(commit)
}

/// Creates the commit that removes a limit which was set live.
pub(crate) fn remove_limit(target: &LimitTarget) -> Commit {
    let mut commit = Commit::new(control_record());
    commit.drop = vec![format!("{}{target}", name::LIMIT).into()];
    commit.wake = true;
    commit
}
