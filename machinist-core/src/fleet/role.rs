//! Leaders and shards, as the records of their roles show them.

use std::collections::{BTreeSet, HashMap};

use serde::Serialize;

use super::WorkerFilter;
use crate::{
    backend::BackendError,
    client::Client,
    clock::Timestamp,
    left_out::left_out,
    rfc3339,
    slot::{RoleKind, RoleName, SlotInfo, view},
};

/// Roles in which live workers take part, and who holds their slots.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct FleetRoles {
    /// Leaders, by name.
    pub leaders: Vec<LeaderInfo>,
    /// Shards, by set and number.
    pub shards: Vec<ShardInfo>,
}

/// The leader of a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LeaderInfo {
    /// Name that is led.
    pub name: String,
    /// Name of the worker that leads. `None` while nobody does.
    pub worker: Option<String>,
    /// Epoch of the last leader.
    pub epoch: u64,
    /// Time since which it leads.
    #[serde(serialize_with = "rfc3339::if_known")]
    pub since: Option<Timestamp>,
}

/// A shard of a set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ShardInfo {
    /// Name of the set.
    pub set: String,
    /// The shard, and who holds it.
    #[serde(flatten)]
    pub slot: SlotInfo,
}

impl Client {
    /// Lists the leaders and the shards of the roles in which live workers take part. A slot whose holder is gone is shown
    /// as free. A role whose record another program has spoilt is left out.
    ///
    /// # Errors
    /// [`BackendError`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn fleet_roles(&self) -> Result<FleetRoles, BackendError> {
        let workers = self.workers(&WorkerFilter::new()).await?;
        let names: BTreeSet<RoleName> = workers
            .iter()
            .flat_map(|worker| &worker.roles)
            .filter_map(|role| RoleName::parse(role))
            .collect();
        let live: HashMap<&str, &str> =
            workers.iter().map(|worker| (&*worker.incarnation, &*worker.name)).collect();
        let records: Vec<_> = names.iter().map(RoleName::record).collect();
        let mut roles = FleetRoles::default();
        for (name, facts) in names.into_iter().zip(self.app.backend().read_each(&records).await?) {
            let RoleName { kind, name } = name;
            for mut slot in view(&left_out("the record of a role", facts)?) {
                let holder = slot.incarnation.as_deref().and_then(|incarnation| live.get(incarnation));
                slot.worker = holder.map(|worker| (*worker).to_owned());
                slot.since = slot.since.filter(|_| slot.worker.is_some());
                match kind {
                    RoleKind::Leader => {
                        let SlotInfo { worker, epoch, since, .. } = slot;
                        roles.leaders.push(LeaderInfo { name: name.clone(), worker, epoch, since });
                    }
                    RoleKind::Shards => roles.shards.push(ShardInfo { set: name.clone(), slot }),
                }
            }
        }
        Ok(roles)
    }
}
