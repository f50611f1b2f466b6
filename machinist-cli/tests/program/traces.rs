//! One trace over two processes and the metrics of a worker, as a collector receives them.

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
};

use opentelemetry_proto::tonic::{
    collector::{metrics::v1::ExportMetricsServiceRequest, trace::v1::ExportTraceServiceRequest},
    common::v1::any_value::Value,
    trace::v1::{Span, span::SpanKind},
};
use prost::Message;

use crate::support::{Folder, eventually};

/// Receiver of OTLP over http/protobuf that stores every span, and the names of the metrics.
struct Collector {
    url: String,
    spans: Arc<Mutex<Vec<Span>>>,
    metrics: Arc<Mutex<BTreeSet<String>>>,
}

impl Collector {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (spans, metrics) =
            (Arc::<Mutex<Vec<Span>>>::default(), Arc::<Mutex<BTreeSet<String>>>::default());
        let all = (Arc::clone(&spans), Arc::clone(&metrics));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (spans, metrics) = all.clone();
                std::thread::spawn(move || receive(stream.unwrap(), &spans, &metrics));
            }
        });
        Self { url, spans, metrics }
    }

    fn named(&self, name: &str) -> Vec<Span> {
        self.spans.lock().unwrap().iter().filter(|span| span.name == name).cloned().collect()
    }
}

/// Reads requests from one connection until it is closed.
fn receive(stream: TcpStream, spans: &Mutex<Vec<Span>>, metrics: &Mutex<BTreeSet<String>>) {
    let mut from = BufReader::new(stream);
    loop {
        let mut head = Vec::new();
        let mut line = String::new();
        while from.read_line(&mut line).is_ok_and(|count| count > 0) && line != "\r\n" {
            head.push(std::mem::take(&mut line).to_lowercase());
        }
        let length = head.iter().find_map(|line| line.strip_prefix("content-length:"));
        let Some(length) = length.map(|text| text.trim().parse().unwrap()) else { return };
        let is_of_metrics = head[0].starts_with("post /v1/metrics ");
        assert!(is_of_metrics || head[0].starts_with("post /v1/traces "), "{head:?}");
        assert!(head.iter().any(|line| line.trim() == "content-type: application/x-protobuf"), "{head:?}");
        let mut body = vec![0; length];
        from.read_exact(&mut body).unwrap();
        if is_of_metrics {
            let request = ExportMetricsServiceRequest::decode(&body[..]).unwrap();
            let scopes = request.resource_metrics.into_iter().flat_map(|resource| resource.scope_metrics);
            metrics.lock().unwrap().extend(scopes.flat_map(|scope| scope.metrics).map(|metric| metric.name));
        } else {
            let request = ExportTraceServiceRequest::decode(&body[..]).unwrap();
            let received =
                request.resource_spans.into_iter().flat_map(|r| r.scope_spans).flat_map(|s| s.spans);
            spans.lock().unwrap().extend(received);
        }
        from.get_mut().write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
    }
}

fn attribute<'a>(span: &'a Span, name: &str) -> &'a str {
    let found =
        span.attributes.iter().find(|attribute| attribute.key == name).unwrap_or_else(|| panic!("{span:?}"));
    match found.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text,
        other => panic!("{name}: {other:?}"),
    }
}

#[test]
fn one_trace_over_two_processes_and_a_retry() {
    let collector = Collector::start();
    let mut folder = Folder::with("[tasks.later]\ncommand = [\"./later.sh\"]\nbackoff = \"fixed:10ms\"\n");
    folder.script("later.sh", "[ \"$MACHINIST_ATTEMPT\" = 1 ] && exit 75; echo done");
    folder.set("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url);
    let worker = folder.worker(&[]);
    let task = folder.outcome(&["later"]);
    assert_eq!(task["attempt"], 2, "{task}");
    worker.stop().ended(0);
    let exported = eventually("the metrics arrive", || {
        let exported = collector.metrics.lock().unwrap().clone();
        exported.contains("machinist.task.ended").then_some(exported)
    });
    assert!(exported.contains("machinist.task.wait.duration"), "{exported:?}");

    let (sent, runs) = eventually("the spans arrive", || {
        let sent = collector.named("send later");
        let runs = collector.named("process later");
        (sent.len() == 1 && runs.len() == 2).then_some((sent[0].clone(), runs))
    });
    let id = task["id"].as_str().unwrap();
    let trace: String = sent.trace_id.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(task["trace_id"], trace);
    assert_eq!(sent.kind(), SpanKind::Producer);
    assert_eq!(attribute(&sent, "messaging.message.id"), id);
    assert_eq!(attribute(&sent, "messaging.destination.name"), "default");
    for run in runs {
        assert_eq!(run.kind(), SpanKind::Consumer);
        assert_eq!((&run.trace_id, &run.parent_span_id), (&sent.trace_id, &sent.span_id));
        assert_eq!(run.links[0].span_id, sent.span_id);
        assert_eq!(attribute(&run, "messaging.operation.type"), "process");
        assert_eq!(attribute(&run, "messaging.message.id"), id);
    }
}

#[test]
fn a_workflow_is_one_trace_in_which_each_run_follows_the_one_before() {
    let collector = Collector::start();
    let mut folder = Folder::with(
        "[tasks.one]\ncommand = [\"echo\", \"1\"]\n[tasks.all]\ncommand = [\"cat\"]\n[tasks.last]\ncommand = [\"cat\"]\n",
    );
    folder.set("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url);
    let flow = "\
[steps.many]
task = \"one\"
each = [[1], [2]]
[steps.all]
task = \"all\"
after = [\"many\"]
[steps.last]
task = \"last\"
after = [\"all\"]
";
    folder.write("flow.toml", flow);
    let worker = folder.worker(&[]);
    let done = folder.outcome(&["--flow", "flow.toml"]);
    assert_eq!(done["state"], "SUCCESS", "{done}");
    worker.stop().ended(0);
    let runs = |task: &str, count: usize| {
        eventually(task, || {
            let runs = collector.named(&format!("process {task}"));
            (runs.len() == count).then_some(runs)
        })
    };
    let (root, members) = (runs("machinist.workflow", 1).remove(0), runs("one", 2));
    let (all, last) = (runs("all", 1).remove(0), runs("last", 1).remove(0));
    assert!(members.iter().chain([&all, &last]).all(|run| run.trace_id == root.trace_id));
    assert!(members.iter().all(|member| member.parent_span_id == root.span_id), "{members:?}");
    let is_linked = |member: &Span| all.links.iter().any(|link| link.span_id == member.span_id);
    assert!(members.iter().all(is_linked), "{all:?}");
    assert_eq!((&all.parent_span_id, &last.parent_span_id), (&root.span_id, &all.span_id));
}

#[test]
fn a_collector_that_is_away_disturbs_nobody() {
    let mut folder = Folder::new();
    folder.set("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1");
    assert!(!folder.send(&["add", "1"]).is_empty());
    folder.set("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector");
    folder.run(&["send", "add", "1"]).ended(0).reports(&["OTEL_EXPORTER_OTLP_ENDPOINT", "TLS", "http"]);
}

#[test]
fn a_log_in_json_is_nothing_but_lines_of_json() {
    let mut folder = Folder::new();
    folder.set("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector");
    let failed = folder.run(&["--log", "json", "status", "no-such-task"]).ended(3);
    assert!(failed.stderr.lines().count() >= 2, "a warning and the error: {failed:?}");
    for line in failed.stderr.lines() {
        let line: serde_json::Value = serde_json::from_str(line).expect(line);
        assert!(line["level"].is_string() && line["message"].is_string(), "{line}");
    }
}
