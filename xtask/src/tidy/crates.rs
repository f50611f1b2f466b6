//! Who may depend on whom.
//!
//! The core knows no adapter, and an adapter knows only the seams: the crate `machinist-adapter`, or the core of a
//! workspace without it. What only tests depend on is not looked at, except by the bans of deny.toml: cargo-deny counts it,
//! and not every run has cargo-deny. Each outside library has one owner, and one TLS provider serves the whole program: with
//! two, redis-rs panics at its first connection.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use super::{Finding, origins::RULES};
use crate::command::{self, Workspace};

/// Crate of the seams between the core and the adapters.
const SEAMS: &str = "machinist-adapter";

/// Crate that holds the seams of a workspace without [`SEAMS`].
const CORE: &str = "machinist-core";

/// Crates of the workspace that a crate may depend on. One that is not listed may depend on all.
const MAY_KNOW: [(&str, &[&str]); 14] = [
    (SEAMS, &[]),
    (CORE, &[SEAMS]),
    ("machinist-broker-amqp", &[SEAMS]),
    ("machinist-backend-redis", &[SEAMS]),
    ("machinist-sqlite", &[SEAMS]),
    ("machinist-postgres", &[SEAMS]),
    ("machinist-memory", &[SEAMS]),
    ("machinist-macros", &[]),
    ("machinist-metrics", &[CORE]),
    ("machinist-machinery", &[CORE, "machinist-backend-redis"]),
    ("machinist-web", &["machinist"]),
    ("machinist-conformance", &[SEAMS, CORE, "machinist-memory"]),
    (
        "machinist",
        &[
            SEAMS,
            CORE,
            "machinist-broker-amqp",
            "machinist-backend-redis",
            "machinist-machinery",
            "machinist-sqlite",
            "machinist-postgres",
            "machinist-macros",
            "machinist-memory",
        ],
    ),
    ("xtask", &[]),
];

/// Libraries that one crate alone may depend on.
const OWNED: [(&str, &str); 5] = [
    ("lapin", "machinist-broker-amqp"),
    ("redis", "machinist-backend-redis"),
    ("deadpool-redis", "machinist-backend-redis"),
    ("rusqlite", "machinist-sqlite"),
    ("tokio-postgres", "machinist-postgres"),
];

/// What measures the bare libraries, what judges our adapters from outside, and applications with a database of their
/// own may use all of them.
const OUTSIDERS: [&str; 3] = ["machinist-bench", "machinist-chaos", "machinist-examples"];

/// What a sender over RabbitMQ and Redis compiles, as `docs/book/deploying.md` advises it.
const SENDER: [&str; 6] =
    ["tree", "--package", "machinist", "--no-default-features", "--features", "amqp,redis,macros"];

/// TLS providers and stacks beside ring.
const OTHER_TLS: [&str; 4] = ["aws-lc-rs", "aws-lc-sys", "openssl", "native-tls"];

/// Asks cargo what is linked into what.
pub(super) fn check_graph(workspace: &Workspace) -> Result<Vec<Finding>> {
    let tree = |edges: &str, args: &[&str]| {
        let common = ["tree", "--workspace", "--all-features", "--locked", "--edges", edges];
        command::output(workspace.cargo(common.iter().chain(args)).args(["--format", "{p}"]))
    };
    // Not deduplicated: a crate that was shown before would be shown without its dependencies.
    let direct = ["--depth", "1", "--prefix", "depth", "--no-dedupe"];
    let mut findings = check_edges(&tree("normal,build", &direct)?);
    findings.extend(check_tls(&tree("normal,build", &["--prefix", "none"])?));
    let rules = std::fs::read_to_string(workspace.root().join(RULES)).with_context(|| RULES.to_owned())?;
    findings.extend(check_bans(&rules, &tree("normal,build,dev", &direct)?)?);
    let mut sender = workspace.cargo(SENDER);
    sender.args(["--locked", "--edges", "normal,build", "--prefix", "none"]);
    findings.extend(check_sender(&command::output(&mut sender)?));
    Ok(findings)
}

/// Each crate with what it depends on directly, from lines such as `1lapin v4.12.3`.
fn direct_edges(tree: &str) -> BTreeMap<&str, Vec<&str>> {
    let mut edges: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut dependent = "";
    for line in tree.lines() {
        if let Some(root) = line.strip_prefix('0') {
            dependent = package(root);
            edges.entry(dependent).or_default();
        } else if let Some(dependency) = line.strip_prefix('1') {
            edges.entry(dependent).or_default().push(package(dependency));
        }
    }
    edges
}

/// Each crate of the workspace that depends on a library that deny.toml bans, and does not allow there.
fn check_bans(rules: &str, tree: &str) -> Result<Vec<Finding>> {
    let rules: toml::Table = rules.parse().with_context(|| RULES.to_owned())?;
    let bans = rules.get("bans").and_then(|bans| bans.get("deny")).and_then(toml::Value::as_array);
    let edges = direct_edges(tree);
    let mut findings = Vec::new();
    for ban in bans.into_iter().flatten() {
        let Some(banned) = ban.get("crate").and_then(toml::Value::as_str) else { continue };
        let wrappers: Vec<&str> = ban
            .get("wrappers")
            .and_then(toml::Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(toml::Value::as_str)
            .collect();
        let dependents = edges.iter().filter(|(_, dependencies)| dependencies.contains(&banned));
        for dependent in dependents.map(|(dependent, _)| *dependent).filter(|name| !wrappers.contains(name)) {
            let whose = format!(", which {RULES} allows in other crates only");
            let remedy = "use what the owner offers, or name the crate among the wrappers";
            findings.push(edge(dependent, banned, &whose, remedy));
        }
    }
    Ok(findings)
}

fn check_edges(tree: &str) -> Vec<Finding> {
    let edges = direct_edges(tree);
    let members: Vec<&str> = edges.keys().copied().collect();
    let may_know = BTreeMap::from(MAY_KNOW);
    let owned = BTreeMap::from(OWNED);
    let mut findings = Vec::new();
    for (dependent, dependencies) in &edges {
        for dependency in dependencies {
            let seams = if *dependency == CORE && !members.contains(&SEAMS) { SEAMS } else { dependency };
            let stranger = may_know.get(dependent).is_some_and(|known| {
                members.contains(dependency) && !known.contains(dependency) && !known.contains(&seams)
            });
            if stranger {
                let remedy = "dependencies point from the program down to the seams: turn it round";
                findings.push(edge(dependent, dependency, "", remedy));
            }
            if let Some(owner) =
                owned.get(dependency).filter(|owner| *owner != dependent && !OUTSIDERS.contains(dependent))
            {
                let remedy = "use what the owner offers, through the seams";
                findings.push(edge(dependent, dependency, &format!(", which belongs to {owner}"), remedy));
            }
        }
    }
    findings
}

fn edge(dependent: &str, dependency: &str, whose: &str, remedy: &'static str) -> Finding {
    let path = format!("{dependent}/Cargo.toml");
    Finding { path, line: 0, what: format!("{dependent} depends on {dependency}{whose}"), remedy }
}

fn check_tls(tree: &str) -> Option<Finding> {
    let other = tree.lines().map(package).find(|package| OTHER_TLS.contains(package))?;
    Some(Finding {
        path: "Cargo.toml".to_owned(),
        line: 0,
        what: format!("{other} is linked beside ring"),
        remedy: "switch off the feature that brings it; `cargo tree -i` with its name shows the way",
    })
}

/// A sender over servers does not compile SQLite.
fn check_sender(tree: &str) -> Option<Finding> {
    let sqlite = tree.lines().map(package).find(|package| package.contains("sqlite"))?;
    Some(Finding {
        path: "machinist/Cargo.toml".to_owned(),
        line: 0,
        what: format!("{sqlite} is compiled for a sender over RabbitMQ and Redis"),
        remedy: "make it part of the feature `sqlite` alone",
    })
}

/// `lapin` of `lapin v4.12.3 (…)`.
fn package(line: &str) -> &str {
    line.split(' ').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whats(tree: &str) -> Vec<String> {
        check_edges(tree).into_iter().map(|finding| finding.what).collect()
    }

    #[test]
    fn an_edge_against_the_direction_is_found() {
        let tree = "0machinist-core v0.1.0 (dir)\n1bytes v1.0.0\n1machinist-sqlite v0.1.0 (dir)\n\n\
                    0machinist-sqlite v0.1.0 (dir)\n1machinist-core v0.1.0 (dir)\n1rusqlite v0.41.1\n";
        assert_eq!(whats(tree), ["machinist-core depends on machinist-sqlite"]);
    }

    #[test]
    fn an_adapter_knows_the_seams_alone() {
        let core = "0machinist-core v0.1.0 (dir)\n";
        let seams = "0machinist-adapter v0.1.0 (dir)\n";
        let adapter = "0machinist-memory v0.1.0 (dir)\n";
        assert_eq!(whats(&format!("{core}{adapter}1machinist-core v0.1.0 (dir)\n")), [""; 0]);
        assert_eq!(
            whats(&format!("{seams}{core}1machinist-adapter v0.1.0\n{adapter}1machinist-adapter v0.1.0\n")),
            [""; 0]
        );
        assert_eq!(
            whats(&format!("{seams}{core}{adapter}1machinist-core v0.1.0 (dir)\n")),
            ["machinist-memory depends on machinist-core"]
        );
        assert_eq!(
            whats(&format!(
                "{seams}1machinist-core v0.1.0\n{core}{adapter}1machinist-sqlite v0.1.0\n0machinist-sqlite v0.1.0\n"
            )),
            ["machinist-adapter depends on machinist-core", "machinist-memory depends on machinist-sqlite"]
        );
    }

    #[test]
    fn a_library_has_one_owner() {
        let tree =
            "0machinist-cli v0.1.0 (dir)\n1redis v1.8.1\n0machinist-backend-redis v0.1.0\n1redis v1.8.1\n";
        assert_eq!(whats(tree), ["machinist-cli depends on redis, which belongs to machinist-backend-redis"]);
    }

    #[test]
    fn a_library_that_deny_toml_bans_is_found_also_where_only_tests_have_it() {
        let rules = "[bans]\ndeny = [{ crate = \"lapin\", wrappers = [\"a\"] }, { crate = \"openssl\" }]";
        let found = |tree: &str| {
            let findings = check_bans(rules, tree).unwrap();
            findings.into_iter().map(|finding| finding.what).collect::<Vec<_>>()
        };
        assert_eq!(found("0a v0.1.0\n1lapin v4.12.3\n1bytes v1.0.0\n0b v0.1.0\n1a v0.1.0\n"), [""; 0]);
        assert_eq!(
            found("0a v0.1.0\n1lapin v4.12.3\n1openssl v1.0.0\n0b v0.1.0\n1lapin v4.12.3\n"),
            [
                "b depends on lapin, which deny.toml allows in other crates only",
                "a depends on openssl, which deny.toml allows in other crates only"
            ]
        );
        assert!(check_bans("[bans", "").is_err());
    }

    #[test]
    fn a_second_tls_provider_is_found() {
        assert!(check_tls("ring v0.17.14\nrustls v0.23.0\n").is_none());
        let finding = check_tls("ring v0.17.14\naws-lc-rs v1.14.0\n").unwrap();
        assert_eq!(finding.what, "aws-lc-rs is linked beside ring");
    }

    #[test]
    fn sqlite_in_a_sender_is_found() {
        assert!(check_sender("machinist v0.1.0 (dir)\nlapin v4.12.3\n").is_none());
        let finding = check_sender("machinist v0.1.0 (dir)\nlibsqlite3-sys v0.35.0\n").unwrap();
        assert_eq!(finding.what, "libsqlite3-sys is compiled for a sender over RabbitMQ and Redis");
    }
}
