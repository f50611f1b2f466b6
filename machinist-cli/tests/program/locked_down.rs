//! TLS with client certificates, and users with minimal permissions: on servers that this test starts, with the lines
//! that `docs/production.md` gives to operators.

use std::path::{Path, PathBuf};

use machinist_conformance::{Authority, Papers, service_url};
use serde_json::json;
use xtask::{
    interrupt::Interrupt,
    services::{self, Services},
};

use crate::support::{Folder, Ran};

const PRODUCTION: &str = include_str!("../../../docs/production.md");

/// RabbitMQ and Redis with TLS ports next to the plain ones; ended when dropped.
struct Private {
    services: Services,
    authority: Authority,
    folder: PathBuf,
    amqp: u16,
    redis: u16,
    amqps: u16,
    rediss: u16,
}

impl Private {
    /// Starts the servers. Returns `None` if tests with servers are not requested.
    fn start() -> Option<Self> {
        service_url("MACHINIST_TEST_AMQP_URL")?;
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("locked-down");
        std::fs::create_dir_all(&folder).unwrap();
        let authority = Authority::new("authority of this test").unwrap();
        let ca = folder.join("ca.pem");
        std::fs::write(&ca, authority.certificate()).unwrap();
        let (certificate, key) = authority.server("localhost").unwrap().write(&folder, "server").unwrap();
        let services = Services::at(&folder.join("servers")).unwrap();
        // A killed test may have left files.
        services.down().unwrap();
        let services = services.with_tls(services::Papers { ca, certificate, key });
        let up = services.up(&Interrupt::listen().unwrap()).unwrap();
        let port = |url: &str| url.rsplit(':').next().unwrap().split('/').next().unwrap().parse().unwrap();
        let (amqps, rediss) = services.tls_ports().unwrap();
        let amqp = port(&up.endpoints.amqp_url);
        let redis = port(&up.endpoints.redis_url);
        Some(Self { services, authority, folder, amqp, redis, amqps, rediss })
    }

    fn ctl(&self, args: &[&str]) {
        self.services.rabbitmqctl(args).unwrap();
    }

    /// Returns a folder with settings that log in by certificate, and the files of TLS.
    fn encrypted(&self, login: Option<&Papers>) -> Folder {
        let mut folder = Folder::new();
        folder.set("MACHINIST_KEY_FILE", &folder.key("test.key", "test"));
        folder.set(
            "MACHINIST_BROKER",
            &format!("amqps://localhost:{}/%2f?auth_mechanism=external", self.amqps),
        );
        folder.set("MACHINIST_BACKEND", &format!("rediss://localhost:{}/0", self.rediss));
        folder.set("MACHINIST_NAMESPACE", "tls");
        folder.set("MACHINIST_TLS_CA_FILE", &self.folder.join("ca.pem").display().to_string());
        if let Some(login) = login {
            let (certificate, key) = login.write(folder.path(), "login").unwrap();
            folder.set("MACHINIST_TLS_CERT_FILE", &certificate.display().to_string());
            folder.set("MACHINIST_TLS_KEY_FILE", &key.display().to_string());
        }
        folder
    }

    /// Returns a folder with settings that log in by password; only the operator declares queues.
    fn role(&self, user: &str, key: &str) -> Folder {
        let mut folder = Folder::new();
        folder.set("MACHINIST_KEY_FILE", key);
        folder.set(
            "MACHINIST_BROKER",
            &format!("amqp://machinist-{user}:PASSWORD@127.0.0.1:{}/%2f", self.amqp),
        );
        folder.set("MACHINIST_BACKEND", &format!("redis://machinist:PASSWORD@127.0.0.1:{}/0", self.redis));
        if user != "operator" {
            folder.set("MACHINIST_TOPOLOGY", "verify");
        }
        folder
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        // Otherwise its processes end with the next start.
        let _ = self.services.down();
    }
}

/// Returns the lines of the document that begin with `start`.
fn documented(start: &str) -> Vec<&'static str> {
    let lines: Vec<&str> = PRODUCTION.lines().map(str::trim).filter(|line| line.starts_with(start)).collect();
    assert!(!lines.is_empty(), "docs/production.md has no line that begins with {start:?}");
    lines
}

#[test]
fn locked_down_servers() {
    let Some(private) = Private::start() else { return };
    tls(&private);
    least_rights(&private);
    expired(&private);
}

fn tls(private: &Private) {
    private.ctl(&["add_user", "app", "by certificate only"]);
    private.ctl(&["set_permissions", "-p", "/", "app", ".*", ".*", ".*"]);
    let own = private.authority.client("app").unwrap();
    let folder = private.encrypted(Some(&own));
    folder.run(&["init"]).ended(0);
    let worker = folder.worker(&["--demo"]);
    assert_eq!(folder.outcome(&["add", "2", "3"])["results"], json!([5]));
    let doctor = folder.run(&["doctor"]).ended(0).stdout;
    assert!(doctor.contains(&format!("amqps://localhost:{}", private.amqps)), "{doctor}");
    let config = folder.run(&["config"]).ended(0).stdout;
    assert!(config.contains("tls.cert_file") && config.contains("MACHINIST_TLS_CERT_FILE"), "{config}");
    worker.stop().ended(0);

    let amqps = private.amqps;
    let rediss = private.rediss;
    let theirs = Authority::new("somebody else").unwrap();
    let foreign = folder.write("foreign.pem", theirs.certificate()).display().to_string();
    told_by_both(
        &folder.run(&["doctor", "--tls-ca-file", &foreign]),
        ["from an authority that is not trusted here", "--tls-ca-file"],
    );
    told_by_both(
        &folder.run(&[
            "doctor",
            "--broker",
            &format!("amqps://127.0.0.1:{amqps}/%2f?auth_mechanism=external"),
            "--backend",
            &format!("rediss://127.0.0.1:{rediss}/0"),
        ]),
        ["has a certificate for \"localhost\"", "not for \"127.0.0.1\""],
    );
    let without = private.encrypted(None);
    told_by_both(
        &without.run(&["doctor", "--broker", &format!("amqps://guest:guest@localhost:{amqps}/%2f")]),
        ["requires a client certificate", "--tls-cert-file"],
    );
    let nobody = without.run(&["queues"]).ended(78).stderr;
    assert!(nobody.contains("logs in by certificate"), "{nobody}");
    told_by_both(
        &private.encrypted(Some(&theirs.client("app").unwrap())).run(&["doctor"]),
        ["does not accept our certificate", "its authority is not trusted there"],
    );
    let unknown = private.encrypted(Some(&private.authority.client("stranger").unwrap()));
    let doctor = unknown.run(&["doctor"]).stdout;
    assert!(doctor.contains("does not let the name in our certificate in"), "{doctor}");

    told_by_both(
        &folder.run(&[
            "doctor",
            "--broker",
            &format!("amqp://guest:guest@localhost:{amqps}/%2f"),
            "--backend",
            &format!("redis://localhost:{rediss}/0"),
        ]),
        ["speaks TLS on this port", "or the port without TLS"],
    );
    told_by_both(
        &folder.run(&[
            "doctor",
            "--broker",
            &format!("amqps://guest:guest@localhost:{}/%2f", private.amqp),
            "--backend",
            &format!("rediss://localhost:{}/0", private.redis),
        ]),
        ["does not speak TLS on this port", ""],
    );
    let missing = folder.run(&["doctor", "--tls-ca-file", "/nowhere/ca.pem"]);
    told_by_both(&missing, ["tls: cannot read /nowhere/ca.pem", "No such file"]);
}

/// Checks expired certificates; last, because afterwards no connection succeeds.
fn expired(private: &Private) {
    private.authority.expired("localhost").unwrap().write(&private.folder, "server").unwrap();
    private.ctl(&["eval", "ssl:clear_pem_cache()."]);
    let certificate = private.folder.join("server.pem").display().to_string();
    let key = private.folder.join("server.key").display().to_string();
    private
        .services
        .redis_command(&format!("CONFIG SET tls-cert-file {certificate} tls-key-file {key}"))
        .unwrap();
    let folder = private.encrypted(Some(&private.authority.client("app").unwrap()));
    told_by_both(&folder.run(&["doctor"]), ["expired at 2021-01-01T00:00:00Z", "have it renewed"]);
}

/// Checks that the doctor reports the problem for the broker and for the backend.
#[track_caller]
fn told_by_both(ran: &Ran, words: [&str; 2]) {
    assert_ne!(ran.code, 0, "{ran:?}");
    let broker = ran.stdout.split("\nbackend").next().unwrap();
    let backend = ran.stdout.split("\nbackend").nth(1).unwrap_or_default();
    for word in words {
        assert!(broker.contains(word) && backend.contains(word), "{word:?} is missing: {}", ran.stdout);
    }
}

fn least_rights(private: &Private) {
    for line in documented("rabbitmqctl ") {
        let words: Vec<&str> = line.split_whitespace().skip(1).map(|word| word.trim_matches('\'')).collect();
        private.ctl(&words);
    }
    for line in documented("ACL SETUSER ") {
        private.services.redis_command(line).unwrap();
    }
    let keys = Folder::new();
    let key = keys.key("test.key", "test");
    let role = |user| private.role(user, &key);
    let sender = role("sender");
    let worker = role("worker");
    let operator = role("operator");

    // Nothing exists yet, and only the operator may create it.
    let doctor = worker.run(&["doctor"]).ended(78).stdout;
    assert!(
        doctor.contains("does not exist on the broker") && doctor.contains("queues --declare"),
        "{doctor}"
    );
    worker.run(&["worker", "--demo"]).ended(77).reports(&["queue default does not exist on the broker"]);
    let queues = operator.run(&["queues", "--declare", "--json"]).ended(0).json();
    assert_eq!(queues[0]["ready"], json!(0), "{queues}");
    operator.run(&["doctor"]).ended(0);
    for folder in [&sender, &worker] {
        let doctor = folder.run(&["doctor"]).ended(0).stdout;
        assert!(doctor.contains("topology: all that worker.queues need is there"), "{doctor}");
    }

    // Tasks of all kinds: immediate, delayed, failed with a retry, and finally failed.
    let running = worker.worker(&["--demo"]);
    assert_eq!(sender.outcome(&["add", "2", "3"])["results"], json!([5]));
    assert_eq!(sender.outcome(&["add", "1", "2", "--countdown", "200ms"])["results"], json!([3]));
    let failed = sender.outcome(&["fail", "--retries", "1", "--backoff", "fixed:50ms"]);
    assert_eq!(failed["attempt"], json!(2), "{failed}");
    let id = failed["id"].as_str().unwrap();
    sender.run(&["status", id]).ended(1);
    let waiting = sender.send(&["add", "1", "1", "--countdown", "1h"]);
    sender.run(&["scheduled"]).ended(0);
    sender.run(&["revoke", &waiting]).ended(0);
    let queues = operator.run(&["queues", "--json"]).ended(0).json();
    assert_eq!(queues[0]["dead"], json!(1), "{queues}");
    running.stop().ended(0);

    // Other actions are refused, with the reason.
    sender
        .run(&["worker", "--demo"])
        .ended(77)
        .reports(&["may not consume queue default", "grant read on it"]);
    let elsewhere = sender.run(&["send", "add", "2", "3", "--queue", "elsewhere"]);
    elsewhere.ended(78).reports(&["elsewhere"]);
    let mut makes = role("worker");
    makes.set("MACHINIST_TOPOLOGY", "declare");
    makes
        .run(&["send", "add", "2", "3", "--queue", "elsewhere"])
        .ended(77)
        .reports(&["this user may not declare", "topology to \"verify\""]);
    let mut other = role("sender");
    other.set("MACHINIST_NAMESPACE", "other");
    let doctor = other.run(&["doctor"]).stdout;
    assert!(doctor.contains("NOPERM") && doctor.contains("ACL SETUSER"), "{doctor}");
}
