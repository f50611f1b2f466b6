//! Upkeep of what messages need on the broker: the queues of the delays are there and let messages through, and no policy
//! drops any.
//!
//! A queue of a level that somebody deleted holds up every delay that passes it, and nobody notices: senders publish to
//! higher levels, and the broker keeps what it cannot hand down. So workers look, and make it again.

use std::{sync::Arc, time::Duration};

use machinist_adapter::{
    broker::BrokerError,
    diagnose::{Finding, Level},
};
use serde_json::Value;
use tokio::time::Instant;

use crate::{
    broker::AmqpBroker, depth::DepthReader, error::AmqpError, ladder, ladder::LADDER_LEVELS,
    options::TopologyMode, policies, stuck_delays, supervisor::LiveConnection, upkeep_state::LadderReading,
};

/// Interval between two questions to the management API, which cost the broker more than the rest.
const MANAGEMENT_INTERVAL: Duration = Duration::from_secs(15 * 60);

impl AmqpBroker {
    /// Makes missing queues of the ladder again, and reports them, policies that threaten messages, and queues of the ladder
    /// that let nothing through.
    pub(crate) async fn upkeep(&self) -> Result<Vec<Finding>, BrokerError> {
        let live = self.consuming().await?.current_in_time().await?;
        let mut findings = Vec::new();
        let is_first = self.upkeep.found().top.is_none();
        let ladder = self.read_ladder(&live).await.map_err(AmqpError::into_broker_error)?;
        if let Some(top) = ladder.top
            && self.settings.topology_mode == TopologyMode::Declare
            && (is_first || !ladder.missing.is_empty())
        {
            // At first also without a missing queue: an exchange or a binding may be.
            live.declared.make_ladder(&live.connection, top).await?;
        }
        if !ladder.missing.is_empty() {
            findings.push(match self.settings.topology_mode {
                TopologyMode::Declare => Finding::warning(
                    "delays",
                    format!("{} did not exist, and held up longer delays", ladder.missing.join(", ")),
                    "it was created again; find out who deletes it",
                ),
                TopologyMode::Verify => missing_levels(&ladder.missing),
            });
        }
        findings.extend(self.threats_in_a_while(&live, ladder.top).await);
        Ok(findings)
    }

    /// Reads the queues of the ladder. The first time in a process it looks for the highest level from above.
    pub(crate) async fn read_ladder(&self, live: &Arc<LiveConnection>) -> Result<LadderReading, AmqpError> {
        let topology = &self.settings.topology;
        let mut reader = DepthReader::new(&self.settings, &self.missing, Arc::clone(live));
        let known = self.upkeep.found().top;
        let top = match known {
            Some(top) => top,
            None => {
                let mut found = None;
                'levels: for level in (0..LADDER_LEVELS).rev() {
                    for digit in [1, ladder::MAX_DIGIT] {
                        if reader.read(&topology.level_queue(level, digit)).await?.is_some() {
                            found = Some(level);
                            break 'levels;
                        }
                    }
                }
                // The levels above are asked for no more.
                self.missing.close().await;
                found
            }
        };
        let top = top.max(live.declared.highest_level());
        self.upkeep.found().top = Some(top);
        let mut reading = LadderReading { top, ..LadderReading::default() };
        let levels = top.map_or(0, |top| top + 1);
        for queue in (0..levels).flat_map(|level| topology.level_queues(level)) {
            match reader.read(&queue).await? {
                Some(found) => {
                    reading.delayed += found.ready;
                    reading.queues += 1;
                }
                None => reading.missing.push(queue),
            }
        }
        Ok(reading)
    }

    /// Reports what the management API said last, and asks it in intervals.
    async fn threats_in_a_while(&self, live: &LiveConnection, top: Option<u8>) -> Vec<Finding> {
        if let Some((at, findings)) = &self.upkeep.found().threats
            && at.elapsed() < MANAGEMENT_INTERVAL
        {
            return findings.clone();
        }
        let policies = self.policies(live).await.filter(|finding| finding.level == Level::Error);
        let findings: Vec<Finding> = policies.into_iter().chain(self.stuck_delays(live, top).await).collect();
        self.upkeep.found().threats = Some((Instant::now(), findings.clone()));
        findings
    }

    /// Reports the policies that match our queues; `None` if the management API is not to be asked.
    pub(crate) async fn policies(&self, live: &LiveConnection) -> Option<Finding> {
        let port = self.settings.management_port?;
        let topology = &self.settings.topology;
        let is_ours = |name: &str, arguments: &Value| {
            topology.is_own_queue(name, arguments["x-dead-letter-exchange"].as_str())
        };
        Some(policies::of_queues(live.connection.endpoint(), port, is_ours).await)
    }

    /// Reports the queues of the ladder that let nothing through; `None` if there is none, or nobody can tell.
    pub(crate) async fn stuck_delays(&self, live: &LiveConnection, top: Option<u8>) -> Option<Finding> {
        let port = self.settings.management_port?;
        let topology = &self.settings.topology;
        let levels = top.map_or(0, |top| top + 1);
        let queues = (0..levels).flat_map(|level| (1..=ladder::MAX_DIGIT).map(move |digit| (level, digit)));
        let holds = queues
            .map(|(level, digit)| (topology.level_queue(level, digit), ladder::hold_millis(level, digit)));
        stuck_delays::look(live.connection.endpoint(), port, &holds.collect()).await
    }
}

/// Finding about queues of the ladder that are missing.
pub(crate) fn missing_levels(missing: &[String]) -> Finding {
    Finding::error(
        "delays",
        format!("{} do not exist, and hold up longer delays", missing.join(", ")),
        "run a worker with topology \"declare\", or create them: machinist queues --declare",
    )
}
