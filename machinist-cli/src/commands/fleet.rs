//! `machinist fleet`: lists the leaders and the shards of live workers.

use std::collections::BTreeSet;

use machinist::{LeaderInfo, ShardInfo, settings::Settings};

use super::connect_reader;
use crate::{
    args::PageArgs,
    exit::{CliError, Code},
    output,
};

pub(super) async fn run(page: &PageArgs, settings: &Settings, json: bool) -> Result<Code, CliError> {
    let app = connect_reader(settings).await?;
    let mut roles = app.client().fleet_roles().await?;
    // Leaders come before shards, as in the output.
    let leader_key = |leader: &LeaderInfo| format!("leader/{}", leader.name);
    let shard_key = |shard: &ShardInfo| format!("shards/{}/{:04}", shard.set, shard.slot.slot);
    let keys = roles.leaders.iter().map(leader_key).chain(roles.shards.iter().map(shard_key));
    let mut keys: Vec<String> = keys.collect::<BTreeSet<_>>().into_iter().collect();
    output::note_next(page.cut(&mut keys, String::clone));
    roles.leaders.retain(|leader| keys.binary_search(&leader_key(leader)).is_ok());
    roles.shards.retain(|shard| keys.binary_search(&shard_key(shard)).is_ok());
    if json {
        output::json(&roles)?;
    } else {
        let holder = |worker: &Option<String>| worker.clone().unwrap_or_else(|| "-".to_owned());
        let leader = |leader: &LeaderInfo| {
            vec![
                format!("leader {}", leader.name),
                String::new(),
                holder(&leader.worker),
                leader.epoch.to_string(),
            ]
        };
        let shard = |shard: &ShardInfo| {
            let slot = shard.slot.parameter.as_ref().map_or_else(
                || shard.slot.slot.to_string(),
                |parameter| format!("{} ({parameter})", shard.slot.slot),
            );
            vec![
                format!("shards {}", shard.set),
                slot,
                holder(&shard.slot.worker),
                shard.slot.epoch.to_string(),
            ]
        };
        let rows = roles.leaders.iter().map(leader).chain(roles.shards.iter().map(shard));
        output::table(&["role", "slot", "worker", "epoch"], rows)?;
    }
    app.broker().close().await;
    Ok(Code::Success)
}
