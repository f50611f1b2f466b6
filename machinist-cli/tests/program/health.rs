//! Health checks over HTTP, and notifications of systemd.

use std::{
    io::{Read, Write},
    net::TcpStream,
    os::unix::net::UnixDatagram,
};

use machinist_conformance::Proxy;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{
    servers::servers,
    support::{Folder, Running, WAIT_TIMEOUT, eventually},
};

/// Client of a worker's health checks.
struct HealthClient(String);

impl HealthClient {
    /// Starts a worker with health checks, and waits until it is ready.
    fn start(folder: &Folder, more: &[&str]) -> (Running, Self) {
        let flags = ["worker", "--demo", "--health", "127.0.0.1:0"];
        let mut worker = folder.start(&[&flags, more].concat());
        let line = worker.stderr.until("/healthz");
        let address = line.split("http://").nth(1).unwrap().split('/').next().unwrap().to_owned();
        worker.stderr.until("is ready");
        (worker, Self(address))
    }

    fn send(&self, request: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.0).unwrap();
        stream.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let code = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (code, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
    }

    fn get(&self, path: &str) -> (u16, String) {
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: worker\r\n\r\n"))
    }

    fn ask(&self, path: &str) -> (u16, Value) {
        let (code, body) = self.get(path);
        (code, serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}")))
    }

    /// Waits until it answers with this code, and returns the problems.
    fn until(&self, path: &str, code: u16) -> Vec<String> {
        let answer = eventually(&format!("{path} answers {code}"), || {
            let (found, answer) = self.ask(path);
            (found == code).then_some(answer)
        });
        assert_eq!(answer["status"], if code == 200 { "ok" } else { "failing" });
        answer["wrong"].as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
    }
}

#[test]
fn a_worker_tells_how_it_is() {
    let folder = Folder::new();
    let (worker, health) = HealthClient::start(&folder, &["--name", "w1", "--queue", "a"]);
    for path in ["/healthz", "/readyz"] {
        let (code, answer) = health.ask(path);
        let well = json!({"status": "ok", "wrong": [], "worker": "w1", "queues": ["a"], "running": 0});
        assert_eq!((code, answer), (200, well));
    }
    let (code, answer) = health.ask("/health");
    let well = json!({"color": "green", "reason": null, "state": "awake", "detail": [], "worker": "w1", "queues": ["a"],
        "running": 0});
    assert_eq!((code, answer), (200, well));
    assert_eq!(health.get("/").0, 404);
    assert_eq!(health.send("POST /healthz HTTP/1.1\r\nHost: worker\r\nContent-Length: 0\r\n\r\n").0, 405);
    assert_eq!(health.send("HEAD /healthz HTTP/1.1\r\nHost: worker\r\n\r\n"), (200, String::new()));

    // A draining worker is alive, but not ready.
    let running = folder.send(&["sleep", "1000", "--queue", "a"]);
    eventually("it runs", || (folder.status(&running)["state"] == "STARTED").then_some(()));
    worker.signal(Signal::SIGTERM);
    assert!(health.until("/readyz", 503)[0].contains("it drains"));
    let (code, answer) = health.ask("/healthz");
    assert_eq!((code, &answer["running"]), (200, &json!(1)));
    eventually("its state is told", || (health.ask("/health").1["state"] == "draining").then_some(()));
    folder.run(&["revoke", &running, "--terminate"]).ended(0);
    worker.end().ended(0);
}

#[test]
fn a_worker_whose_only_key_was_revoked_cannot_work_and_says_so() {
    let folder = Folder::with("key_file = \"own.key\"\n");
    folder.key("own.key", "own");
    let (worker, health) = HealthClient::start(&folder, &[]);
    folder.write("machinist.toml", "[[keys]]\nid = \"own\"\nstate = \"revoked\"\n");
    worker.signal(Signal::SIGHUP);
    let answer = eventually("it is red", || {
        let (code, answer) = health.ask("/health");
        (code == 503).then_some(answer)
    });
    assert_eq!(
        (&answer["color"], &answer["reason"]),
        (&json!("red"), &json!("no key signs, so it takes no tasks"))
    );
    worker.stop().ended(0);
}

#[test]
fn silent_connections_keep_nobody_from_an_answer() {
    let folder = Folder::new();
    let (worker, health) = HealthClient::start(&folder, &[]);
    let silent = |beginning: &str| {
        let mut stream = TcpStream::connect(&health.0).unwrap();
        stream.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
        stream.write_all(beginning.as_bytes()).unwrap();
        stream
    };
    let mut open: Vec<_> =
        (0..300).map(|n| silent(if n % 2 == 0 { "" } else { "GET /healthz HTTP" })).collect();
    assert_eq!(health.get("/healthz").0, 200);
    // The oldest are closed, and so are the others in the end.
    for stream in &mut open {
        let mut rest = Vec::new();
        match stream.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
        }
    }
    assert_eq!(health.get("/readyz").0, 200);
    worker.stop().ended(0);
}

#[test]
fn an_address_that_cannot_be_served_is_reported() {
    let folder = Folder::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let flags = ["worker", "--demo", "--health", &address];
    folder.run(&flags).ended(78).reports(&["--health", &address]);
    folder.run(&["worker", "--demo", "--health", "8080"]).ended(64).reports(&["--health"]);
}

/// Servers behind proxies that can stop forwarding.
struct Silent {
    runtime: tokio::runtime::Runtime,
    broker: Proxy,
    backend: Proxy,
    folder: Folder,
}

impl Silent {
    fn new(test: &str) -> Option<Self> {
        let mut folder = servers(test)?;
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let before =
            |variable: &str| runtime.block_on(Proxy::before(&std::env::var(variable).unwrap())).unwrap();
        let (broker, broker_url) = before("MACHINIST_TEST_AMQP_URL");
        let (backend, backend_url) = before("MACHINIST_TEST_REDIS_URL");
        folder.set("MACHINIST_BROKER", &broker_url);
        folder.set("MACHINIST_BACKEND", &backend_url);
        Some(Self { runtime, broker, backend, folder })
    }
}

#[test]
fn a_silent_broker_is_no_health_until_it_answers_again() {
    let Some(silent) = Silent::new("a_silent_broker_is_no_health_until_it_answers_again") else { return };
    let (worker, health) = HealthClient::start(&silent.folder, &[]);
    assert_eq!(health.until("/healthz", 200), [""; 0]);
    // Connections stay open, but nothing is forwarded, as with a frozen broker.
    silent.broker.stall();
    let wrong = health.until("/healthz", 503);
    assert!(wrong.len() == 1 && wrong[0].starts_with("broker: "), "{wrong:?}");
    // At once: each of them waits for the broker.
    let (code, colored) = std::thread::scope(|scope| {
        let colored = scope.spawn(|| health.ask("/health"));
        let wrong = health.until("/readyz", 503);
        assert!(wrong.iter().all(|text| text.starts_with("broker: ")), "{wrong:?}");
        colored.join().unwrap()
    });
    assert_eq!((code, &colored["color"]), (200, &json!("yellow")), "{colored}");
    assert!(colored["reason"].as_str().unwrap().contains("broker"), "{colored}");
    silent.broker.pass();
    assert_eq!(health.until("/healthz", 200), [""; 0]);
    health.until("/readyz", 200);
    silent.folder.run(&["send", "add", "1", "2", "--wait=10m"]).ended(0);
    worker.stop().ended(0);
    drop(silent.runtime);
}

#[test]
fn a_silent_backend_is_no_readiness_and_no_illness() {
    let Some(silent) = Silent::new("a_silent_backend_is_no_readiness_and_no_illness") else { return };
    let (worker, health) = HealthClient::start(&silent.folder, &[]);
    health.until("/readyz", 200);
    silent.backend.stall();
    let wrong = health.until("/readyz", 503);
    assert!(wrong.len() == 1 && wrong[0].starts_with("backend: "), "{wrong:?}");
    health.until("/healthz", 200);
    silent.backend.pass();
    health.until("/readyz", 200);
    worker.stop().ended(0);
    drop(silent.runtime);
}

/// Socket of a service manager.
struct Manager(UnixDatagram);

impl Manager {
    fn listen(folder: &mut Folder) -> Self {
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
        folder.set("NOTIFY_SOCKET", &path.display().to_string());
        Self(socket)
    }

    /// Reads until a notification contains this.
    fn until(&self, word: &str) -> String {
        let mut buffer = [0; 4096];
        loop {
            let length =
                self.0.recv(&mut buffer).unwrap_or_else(|error| panic!("not told {word:?}: {error}"));
            let told = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if told.lines().any(|line| line.starts_with(word)) {
                return told;
            }
        }
    }
}

#[test]
fn systemd_is_told_when_it_is_ready_well_and_stopping() {
    let mut folder =
        Folder::with("[tasks.told]\ncommand = [\"sh\", \"-c\", \"echo $NOTIFY_SOCKET$WATCHDOG_USEC\"]\n");
    let manager = Manager::listen(&mut folder);
    folder.set("WATCHDOG_USEC", "200000");
    let worker = folder.worker(&[]);
    assert!(manager.until("READY=1").contains("STATUS="));
    manager.until("WATCHDOG=1");
    manager.until("WATCHDOG=1");
    assert_eq!(folder.outcome(&["told"])["results"], json!([]), "a task must not speak for its worker");
    worker.signal(Signal::SIGTERM);
    manager.until("STOPPING=1");
    worker.end().ended(0);
}

#[test]
fn systemd_is_told_nothing_good_of_a_worker_that_consumes_nothing() {
    let test = "systemd_is_told_nothing_good_of_a_worker_that_consumes_nothing";
    let Some(mut silent) = Silent::new(test) else { return };
    let manager = Manager::listen(&mut silent.folder);
    silent.folder.set("WATCHDOG_USEC", "200000");
    let worker = silent.folder.worker(&["--demo"]);
    manager.until("WATCHDOG=1");
    silent.broker.stall();
    manager.until("STATUS=broker: ");
    // From now on every notification reports the problem, until it is solved.
    for _ in 0..3 {
        assert!(!manager.until("").contains("WATCHDOG=1"));
    }
    silent.broker.pass();
    manager.until("WATCHDOG=1");
    worker.stop().ended(0);
    drop(silent.runtime);
}
