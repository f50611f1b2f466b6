//! `machinist doctor`: checks broker, backend and keys, and reports problems with their remedies.

use machinist::{
    RefusedMessages, Servers,
    backend::Backend,
    broker::{Broker, BrokerError, QueueDepth},
    clock::Timestamp,
    diagnose::{Diagnose, Finding, Level},
    periodic::PeriodicTask,
    settings::{Setting, Settings, Topology},
    url::{Reach, Role, ServerUrl},
};
use serde::Serialize;

use super::refused;
use crate::{
    exit::{CliError, Code, chain, connect_code},
    output, visible,
};

/// Finding as it is shown.
#[derive(Serialize)]
pub(super) struct FindingRow {
    server: &'static str,
    location: String,
    level: &'static str,
    subject: String,
    found: String,
    remedy: String,
}

impl FindingRow {
    pub(super) fn new(server: &'static str, location: &str, finding: Finding) -> Self {
        let level = match finding.level {
            Level::Good => "good",
            Level::Warning => "warning",
            Level::Error => "error",
        };
        let hide = |text: &str| machinist::redact::text(text).into_owned();
        Self {
            server,
            location: hide(location),
            level,
            found: hide(&finding.found),
            remedy: hide(&finding.remedy),
            subject: finding.subject,
        }
    }
}

/// Findings about one server.
struct ServerReport {
    rows: Vec<FindingRow>,
    /// Exit code for the problem, or success.
    code: Code,
}

pub(super) async fn run(settings: &Settings, json: bool) -> Result<Code, CliError> {
    let servers = Servers::reach(settings).await;
    let broker = match &servers.broker {
        Ok(broker) => Ok(broker.as_ref() as &dyn Diagnose),
        Err(error) => Err(error),
    };
    let backend = match &servers.backend {
        Ok(backend) => Ok(backend.as_ref() as &dyn Diagnose),
        Err(error) => Err(error),
    };
    let broker_url = &settings.broker.value;
    let backend_url = &settings.backend.value;
    // One server that is both is checked once.
    let one = broker_url == backend_url && broker_url.scheme().reach() != Reach::Process;
    let name = if one { "broker and backend" } else { "broker" };
    let mut examined = vec![examine(Role::Broker, name, broker_url, broker).await];
    if let (Ok(broker), Topology::Verify) = (&servers.broker, settings.topology.value) {
        examined.extend(topology(broker.as_ref(), settings, name).await);
    }
    if let Ok(broker) = &servers.broker {
        examined.extend(full_queues(broker.as_ref(), settings, name).await);
    }
    if !one {
        examined.push(examine(Role::Backend, "backend", backend_url, backend).await);
    }
    if let Ok(backend) = &servers.backend {
        let name = if one { name } else { "backend" };
        examined.extend(refused_messages(backend.as_ref(), name).await);
        examined.extend(restored(backend.as_ref(), name).await);
    }
    examined.push(keys(settings));
    // An unreachable server goes before a wrong setting of the other.
    let codes = examined.iter().map(|server| server.code).filter(|code| *code != Code::Success);
    let code = codes.min().unwrap_or(Code::Success);
    print(examined.into_iter().flat_map(|server| server.rows), json)?;
    if let Ok(broker) = servers.broker {
        broker.close().await;
    }
    Ok(code)
}

/// Reports messages that workers did not accept lately. Returns `None` if there are none, or the backend cannot be asked,
/// which is reported already.
async fn refused_messages(backend: &dyn Backend, name: &'static str) -> Option<ServerReport> {
    let now = backend.now().await.ok()?;
    let counts = refused::lately(RefusedMessages::read(backend).await.ok()?, now);
    let finding = |count: &RefusedMessages| {
        let subject = format!("queue {}", count.queue);
        Finding::warning(subject, refused::text(count), count.remedy())
    };
    let rows: Vec<_> =
        counts.iter().map(|count| FindingRow::new(name, &backend.location(), finding(count))).collect();
    (!rows.is_empty()).then_some(ServerReport { rows, code: Code::Success })
}

/// Reports periodic tasks that the backend has lost, and that workers wrote back. Returns `None` if there are none, or the
/// backend cannot be asked, which is reported already.
async fn restored(backend: &dyn Backend, name: &'static str) -> Option<ServerReport> {
    let restored = PeriodicTask::restored(backend).await.ok()?;
    let finding = |(task, at): &(String, Timestamp)| {
        let found = format!("the backend had lost it; a worker wrote it back at {at}");
        let remedy =
            format!("find out what else was lost; `machinist periodic resume {task}` ends this report");
        Finding::warning(format!("periodic task {task}"), found, remedy)
    };
    let rows: Vec<_> =
        restored.iter().map(|one| FindingRow::new(name, &backend.location(), finding(one))).collect();
    (!rows.is_empty()).then_some(ServerReport { rows, code: Code::Success })
}

/// Checks that the queues exist, which this user may not create. Returns `None` if the broker cannot be reached, which is
/// reported already.
async fn topology(broker: &dyn Broker, settings: &Settings, name: &'static str) -> Option<ServerReport> {
    let finding = match broker.prepare(&settings.worker.named_queues().collect::<Vec<_>>()).await {
        Ok(()) => Finding::good("topology", "all that worker.queues need is there"),
        Err(BrokerError::Unavailable(_)) => return None,
        Err(error) => Finding::error(
            "topology",
            chain(&error),
            "run `machinist queues --declare` as a user who may create it",
        ),
    };
    let code = if finding.level == Level::Error { Code::Configuration } else { Code::Success };
    Some(ServerReport { rows: vec![FindingRow::new(name, &broker.location(), finding)], code })
}

/// Reports queues that have as many tasks as they may have. Returns `None` if there are none, or the broker cannot be asked,
/// which is reported already.
async fn full_queues(broker: &dyn Broker, settings: &Settings, name: &'static str) -> Option<ServerReport> {
    let queues: Vec<_> = settings.max_depths.keys().cloned().collect();
    let depths = if queues.is_empty() { return None } else { broker.depth(&queues).await.ok()? };
    let finding = |(depth, most): (QueueDepth, &Setting<u64>)| {
        let waiting = depth.ready.filter(|waiting| *waiting >= most.value)?;
        Some(Finding::warning(
            format!("queue {}", depth.queue),
            format!("{waiting} tasks wait, and {} may: senders are refused ({})", most.value, most.origin),
            "start more workers of the queue, or raise max_depth",
        ))
    };
    let full = depths.into_iter().zip(settings.max_depths.values()).filter_map(finding);
    let rows: Vec<_> = full.map(|finding| FindingRow::new(name, &broker.location(), finding)).collect();
    (!rows.is_empty()).then_some(ServerReport { rows, code: Code::Success })
}

/// Checks the keys.
fn keys(settings: &Settings) -> ServerReport {
    let findings = settings.diagnose_keys();
    let broken = findings.iter().any(|finding| finding.level == Level::Error);
    ServerReport {
        rows: findings.into_iter().map(|finding| FindingRow::new("keys", "", finding)).collect(),
        code: if broken { Code::Configuration } else { Code::Success },
    }
}

async fn examine(
    role: Role,
    name: &'static str,
    url: &ServerUrl,
    server: Result<&dyn Diagnose, &machinist::ConnectError>,
) -> ServerReport {
    let server = match server {
        Ok(server) => server,
        Err(error) => {
            let code = connect_code(error);
            let finding = Finding::error("connection", chain(error), remedy(role, code));
            return ServerReport { rows: vec![FindingRow::new(name, &url.to_string(), finding)], code };
        }
    };
    let mut findings = server.diagnose().await;
    if url.scheme().reach() == Reach::Process {
        findings.push(Finding::warning(
            "processes",
            format!("{}:// is seen by one process only", url.scheme()),
            "use sqlite://machinist.db, which needs no server either",
        ));
    }
    let broken = findings.iter().any(|finding| finding.level == Level::Error);
    let away = findings.iter().any(|f| f.level == Level::Error && f.subject == "connection");
    let code = match (broken, away) {
        (false, _) => Code::Success,
        (true, true) => Code::Unreachable,
        (true, false) => Code::Configuration,
    };
    let location = server.location();
    ServerReport {
        rows: findings.into_iter().map(|finding| FindingRow::new(name, &location, finding)).collect(),
        code,
    }
}

fn remedy(role: Role, code: Code) -> String {
    let name = role.as_str();
    match code {
        Code::Unreachable => {
            format!("start it, or name another by --{name} URL or MACHINIST_{}", name.to_uppercase())
        }
        _ => format!(
            "correct it; `machinist config` shows the places that set the {name}'s URL and the TLS files"
        ),
    }
}

/// Prints findings, grouped by server.
pub(super) fn print(rows: impl Iterator<Item = FindingRow>, json: bool) -> Result<(), CliError> {
    if json {
        return output::json(&rows.collect::<Vec<_>>());
    }
    let mut server = "";
    for row in rows {
        if row.server != server {
            let head = format!("{}  {}", row.server, visible::one_line(&row.location));
            output::line(&format!("{}{}", if server.is_empty() { "" } else { "\n" }, head.trim_end()))?;
            server = row.server;
        }
        let found = visible::one_line(&format!("{}: {}", row.subject, row.found));
        output::line(&format!("  {:<8} {found}", row.level))?;
        if !row.remedy.is_empty() {
            output::line(&format!("           {}", visible::one_line(&row.remedy)))?;
        }
    }
    Ok(())
}
