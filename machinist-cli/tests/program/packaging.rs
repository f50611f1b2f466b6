//! The files with which packages, services and containers run the program.

use std::{net::TcpListener, path::PathBuf, process::Command};

use crate::support::Folder;

fn checkout(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

#[test]
fn systemd_accepts_the_hardened_unit() {
    let Ok(version) = Command::new("systemd-analyze").arg("--version").output() else {
        eprintln!("skipped: systemd-analyze is not installed");
        return;
    };
    assert!(version.status.success(), "{version:?}");
    // The program of this build in place of the installed one, whose manual page is missing here.
    let unit = std::fs::read_to_string(checkout("packaging/systemd/machinist-worker.service")).unwrap();
    let unit = unit.replace("/usr/bin/machinist", env!("CARGO_BIN_EXE_machinist"));
    let unit: String =
        unit.lines().filter(|line| !line.starts_with("Documentation=")).collect::<Vec<_>>().join("\n");
    let folder = Folder::new();
    let path = folder.write("machinist-worker.service", &unit);
    let analyze = |arguments: &[&str]| {
        let ran = Command::new("systemd-analyze").args(arguments).arg(&path).output().unwrap();
        let printed = String::from_utf8_lossy(&ran.stdout) + String::from_utf8_lossy(&ran.stderr);
        assert!(ran.status.success(), "{arguments:?}: {printed}");
        printed.into_owned()
    };
    let complaints = analyze(&["verify", "--man=no"]);
    assert!(!complaints.contains("machinist-worker.service:"), "{complaints}");
    // In tenths: 2 of 10.
    analyze(&["security", "--offline=true", "--threshold=20"]);
}

#[test]
fn the_probe_of_the_image_follows_the_health_of_a_worker() {
    let folder = Folder::new();
    let probe = |address: &str| {
        Command::new("bash").arg(checkout("docker/healthcheck")).arg(address).output().unwrap()
    };
    let mut worker = folder.start(&["worker", "--demo", "--health", "127.0.0.1:0"]);
    let line = worker.stderr.until("/healthz");
    let address = line.split("http://").nth(1).unwrap().split('/').next().unwrap().to_owned();
    worker.stderr.until("is ready");
    let probed = probe(&address);
    assert!(probed.status.success(), "{probed:?}");
    worker.stop().ended(0);
    assert!(!probe(&address).status.success());
    // A server that is no worker.
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap().to_string();
    std::thread::spawn(move || drop(other.accept()));
    assert!(!probe(&address).status.success());
}

#[test]
fn the_settings_of_the_worker_in_compose_are_valid() {
    let mut folder = Folder::new();
    let settings = std::fs::read_to_string(checkout("docker/worker.toml")).unwrap();
    folder.write("machinist.toml", &settings);
    let key = std::fs::read_to_string(folder.key("k", "2026")).unwrap();
    folder.set("MACHINIST_KEY", &key);
    folder.run(&["config"]).ended(0);
    let _worker = folder.worker(&[]);
    assert_eq!(folder.outcome(&["greet", "World"])["results"][0], "Hello, World!");
}

#[cfg(feature = "man")]
#[test]
fn every_command_has_a_manual_page() {
    let folder = Folder::new();
    folder.run(&["man", "pages"]).ended(0);
    for page in ["machinist.1", "machinist-worker.1", "machinist-queues-purge.1"] {
        let text = std::fs::read_to_string(folder.path().join("pages").join(page)).unwrap();
        assert!(text.contains(".SH SYNOPSIS"), "{page}: {text}");
    }
}
