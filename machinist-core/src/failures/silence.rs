//! Groups of failures that people have silenced for a while.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    backend::{Backend, BackendError, Commit, Committed, Expiry},
    clock::Timestamp,
    id::{RecordId, RecordKind},
    record::{FactName, json},
};

/// Maximum time for which a group is silenced.
pub(super) const MAX_SILENCE: Duration = Duration::from_secs(30 * 24 * 3600);

fn record() -> RecordId {
    RecordId::new(RecordKind::Control, "failures-silenced")
}

/// Returns the groups that are silenced now, with the ends of their silences.
pub(super) async fn silenced(
    backend: &dyn Backend,
    now: Timestamp,
) -> Result<BTreeMap<String, Timestamp>, BackendError> {
    let facts = backend.read(&[record()]).await?.pop().unwrap_or_default();
    let ends = facts.iter().filter_map(|(name, _)| Some((name.to_owned(), facts.read(name)?)));
    Ok(ends.filter(|(_, until)| *until > now).collect())
}

/// Silences a group until an instant, and forgets the silences that are over. An instant that has passed ends the silence.
pub(super) async fn silence(
    backend: &dyn Backend,
    now: Timestamp,
    fingerprint: &str,
    until: Timestamp,
) -> Result<(), BackendError> {
    let facts = backend.read(&[record()]).await?.pop().unwrap_or_default();
    let is_over = |name: &str| facts.read::<Timestamp>(name).is_none_or(|until| until <= now);
    let over = facts.iter().filter(|(name, _)| *name != fingerprint && is_over(name));
    let over: Vec<_> = over.map(|(name, value)| (name.to_owned().into(), value.clone())).collect();
    // If somebody has silenced one of these again meanwhile, they are forgotten another time.
    for over in [over, Vec::new()] {
        let mut commit = Commit::new(record());
        commit.drop = over.iter().map(|(name, _)| FactName::clone(name)).collect();
        commit.drop.push(fingerprint.to_owned().into());
        commit.require = over;
        if until > now {
            commit.facts = vec![(fingerprint.to_owned().into(), json(&until))];
        }
        commit.expiry = Expiry::After(MAX_SILENCE);
        for answer in backend.commit(vec![commit.into()]).await {
            if let Committed::Done { .. } = answer? {
                return Ok(());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use machinist_memory::MemoryBackend;

    use super::*;

    #[tokio::test]
    async fn a_silence_ends_by_itself_or_by_hand() {
        let (backend, now) = (MemoryBackend::new(), Timestamp::from_micros(1_764_547_200_000_000));
        let later = now.plus(Duration::from_secs(60));
        silence(&backend, now, "a", later).await.unwrap();
        silence(&backend, now, "b", later.plus(Duration::from_secs(60))).await.unwrap();
        assert_eq!(silenced(&backend, now).await.unwrap().len(), 2);
        assert_eq!(silenced(&backend, later).await.unwrap().into_keys().collect::<Vec<_>>(), ["b"]);
        silence(&backend, later, "b", later).await.unwrap();
        assert_eq!(silenced(&backend, now).await.unwrap(), BTreeMap::new(), "what was over is forgotten");
    }
}
