//! What the documentation, the dashboard and the alert rules say about the metrics.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeSet;

use machinist_metrics::{METRICS, MetricKind};

#[test]
fn the_table_lists_every_metric() {
    let page = include_str!("../../docs/metrics.md");
    let rows: Vec<&str> = page
        .lines()
        .filter(|line| {
            line.contains("| counter |") || line.contains("| histogram |") || line.contains("| gauge |")
        })
        .collect();
    let expected: Vec<String> = METRICS
        .iter()
        .map(|metric| {
            let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
            let labels = if labels.is_empty() { "-".to_owned() } else { labels.join(", ") };
            format!(
                "| `{}` | {} | `{}` | {labels} | {} |",
                metric.name,
                metric.kind.as_str(),
                metric.unit,
                metric.meaning
            )
        })
        .collect();
    assert_eq!(rows, expected);
}

/// Returns the words of a query, without its texts.
fn words(query: &str) -> Vec<&str> {
    let mut words = Vec::new();
    for (number, part) in query.split('"').enumerate() {
        if number % 2 == 0 {
            words.extend(
                part.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| !word.is_empty()),
            );
        }
    }
    words
}

/// Checks that a query names only metrics that exist, and labels that they have.
fn check(query: &str) {
    let mut known = BTreeSet::new();
    let mut labels: BTreeSet<String> = ["le".to_owned()].into();
    for word in words(query) {
        if !["machinist_", "messaging_", "db_"].iter().any(|prefix| word.starts_with(prefix)) {
            continue;
        }
        let metric = METRICS.iter().find(|metric| match metric.kind {
            MetricKind::Histogram => {
                let name = metric.prometheus_name();
                ["_bucket", "_count", "_sum"].iter().any(|suffix| format!("{name}{suffix}") == word)
            }
            _ => metric.prometheus_name() == word,
        });
        if let Some(metric) = metric {
            known.insert(metric.name);
            labels.extend(metric.labels.iter().map(|label| label.replace('.', "_")));
        } else {
            let is_label =
                METRICS.iter().flat_map(|metric| metric.labels).any(|label| label.replace('.', "_") == word);
            assert!(is_label, "{word} in {query} is no metric");
        }
    }
    assert!(!known.is_empty(), "{query} names no metric");
    for grouped in query.split(" by (").skip(1) {
        for label in grouped.split(')').next().unwrap().split(',').map(str::trim) {
            assert!(labels.contains(label), "{label} in {query} is no label of {known:?}");
        }
    }
}

#[test]
fn the_dashboard_asks_for_metrics_that_exist() {
    let dashboard: serde_json::Value =
        serde_json::from_str(include_str!("../../docker/grafana/machinist.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let titles: Vec<&str> = panels.iter().map(|panel| panel["title"].as_str().unwrap()).collect();
    for panel in panels {
        for target in panel["targets"].as_array().unwrap() {
            check(target["expr"].as_str().unwrap());
        }
    }
    for (at, title) in titles.iter().enumerate() {
        if title.starts_with("Wait") || title.starts_with("Stages") {
            assert_eq!(titles.get(at + 1), Some(&"Oldest task"), "beside {title}");
        }
    }
}

#[test]
fn every_alert_asks_for_metrics_that_exist_and_has_a_case_and_a_section() {
    let rules = include_str!("../../docker/prometheus/alerts.yml");
    let cases = include_str!("../../docker/prometheus/alerts.test.yml");
    let page = include_str!("../../docs/observing.md");
    let sections: Vec<String> = page
        .lines()
        .filter_map(|line| line.strip_prefix('#'))
        .map(|line| line.trim_start_matches('#').trim().to_lowercase().replace(' ', "-"))
        .collect();
    let alerts: Vec<&str> = rules.split("- alert: ").skip(1).collect();
    assert!(alerts.len() >= 10);
    for alert in alerts {
        let name = alert.lines().next().unwrap();
        assert!(cases.contains(&format!("alertname=\"{name}\"")), "{name} has no case");
        let expression = alert.split("expr: ").nth(1).unwrap().split("\n        labels:").next().unwrap();
        check(expression.split("\n        for:").next().unwrap().trim_start_matches(">-"));
        assert!(alert.contains("summary: "), "{name}");
        let section = alert.split("docs/observing.md#").nth(1).unwrap().lines().next().unwrap();
        assert!(sections.iter().any(|known| known == section), "{section} is no section of observing.md");
    }
}
