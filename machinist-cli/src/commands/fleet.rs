//! `machinist fleet`: lists the leaders and the shards of live workers.

use machinist::{LeaderInfo, ShardInfo, settings::Settings};

use super::connect_reader;
use crate::{
    exit::{CliError, Code},
    output,
};

pub(super) async fn run(settings: &Settings, json: bool) -> Result<Code, CliError> {
    let app = connect_reader(settings).await?;
    let roles = app.client().fleet_roles().await?;
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
