//! A RabbitMQ cluster of three nodes, of which one after the other is killed under load.
//!
//! Everybody knows all three URLs. The nodes that are left have the majority of every queue, so work has to go on.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result};
use xtask::{
    interrupt::Interrupt,
    services::{Endpoints, Server, Services},
};

use crate::house::House;

const NODES: u8 = 3;
/// Time after the end of a node for which what was prefetched may still be run.
const PREFETCHED: Duration = Duration::from_secs(3);
/// Every worker has to run tasks again so long after the end of a node.
const FAILOVER: Duration = Duration::from_secs(15);

/// Starts three nodes and a Redis in a directory below `dir`.
pub(crate) fn form(dir: &Path, interrupt: &Interrupt) -> Result<(Services, Endpoints)> {
    let services = Services::at(&dir.join("cluster"))?;
    let mut endpoints = services.up(interrupt)?.endpoints;
    match join(&services, interrupt) {
        Ok(urls) => endpoints.amqp_url = urls.join(","),
        Err(error) => {
            services.down()?;
            return Err(error);
        }
    }
    Ok((services, endpoints))
}

fn join(services: &Services, interrupt: &Interrupt) -> Result<Vec<String>> {
    let mut urls = vec![services.amqp_url()?];
    for number in 2..=NODES {
        urls.push(services.join(number, interrupt)?.amqp_url()?);
    }
    Ok(urls)
}

/// Kills one node after the other, and starts each again.
pub(crate) async fn kill_nodes(house: &House) -> Result<()> {
    let mut slowest = 0;
    for number in (1..=NODES).cycle().take(usize::try_from(house.size.rounds())?) {
        let node = house.services.node_of(number);
        tokio::task::block_in_place(|| node.kill(Server::RabbitMq))?;
        house.pass(PREFETCHED).await?;
        let since = house.mark(&format!("without-{number}")).await?;
        let took = house.every_worker_runs_since(since, FAILOVER.saturating_sub(PREFETCHED)).await;
        slowest = slowest.max(took.with_context(|| format!("after the end of node {number}"))?);
        house.pass(house.size.fault()).await?;
        tokio::task::block_in_place(|| {
            node.start_again(Server::RabbitMq, &house.interrupt)?;
            node.rabbitmqctl(&["await_online_nodes", &NODES.to_string()])
        })?;
        house.pass(house.size.calm()).await?;
    }
    let slowest = PREFETCHED + Duration::from_millis(slowest);
    say!("    every worker ran tasks again at most {:.1} s after the end of a node", slowest.as_secs_f64());
    Ok(())
}
