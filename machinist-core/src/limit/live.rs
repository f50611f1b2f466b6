//! Limits that people set while workers run: signed statements in the control record.

use std::{collections::HashMap, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{Limit, LimitTarget};
use crate::{
    backend::Commit,
    clock::Timestamp,
    record::{Facts, control_record, json, name},
    security::{Consequence, Statement, Trust},
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
pub(crate) fn live_limits(control: &Facts, trust: &Trust) -> HashMap<LimitTarget, Arc<Limit>> {
    let believed = |target: &str, stored: &bytes::Bytes| -> Result<(LimitTarget, Arc<Limit>), String> {
        let parsed = LimitTarget::parse(target)?;
        let live: LiveLimit = serde_json::from_slice(stored).map_err(|error| error.to_string())?;
        let statement = Statement { kind: STATEMENT, subject: target };
        trust.check_statement(statement, stored, live.set_at, Consequence::Command)?;
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
/// The reason that it cannot be signed: the key may not command workers, or is not valid now.
pub(crate) fn set_limit(
    target: &LimitTarget,
    limit: &Limit,
    known: &Facts,
    trust: &Trust,
    now: Timestamp,
) -> Result<Commit, String> {
    let subject = target.to_string();
    let text = json(&LiveLimit { limit: limit.clone(), set_at: now });
    let signed = trust.sign_command(Statement { kind: STATEMENT, subject: &subject }, text, now)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sign::{Algorithm, Key};

    const NOW: Timestamp = Timestamp::from_micros(1_000_000);

    fn key() -> Key {
        Key::with_secret(Algorithm::HmacSha256, "k", &[7; 32]).unwrap()
    }

    fn trust(key: Key) -> Trust {
        Trust::new(Some(key.into()), false, None)
    }

    fn target(text: &str) -> LimitTarget {
        LimitTarget::parse(text).unwrap()
    }

    fn limit(max_running: &str) -> Limit {
        let mut limit = Limit::new();
        limit.set("max_running", max_running).unwrap();
        limit
    }

    #[test]
    fn a_live_limit_is_set_replaced_and_removed() {
        let (trust, call) = (trust(key()), target("task:call"));
        let mut control = Facts::new();
        for number in ["2", "7"] {
            assert!(set_limit(&call, &limit(number), &control, &trust, NOW).unwrap().apply(&mut control));
            let live = live_limits(&control, &trust);
            assert_eq!(live.get(&call).map(|live| Limit::clone(live)), Some(limit(number)));
        }
        assert!(remove_limit(&call).apply(&mut control));
        assert!(live_limits(&control, &trust).is_empty());
    }

    #[test]
    fn only_a_key_that_may_command_everything_sets_a_limit() {
        let call = target("task:call");
        let mut control = Facts::new();
        assert!(set_limit(&call, &limit("2"), &control, &trust(key()), NOW).unwrap().apply(&mut control));
        for restricted in [key().for_tasks(["call"]).unwrap(), key().for_control(false)] {
            let trust = trust(restricted);
            let refused = set_limit(&call, &limit("9"), &control, &trust, NOW).unwrap_err();
            assert!(refused.contains("may not command"), "{refused}");
            assert!(live_limits(&control, &trust).is_empty(), "a limit of such a key is not believed");
        }
    }

    #[test]
    fn a_live_limit_that_is_unsigned_changed_or_moved_to_another_target_is_not_believed() {
        let (signing, call) = (trust(key()), target("task:call"));
        let mut unsigned = Facts::new();
        let nobody = Trust::new(None, false, None);
        assert!(set_limit(&call, &limit("2"), &unsigned, &nobody, NOW).unwrap().apply(&mut unsigned));
        assert!(live_limits(&unsigned, &signing).is_empty());
        assert_eq!(live_limits(&unsigned, &Trust::new(Some(key().into()), true, None)).len(), 1);

        let mut control = Facts::new();
        assert!(set_limit(&call, &limit("2"), &control, &signing, NOW).unwrap().apply(&mut control));
        let fact = format!("{}{call}", name::LIMIT);
        let signed = control.get(&fact).unwrap().clone();
        let text = std::str::from_utf8(&signed).unwrap();
        let changed = text.replace("\"max_running\":2", "\"max_running\":9");
        assert_ne!(changed, text);
        let mut forged = Facts::new();
        forged.put(fact, changed);
        assert!(live_limits(&forged, &signing).is_empty());
        let mut moved = Facts::new();
        moved.put(format!("{}task:other", name::LIMIT), signed);
        assert!(live_limits(&moved, &signing).is_empty());
    }
}
