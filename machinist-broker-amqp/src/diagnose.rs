//! Findings of `machinist doctor` about a RabbitMQ.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use lapin::{
    options::{QueueDeclareOptions, QueueDeleteOptions},
    types::{AMQPValue, FieldTable, ShortString},
};
use machinist_adapter::{
    broker::BrokerError,
    diagnose::{Diagnose, Finding},
};
use tokio::time::timeout;

use crate::{
    broker::AmqpBroker,
    connect::{self, CONNECT_TIMEOUT},
    depth::DepthReader,
    error::{error_chain, rpc},
    options::TopologyMode,
    supervisor::{LiveConnection, PublishAvailability},
    upkeep::missing_levels,
    upkeep_state::LadderReading,
};

/// Minimum version of RabbitMQ, as major and minor: the first whose quorum queues dead-letter at least once.
const MIN_RABBITMQ_VERSION: (u32, u32) = (3, 10);

/// Number of delayed messages above which their number is a warning.
const MANY_DELAYED_MESSAGES: u64 = 100_000;

#[async_trait]
impl Diagnose for AmqpBroker {
    fn location(&self) -> String {
        self.settings.addresses.to_string()
    }

    async fn diagnose(&self) -> Vec<Finding> {
        let live = match self.reached().await {
            Ok(live) => live,
            Err(error) => {
                let remedy = match error {
                    BrokerError::Refused { .. } | BrokerError::Configuration(_) => "correct the broker URL",
                    BrokerError::Unavailable(_) => {
                        "start the broker, or correct HOST and PORT in the broker URL"
                    }
                    _ => "",
                };
                return vec![Finding::error("connection", error_chain(&error), remedy)];
            }
        };
        let mut findings = vec![
            Finding::good("connection", format!("{} answers", self.location())),
            self.version(&live).await,
            heartbeat(&live),
        ];
        if let PublishAvailability::Blocked(reason) = self.publishing.availability() {
            let remedy = "free memory or disk on the broker: rabbitmq-diagnostics alarms";
            findings.push(Finding::error("alarm", format!("the broker takes no messages: {reason}"), remedy));
        }
        if self.settings.topology_mode == TopologyMode::Declare {
            findings.push(self.declare_permission(&live).await);
        }
        findings.extend(self.policies(&live).await);
        findings.extend(self.depths(live).await);
        findings
    }

    async fn diagnose_delays(&self) -> Vec<Finding> {
        let Ok(live) = self.reached().await else { return Vec::new() };
        match self.read_ladder(&live).await {
            Ok(ladder) => self.delays(&live, ladder).await,
            Err(_) => Vec::new(),
        }
    }
}

impl AmqpBroker {
    async fn reached(&self) -> Result<Arc<LiveConnection>, BrokerError> {
        self.consuming().await?.current_in_time().await
    }

    /// Reads the broker's version. The client library does not expose it, so the broker is asked on a separate
    /// connection, which goes no further.
    async fn version(&self, live: &LiveConnection) -> Finding {
        const SUBJECT: &str = "version";
        let asked = timeout(CONNECT_TIMEOUT, async {
            let mut stream = connect::dial(live.connection.endpoint(), &self.settings.tls).await?;
            stream.write_all(b"AMQP\x00\x00\x09\x01").await?;
            stream.flush().await?;
            first_frame(&mut stream).await
        });
        let frame = match asked.await {
            Ok(Ok(frame)) => frame,
            Ok(Err(error)) => return Finding::warning(SUBJECT, format!("cannot be read ({error})"), ""),
            Err(_) => return Finding::warning(SUBJECT, "the broker did not send it in time", ""),
        };
        let product = text_property(&frame, "product").unwrap_or_else(|| "an unknown broker".to_owned());
        let Some(version) = text_property(&frame, "version") else {
            return Finding::warning(SUBJECT, format!("{product} does not report its version"), "");
        };
        let found = format!("{product} {version}");
        match parse_version(&version) {
            Some(number) if number >= MIN_RABBITMQ_VERSION => Finding::good(SUBJECT, found),
            Some(_) => {
                let remedy =
                    "upgrade to RabbitMQ 3.10 or newer: in older versions a crash can lose delayed messages";
                Finding::error(SUBJECT, found, remedy)
            }
            None => Finding::warning(SUBJECT, found, "machinist is tested with RabbitMQ 3.10 and 4.x"),
        }
    }

    /// Checks the permission to declare queues: declares a quorum queue and deletes it again.
    async fn declare_permission(&self, live: &LiveConnection) -> Finding {
        const SUBJECT: &str = "permissions";
        let name =
            format!("{}.doctor.{:016x}", self.settings.topology.task_exchange(), rand::random::<u64>());
        let name = ShortString::try_new(name).unwrap_or_default();
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        // In case the queue is not deleted below.
        arguments.insert("x-expires".into(), AMQPValue::LongLongInt(60_000));
        let tried = async {
            let channel = live.connection.open_channel().await?;
            let declare = channel.queue_declare(name.clone(), QueueDeclareOptions::durable(), arguments);
            rpc("declaring a quorum queue", declare).await?;
            rpc("deleting a queue", channel.queue_delete(name, QueueDeleteOptions::default())).await
        };
        match tried.await {
            Ok(_) => Finding::good(SUBJECT, "this user may declare quorum queues"),
            Err(error) => {
                let remedy = "grant configure, write and read on the namespace, or set topology to \"verify\"; \
                              where quorum queues are not possible, set queue_type to classic";
                Finding::error(SUBJECT, error_chain(&error), remedy)
            }
        }
    }

    /// Reports on the ladder: its messages, and the queues that are missing or let nothing through.
    async fn delays(&self, live: &LiveConnection, ladder: LadderReading) -> Vec<Finding> {
        let found = format!("{} messages in {} queues", ladder.delayed, ladder.queues);
        let mut findings = vec![if !ladder.missing.is_empty() {
            missing_levels(&ladder.missing)
        } else if ladder.delayed > MANY_DELAYED_MESSAGES {
            Finding::warning("delays", found, "spread due times: a burst of 20,000 takes seconds to come due")
        } else {
            Finding::good("delays", found)
        }];
        findings.extend(self.stuck_delays(live, ladder.top).await);
        findings
    }

    /// Counts the messages on the ladder, and those that came due for queues that are gone.
    async fn depths(&self, live: Arc<LiveConnection>) -> Vec<Finding> {
        let ladder = match self.read_ladder(&live).await {
            Ok(ladder) => ladder,
            Err(error) => return vec![Finding::warning("delays", error_chain(&error), "")],
        };
        let mut findings = self.delays(&live, ladder).await;
        let mut reader = DepthReader::new(&self.settings, &self.missing, live);
        match reader.read(&self.settings.topology.undelivered()).await {
            Ok(Some(found)) if found.ready > 0 => findings.push(Finding::warning(
                "undelivered",
                format!("{} delayed messages came due for queues that no longer exist", found.ready),
                "run a worker: it delivers or fails them",
            )),
            Ok(_) => findings.push(Finding::good("undelivered", "no delayed message has lost its queue")),
            Err(error) => findings.push(Finding::warning("undelivered", error_chain(&error), "")),
        }
        findings
    }
}

/// Reports the interval of heartbeats.
fn heartbeat(live: &LiveConnection) -> Finding {
    match live.connection.heartbeat() {
        0 => Finding::warning(
            "heartbeat",
            "off",
            "switch it on at the broker: only heartbeats reveal a silent peer",
        ),
        seconds => Finding::good("heartbeat", format!("{:?}", Duration::from_secs(seconds.into()))),
    }
}

/// Reads the payload of the first frame that a broker sends: `connection.start`.
async fn first_frame(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Vec<u8>> {
    let mut head = [0; 7];
    stream.read_exact(&mut head).await?;
    let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]);
    if head[0] != 1 || size > 64 * 1024 {
        return Err(std::io::Error::other("this is not an AMQP 0.9.1 broker"));
    }
    let mut payload = vec![0; size as usize];
    stream.read_exact(&mut payload).await?;
    Ok(payload)
}

/// Finds a long string by its name in a field table, without reading the table: name, `S`, length, text.
fn text_property(table: &[u8], name: &str) -> Option<String> {
    let mut mark = vec![u8::try_from(name.len()).ok()?];
    mark.extend(name.as_bytes());
    mark.push(b'S');
    let at = table.windows(mark.len()).position(|window| window == mark)? + mark.len();
    let length = u32::from_be_bytes(table.get(at..at + 4)?.try_into().ok()?) as usize;
    let text = table.get(at + 4..)?.get(..length)?;
    Some(String::from_utf8_lossy(text).into_owned())
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_numbers() {
        assert_eq!(parse_version("3.10.8"), Some((3, 10)));
        assert_eq!(parse_version("4.3.6-rc.1"), Some((4, 3)));
        assert!(parse_version("3.9.1").unwrap() < MIN_RABBITMQ_VERSION);
        assert_eq!(parse_version("next"), None);
    }

    #[test]
    fn a_property_is_found_and_a_cut_table_is_no_panic() {
        let table = b"\x07productS\x00\x00\x00\x08RabbitMQ\x07versionS\x00\x00\x00\x063.10.8";
        assert_eq!(text_property(table, "product").as_deref(), Some("RabbitMQ"));
        assert_eq!(text_property(table, "version").as_deref(), Some("3.10.8"));
        for end in 0..table.len() {
            let _ = text_property(&table[..end], "version");
        }
    }
}
